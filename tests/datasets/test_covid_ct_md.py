"""COVID-CT-MD: its sample, and the published layout made of headers and labels."""

import shutil

import numpy as np
import pandas as pd
import pytest

from covidlib.datasets import covid_ct_md


def test_sample(shared_data):
    manifest, classes, notes, problems = covid_ct_md.load(shared_data / "covid-ct-md-sample")
    assert classes == ("covid", "cap", "normal") and problems == []
    counts = manifest.label.value_counts().to_dict()
    assert counts["covid"] == 27 and counts["cap"] == 8 and 30 <= counts["normal"] <= 48
    assert manifest.patient.nunique() == 6
    assert (manifest.infection == (manifest.label != "normal")).all()
    for _, rows in manifest.groupby("patient"):
        assert rows.slice_location_mm.is_monotonic_increasing and rows.slice_index.is_unique
        assert rows.series.nunique() == 1
    assert manifest.slice_mm.between(9.9, 10.1).all() and manifest.spacing_mm.between(0.5, 0.9).all()
    assert any("6 patients support no claim" in note for note in notes)


@pytest.fixture
def published(shared_data, tmp_path):
    """The layout of the full set: no slices.csv, other folder names, marks in the order of slice location."""
    sample, root = shared_data / "covid-ct-md-sample", tmp_path / "root"
    names = {"COVID-19 subjects": "COVID-19 cases", "Cap subjects": "CAP subjects", "Normal subjects": "Normal Cases"}
    for old, new in names.items():
        shutil.copytree(sample / old, root / new)
    table = pd.read_csv(sample / "slices.csv").sort_values(["patient", "slice_location_mm"])
    marked = [name for name in table.patient.unique() if not name.startswith("normal")]
    labels = np.zeros((len(marked), 60), int)
    for row, name in enumerate(marked):
        marks = table.infection[table.patient == name]
        labels[row, : len(marks)] = marks
    np.save(root / "Slice-level-labels.npy", labels)
    # the published index skips a number for a patient who was taken out
    pd.DataFrame({"Label Index": [0, 1, 2, 4], "Folder/ID": marked}).to_csv(root / "Index.csv", index=False)
    return root


def test_published_layout_gives_what_the_sample_gives(published, shared_data):
    manifest, _, _, problems = covid_ct_md.load(published)
    expected = covid_ct_md.load(shared_data / "covid-ct-md-sample")[0]
    assert problems == []
    columns = ["label", "patient", "slice_index", "slice_location_mm", "spacing_mm", "slice_mm"]
    pd.testing.assert_frame_equal(manifest[columns].reset_index(drop=True), expected[columns].reset_index(drop=True))


def test_bad_files_are_named_and_their_patient_is_left_out(published):
    covid, normal = sorted((published / "COVID-19 cases/P001").iterdir()), published / "Normal Cases/normal001"
    covid[3].write_bytes(covid[3].read_bytes()[:400])
    (normal / "zero.dcm").touch()
    whole = (normal / "slice076.dcm").read_bytes()
    (normal / "slice076.dcm").write_bytes(whole[: len(whole) // 2])
    manifest, _, notes, problems = covid_ct_md.load(published)
    text = "\n".join(map(str, problems))
    assert len(problems) == 4 and "zero.dcm: is empty" in text and "slice076.dcm" in text
    assert "no slice location, pixel spacing and series" in text and "a damaged slice of P001" in text
    assert "covid/P001" not in set(manifest.patient) and "covid/P002" in set(manifest.patient)


def test_labels_that_do_not_fit(published):
    np.save(published / "Slice-level-labels.npy", np.zeros((3, 60)))
    with pytest.raises(ValueError, match="does not fit Index.csv. Received: 3 and 4 patients"):
        covid_ct_md.load(published)
    (published / "Slice-level-labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match="needs Slice-level-labels.npy"):
        covid_ct_md.load(published)
    (published / "Index.csv").unlink()
    with pytest.raises(FileNotFoundError, match="It should hold the folders"):
        covid_ct_md.load(published)
