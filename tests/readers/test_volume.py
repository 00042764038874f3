"""Series: their order, what does not belong to them, and volumes of any orientation."""

import numpy as np
import pydicom
import pytest
from bodies import RAMP, change_dicom, write_dicom, write_series

from covidlib import readers
from covidlib.readers import volume

PATCH = np.full((4, 5), 100, np.uint16)
LOCALISER = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}


def stems(series):
    return [file.stem for file in series.files]


def test_series_is_ordered_by_position(tmp_path):
    heights = [30, -10, 20, 0, 10]
    write_series(tmp_path, heights, stored=PATCH + np.array(heights, np.int16)[:, None, None], PixelSpacing=[1, 1])
    (tmp_path / "notes.txt").write_text("no slice")
    series = volume.one_series(tmp_path)
    assert stems(series) == ["001", "003", "004", "002", "000"]
    assert series.axial and series.spacing == (10, 1, 1) and not series.problems and not series.notes
    found = volume.read_volume(tmp_path)
    assert found.dtype == np.float32 and found.shape == (5, 4, 5) and (np.diff(found[:, 0, 0]) == 10).all()
    other = write_series(tmp_path / "other", [1])
    with pytest.raises(readers.ReadError, match="holds 2 series"):
        volume.read_volume([tmp_path / "000.dcm", *other])


def test_series_without_positions(tmp_path):
    files = [write_dicom(tmp_path / f"{k}.dcm", RAMP + k) for k in range(2)]
    with pytest.raises(readers.ReadError, match="nothing of its place"):
        volume.read_volume(files)
    for keyword, step, spacing in (("InstanceNumber", -1, None), ("SliceLocation", -2, 2)):
        numbered = [write_dicom(tmp_path / f"{k}.dcm", RAMP, **{keyword: 9 + step * k}) for k in range(3)]
        series = volume.one_series(numbered)
        assert stems(series) == ["2", "1", "0"] and series.spacing == (spacing, None, None)
    (tmp_path / "empty").mkdir()
    for nothing in ([], tmp_path / "empty"):
        with pytest.raises(readers.ReadError, match="no DICOM slice"):
            volume.read_volume(nothing)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        volume.one_series(tmp_path / "absent")


def test_what_does_not_belong_to_a_series_is_named(tmp_path):
    files = write_series(tmp_path, range(6), stored=PATCH)
    first, third = pydicom.dcmread(files[0]), pydicom.dcmread(files[2])
    change_dicom(files[1], SOPInstanceUID=first.SOPInstanceUID, ImagePositionPatient=first.ImagePositionPatient)
    change_dicom(files[3], ImagePositionPatient=third.ImagePositionPatient)
    change_dicom(files[5], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    files += write_series(tmp_path / "odd", [9], uid=first.SeriesInstanceUID)
    files += write_series(tmp_path / "scout", [9], stored=PATCH, **LOCALISER)
    (tmp_path / "cut.dcm").write_bytes(b"")
    files.append(tmp_path / "cut.dcm")
    (series,), ungrouped = volume.group_series(files)
    assert stems(series) == ["000", "002", "004"]
    said = {error.path.relative_to(tmp_path).as_posix(): error.reason for error in series.problems + ungrouped}
    assert "place of 000.dcm" in said["001.dcm"] and "same SOPInstanceUID" in said["001.dcm"]
    assert "lies at the place of 002.dcm" in said["003.dcm"] and "UID" not in said["003.dcm"]
    assert "another plane" in said["005.dcm"] and "has 48x40 pixels" in said["odd/000.dcm"]
    assert "localiser" in said["scout/000.dcm"] and "is empty" in said["cut.dcm"] and len(said) == 6
    with pytest.raises(readers.ReadError, match="and 4 more files"):
        volume.read_volume(files)


def test_one_uid_for_several_slices(tmp_path):
    uid = pydicom.uid.generate_uid()
    series = volume.one_series(write_series(tmp_path, [0, 2, 4], SOPInstanceUID=uid))
    assert len(series.files) == 3 and "2 slices of the series" in series.notes[0]
    files = [write_dicom(tmp_path / f"{k}.dcm", RAMP, SOPInstanceUID=uid) for k in range(2)]
    (series,), _ = volume.group_series(files)
    assert series.files == files[:1] and "is 0.dcm again" in series.problems[0].reason


def test_a_damaged_number_is_said_of_its_file(tmp_path):
    files = write_series(tmp_path, [0, 2, 4])
    for file, sound, damaged in ((files[1], b"0.0\\0.0\\2.0", b"0.0\\x.0\\2.0"),
                                 (files[2], b"\x20\0\x0e\0UI", b"\x20\0\x0e\0UW")):
        data = file.read_bytes()
        file.write_bytes(data.replace(sound, damaged))
        assert file.read_bytes() != data
    (series,), ungrouped = volume.group_series(files)
    assert series.files == files[:1]
    assert ["001.dcm: is damaged" in str(ungrouped[0]), "002.dcm: is damaged" in str(ungrouped[1])] == [True, True]


def test_gaps_are_noted_and_localisers_passed_over(tmp_path):
    files = write_series(tmp_path, [0, 2, 4, 10, 12]) + write_series(tmp_path / "scout", [9], **LOCALISER)
    series = volume.one_series(files)
    assert len(series.notes) == 1 and "6.0 mm between 002.dcm and 003.dcm" in series.notes[0]
    assert volume.read_volume(files).shape == (5, 40, 48)


@pytest.mark.parametrize("axes, normal, turn", [
    ([1, 0, 0, 0, 0, -1], (0, 1, 0), lambda v: v[::-1].transpose(1, 0, 2)),  # coronal: head on top
    ([0, 1, 0, 0, 0, -1], (1, 0, 0), lambda v: v[::-1].transpose(2, 0, 1)),  # sagittal: front on the left
    ([-1, 0, 0, 0, -1, 0], (0, 0, 1), lambda v: v[:, ::-1, ::-1]),  # prone
])
def test_any_plane_becomes_axial(tmp_path, axes, normal, turn):
    body = np.random.default_rng(0).integers(0, 2000, (4, 5, 6)).astype(np.uint16)  # feet, front, right first
    stored = turn(body)
    for spacing in ({}, {"PixelSpacing": [1, 1]}):
        write_series(tmp_path, range(len(stored)), axes, normal, stored, **spacing)
        np.testing.assert_array_equal(volume.read_volume(tmp_path), body - 1024.0)


def test_lung_run():
    fractions = [0.2, 0, 0, 0.1, 0.3, 0, 0.4, 0.12, 0.02, 0.01, 0.3]
    assert np.flatnonzero(volume.lung_run(fractions, 0.1)).tolist() == [3, 4, 5, 6, 7]
    assert not volume.lung_run([0.0, 0.05], 0.1).any() and volume.lung_run([0.5], 0.1).tolist() == [True]


def test_real_series(shared_data):
    series = volume.one_series(shared_data / "fixtures" / "dicom-series")
    assert [file.name for file in series.files] == [f"1-{number}.dcm" for number in range(38, 22, -2)]
    for patient in sorted((shared_data / "covid-ct-md-sample").glob("*/*")):
        series = volume.one_series(patient)
        assert series.axial and not series.problems and series.spacing[0] > 2
