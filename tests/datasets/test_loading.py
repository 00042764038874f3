"""Loading, bounding, saving and opening data sets."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import datasets


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "my scans"
    for label, patients in {"covid": 5, "normal": 4}.items():
        for number in range(patients):
            (folder / label / f"P{number}").mkdir(parents=True)
            for k in range(3):
                image = np.random.default_rng([number, k, len(label)]).integers(0, 255, (9, 9), np.uint8)
                Image.fromarray(image).save(folder / label / f"P{number}" / f"s {k}%.png")
    return folder


def test_unknown_set_and_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="dataset must be one of phantom, folder.*Received: dataset='ucsd'"):
        datasets.load("ucsd", tmp_path)
    with pytest.raises(ValueError, match="data_root must name the folder of ucsd-covid-ct"):
        datasets.load("ucsd-covid-ct")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        datasets.load("folder", tmp_path / "absent")
    for name in datasets.NAMES[2:]:
        with pytest.raises((FileNotFoundError, ValueError), match=f"is not a {name} folder.* hold"):
            datasets.load(name, tmp_path)


def test_bounds_spread_over_patients_and_follow_the_seed(root):
    source = datasets.load("folder", root, slices_per_class=[5, 4], seed=1)
    assert source.manifest.label.value_counts().to_dict() == {"covid": 5, "normal": 4}
    assert source.manifest.groupby("label").patient.nunique().to_dict() == {"covid": 5, "normal": 4}
    assert "A subset of 9 of the set's 27 slices" in source.notes[-1]
    same = datasets.load("folder", root, slices_per_class=(5, 4), seed=1).manifest
    other = datasets.load("folder", root, slices_per_class=(5, 4), seed=2).manifest
    assert source.manifest.equals(same) and not source.manifest.equals(other)
    whole = datasets.load("folder", root, slices_per_class=(500, 400))
    assert len(whole.manifest) == 27 and whole.notes == []


@pytest.mark.parametrize("counts", [(1, 2, 3), (0, 4), (4, -1), 0, (2.5, 2), "ab"])
def test_bad_bounds(root, counts):
    with pytest.raises(ValueError, match="must be 2 whole numbers.*covid, normal.*slices_per_class="):
        datasets.load("folder", root, slices_per_class=counts)


def test_save_and_open(root, tmp_path):
    source = datasets.load("folder", root)
    datasets.save(source, tmp_path / "runs" / "a")
    opened = datasets.open_saved(tmp_path / "runs" / "a")
    pd.testing.assert_frame_equal(opened.manifest.drop(columns="sha256"), source.manifest)
    assert (opened.classes, opened.name, opened.notes) == (source.classes, source.name, source.notes)
    assert opened.root.resolve() == root.resolve() and opened.manifest.sha256.str.len().eq(64).all()
    description = json.loads((tmp_path / "runs" / "a" / "dataset.json").read_text())
    assert description["slices"] == 27 and description["patients"] == 9
    assert description["counts"] == {"": {"covid": 15, "normal": 12}}
    assert not description["root"].startswith("/") and "\\" not in "".join(source.manifest.path)
    names = sorted(path.name for path in (tmp_path / "runs" / "a").iterdir())
    assert names == ["dataset.json", "manifest.csv"]
    datasets.save(opened, tmp_path / "runs" / "b")
    first, second = ((tmp_path / "runs" / name / "manifest.csv").read_bytes() for name in "ab")
    assert first == second


def test_open_what_is_absent_changed_or_moved(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 00_data first"):
        datasets.open_saved(tmp_path / "none")
    datasets.save(datasets.load("folder", root), tmp_path / "out")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="Give their folder as data_root"):
        datasets.open_saved(tmp_path / "out")
    assert len(datasets.open_saved(tmp_path / "out", tmp_path / "elsewhere").manifest) == 27
    with open(tmp_path / "out" / "manifest.csv", "a") as file:
        file.write("x.png,covid,,,,0,0\n")
    with pytest.raises(ValueError, match="run notebook 00_data again"):
        datasets.open_saved(tmp_path / "out", tmp_path / "elsewhere")


def test_failed_save_leaves_nothing_behind(root, tmp_path):
    source = datasets.load("folder", root)
    (root / source.manifest.path[0]).unlink()
    with pytest.raises(FileNotFoundError, match="listed in the manifest and does not exist"):
        datasets.save(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
