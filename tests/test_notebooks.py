"""The notebooks: their form, nbval over all of them in order, and what they say to wrong parameters."""

import ast
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import every_process

NAMES = ["00_data", "01_augmentation", "02_model", "03_training", "04_evaluation", "05_baselines", "06_speed",
         "07_report", "08_predict"]
MEANINGS = {"dataset", "data_root", "variant", "weights", "image_size", "epochs", "batch_size", "seed", "precision",
            "slices_per_class", "output_dir"}


@pytest.fixture(params=[*NAMES, "app"])
def notebook(request, repository):
    return request.param, nbformat.read(repository / "notebooks" / f"{request.param}.ipynb", 4)


def parameters(notebook):
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))


def test_form(notebook):
    name, content = notebook
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert content.cells[0].cell_type == "markdown" and content.cells[0].source.startswith("# ")
    assert "assert " in code[-1].source, "the closing cell asserts what the notebook showed"
    assert max(len(cell.source.splitlines()) for cell in code
               if "parameters" not in cell.metadata.get("tags", [])) <= 16
    for cell in code:
        if "nbval-check-output" in cell.metadata.get("tags", []):
            assert cell.outputs, f"{name}: a checked cell without a stored output compares nothing"
        else:
            assert not cell.outputs, f"{name}: outputs are kept only where nbval compares them"
    if name != "app":
        assert "What the paper says" in content.cells[0].source
        assert any("provenance.show(parameters" in cell.source for cell in code)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_annotated_explained_and_readable_for_papermill(name, repository):
    import papermill

    path = repository / "notebooks" / f"{name}.ipynb"
    source = parameters(nbformat.read(path, 4)).source
    found = papermill.inspect_notebook(str(path))
    assert list(found) == [node.target.id for node in ast.parse(source).body]
    for parameter, entry in found.items():
        assert entry["inferred_type_name"] in {"str", "int", "float", "bool", "list"}, parameter
        assert entry["help"], f"{parameter} has no explaining comment"
    assert "output_dir" in found


def test_a_parameter_has_the_same_default_everywhere(repository):
    import papermill

    defaults = {}
    for name in NAMES:
        for parameter, entry in papermill.inspect_notebook(str(repository / "notebooks" / f"{name}.ipynb")).items():
            if parameter in MEANINGS - {"output_dir", "data_root", "image_size"}:
                defaults.setdefault(parameter, set()).add(entry["default"])
    assert {key: values for key, values in defaults.items() if len(values) > 1} == {}


@pytest.fixture(scope="module")
def copy(repository, tmp_path_factory):
    """The notebooks in a folder of their own, so that their defaults write there."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(repository / "notebooks", folder / "notebooks",
                    ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "pyproject.toml").touch()
    return folder


@pytest.mark.slow
def test_nbval_over_all_notebooks_in_order(copy):
    files = [f"notebooks/{name}.ipynb" for name in [*NAMES, "app"]]
    done = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "-q", "-c",
                           os.devnull, "--rootdir", str(copy), *files], cwd=copy, capture_output=True, text=True,
                          env=every_process())
    assert done.returncode == 0, done.stdout[-6000:]
    assert (copy / "reports/phantom/smoke/claims.json").is_file()
    assert (copy / "runs/phantom/smoke/predict/sheet.html").is_file()


def test_nbval_notices_a_changed_output(copy, tmp_path):
    path = tmp_path / "05.ipynb"
    content = nbformat.read(copy / "notebooks" / "05_baselines.ipynb", 4)
    kept = [cell for cell in content.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    content.cells = [nbformat.v4.new_code_cell("from covidlib.evaluation import statistics"), *kept]
    kept[0].outputs[0]["text"] = re.sub(r"z = [\d.]+", "z = 9.9", kept[0].outputs[0]["text"])
    nbformat.write(content, path)
    done = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:cacheprovider", "-q", "-c",
                           os.devnull, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "9.9" in done.stdout


def run(copy, name, **parameters):
    pairs = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    return subprocess.run([sys.executable, "-m", "covidlib.utils.notebook", str(copy / "notebooks" / f"{name}.ipynb"),
                           str(copy / "out" / f"{name}.ipynb"), *pairs], capture_output=True, text=True)


@pytest.mark.parametrize("name, given, message", [
    ("03_training", {"epoch": 3}, "did you mean epochs"),
    ("03_training", {"epochs": "many"}, "epochs must be of type int. Received: epochs='many'"),
    ("00_data", {"dataset": "ucsd"}, "dataset must be one of"),
    ("08_predict", {"model_path": "nothing-here.keras"}, "03_training"),
])
def test_a_wrong_parameter_is_a_clear_error_and_leaves_nothing(copy, name, given, message):
    done = run(copy, name, **given)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert not (copy / "out" / f"{name}.ipynb").exists()


def carry_out(copy, name, **given):
    """The notebook's cells, one after the other in this process, which has no kernel to start."""
    space = {"__annotations__": {}}
    for cell in nbformat.read(copy / "notebooks" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= given


@pytest.mark.parametrize("name, given, message", [
    ("00_data", {"dataset": "folder", "data_root": "nowhere"}, "nowhere"),
    ("00_data", {"fold": -5}, "Received: fold=-5"),
    ("00_data", {"slices_per_class": [3, 3]}, "slices_per_class must be 3 whole numbers"),
    ("00_data", {"fold": 9}, "Received: fold=9"),
    ("00_data", {"split": "nonsense"}, "split must be own or one that is shipped"),
    ("00_data", {"on_error": "ignore"}, "Received: on_error='ignore'"),
    ("02_model", {"variant": "resnet51"}, "resnet50"),
    ("03_training", {"output_dir": "nothing-here"}, "run notebook 00_data first"),
    ("04_evaluation", {"output_dir": "nothing-here"}, "00_data first"),
    ("05_baselines", {"output_dir": "nothing-here"}, "run notebook 03_training first"),
    ("07_report", {"runs_dir": "nothing-here"}, "first"),
])
def test_a_wrong_value_or_a_missing_artifact_is_named(copy, monkeypatch, name, given, message):
    monkeypatch.chdir(copy / "notebooks")
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        carry_out(copy, name, **given)
    assert not (copy / "notebooks" / "nothing-here").exists()


@pytest.mark.parametrize("given, message", [
    ({"epochs": 0}, "Received: epochs=0"),
    ({"variant": "resnet51"}, "did you mean"),
    ({"batch_size": 0}, "Received: batch_size=0"),
    ({"weights": "no-such.h5"}, "no-such.h5"),
])
def test_a_bad_value_leaves_no_run(copy, monkeypatch, given, message):
    if not (copy / "runs/phantom/smoke/manifest.csv").is_file():
        assert run(copy, "00_data").returncode == 0
    monkeypatch.chdir(copy / "notebooks")
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        carry_out(copy, "03_training", **{"variant": "resnet50", "seed": 77, **given})
    assert not list((copy / "runs/phantom/smoke").glob("*/seed-77*"))
