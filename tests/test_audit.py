"""Audit: copies, label conflicts, and what predicts the label without looking at anatomy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from covidlib import audit, datasets


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


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    source = make_set(tmp_path_factory.mktemp("set"), official=True)
    return source, audit.audit(source)


def test_conflicts_and_copies_across_the_split(official):
    _, result = official
    assert result.conflicts[["path_a", "label_a", "path_b", "label_b"]].to_numpy().tolist() == [
        ["0.png", "covid", "1.jpg", "normal"]
    ]
    assert list(result.conflicts) == ["path_a", "label_a", "path_b", "label_b", "distance"]
    assert list(result.duplicates) == ["path_a", "split_a", "path_b", "split_b", "distance"]
    assert result.duplicates.to_numpy().tolist()[0] == ["2.png", "train", "4.png", "test", 0]
    assert len(result.duplicates) == 2
    text = " ".join(result.warnings)
    assert "0.png (covid) and 1.jpg (normal)" in text and "2.png (train) and 4.png (test)" in text


def test_shortcuts_on_an_official_split(official):
    _, result = official
    table = result.shortcuts.set_index("baseline")
    assert list(result.shortcuts) == ["baseline", "protocol", "accuracy", "low", "high", "auc"]
    assert set(table.protocol) == {"official test split"}
    assert table.accuracy["file extension"] == 1 and table.auc["file extension"] == 1
    assert table.accuracy["file facts"] == 1 and table.auc["majority class"] == 0.5
    assert (table.low <= table.accuracy).all() and (table.accuracy <= table.high).all()
    assert any("sees only the file extension reaches 100.0%" in text for text in result.warnings)


def test_without_official_split_groups_stay_whole(tmp_path):
    result = audit.audit(make_set(tmp_path, jpeg_for="nothing"))
    table = result.shortcuts.set_index("baseline")
    assert set(table.protocol) == {"grouped 5-fold cross-validation"}
    assert table.accuracy["file extension"] <= 0.55
    assert not any("file extension" in text for text in result.warnings)


def test_too_few_patients_say_so(tmp_path):
    source = make_set(tmp_path)
    source.manifest["patient"] = source.manifest.label
    result = audit.audit(source)
    assert result.shortcuts.empty and "needs two patients in every class" in result.warnings[-1]


def test_written_tables_read_back(official, tmp_path):
    _, result = official
    audit.write(result, tmp_path / "audit")
    names = sorted(path.name for path in (tmp_path / "audit").iterdir())
    assert names == ["conflicts.csv", "duplicates.csv", "shortcuts.csv"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "audit" / "shortcuts.csv"), result.shortcuts)


def test_near_duplicates_across_blocks(monkeypatch):
    images = [picture(seed) for seed in range(12)]
    images[11] = images[0]
    images[7] = np.uint8(ndimage.gaussian_filter(images[3].astype(float), 1))
    whole = audit.near_duplicates(images)
    monkeypatch.setattr(audit, "_BLOCK", 5)
    pd.testing.assert_frame_equal(audit.near_duplicates(images), whole)
    assert whole[["a", "b"]].to_numpy().tolist() == [[0, 11], [3, 7]]
    groups = audit.group_near_duplicates(images)
    assert groups[0] == groups[11] and groups[3] == groups[7] and len(set(groups)) == 10


def test_blank_images_are_no_error():
    images = [np.zeros((20, 30), np.uint8), np.full((9, 9), 7, np.uint8), picture(0)]
    assert isinstance(audit.near_duplicates(images), pd.DataFrame)


@pytest.mark.slow
def test_ucsd_conflicts_and_shortcuts(shared_data):
    result = audit.audit(datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct"))
    found = {(Path(row.path_a).name, Path(row.path_b).name) for row in result.conflicts.itertuples()}
    assert found == {("kjr-21-e24-p5-29.png", "71%0.jpg"), ("kjr-21-e24-p5-31.png", "71%1.jpg")}
    across = result.duplicates[result.duplicates.split_a != result.duplicates.split_b]
    assert len(across) == 2
    table = result.shortcuts.set_index("baseline")
    assert round(table.accuracy["majority class"], 3) == 0.517
    assert round(table.accuracy["file extension"], 3) == 0.744
    assert table.accuracy["file facts"] > 0.87 and table.auc["file facts"] > 0.95


@pytest.mark.slow
def test_sarscov2_copies_are_grouped(shared_data):
    source = datasets.load("sarscov2-ct", shared_data / "sarscov2-ct-256")
    assert source.manifest.label.value_counts().to_dict() == {"covid": 1252, "non_covid": 1229}
    assert "patient-disjointness is not known" in source.notes[0]
    group = source.manifest.set_index("path").patient
    for a, b in ((128, 129), (134, 135)):
        assert group[f"COVID/Covid ({a}).jpg"] == group[f"COVID/Covid ({b}).jpg"]
    assert group.value_counts().max() < 10
    assert not source.official_split
