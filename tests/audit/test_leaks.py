"""Audit: leaks, label conflicts, and what predicts the label but disease, on sets built to have them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from covidlib import datasets
from covidlib.audit import leaks, shortcuts
from covidlib.datasets import decode


def picture(seed, size=96):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), 4)
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def make_set(root, official=False, jpeg_for="normal"):
    """30 patients, one picture each; every class its own file type; a few copies."""
    rows = []
    for number in range(30):
        label = ("covid", "normal")[number % 2]
        kind = "jpg" if label == jpeg_for else "png"
        path = f"{number}.{kind}"
        Image.fromarray(picture(number)).save(root / path)
        rows.append({"path": path, "label": label, "patient": str(number)})
    Image.fromarray(picture(0)).resize((140, 120)).save(root / "0.png")  # shown again as 1, another label
    Image.fromarray(picture(0)).save(root / "1.jpg", quality=80)
    Image.fromarray(picture(2)).save(root / "4.png")  # the very same, same label
    manifest = pd.DataFrame(rows).assign(source="", slice_index=0)
    manifest["split"] = np.where(manifest.index < 20, "train", "test") if official else ""
    manifest.loc[[4], "split"] = "test" if official else ""
    return datasets.Source(manifest, ("covid", "normal"), root, "folder", [], official)


def audited(source, cache):
    source, found = decode.decode_dataset(source, 32, "lungs", cache, shortcuts.features)
    return leaks.audit(source, found)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return audited(make_set(tmp_path_factory.mktemp("set"), official=True), tmp_path_factory.mktemp("cache"))


def test_conflicts_and_copies_across_the_split(official):
    assert official.conflicts[["path_a", "label_a", "path_b", "label_b"]].to_numpy().tolist() == [
        ["0.png", "covid", "1.jpg", "normal"]
    ]
    assert list(official.conflicts) == ["path_a", "label_a", "path_b", "label_b", "distance"]
    assert list(official.duplicates) == ["path_a", "split_a", "path_b", "split_b", "distance", "correlation",
                                         "row_a", "row_b"]
    assert official.duplicates.iloc[0, :5].tolist() == ["2.png", "train", "4.png", "test", 0]
    assert len(official.duplicates) == 2
    text = " ".join(official.warnings)
    assert "0.png (covid) and 1.jpg (normal)" in text
    assert "In more than one part of the split: 1 x identical file (2 slices), such as 2.png" in text


def test_leaks_are_counted_by_kind(official):
    table = official.leaks.set_index(["kind", "across"])
    assert table["count"]["patient", "split"] == 0 and table["count"]["identical file", "split"] == 1
    assert table["count"]["identical file", "anywhere"] == 1
    assert table["count"]["near-duplicate group", "anywhere"] == 2
    assert table["count"]["near-duplicate group", "split"] == 1
    assert table["count"]["near-duplicate group", "label"] == 1
    assert table.slices["near-duplicate group", "label"] == 2


def test_leaks_of_the_manifest_alone():
    manifest = pd.DataFrame({
        "path": list("abcdef"), "label": list("xxyyxy"), "split": ["train", "test"] * 3,
        "patient": ["1", "1", "2", "3", "", ""], "document": ["", "", "p", "p", "q", "q"],
    })
    table = leaks.find_leaks(manifest).set_index(["kind", "across"])
    assert table["count"].to_dict() == {("patient", "split"): 1, ("patient", "label"): 0,
                                        ("source document", "split"): 2, ("source document", "label"): 1}
    assert table.examples["source document", "label"] == "q" and table.slices["patient", "split"] == 2
    assert leaks.find_leaks(manifest.assign(document="")).kind.unique().tolist() == ["patient"]


def test_slices_of_one_volume_are_no_copies_of_each_other(tmp_path):
    source = make_set(tmp_path)
    source = replace(source, manifest=source.manifest.assign(series=["v" if n in (2, 4) else "" for n in range(30)]))
    result = audited(source, tmp_path / "cache")
    assert result.duplicates[["path_a", "path_b"]].to_numpy().tolist() == [["0.png", "1.jpg"]]


def test_too_few_patients_say_so(tmp_path):
    source = make_set(tmp_path)
    source.manifest["patient"] = source.manifest.label
    result = audited(source, tmp_path / "cache")
    assert result.shortcuts.empty and "needs two patients in every class" in result.warnings[-1]


def test_written_tables_read_back(official, tmp_path):
    leaks.write(official, tmp_path / "audit")
    names = sorted(path.stem for path in (tmp_path / "audit").iterdir())
    assert names == sorted(leaks.TABLES)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "audit" / "shortcuts.csv"), official.shortcuts)


def test_a_network_is_held_against_the_baselines(official):
    networks = pd.DataFrame([["good", 0.99, 0.98, 1.0], ["middling", 0.8, 0.7, 0.9]],
                            columns=["variant", "accuracy_mean", "accuracy_low", "accuracy_high"])
    weak = official.shortcuts[official.shortcuts.baseline == "majority class"]
    weak = weak.assign(accuracy=0.5, low=0.4, high=0.6)
    assert leaks.shortcut_warnings(networks, weak) == []
    strong = weak.assign(baseline="file facts", accuracy=0.75, low=0.65, high=0.85)
    (warning,) = leaks.shortcut_warnings(networks, pd.concat([weak, strong]))
    assert warning.startswith("middling's accuracy of 0.800 (0.700 to 0.900) is not above")
    assert "file facts (files) 0.750" in warning and "majority" not in warning


def no_features(*views):
    return {}


@pytest.mark.slow
def test_ucsd_conflicts_and_shortcuts(shared_data, tmp_path):
    source = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct")
    source, found = decode.decode_dataset(source, 96, "lungs", tmp_path, no_features)
    result = leaks.audit(source, found)
    pairs = {(Path(row.path_a).name, Path(row.path_b).name) for row in result.conflicts.itertuples()}
    assert pairs == {("kjr-21-e24-p5-29.png", "71%0.jpg"), ("kjr-21-e24-p5-31.png", "71%1.jpg")}
    across = result.duplicates[result.duplicates.split_a != result.duplicates.split_b]
    assert len(across) == 2
    found = result.leaks.set_index(["kind", "across"])["count"]
    assert found["patient", "split"] == 0 and found["source document", "split"] >= 1
    table = result.shortcuts[result.shortcuts.protocol == "official test split"].set_index(["baseline", "seen"])
    assert round(table.accuracy["majority class", "files"], 3) == 0.517
    assert round(table.accuracy["file extension", "files"], 3) == 0.744
    assert table.accuracy["file facts", "files"] > 0.87 and table.auc["file facts", "files"] > 0.95


def test_a_scan_of_unknown_patients_stays_together_and_is_audited():
    manifest = pd.DataFrame({"path": list("abcd"), "label": list("xxyy"), "patient": "",
                             "series": ["s", "s", "t", None], "split": ["train", "test", "train", "test"]})
    assert datasets.patient_or_file(manifest).tolist() == ["s", "s", "t", "d"]
    table = leaks.find_leaks(manifest).set_index(["kind", "across"])
    assert table["count"]["scan", "split"] == 1 and ("patient", "split") not in table.index
    pairs = pd.DataFrame({"a": [0], "b": [1]})
    assert len(leaks._of_different_volumes(manifest, pairs)) == 1
    assert leaks._of_different_volumes(manifest.assign(split="train"), pairs).empty


def test_a_volume_is_one_file():
    manifest = pd.DataFrame({"path": ["v.nii"] * 3 + ["w.nii"], "label": "x", "split": "train",
                             "sha256": ["1", "1", "1", "2"]})
    assert leaks.find_leaks(manifest)["count"].tolist() == [0, 0, 0]
