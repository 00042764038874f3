"""A picture unlike the training data is doubted, one like it is not."""

import numpy as np
import pytest
from PIL import Image

from covidlib import phantom, readers
from covidlib.preprocessing import crop, lungs, quality


@pytest.fixture(scope="module")
def hu():
    return [phantom.render(label, np.random.default_rng(n)).hu
            for n, label in enumerate(["covid", "viral", "normal"] * 4)]


@pytest.fixture(scope="module")
def usual(hu):
    return quality.feature_ranges([crop.crop_to_lungs(readers.apply_window(one), 96)[0] for one in hu[:-1]])


def doubted(picture, usual=None, size=96):
    body, lung = lungs.segment(picture)
    return quality.slice_warnings(picture, lung, body, crop.crop_to_lungs(picture, size, lung)[0], usual)


def test_a_slice_like_the_training_data_is_not_doubted(hu, usual):
    assert doubted(readers.apply_window(hu[-1]), usual) == []


@pytest.mark.parametrize("picture, told", [
    (np.zeros((200, 200), np.uint8), "no body is found"),
    (np.pad(np.full((120, 120), 240, np.uint8), 40), "no lungs are in view"),
], ids=["black", "a body without lungs"])
def test_what_is_no_chest_slice_is_doubted(picture, told, usual):
    assert told in " ".join(doubted(picture, usual))


def test_a_soft_tissue_window_is_doubted(hu):
    assert "soft tissue window" in " ".join(doubted(readers.apply_window(hu[-1], (40, 400))))


def test_a_small_picture_is_doubted(hu):
    small = np.asarray(Image.fromarray(readers.apply_window(hu[-1])).resize((60, 60)))
    assert "60 x 60 pixels, fewer than the 96 x 96" in " ".join(doubted(small))


def test_noise_is_not_like_the_training_slices(hu, usual):
    noisy = readers.apply_window(hu[-1] + np.random.default_rng(0).normal(0, 500, hu[-1].shape))
    body, lung = lungs.segment(readers.apply_window(hu[-1]))
    found = quality.slice_warnings(noisy, lung, body, crop.crop_to_lungs(noisy, 96, lung)[0], usual)
    assert "than its training slices" in " ".join(found) or "than in its training slices" in " ".join(found)


def test_colours_are_doubted_and_grey_stored_as_colour_is_not(tmp_path):
    grey = np.full((50, 50, 3), 120, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    grey[10:20, 10:20] = (200, 30, 30)
    Image.fromarray(grey).save(tmp_path / "marked.png")
    (tmp_path / "none.dcm").write_bytes(b"not a picture")
    assert quality.file_warnings(tmp_path / "grey.png") == quality.file_warnings(tmp_path / "none.dcm") == []
    assert "4% of its pixels are coloured" in quality.file_warnings(tmp_path / "marked.png")[0]
