"""COVID-CT: a made-up folder of its shape, and the real one."""

import pandas as pd
import pytest

from covidlib.datasets import splits, ucsd_covid_ct

PARTS = ("train", "val", "test")


@pytest.fixture
def root(tmp_path):
    for part in ("COVID", "NonCOVID"):
        (tmp_path / f"Images-processed/CT_{part}").mkdir(parents=True)
        (tmp_path / f"Data-split/{part}").mkdir(parents=True)
        for number, split in enumerate(PARTS):
            name = f"2020.01.0{number}.20-p3-7%{number}.png" if part == "COVID" else f"{number}%1.jpg"
            (tmp_path / f"Images-processed/CT_{part}/{name}").write_bytes(b"x")
            (tmp_path / f"Data-split/{part}/{split}CT_{part}.txt").write_text(f"{name}\n\n")
    return tmp_path


def test_without_patients(root):
    manifest, classes, notes, problems = ucsd_covid_ct.load(root)
    assert classes == ("covid", "non_covid") and problems == []
    assert set(manifest.split) == set(PARTS) and (manifest.patient == "").all() and "Patients are unknown" in notes[0]
    assert manifest.document[manifest.label == "covid"].tolist() == [f"10.1101/2020.01.0{k}.20" for k in range(3)]
    assert (manifest.document[manifest.label == "non_covid"] == "").all() and "3 of 6 slices name no" in notes[1]
    (root / "Images-processed/CT_COVID/extra.png").write_bytes(b"x")
    assert "1 images are in no part" in ucsd_covid_ct.load(root)[2][-1]


def test_every_bad_file_is_named(root):
    (root / "Images-processed/CT_COVID/2020.01.00.20-p3-7%0.png").unlink()
    (root / "Images-processed/CT_NonCOVID/1%1.jpg").write_bytes(b"")
    names = ["../../../../etc/hostname", "2020.01.01.20-p3-7%1.png", "2020.01.02.20-p3-7%2.png"]
    (root / "Data-split/COVID/testCT_COVID.txt").write_text("\n".join(names))
    manifest, _, _, problems = ucsd_covid_ct.load(root)
    text = "\n".join(map(str, problems))
    assert len(problems) == 4 and "7%0.png: is listed in Data-split and does not exist" in text
    assert "1%1.jpg: is empty" in text and "outside data_root" in text and "covid test and covid val" in text
    assert len(manifest) == 3


def test_no_such_folder(root):
    for file in (root / "Images-processed/CT_COVID").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no images of covid"):
        ucsd_covid_ct.load(root)
    (root / "Data-split/COVID/valCT_COVID.txt").unlink()
    with pytest.raises(FileNotFoundError, match="valCT_COVID.txt missing"):
        ucsd_covid_ct.load(root)


def test_patients_of_two_folders_are_two(root):
    names = {p: sorted(f.name for f in (root / f"Images-processed/CT_{p}").iterdir()) for p in ("COVID", "NonCOVID")}
    rows = [(f"CT_{p}", name, f"Patient {k}", "10.1/ x" if k else "") for p in names for k, name in enumerate(names[p])]
    pd.DataFrame(rows, columns=["folder", "file", "patient", "doi"]).to_csv(root / "patients.csv", index=False)
    manifest, _, notes, _ = ucsd_covid_ct.load(root)
    assert manifest.patient.nunique() == 6 and not any("Patients" in note for note in notes)
    assert sorted(manifest.document) == ["", *["10.1/x"] * 4, "10.1101/2020.01.00.20"]
    splits.check_disjoint(manifest)


@pytest.mark.parametrize(("stem", "document"), [
    ("2020.01.24.919183-p27-132", "10.1101/2020.01.24.919183"),
    ("2020.02.26.20026989-p34-114_1%0", "10.1101/2020.02.26.20026989"),
    ("kjr-21-e24-p5-29", "kjr-21-e24"), ("bmj.m606.full-p4-22%4", "bmj.m606.full"),
    ("PIIS0140673620301549_0%1", "PIIS0140673620301549"), ("PIIS0140673620303603%2", "PIIS0140673620303603"),
    ("2019-novel-Coronavirus-severe_2020_International-Jour-p3-89%1",
     "2019-novel-Coronavirus-severe_2020_International-Jour"),
    ("71%0", ""), ("1029", ""), ("39%8", ""),
])
def test_document(stem, document):
    assert ucsd_covid_ct.document(stem) == document


def test_real(shared_data):
    manifest, _, notes, problems = ucsd_covid_ct.load(shared_data / "ucsd-covid-ct")
    assert manifest.label.value_counts().to_dict() == {"non_covid": 397, "covid": 349} and problems == []
    assert manifest.split.value_counts().to_dict() == {"train": 425, "test": 203, "val": 118}
    assert manifest.patient.nunique() == 384
    splits.check_disjoint(manifest)
    known = manifest[manifest.document != ""]
    assert (known.label == "covid").all() and len(known) == 349 and known.document.nunique() == 58
    # patients are kept apart, papers are not
    assert (known.groupby("document").split.nunique() > 1).sum() == 3
