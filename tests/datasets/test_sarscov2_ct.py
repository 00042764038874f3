"""SARS-CoV-2 CT-scan and its multiclass sibling."""

import numpy as np
import pytest
from PIL import Image

from covidlib import datasets
from covidlib.datasets import sarscov2_ct, sarscov2_ct_multiclass, splits


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(path)


def test_copies_are_one_group_and_bad_files_are_named(tmp_path):
    for number in range(12):
        picture(tmp_path / f"COVID/Covid ({number}).png", number)
        picture(tmp_path / f"non-COVID/Non-Covid ({number}).png", 100 + number)
    picture(tmp_path / "COVID/Covid (20).png", 3)
    (tmp_path / "COVID/Covid (21).png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (tmp_path / "non-COVID/notes.txt").write_text("no picture")
    (tmp_path / "non-COVID/Non-Covid (30).png").touch()
    manifest, classes, notes, problems = sarscov2_ct.load(tmp_path)
    assert classes == ("covid", "non_covid") and len(manifest) == 25 and len(problems) == 3
    assert manifest.path[2] == "COVID/Covid (2).png"
    groups = manifest.set_index("path").patient
    assert groups["COVID/Covid (20).png"] == groups["COVID/Covid (3).png"] and groups.nunique() == 24
    assert "1 groups of several slices, 23 slices alone" in notes[0]
    (tmp_path / "bare/COVID").mkdir(parents=True)
    (tmp_path / "bare/non-COVID").mkdir()
    with pytest.raises(FileNotFoundError, match="no images of covid, non_covid"):
        sarscov2_ct.load(tmp_path / "bare")


@pytest.mark.slow
def test_real(shared_data):
    source = datasets.load("sarscov2-ct", shared_data / "sarscov2-ct-256")
    manifest = source.manifest
    assert manifest.label.value_counts().to_dict() == {"covid": 1252, "non_covid": 1229} and source.problems == []
    assert "patient-disjointness is not known" in source.notes[0] and not source.official_split
    groups = manifest.set_index("path").patient
    for a, b in ((128, 129), (134, 135)):
        assert groups[f"COVID/Covid ({a}).jpg"] == groups[f"COVID/Covid ({b}).jpg"]
    assert 2200 < groups.nunique() < 2400 and groups.value_counts().max() < 10
    splits.check_disjoint(splits.assign(manifest, 0)[0])


@pytest.mark.parametrize("wrapper", ["", "New_Data_CoV2/"])
def test_multiclass(tmp_path, wrapper):
    for folder in ("Covid", "Healthy", "Others"):
        for patient in ("Patient (1)", "Patient (2)"):
            for number in (2, 10):
                file = tmp_path / wrapper / folder / patient / f"{number}%.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"x")
    (tmp_path / wrapper / "Others/loose.png").write_bytes(b"x")
    (tmp_path / wrapper / "Others/Patient (2)/cut.png").touch()
    manifest, classes, notes, problems = sarscov2_ct_multiclass.load(tmp_path)
    assert classes == ("covid", "normal", "other_disease") and len(manifest) == 13 and len(problems) == 1
    assert manifest.patient.nunique() == 7 and "normal/Patient (2)" in set(manifest.patient)
    assert any("1 slices are in no patient's folder" in note for note in notes)
    assert any("not the paper's class" in note for note in notes)
    first = manifest[manifest.patient == "covid/Patient (1)"]
    names = first.path.str.rsplit("/").str[-1]
    assert names.tolist() == ["2%.png", "10%.png"] and first.slice_index.tolist() == [0, 1]
    with pytest.raises(FileNotFoundError, match="Missing: covid, normal, other_disease"):
        sarscov2_ct_multiclass.load(tmp_path / wrapper / "Others")
