"""A picture unlike the training data is warned of, one like it is not."""

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
    return quality.feature_ranges([crop.prepare(readers.apply_window(one), 96, "lungs")[0] for one in hu[:-1]])


def warnings(picture, usual=None, body_of=None):
    body, lung = lungs.segment(picture if body_of is None else body_of)
    return " ".join(quality.slice_warnings(picture, lung, body, crop.prepare(picture, 96, "lungs", lung)[0], usual))


def test_a_slice_like_the_training_data_is_not_warned_of(hu, usual):
    assert warnings(readers.apply_window(hu[-1]), usual) == ""


@pytest.mark.parametrize("picture, warning", [
    (lambda hu: np.zeros((200, 200), np.uint8), "no body is found"),
    (lambda hu: np.pad(np.full((120, 120), 240, np.uint8), 40), "no lungs are in view"),
    (lambda hu: readers.apply_window(hu, (40, 400)), "soft tissue window"),
    (lambda hu: np.asarray(Image.fromarray(readers.apply_window(hu)).resize((60, 60))),
     "60 x 60 pixels, fewer than the 96 x 96"),
], ids=["black", "a body without lungs", "a soft tissue window", "a small picture"])
def test_what_is_no_usual_slice_is_warned_of(picture, warning, hu, usual):
    assert warning in warnings(picture(hu[-1]), usual)


def test_noise_is_not_like_the_training_slices(hu, usual):
    noisy = readers.apply_window(hu[-1] + np.random.default_rng(0).normal(0, 500, hu[-1].shape))
    found = warnings(noisy, usual, body_of=readers.apply_window(hu[-1]))
    assert "than its training slices" in found or "than in its training slices" in found


def test_colours_and_doubtful_values_are_warned_of(tmp_path):
    grey = np.full((50, 50, 3), 120, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    grey[10:20, 10:20] = (200, 30, 30)
    Image.fromarray(grey).save(tmp_path / "marked.png")
    (tmp_path / "none.dcm").write_bytes(b"not a picture")
    assert quality.colour_warnings(tmp_path / "grey.png") == quality.colour_warnings(tmp_path / "none.dcm") == []
    assert "4% of its pixels are coloured" in quality.colour_warnings(tmp_path / "marked.png")[0]
    assert quality.value_warnings("") == quality.value_warnings(None) == []
    assert quality.value_warnings("they reach 70000") == ["its values are doubtful: they reach 70000."]
