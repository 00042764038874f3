"""Volumes whose header or values are not what they seem."""

import struct

import numpy as np
import pytest
from bodies import LUNG, TISSUE, chest, outside_circle, write_nifti

from covidlib import readers
from covidlib.readers import volume
from covidlib.readers.errors import ReadError

HU = np.stack([chest(seed=n) for n in range(4)])


def write(path, upright, dtype=np.int16, edit=None, size=(0.7, 0.7, 5)):
    """A volume (D, H, W), feet first and as it is shown, stored to the patient's right, front and head."""
    write_nifti(path, upright[:, ::-1, ::-1].transpose(2, 1, 0).astype(dtype), size=size)
    if edit:
        data = bytearray(path.read_bytes())
        edit(data)
        path.write_bytes(data)
    return path


def scaled(slope, intercept):
    return lambda data: struct.pack_into("<ff", data, 112, slope, intercept)


def without_sform(data):
    """A quaternion that says the same, and an sform of zeros that claims to be one."""
    struct.pack_into("<hh", data, 252, 1, 1)
    struct.pack_into("<8f", data, 76, 1, 0.7, 0.7, 5, 0, 0, 0, 0)
    struct.pack_into("<12f", data, 280, *[0] * 12)


@pytest.mark.parametrize("dtype, edit, add", [
    (np.int16, None, 0), (np.float32, None, 0), (np.float64, None, 0), (np.int64, None, 0),
    (np.uint16, scaled(1, -1024), 1024), (np.int16, scaled(np.nan, np.nan), 0), (np.int16, scaled(1, np.nan), 0),
    (np.int16, scaled(0, 7), 0), (np.int16, scaled(np.inf, 0), 0), (np.int16, without_sform, 0)])
def test_sound_volumes_are_read(tmp_path, dtype, edit, add):
    path = write(tmp_path / "a.nii", HU + add, dtype, edit)
    np.testing.assert_array_equal(volume.read_volume(path), HU)


@pytest.mark.parametrize("level", [-1024, -2000, -8192, 32767])
def test_padding_of_a_volume_is_air(tmp_path, level):
    padded = np.where(outside_circle(), level, HU)
    found = volume.read_volume(write(tmp_path / "a.nii", padded))
    assert (found[:, outside_circle()] == -1024).all()
    np.testing.assert_array_equal(found[:, ~outside_circle()], HU[:, ~outside_circle()])


@pytest.mark.parametrize("what, stored", {
    "1024 added": HU + 1024, "1024 added, padded": np.where(outside_circle(), -2000, HU + 1024), "-1 to 1": HU / 1024,
    "z-scores": (HU - HU.mean()) / HU.std(), "0 to 1": (HU + 1024) / 2048,
    "grey with ripples": np.where(np.indices(HU.shape)[1] == 3, -6.0, readers.apply_window(HU))}.items())
def test_what_cannot_be_hu_is_scaled_by_its_own_range(tmp_path, what, stored):
    path = write(tmp_path / "a.nii", stored, np.float32)
    with pytest.raises(ReadError, match="holds grey values, not Hounsfield units"):
        readers.read_hu(path, 1)
    picture = readers.read_slice(path, 1).astype(int)
    assert picture[TISSUE] > picture[LUNG] + 80, what
    assert readers.read(path, 1).remark


def test_a_mask_is_a_mask_though_it_is_constant(tmp_path):
    for values in (np.ones((2, 8, 8)), np.full((2, 8, 8), 3), np.zeros((2, 8, 8))):
        for dtype in (np.uint8, np.int16, np.float32):
            assert (readers.read_mask(write(tmp_path / "a.nii", values, dtype), 1) == (values[1] > 0)).all()


def test_pixels_that_are_not_square(tmp_path):
    path = write(tmp_path / "a.nii", HU[:, ::2], size=(0.7, 1.4, 5))
    assert volume.read_volume(path).shape == (4, 96, 96) and readers.read_slice(path, 2).shape == (96, 96)
    mask = write(tmp_path / "m.nii", HU[:, ::2] < -500, np.uint8, size=(0.7, 1.4, 5))
    assert readers.read_mask(mask, 2).shape == (96, 96)
