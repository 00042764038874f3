"""Resolve pyproject.toml anew: requirements.lock (hashes, all systems) and environment.yml: `make lock`."""

import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("test", "jax")
CONDA_PYTHON = "3.12"
HEADER = """\
# conda env create -f environment.yml && conda activate covidlib && pip install --no-deps -e .
# The direct dependencies at the versions of requirements.lock; `make lock` writes both.
"""


def locked(lock: str, python: str) -> dict[str, str]:
    """Pinned versions by name, as the lock's markers choose them for one Python version."""
    pins = {}
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.rstrip(" \\"))
            environment = {"python_version": python, "python_full_version": f"{python}.0"}
            if requirement.marker is None or requirement.marker.evaluate(environment):
                pins[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return pins


def direct(project: dict) -> list[Requirement]:
    """The requirements that pyproject.toml names for the environment, extras included."""
    extras = project["optional-dependencies"]
    return [Requirement(text) for text in project["dependencies"] + [t for name in EXTRAS for t in extras[name]]]


def main():
    subprocess.run(["uv", "pip", "compile", "pyproject.toml", *(f"--extra={name}" for name in EXTRAS), "--universal",
                    "--python-version=3.11", "--generate-hashes", "--no-emit-index-url", "--no-header", "--quiet",
                    "--output-file=requirements.lock"], cwd=ROOT, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = locked((ROOT / "requirements.lock").read_text(encoding="utf-8"), CONDA_PYTHON)
    names = sorted({canonicalize_name(requirement.name) for requirement in direct(project)})
    lines = ["name: covidlib", "channels: [conda-forge]", "dependencies:", f"  - python={CONDA_PYTHON}", "  - pip",
             "  - pip:", *(f"      - {name}=={pins[name]}" for name in names)]
    (ROOT / "environment.yml").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
