"""Lung masks: right on phantoms, sane on what is no slice, found on nearly all real pictures."""

import numpy as np
import pytest
from PIL import Image

from covidlib import datasets, phantom, readers
from covidlib.preprocessing import lungs


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_dice_on_phantoms(label):
    rng = np.random.default_rng(5)
    drawn = [phantom.render(label, rng) for _ in range(8)]
    found = [lungs.segment(readers.apply_window(one.hu)) for one in drawn]
    scores = [dice(lung, one.lungs | one.lesions) for (_, lung), one in zip(found, drawn, strict=True)]
    assert np.mean(scores) > 0.95 and min(scores) > 0.85
    for (body, lung), one in zip(found, drawn, strict=True):
        assert not (lung & ~body).any() and body[one.hu < -1000].mean() < 0.1
        assert 0.05 < lungs.lung_fraction(readers.apply_window(one.hu)) < 0.6


def test_masks_do_not_depend_on_size_window_or_page():
    image = readers.apply_window(phantom.render("normal", np.random.default_rng(3)).hu)
    found = lungs.lung_mask(image)
    large = np.asarray(Image.fromarray(image).resize((600, 600), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(lungs.lung_mask(large)).resize((256, 256), Image.Resampling.NEAREST))
    assert dice(small, found) > 0.95
    assert dice(lungs.lung_mask(np.uint8(image * 0.6 + 40)), found) > 0.95
    body, paged = lungs.segment(np.pad(image, 40, constant_values=255))
    assert not body[:30].any() and dice(paged[40:-40, 40:-40], found) > 0.95


@pytest.mark.parametrize("image", [
    np.zeros((50, 50), np.uint8), np.full((50, 50), 255, np.uint8), np.full((1, 1), 9, np.uint8),
    np.zeros((3, 900), np.uint8), np.uint8(np.arange(6400).reshape(80, 80) // 26),
], ids=["black", "white", "one pixel", "a strip", "a ramp"])
def test_no_lungs_where_there_are_none(image):
    body, lung = lungs.segment(image)
    assert body.shape == lung.shape == image.shape and not (lung & ~body).any()
    assert lungs.lung_mask(image).mean() < 0.5


def test_a_slice_below_the_lungs_has_none():
    y, x = np.mgrid[-100:100, -100:100]
    belly = np.uint8(235 * ((x / 90) ** 2 + (y / 60) ** 2 < 1))
    body, lung = lungs.segment(belly)
    assert not lung.any() and body.mean() == pytest.approx(0.424, abs=0.03)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_other_arrays_are_refused(wrong):
    with pytest.raises(ValueError, match="must be uint8"):
        lungs.segment(wrong)


@pytest.mark.slow
def test_lungs_are_found_in_real_pictures(shared_data):
    manifest = datasets.load("ucsd-covid-ct", shared_data / "ucsd-covid-ct").manifest.iloc[::5]
    found = [lungs.lung_fraction(readers.read_slice(shared_data / "ucsd-covid-ct" / path)) for path in manifest.path]
    assert np.mean([0.05 < fraction < 0.9 for fraction in found]) > 0.97
