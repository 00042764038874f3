"""What is taken for Hounsfield units, what is padding, and how grey values become a picture."""

import numpy as np
import pytest
from bodies import CORNER, LUNG, TISSUE, chest, outside_circle

from covidlib.readers import errors, values

HU = chest().astype(float)
AIR = np.random.default_rng(0).normal(-1000, 25, (96, 96))
PADDED = np.where(outside_circle(), -2000, HU)


@pytest.mark.parametrize("what, hu", {
    "a chest": HU, "padded": PADDED, "clipped": np.clip(HU, -1024, 150), "a volume": np.stack([HU] * 3),
    "with metal": np.where(np.hypot(*(np.indices(HU.shape) - 48)) < 5, 9000, HU),
    "of strong noise": chest(noise=60).astype(float), "a lung cut out": np.where(
        np.abs(np.indices(HU.shape)[1] - 28) < 9, np.where(HU % 13, HU, 30), -1024)}.items())
def test_slices_of_a_body_look_like_hu(what, hu):
    assert values.assess_hu(hu)[0] is True, what


@pytest.mark.parametrize("what, hu, looks", [
    ("air", AIR, True), ("one value", np.full((96, 96), -1000.0), True),
    ("a table", np.where(np.indices((96, 96))[0] > 80, -400.0, AIR), True), ("inside of a body", AIR + 1060, None),
    ("lung alone", AIR + 130, True),
    ("a few pixels", np.zeros((4, 5)), None), ("another value", np.full((96, 96), 40.0), None)])
def test_what_shows_no_body_is_no_reason_to_doubt_a_header(what, hu, looks):
    assert values.assess_hu(hu)[0] is looks, what


@pytest.mark.parametrize("what, not_hu, contradicts", [
    ("z-scores", (HU - HU.mean()) / HU.std(), False), ("0 to 1", (HU + 1024) / 4096, False),
    ("-1 to 1", HU / 1024, False), ("grey with ripples", np.clip((HU + 1350) * 0.17, -6, 255), False),
    ("1024 added", HU + 1024, True), ("1024 added, padded", PADDED + 1024 + (PADDED == -2000) * -1024, True),
    ("1000 added, padding like air", np.where(outside_circle(), -1000, HU + 1000), True),
    ("1024 taken off twice", HU - 1024, True), ("tenths of HU", HU * 10, True),
    ("read without a sign", np.where(HU < 0, HU + 65536, HU), True),
    ("8 bits less 1024", (HU + 1350) * 0.17 - 1024, True)])
def test_what_is_not_hu_does_not_look_like_it(what, not_hu, contradicts):
    looks, why = values.assess_hu(not_hu)
    assert looks is (False if contradicts else None) and why, what


def test_padding_and_what_is_no_number_become_air():
    stored = HU.astype(np.float32)
    stored[outside_circle()] = 62512
    stored[TISSUE], stored[LUNG] = np.nan, np.inf
    marked = np.zeros(stored.shape, bool)
    marked[50, 50] = True
    filled = values.fill_padding(stored, marked)
    assert {filled[place] for place in (CORNER, TISSUE, LUNG, (50, 50))} == {-1024}
    inside = ~outside_circle() & ~marked & (stored < 3000)
    np.testing.assert_array_equal(filled[inside], stored[inside])


@pytest.mark.parametrize("border", [0, 65535, 31000])
def test_grey_values_are_scaled_by_what_was_measured(border):
    grey = (HU + 32768).astype(np.uint16)
    expected = values.to_bytes(grey)
    grey[outside_circle()] = border
    seen = values.to_bytes(grey)
    change = seen.astype(int) - expected
    assert abs(change[TISSUE] - change[LUNG]) < 12 and seen[CORNER] == 0


def test_a_background_near_the_anatomy_is_no_padding():
    grey = np.where(outside_circle(), 0, np.clip(HU + 1024, 0, None)).astype(np.uint16)
    assert values.to_bytes(grey)[LUNG] > 5  # 174 of 1500


@pytest.mark.parametrize("nothing", [np.nan, -np.inf, np.inf, -3.4e38, -32768])
def test_what_was_not_measured_is_black(nothing):
    grey = np.where(outside_circle(), nothing, HU).astype(np.float32)
    seen = values.to_bytes(grey)
    assert seen[CORNER] == 0 and seen[TISSUE] > seen[LUNG] + 100
    assert np.isfinite(nothing) or not values.to_bytes(np.full((9, 9), nothing, np.float32)).any()


def test_what_hardly_varies_does_not_vanish():
    mask = np.zeros((64, 64), np.int16)
    mask[3, 3] = 1
    assert values.to_bytes(mask).max() == 255
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert values.to_bytes(eight) is eight


def test_pixels_are_made_square():
    tall = np.repeat(HU[::2].astype(np.float32), 1, axis=0)
    square = values.square_pixels("x", tall, (3.0, 1.5))
    assert square.shape == (96, 96) and abs(square - HU)[10:-10].mean() < 40
    assert values.square_pixels("x", np.uint8(tall > 0), (1.5, 3.0)).shape == (48, 192)
    for spacing in (None, (1.0, 1.0), (1.0, 1.005)):
        assert values.square_pixels("x", tall, spacing) is tall
    mask = values.square_pixels("x", np.array([[False, True, False, True]]), (3, 1))
    assert mask.dtype == bool and mask.tolist() == [[False, True, False, True]] * 3
    with pytest.raises(errors.ReadError, match="100 x 0.01 mm: resampled to squares they are too many"):
        values.square_pixels("x", tall, (100, 0.01))
