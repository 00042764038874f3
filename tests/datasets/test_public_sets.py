"""The public sets as they lie beside the checkout, and small made-up folders of the same shape."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import datasets, splits
from covidlib.datasets import covid_ct_md


@pytest.fixture
def ucsd(tmp_path):
    for part in ("COVID", "NonCOVID"):
        (tmp_path / f"Images-processed/CT_{part}").mkdir(parents=True)
        (tmp_path / f"Data-split/{part}").mkdir(parents=True)
        for number, split in enumerate(("train", "val", "test")):
            name = f"{number}%1.png"
            pixels = np.full((9, 9), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"Images-processed/CT_{part}/{name}")
            (tmp_path / f"Data-split/{part}/{split}CT_{part}.txt").write_text(f"{name}\n\n")
    return tmp_path


def test_ucsd_layout_without_patients(ucsd):
    source = datasets.load("ucsd-covid-ct", ucsd)
    assert source.official_split and source.classes == ("covid", "non_covid")
    assert (source.manifest.patient == "").all() and "Patients are unknown" in source.notes[0]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(ucsd / "Images-processed/CT_COVID/extra.png")
    assert "1 images are in no part" in datasets.load("ucsd-covid-ct", ucsd).notes[-1]
    (ucsd / "Images-processed/CT_COVID/0%1.png").unlink()
    with pytest.raises(FileNotFoundError, match="Unpack CT_COVID.zip"):
        datasets.load("ucsd-covid-ct", ucsd)


def test_ucsd_patients_of_two_folders_are_two(ucsd):
    columns = ["folder", "file", "patient"]
    rows = [(f"CT_{p}", f"{k}%1.png", f"Patient {k}") for p in ("COVID", "NonCOVID") for k in range(3)]
    pd.DataFrame(rows, columns=columns).to_csv(ucsd / "patients.csv", index=False)
    source = datasets.load("ucsd-covid-ct", ucsd)
    assert source.manifest.patient.nunique() == 6 and source.notes == []
    splits.check_disjoint(source.manifest)


def test_ucsd_split_lists_cannot_leave_the_folder(ucsd):
    (ucsd / "Data-split/COVID/testCT_COVID.txt").write_text("../../../../etc/hostname\n")
    with pytest.raises(ValueError, match="stay inside data_root"):
        datasets.load("ucsd-covid-ct", ucsd)


def test_ucsd_counts(shared_data):
    source = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct")
    assert source.manifest.label.value_counts().to_dict() == {"non_covid": 397, "covid": 349}
    assert source.manifest.split.value_counts().to_dict() == {"train": 425, "test": 203, "val": 118}
    assert source.manifest.patient.nunique() == 384 and source.notes == []
    splits.check_disjoint(source.manifest)
    bounded = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct", slices_per_class=(27, 27))
    assert set(bounded.manifest.split) == {"train", "val", "test"}


def test_covid_ct_md_takes_infected_and_lung_slices(shared_data):
    source = datasets.load("covid-ct-md", shared_data / "covid-ct-md-sample")
    assert source.classes == ("covid", "cap", "normal")
    counts = source.manifest.label.value_counts().to_dict()
    assert counts["covid"] == 27 and counts["cap"] == 8 and 30 <= counts["normal"] <= 45
    assert source.manifest.patient.nunique() == 6
    assert (source.manifest.infection == (source.manifest.label != "normal")).all()
    for _, rows in source.manifest.groupby("patient"):
        ordered = rows.sort_values("slice_index")
        assert ordered.slice_location_mm.is_monotonic_increasing and ordered.slice_index.is_unique
    assert any("6 patients support no claim" in note for note in source.notes)


def test_lung_fraction():
    y, x = np.mgrid[-100:100, -100:100]
    body = np.where((x / 90.0) ** 2 + (y / 60.0) ** 2 < 1, 40.0, -1000.0)
    assert covid_ct_md.lung_fraction(body) == 0
    lungs = ((abs(x) - 40) / 25.0) ** 2 + (y / 40.0) ** 2 < 1
    expected = 2 * 25 * 40 / (90 * 60)
    assert abs(covid_ct_md.lung_fraction(np.where(lungs, -850.0, body)) - expected) < 0.03
    table = np.where((y > 80) & (y < 84), 100.0, np.where(lungs, -850.0, body))
    assert abs(covid_ct_md.lung_fraction(table) - expected) < 0.03
    assert covid_ct_md.lung_fraction(np.full((64, 64), -1000.0)) == 0
