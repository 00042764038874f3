"""The phantoms: the same bytes for the same seed, plausible HU, masks that fit, no half-made folder."""

import json

import numpy as np
import pydicom
import pytest
from PIL import Image

from covidlib import phantom, readers

COUNTS = (27, 6, 27)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    return root, phantom.generate(root, COUNTS, seed=0)


def content(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def mask_of(root, path):
    return np.array(Image.open((root / "masks" / path).with_suffix(".png")))


def test_manifest_has_the_counts_and_enough_patients(smoke):
    root, manifest = smoke
    assert list(manifest.columns) == ["path", "label", "patient", "source", "split", "slice_index", "series", "level",
                                      "lesion_fraction"]
    assert tuple(manifest.label.value_counts()[list(phantom.CLASSES)]) == COUNTS
    assert dict(manifest.groupby("label").patient.nunique()) == {"covid": 9, "viral": 3, "normal": 9}
    assert (manifest.split == "").all() and (manifest.source == "phantom").all()
    assert set(manifest.level) <= {"upper", "mid", "lower"}
    assert all((root / path).is_file() for path in manifest.path)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 6, 7, 27, 60, 270, 300, 1350])
def test_every_slice_has_a_patient(total):
    sizes = phantom.patient_sizes(total)
    assert sum(sizes) == total and min(sizes) >= 1 and max(sizes) <= 6
    assert len(sizes) >= min(total, 3)


def test_files_are_ct_in_hu(smoke):
    root, manifest = smoke
    header = pydicom.dcmread(root / manifest.path[0])
    assert (header.Modality, header.RescaleSlope, header.RescaleIntercept) == ("CT", 1, -1024)
    assert header.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert header.SOPClassUID == pydicom.uid.CTImageStorage and header.PatientID == manifest.patient[0]
    assert header.SliceLocation == header.ImagePositionPatient[2]
    assert readers.sniff(root / manifest.path[0]) == "dicom"
    hu = readers.read_hu(root / manifest.path[0])
    assert hu.shape == (256, 256) and np.array_equal(hu, header.pixel_array - 1024.0)


def test_tissues_have_plausible_hu(smoke):
    root, manifest = smoke
    for row in manifest[::6].itertuples():
        hu, mask = readers.read_hu(root / row.path), mask_of(root, row.path)
        assert -920 < np.median(hu[mask == 1]) < -700
        assert 0.06 < (mask > 0).mean() < 0.5
        assert np.median(hu[:12]) < -900
        assert ((hu > 0) & (hu < 100)).mean() > 0.05, "muscle and organs"
        assert ((hu > -150) & (hu < -50)).mean() > 0.02, "fat"
        assert (hu > 300).mean() > 0.003, "bone"


def test_masks_show_the_lesions_and_covid_is_bilateral(smoke):
    root, manifest = smoke
    columns = {}
    for row in manifest.itertuples():
        mask = mask_of(root, row.path)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert (mask == 2).any() == (row.label != "normal")
        assert row.lesion_fraction == pytest.approx((mask == 2).sum() / (mask > 0).sum(), abs=1e-4)
        if row.label == "covid":
            columns.setdefault(row.patient, []).extend(np.nonzero(mask == 2)[1])
    assert np.mean([min(each) < 118 and max(each) > 138 for each in columns.values()]) > 0.75


def test_lesions_raise_the_lung():
    for seed in range(6):
        one = phantom.render("covid", np.random.default_rng(seed))
        assert not (one.lesions & ~one.lungs).any()
        assert one.hu[one.lesions].mean() > one.hu[one.lungs & ~one.lesions].mean() + 40


def test_the_same_seed_gives_the_same_bytes(smoke, tmp_path):
    phantom.generate(tmp_path, (3, 3, 3), seed=0)
    again, first = content(tmp_path), content(smoke[0])
    slices = [path for path in again if path.endswith((".dcm", ".png")) and path in first]
    assert len(slices) >= 12
    assert all(again[path] == first[path] for path in slices), "a patient must not depend on the counts"
    phantom.generate(tmp_path / "other", (1, 1, 1), seed=1)
    assert content(tmp_path / "other")["covid/phantom-0000/000.dcm"] not in again.values()


def test_a_finished_folder_is_read_back(smoke):
    root, manifest = smoke
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.dcm")}
    assert phantom.generate(root, COUNTS, seed=0).equals(manifest)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.dcm")} == before


def test_other_parameters_replace_phantoms_and_nothing_else(tmp_path):
    phantom.generate(tmp_path, (4, 1, 1), seed=0)
    (tmp_path / "covid" / "own.dcm").write_bytes(b"not a phantom")
    manifest = phantom.generate(tmp_path, (2, 1, 1), seed=3)
    assert {path for path in content(tmp_path) if path.endswith(".dcm")} == {*manifest.path, "covid/own.dcm"}
    assert len(manifest) == len(list((tmp_path / "masks").rglob("*.png"))) == 4


def test_an_interrupted_run_does_not_look_finished(tmp_path, monkeypatch):
    phantom.generate(tmp_path, (1, 1, 1), seed=0)
    write, done = phantom._write_slice, []

    def stop(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(write(*arguments))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phantom, "_write_slice", stop)
        phantom.generate(tmp_path, (2, 2, 2), seed=0)
    assert not (tmp_path / "phantom.json").exists()
    assert len(phantom.generate(tmp_path, (2, 2, 2), seed=0)) == 6
    assert json.loads((tmp_path / "phantom.json").read_text())["slices_per_class"] == [2, 2, 2]


@pytest.mark.parametrize("counts", [(0, 1, 1), (3, -1, 3), (1, 1), (1.5, 2, 2)])
def test_bad_counts_are_named(tmp_path, counts):
    with pytest.raises(ValueError, match="slices_per_class=") as error:
        phantom.generate(tmp_path, counts)
    assert str(counts) in str(error.value) and not list(tmp_path.iterdir())


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="label='cap'"):
        phantom.render("cap", np.random.default_rng(0))


def test_no_tag_and_no_length_of_one_tells_the_class(smoke):
    root, manifest = smoke
    lengths = {}
    for row in manifest.itertuples():
        header = pydicom.dcmread(root / row.path, stop_before_pixels=True)
        assert row.label not in str(header)
        lengths.setdefault(row.label, set()).add((len(header.PatientID), len(str(header.PatientName))))
    assert len(set(map(frozenset, lengths.values()))) == 1
