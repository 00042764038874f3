"""The same scan opened as a data set, in the app and by notebook 08: one order, one plane, one shape."""

import numpy as np
import pydicom
import pytest
from bodies import RAW_LUNG, change_dicom, chest, enhanced, with_tags, write_dicom, write_series

from covidlib import datasets, readers
from covidlib.predict import predict, scans
from covidlib.readers import volume

HU = chest(64)
RAW = (HU + 1024).astype(np.uint16)
CORONAL = [1, 0, 0, 0, 0, -1]


def bare(height):
    """A slice without lung."""
    return np.where(RAW < RAW_LUNG, np.where(RAW > 90, 1064, RAW), RAW).astype(np.uint16) + np.uint16(height % 7)


def series(folder, heights, axes=(1, 0, 0, 0, 1, 0), normal=(0, 0, 1), stored=RAW, **tags):
    write_series(folder, heights, axes, normal, stored, **tags)
    return folder


def test_frames_are_taken_in_the_order_of_the_body_everywhere(tmp_path):
    order = np.random.default_rng(3).permutation(30)  # of frame k the place is order[k]; lung from 8 to 21
    frames = np.stack([RAW if 8 <= place < 22 else bare(0) for place in order])
    root = tmp_path / "set"
    for label, change in (("covid", 0), ("normal", 3)):
        (root / label).mkdir(parents=True)
        enhanced(root / label / "scan.dcm", order * 5.0, (frames + change).astype(np.uint16), PatientID=label)
    rows = datasets.load("folder", root).manifest
    for label in ("covid", "normal"):
        assert order[rows.slice_index[rows.label == label]].tolist() == list(range(8, 22))
    slices, errors = predict.find_slices(root / "covid")
    assert order[slices.slice_index].tolist() == list(range(30)) and errors.empty
    for scan in (scans.of_file(root / "covid" / "scan.dcm"), scans.find(root / "covid")[0][0]):
        assert [order[index] for _, index in scan.slices] == list(range(30))
    shown = predict.pictures(root / "covid", slices.iloc[[10]].to_dict("records"))[0]
    np.testing.assert_array_equal(shown, readers.apply_window(RAW.astype(float) - 1024))


def test_a_slice_that_is_not_axial_is_refused_everywhere(tmp_path):
    for label in ("covid", "normal"):
        series(tmp_path / label / "p", [0, 5], CORONAL, (0, 1, 0), PatientID=label, InstanceNumber=label == "covid")
    with pytest.raises(datasets.DataError, match="2 slices that are not axial"):
        datasets.load("folder", tmp_path)
    slices, errors = predict.find_slices(tmp_path / "covid")
    assert slices.empty and "not axial" in errors.error[0]
    found, problems = scans.find(tmp_path)
    assert not found and len(problems) == 2 and "not axial" in problems[0].reason
    with pytest.raises(readers.ReadError, match="is a slice that is not axial"):
        scans.of_file(tmp_path / "covid" / "p" / "000.dcm")


def test_a_series_that_is_not_axial_is_turned_where_it_is_whole(tmp_path):
    series(tmp_path / "p", np.arange(0, 60, 3), CORONAL, (0, 1, 0), PixelSpacing=[1.5, 1.5])
    slices, errors = predict.find_slices(tmp_path)
    assert len(slices) == 64 and errors.empty  # as many as the stored slices have rows
    shown = predict.pictures(tmp_path, slices.iloc[[5]].to_dict("records"))[0]
    assert shown.shape == (40, 64)  # 20 slices of 3 mm at 1.5 mm
    np.testing.assert_array_equal(scans.find(tmp_path)[0][0].picture(5), shown)


@pytest.mark.parametrize("tags, tilted", [({}, False), ({"GantryDetectorTilt": "0"}, False),
                                          ({"GantryDetectorTilt": "-12.5"}, True)])
def test_a_tilted_gantry_is_noted(tmp_path, tags, tilted):
    series(tmp_path / "covid" / "p", range(0, 20, 5), PatientID="a", **tags)
    series(tmp_path / "normal" / "p", range(0, 20, 5), PatientID="b")
    for notes in (volume.one_series(tmp_path / "covid" / "p").notes, datasets.load("folder", tmp_path).notes,
                  scans.find(tmp_path / "covid")[0][0].notes):
        assert any("gantry was tilted by 12 degrees" in note for note in notes) == tilted


