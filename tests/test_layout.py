"""The layout: data flows downwards through the sub-packages, and nothing else lies at covidlib's top level."""

import subprocess
import sys


def test_imports_go_downwards(repository):
    """[tool.importlinter] in pyproject.toml names the order."""
    done = subprocess.run([sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
                          cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout[-3000:]


def test_a_broken_rule_is_seen(repository, tmp_path):
    (tmp_path / "covidlib" / "models").mkdir(parents=True)
    (tmp_path / "covidlib" / "training").mkdir()
    for name in ("", "models", "training"):
        (tmp_path / "covidlib" / name / "__init__.py").write_text("")
    (tmp_path / "covidlib" / "models" / "weights.py").write_text("from covidlib import training\n")
    rule = (repository / "pyproject.toml").read_text(encoding="utf-8").split("[tool.importlinter]")[1]
    rule = rule.split("layers = [")[0].replace(', "study", "benchmarks"', "")
    rule += 'layers = ["covidlib.training", "covidlib.models"]'
    (tmp_path / "pyproject.toml").write_text(f"[tool.importlinter]{rule}")
    done = subprocess.run([sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "covidlib.models is not allowed to import covidlib.training" in done.stdout


def test_covidlib_holds_packages_alone(repository):
    assert [path.name for path in (repository / "covidlib").glob("*.py")] == ["__init__.py"]
