"""Shortcut baselines find what was planted, and nothing where nothing was."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib.audit import shortcuts
from covidlib.datasets import decode


def slices(count=80, patients=40, official=False, sources=("",)):
    labels = np.array(["covid", "normal"])[np.arange(count) % 2]
    patient = [str(n) for n in np.arange(count) % patients]
    split = np.where(np.arange(count) % patients < patients * 0.7, "train", "test") if official else ""
    return pd.DataFrame({"path": [f"{n}.png" for n in range(count)], "label": labels, "patient": patient,
                         "source": np.resize(sources, count), "split": split, "slice_index": 0})


def measured(manifest, extension=".png", seen=None, official=False):
    facts = pd.DataFrame({"extension": extension, "container": "png", "mode": "L", "bytes": 100, "height": 9,
                          "width": 9}, index=manifest.index)
    source = SimpleNamespace(manifest=manifest, classes=("covid", "normal"), official_split=official)
    found = SimpleNamespace(facts=facts, sampled=np.arange(len(manifest)), features=seen or {})
    return shortcuts.measure(source, found).set_index(["protocol", "baseline", "seen"])


def test_a_planted_extension_is_found_and_a_constant_one_is_not():
    manifest = slices()
    planted = measured(manifest, np.where(manifest.label == "covid", ".png", ".jpg"))
    row = planted.loc["grouped cross-validation", "file extension", "files"]
    assert row.accuracy == 1 and row.auc == 1 and row.low < 1
    constant = measured(manifest).loc["grouped cross-validation"]
    assert constant.accuracy["file extension", "files"] <= 0.6 and constant.auc["file facts", "files"] == 0.5
    assert (constant.low <= constant.accuracy).all() and (constant.accuracy <= constant.high).all()


def test_the_set_of_origin_is_a_baseline_where_there_are_several():
    assert "set of origin" not in measured(slices()).reset_index().baseline.tolist()
    table = measured(slices(sources=("a", "b")))
    assert table.accuracy["grouped cross-validation", "set of origin", "files"] == 1


def test_an_official_split_is_scored_beside_cross_validation():
    manifest = slices(official=True)
    rng = np.random.default_rng(0)
    marks = np.where(manifest.label == "covid", 0.0, 1.0)[:, None] + rng.normal(0, 0.1, (len(manifest), 2))
    table = measured(manifest, official=True, seen={"lungs/sharpness": marks})
    assert set(table.reset_index().protocol) == {"grouped cross-validation", "official test split"}
    assert (table.accuracy.xs("sharpness", level="baseline") == 1).all()


def test_whole_patients_are_left_out():
    manifest = slices(patients=8)
    marks = np.eye(8)[manifest.patient.astype(int)]  # tells the patient, and so the label only of patients seen
    table = measured(manifest, seen={"whole/border and background": marks})
    assert table.accuracy["grouped cross-validation", "border and background", "whole"] < 0.8


def test_a_network_could_have_used_what_its_preparation_shows():
    table = pd.DataFrame({"baseline": ["majority class", "file facts", *["sharpness"] * 4],
                          "seen": ["files", "files", "whole", "lungs", "as read", "cropped to the lungs"],
                          "accuracy": [0.5, 0.9, 0.7, 0.6, 0.8, 0.65], "protocol": "grouped cross-validation"})
    assert shortcuts.visible(table, {"preparation": "whole"}).index.tolist() == [0, 2, 4]
    assert shortcuts.visible(table, {}).index.tolist() == [0, 3, 5]
    assert shortcuts.best_shortcut(table, shortcuts.OFFICIAL, {"preparation": "lungs"}) == ("sharpness", 0.65)
    assert shortcuts.best_shortcut(table[1:2], shortcuts.OFFICIAL, {}) is None


def test_features_see_what_their_names_say():
    rng = np.random.default_rng(0)
    image = np.full((64, 64), 200, np.uint8)
    lung = np.zeros((64, 64), bool)
    lung[20:44, 12:28] = lung[20:44, 36:52] = True
    image[lung] = rng.integers(0, 60, lung.sum())
    found = shortcuts.features(image, image >= 0, lung, 64)
    assert {key.split("/")[0] for key in found} == {"whole", "lungs"}
    other = image.copy()
    other[lung] = 30
    changed = shortcuts.features(other, other >= 0, lung, 64)
    same = "whole/lungs blacked out"
    assert np.array_equal(found[same], changed[same])
    assert not np.array_equal(found["whole/grey histogram"], changed["whole/grey histogram"])
    blurred = np.asarray(Image.fromarray(image).resize((16, 16)).resize((64, 64)))
    dull = shortcuts.features(blurred, blurred >= 0, lung, 64)
    assert (dull["whole/sharpness"][-3:] < found["whole/sharpness"][-3:]).all()
    wide = shortcuts.features(image[:32], image[:32] >= 0, lung[:32], 64)
    assert wide["whole/aspect"].tolist() == [63, 31]


@pytest.mark.parametrize("kind, container, mode", [("png", "png", "L"), ("jpg", "jpeg", "RGB"), ("tif", "tiff", "L")])
def test_file_facts(tmp_path, kind, container, mode):
    path = tmp_path / f"slice.{kind.upper()}"
    Image.new(mode, (5, 4)).save(path, container.upper())
    assert decode.file_facts(path) == [f".{kind}", container, mode, path.stat().st_size]