def test_slices_that_are_sheared_are_noted(tmp_path):
    cosine, sine = np.cos(np.radians(15)), np.sin(np.radians(15))
    series(tmp_path, range(0, 20, 5), [1, 0, 0, 0, cosine, sine])
    assert "tilted by 15 degrees" in volume.one_series(tmp_path).notes[0]


def test_parts_of_a_scan_in_several_files_are_put_together(tmp_path):
    for n, heights in enumerate(([5, 15, 25], [0, 10, 20])):
        enhanced(tmp_path / f"{n}.dcm", heights, np.stack([RAW + height for height in heights]).astype(np.uint16))
    (scan,), problems = scans.find(tmp_path)
    assert not problems and (np.diff(volume.read_volume(tmp_path)[:, 32, 32]) == 5).all()
    assert [int(scan.values(n)[32, 32]) - HU[32, 32] for n in range(6)] == [0, 5, 10, 15, 20, 25]


def test_patients_who_share_a_series_uid_stay_two(tmp_path):
    for name in "ab":
        series(tmp_path / name, [0], uid="1.2.3", PatientID=name)
    found, problems = scans.find(tmp_path)
    assert len(found) == 2 and not problems


def test_a_mask_as_it_was_drawn_fits_pixels_made_square(tmp_path):
    from PIL import Image

    from covidlib.datasets import decode

    path = write_dicom(tmp_path / "a.dcm", RAW[::2], PixelSpacing=[2, 1])
    Image.fromarray(np.uint8(RAW[::2] < 400) * 255).save(tmp_path / "m.png")
    picture, _, lung = decode.read(path, 0, tmp_path / "m.png")
    assert picture.shape == lung.shape == (64, 64) and abs(lung.mean() - (RAW < 400).mean()) < 0.02


def test_slices_of_one_scan_are_seen_each_as_it_is(tmp_path):
    """A head has more bone than a chest, which is no reason to doubt its header; grey among HU is seen as grey."""
    head = np.where(np.indices((64, 64))[1] > 30, 900, -1000) + np.random.default_rng(0).normal(0, 9, (64, 64))
    series(tmp_path / "b", [0], stored=(head + 1024).astype(np.uint16))
    assert readers.read_hu(tmp_path / "b" / "000.dcm").max() > 900
    mixed = series(tmp_path / "c", [0, 5])
    change_dicom(mixed / "001.dcm", RescaleIntercept=0)
    scan = scans.find(mixed)[0][0]
    assert scan.is_hu and scan.picture(0).shape == scan.picture(1).shape == (64, 64)
    assert scan.quality_warnings(0) == [] and "reach from 0 to 65535" in scan.quality_warnings(1)[0]


def test_a_damaged_series_that_would_be_turned_is_read_once(tmp_path, monkeypatch):
    files = sorted(series(tmp_path / "p", np.arange(0, 36, 3), CORONAL, (0, 1, 0)).iterdir())
    files[-1].write_bytes(files[-1].read_bytes()[:-2000])
    read, whole = [], volume.read_volume
    monkeypatch.setattr(volume, "read_volume", lambda path: (read.append(1), whole(path))[1])
    scan = scans.find(tmp_path)[0][0]
    for index in (0, 5, 9):
        with pytest.raises(readers.ReadError, match="011.dcm: is damaged"):
            scan.picture(index)
    assert len(read) == 1


def test_an_aspect_is_no_length(tmp_path):
    series(tmp_path, [0, 5], stored=RAW[::2], PixelAspectRatio=[2, 1])
    assert volume.one_series(tmp_path).spacing == (5, None, None)
    assert volume.read_volume(tmp_path).shape == (2, 64, 64)


def test_a_frame_in_another_plane_is_told(tmp_path):
    path = enhanced(tmp_path / "a.dcm", [0, 5, 10], np.stack([RAW] * 3))
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    frames[1].PlaneOrientationSequence = [with_tags(pydicom.Dataset(), ImageOrientationPatient=CORONAL)]
    scan = scans.of_file(change_dicom(path, PerFrameFunctionalGroupsSequence=frames))
    assert len(scan) == 2 and "lies in another plane" in scan.notes[0]
