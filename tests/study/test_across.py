"""Networks of one set answer the slices of another."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import datasets
from covidlib.models import build_classifier
from covidlib.training import runs
from study import across


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two sets of squares, each with one network (as built: what it answers does not matter here)."""
    home = tmp_path_factory.mktemp("across")
    homes = []
    for number, name in enumerate(("one", "other")):
        rng = np.random.default_rng(number)
        for label in ("covid", "non_covid"):
            (home / name / label).mkdir(parents=True)
            for n in range(6):
                picture = rng.integers(0, 60, (48, 48), dtype=np.uint8)
                picture[12:36, 12:36] += 150 if label == "covid" else 20
                Image.fromarray(picture).save(home / name / label / f"{n}.png")
        source = datasets.load("folder", home / name)
        folder, run = home / "runs" / name, home / "runs" / name / "resnet50" / "seed-0"
        datasets.save(datasets.replace(source, name=name), folder)
        run.mkdir(parents=True)
        build_classifier("resnet50", source.classes, 32, precision="float32").save(run / "model.keras")
        runs.write_json(run / "run.json", {"parameters": {"variant": "resnet50", "seed": 0, "image_size": 32,
                                                           "preparation": "lungs"},
                                           "classes": list(source.classes)})
        for table in ("history", "predictions"):
            (run / f"{table}.csv").write_text("path\n")
        shutil.copytree(run, run.with_name("seed-1"))  # not the experiment's
        homes.append(folder)
    return homes


def test_both_ways_and_only_once(folders, capsys):
    assert across.main(list(map(str, folders))) == 0
    assert len(capsys.readouterr().out.split()) == 2
    table = runs.read_predictions(folders[0] / "resnet50/seed-0/across-other.csv")
    assert len(table) == 12 and set(table.label) == {"covid", "non_covid"}
    assert np.allclose(table.p_covid + table.p_non_covid, 1, atol=1e-5)
    assert not (folders[0] / "resnet50/seed-1/across-other.csv").exists()
    assert across.main(list(map(str, folders))) == 0 and capsys.readouterr().out == ""


def test_other_classes_are_refused(folders):
    run = runs.read_run(folders[0] / "resnet50" / "seed-0")
    manifest = pd.DataFrame({"path": ["a.png"], "label": ["cap"], "patient": "", "split": "", "slice_index": 0})
    source = datasets.Source(manifest, ("cap",), folders[0], "third")
    with pytest.raises(ValueError, match="third has others"):
        across.predict(run, source, np.zeros((1, 32, 32), np.uint8))


def test_a_folder_without_runs_is_an_error(tmp_path, capsys):
    assert across.main([str(tmp_path), str(tmp_path)]) == 2
    assert "run notebook 00_data first" in capsys.readouterr().err
