"""Series: their order, what does not belong to them, and volumes of any orientation."""

import nibabel
import numpy as np
import pydicom
import pytest
from bodies import RAMP, write_dicom

from covidlib import readers
from covidlib.readers import volume

AXIAL = [1, 0, 0, 0, 1, 0]


def write_series(folder, heights, axes=AXIAL, normal=(0, 0, 1), uid=None, stored=None, **tags):
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or pydicom.uid.generate_uid()
    files = []
    for k, height in enumerate(heights):
        pixels = np.full((4, 5), 100 + height, np.uint16) if stored is None else stored[k]
        place = {"ImagePositionPatient": [height * n for n in normal], "ImageOrientationPatient": axes}
        files.append(write_dicom(folder / f"{k}.dcm", pixels, SeriesInstanceUID=uid, PixelSpacing=[1, 1],
                                 **place, **tags))
    return files


def test_series_is_ordered_by_position(tmp_path):
    write_series(tmp_path, [30, -10, 20, 0, 10])
    (tmp_path / "notes.txt").write_text("no slice")
    series = volume.one_series(tmp_path)
    assert [file.stem for file in series.files] == ["1", "3", "4", "2", "0"]
    assert series.axial and series.spacing == (10, 1, 1) and not series.problems and not series.notes
    found = volume.read_volume(tmp_path)
    assert found.dtype == np.float32 and found.shape == (5, 4, 5) and (np.diff(found[:, 0, 0]) == 10).all()
    write_series(tmp_path / "other", [1])
    with pytest.raises(readers.ReadError, match="holds 2 series"):
        volume.read_volume([tmp_path / "0.dcm", tmp_path / "other" / "0.dcm"])


def test_series_without_positions(tmp_path):
    files = [write_dicom(tmp_path / f"{k}.dcm", RAMP + k) for k in range(2)]
    with pytest.raises(readers.ReadError, match="nothing of its place"):
        volume.read_volume(files)
    by_number = [write_dicom(tmp_path / f"{k}.dcm", RAMP, InstanceNumber=9 - k) for k in range(3)]
    series = volume.one_series(by_number)
    assert [file.stem for file in series.files] == ["2", "1", "0"] and series.spacing == (None, None, None)
    by_location = [write_dicom(tmp_path / f"{k}.dcm", RAMP, SliceLocation=-2 * k) for k in range(3)]
    series = volume.one_series(by_location)
    assert [file.stem for file in series.files] == ["2", "1", "0"] and series.spacing[0] == 2
    for nothing in ([], tmp_path / "empty"):
        if nothing:
            nothing.mkdir()
        with pytest.raises(readers.ReadError, match="no DICOM slice"):
            volume.read_volume(nothing)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        volume.one_series(tmp_path / "absent")


def test_what_does_not_belong_to_a_series_is_named(tmp_path):
    files = write_series(tmp_path, range(6))
    headers = [pydicom.dcmread(file) for file in files]
    headers[1].SOPInstanceUID = headers[0].SOPInstanceUID
    headers[1].ImagePositionPatient = headers[0].ImagePositionPatient
    headers[3].ImagePositionPatient = headers[2].ImagePositionPatient
    headers[5].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    for file, header in zip(files, headers, strict=True):
        header.save_as(file)
    uid = headers[0].SeriesInstanceUID
    files.append(write_series(tmp_path / "odd", [9], uid=uid, stored=[RAMP])[0])
    files.append(write_series(tmp_path / "scout", [9], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0])
    (tmp_path / "cut.dcm").write_bytes(b"")
    files.append(tmp_path / "cut.dcm")
    (series,), ungrouped = volume.group_series(files)
    assert [file.stem for file in series.files] == ["0", "2", "4"]
    said = {error.path.relative_to(tmp_path).as_posix(): error.reason for error in series.problems + ungrouped}
    assert "place of 0.dcm" in said["1.dcm"] and "same SOPInstanceUID" in said["1.dcm"]
    assert "lies at the place of 2.dcm" in said["3.dcm"] and "UID" not in said["3.dcm"]
    assert "another plane" in said["5.dcm"] and "has 48x40 pixels" in said["odd/0.dcm"]
    assert "localiser" in said["scout/0.dcm"] and "is empty" in said["cut.dcm"] and len(said) == 6
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
    data = files[1].read_bytes()
    files[1].write_bytes(data.replace(b"1.0\\0.0\\0.0", b"1.0\\x.0\\0.0"))
    assert files[1].read_bytes() != data
    files[2].write_bytes(files[2].read_bytes().replace(b"\x20\0\x0e\0UI", b"\x20\0\x0e\0UW"))
    (series,), ungrouped = volume.group_series(files)
    assert series.files == files[:1]
    assert ["1.dcm: is damaged" in str(ungrouped[0]), "2.dcm: is damaged" in str(ungrouped[1])] == [True, True]


