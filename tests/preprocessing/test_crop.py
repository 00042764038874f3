"""A slice cropped to the lungs keeps the anatomy, and nothing of the file's scale, margins, window or resolution."""

import numpy as np
import pytest
from PIL import Image

from covidlib import phantom, readers
from covidlib.preprocessing import crop
from covidlib.preprocessing.lungs import lung_mask

SIZE = 96


@pytest.fixture(scope="module", params=range(3))
def slice_of(request):
    return readers.apply_window(phantom.render("normal", np.random.default_rng(request.param)).hu)


def resized(image, factor, resample=Image.Resampling.BICUBIC):
    size = [round(side * factor) for side in image.shape[::-1]]
    return np.asarray(Image.fromarray(image).resize(size, resample))


@pytest.mark.parametrize("change", [
    lambda image: resized(image, 2.5), lambda image: resized(image, 0.6, Image.Resampling.BOX),
    lambda image: np.pad(image, ((0, 0), (120, 30))), lambda image: np.pad(image, ((50, 10), (0, 0))),
    lambda image: np.pad(image, 20, constant_values=255), lambda image: np.uint8(image * 0.7 + 30),
], ids=["enlarged", "reduced", "padded sideways", "padded above", "on a white page", "another window"])
def test_the_same_body_gives_the_same_picture(slice_of, change):
    before, lungs_before = crop.prepare(slice_of, SIZE, "lungs")
    after, lungs_after = crop.prepare(change(slice_of), SIZE, "lungs")
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95
    assert abs(before.mean() - after.mean()) < 12
    assert (lungs_before & lungs_after).sum() > 0.85 * (lungs_before | lungs_after).sum()


def test_lungs_and_what_lies_between_them_fill_the_square_on_black(slice_of):
    image, lungs = crop.prepare(slice_of, SIZE, "lungs")
    assert image.shape == lungs.shape == (SIZE, SIZE) and image.dtype == np.uint8 and lungs.dtype == bool
    columns = np.flatnonzero((image > 20).any(0))
    assert columns[0] <= crop.RIM + 2 and columns[-1] >= SIZE - crop.RIM - 3
    assert image[:3].max() < 20 and image[:, :3].max() < 20
    between = image[(image > 0) & ~lungs]
    assert np.median(between) > 240 and image[lungs].mean() < 160


def test_larger_sizes_are_enlargements(slice_of):
    kept, _ = crop.prepare(slice_of, crop.ACROSS, "lungs")
    assert np.array_equal(crop.resize(kept, 160), crop.prepare(slice_of, 160, "lungs")[0])


def test_a_mask_that_is_given_is_used(slice_of):
    lungs = np.zeros(slice_of.shape, bool)
    lungs[60:140, 60:100] = lungs[60:140, 120:160] = True
    image, cropped = crop.prepare(slice_of, SIZE, "lungs", lungs)
    rows, columns = np.flatnonzero(cropped.any(1)), np.flatnonzero(cropped.any(0))
    assert abs(np.ptp(columns) / np.ptp(rows) - 100 / 80) < 0.06
    assert not cropped[:, SIZE // 2 - 4 : SIZE // 2 + 4].any() and image[SIZE // 2, SIZE // 2] > 0


def test_without_lungs_the_body_is_kept():
    y, x = np.mgrid[-64:64, -64:64]
    liver = np.uint8(220 * ((x / 55) ** 2 + (y / 40) ** 2 < 1))
    image, lungs = crop.prepare(liver, SIZE, "lungs")
    assert not lungs.any() and image[SIZE // 2, SIZE // 2] >= 200 and image[2, 2] == 0


@pytest.mark.parametrize("image", [
    np.zeros((64, 64), np.uint8), np.full((40, 90), 255, np.uint8), np.full((1, 1), 7, np.uint8),
    np.arange(800, dtype=np.uint8).reshape(2, 400), np.random.default_rng(0).integers(0, 255, (90, 30), np.uint8),
], ids=["black", "white", "one pixel", "a strip", "noise"])
def test_what_is_no_slice_is_no_error(image):
    assert [part.shape for part in crop.prepare(image, 32, "lungs")] == [(32, 32), (32, 32)]


def test_wrong_shapes_are_named(slice_of):
    with pytest.raises(ValueError, match=r"image's shape \(256, 256\)"):
        crop.prepare(slice_of, SIZE, "lungs", np.zeros((9, 9), bool))
    with pytest.raises(ValueError, match="Received: size=0"):
        crop.prepare(slice_of, 0, "lungs")


def test_a_mask_is_cropped_as_the_picture_is(slice_of):
    lungs = lung_mask(slice_of)
    mask = np.zeros_like(lungs)
    rows, columns = np.nonzero(lungs)
    row, column = rows[len(rows) // 2], columns[len(columns) // 2]
    mask[row - 4 : row + 5, column - 4 : column + 5] = True
    marked = np.where(mask, 255, np.where(lungs, 40, slice_of)).astype(np.uint8)
    cropped = crop.prepare_mask(mask, SIZE, "lungs", lungs)
    assert cropped.any() and crop.prepare(marked, SIZE, "lungs", lungs)[0][cropped].mean() > 150
    whole = crop.prepare(slice_of, SIZE, "lungs", lungs)[1].sum()
    assert crop.prepare_mask(lungs, SIZE, "lungs", lungs).sum() == pytest.approx(whole, rel=0.02)
    assert not crop.prepare_mask(mask, SIZE, "lungs", np.zeros_like(lungs)).any()
