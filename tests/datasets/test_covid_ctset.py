"""COVID-CTset in both of its layouts."""

import pytest

from covidlib.datasets import covid_ctset

WHOLE = ["covid1/patient1/SR_2/IM00002.tif", "covid1/patient1/SR_2/IM00010.tif", "covid1/patient1/SR_3/IM00002.tif",
         "normal 4/patient222/SR_4/IM00001.tif"]
CHOSEN = ["137covid_patient1_SR_2_IM00010.tif", "normalcd3_patient433_SR_2_IM00032.tif"]


def write(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_whole_series(tmp_path):
    write(tmp_path, [f"COVID-CTset/{name}" for name in WHOLE])
    (tmp_path / "Patients_metadata.csv").write_text(
        'Patient ID,SR_2 PixelSpacing,SR_3 PixelSpacing\npatient1,"[0.8, 0.8]",\npatient222,"[0.7, 0.7]",\n')
    (tmp_path / "COVID-CTset/stray.tif").write_bytes(b"x")
    (tmp_path / "COVID-CTset/covid1/patient1/SR_2/IM00003.tif").touch()
    manifest, classes, notes, problems = covid_ctset.load(tmp_path)
    assert classes == ("covid", "normal") and manifest.label.tolist() == ["covid"] * 3 + ["normal"]
    assert manifest.patient.tolist() == ["patient1"] * 3 + ["patient222"]
    assert manifest.series[2] == "patient1/SR_3" and manifest.slice_index.tolist() == [2, 10, 2, 1]
    assert manifest.spacing_mm.tolist()[:2] == [0.8, 0.8] and manifest.spacing_mm[2:].isna().all()
    assert len(problems) == 2 and any("no folder of a patient" in str(problem) for problem in problems)
    assert any("show no lesion" in note for note in notes) and any("1 patients have several series" in n for n in notes)


def test_chosen_slices_go_first(tmp_path):
    write(tmp_path, [*WHOLE, *(f"Train&Validation/{name}" for name in CHOSEN)])
    manifest, _, notes, problems = covid_ctset.load(tmp_path)
    assert manifest.patient.tolist() == ["patient1", "patient433"] and manifest.label.tolist() == ["covid", "normal"]
    assert problems == [] and not any("show no lesion" in note for note in notes)
    assert manifest.spacing_mm.isna().all()


def test_no_such_folder(tmp_path):
    write(tmp_path, WHOLE[:1])
    with pytest.raises(FileNotFoundError, match="no images of normal"):
        covid_ctset.load(tmp_path)