def test_gaps_are_noted_and_localisers_passed_over(tmp_path):
    files = write_series(tmp_path, [0, 2, 4, 10, 12])
    scout = write_series(tmp_path / "scout", [9], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    series = volume.one_series(files + scout)
    assert len(series.notes) == 1 and "6.0 mm between 2.dcm and 3.dcm" in series.notes[0]
    assert volume.read_volume(files + scout).shape == (5, 4, 5)


@pytest.mark.parametrize("axes, normal, turn", [
    ([1, 0, 0, 0, 0, -1], (0, 1, 0), lambda v: v[::-1].transpose(1, 0, 2)),  # coronal: head on top
    ([0, 1, 0, 0, 0, -1], (1, 0, 0), lambda v: v[::-1].transpose(2, 0, 1)),  # sagittal: front on the left
    ([-1, 0, 0, 0, -1, 0], (0, 0, 1), lambda v: v[:, ::-1, ::-1]),  # prone
])
def test_any_plane_becomes_axial(tmp_path, axes, normal, turn):
    body = np.random.default_rng(0).integers(0, 2000, (4, 5, 6)).astype(np.uint16)  # feet, front, right first
    stored = turn(body)
    write_series(tmp_path, range(len(stored)), axes, normal, stored=stored)
    np.testing.assert_array_equal(volume.read_volume(tmp_path), body - 1024.0)


def test_frames_of_one_file_are_put_in_order(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.stack([RAMP + k for k in range(3)]))
    header = pydicom.dcmread(path)
    frames = []
    for height in (5, 1, 3):
        frame = pydicom.Dataset()
        frame.PlanePositionSequence = [pydicom.Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, height]
        frames.append(frame)
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [pydicom.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = AXIAL
    header.PerFrameFunctionalGroupsSequence, header.SharedFunctionalGroupsSequence = frames, [shared]
    header.save_as(path)
    assert (volume.read_volume(path)[:, 0, 0] + 1024).tolist() == [1, 2, 0]


def test_lung_run():
    fractions = [0.2, 0, 0, 0.1, 0.3, 0, 0.4, 0.12, 0.02, 0.01, 0.3]
    assert np.flatnonzero(volume.lung_run(fractions, 0.1)).tolist() == [3, 4, 5, 6, 7]
    assert not volume.lung_run([0.0, 0.05], 0.1).any() and volume.lung_run([0.5], 0.1).tolist() == [True]


def test_real_series(shared_data):
    series = volume.one_series(shared_data / "fixtures" / "dicom-series")
    assert [file.name for file in series.files] == [f"1-{number}.dcm" for number in range(38, 22, -2)]
    patients = sorted((shared_data / "covid-ct-md-sample").glob("*/*"))
    for patient in patients:
        series = volume.one_series(patient)
        assert series.axial and not series.problems and series.spacing[0] > 2


def test_nifti_spacing(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([0.5, 0.6, 3, 1.0]))
    there = nibabel.orientations.axcodes2ornt("SRA")
    change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), there)
    nibabel.save(image.as_reoriented(change), tmp_path / "v.nii")
    np.testing.assert_allclose(readers.nifti.spacing(tmp_path / "v.nii"), (3, 0.6, 0.5))
