import numpy as np
import pytest
from scipy import ndimage

from covidlib.preprocessing.augmentation import MILD, OPERATIONS, PAPER, Augmenter, apply

EXAMPLES = {
    "horizontal_flip": True, "vertical_flip": True, "rotation": 10.0, "shear": 8.0, "translation": (0.1, -0.05),
    "scale": 1.1, "brightness": 0.1, "contrast": 1.2, "saturation": 1.5, "hue": 40.0,
}
GREY_BLIND = ("saturation", "hue")


@pytest.fixture(scope="module")
def image():
    rows, columns = np.mgrid[:41, :41]
    smooth = 120 + 60 * np.sin(rows / 6) + 40 * np.cos(columns / 4)
    return np.rint(smooth).astype(np.uint8)


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def test_every_operation_of_the_paper_is_there():
    assert set(EXAMPLES) == set(OPERATIONS) == set(PAPER)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("shape", [(41, 41), (41, 41, 1), (41, 41, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_operation_keeps_shape_and_type_and_does_something(name, shape, dtype, image):
    given = np.broadcast_to(image.reshape(41, 41, *(1,) * (len(shape) - 2)), shape).astype(dtype)
    if len(shape) == 3 and shape[-1] == 3:
        given = given // np.array([1, 2, 3], dtype)
    result = apply(name, given, EXAMPLES[name])
    assert result.shape == shape and result.dtype == dtype
    assert result.min() >= 0 and result.max() <= 255
    changes = shape[-1] == 3 or name not in GREY_BLIND
    assert np.array_equal(result, given) != changes
    assert np.array_equal(result, apply(name, given, EXAMPLES[name]))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_identity_value_changes_nothing(name, image, rgb):
    for given in (image, rgb):
        assert np.array_equal(apply(name, given, OPERATIONS[name].identity), given)


@pytest.mark.parametrize("name", GREY_BLIND)
@pytest.mark.parametrize("value", [0.0, 0.5, 1.7, 90.0, -140.0])
def test_hue_and_saturation_leave_a_grey_rgb_image_as_it_was(name, value):
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    assert np.array_equal(apply(name, grey, value), grey)


def test_colour_operations_do_what_they_say(rgb):
    red, grey = np.array([[[255, 0, 0]]], np.uint8), np.array([[50, 150]], np.uint8)
    assert apply("hue", red, 120).tolist() == [[[0, 255, 0]]]
    assert apply("hue", red, -120).tolist() == [[[0, 0, 255]]]
    assert np.ptp(apply("saturation", rgb, 0.0).astype(int), axis=-1).max() == 0
    assert apply("brightness", grey, 0.2).tolist() == [[101, 201]]
    assert apply("brightness", grey, 0.9).tolist() == [[255, 255]]
    assert apply("contrast", grey, 0.5).tolist() == [[75, 125]]


@pytest.mark.parametrize("side", [8, 9])
def test_geometry_agrees_with_numpy(side):
    image = np.random.default_rng(1).integers(0, 256, (side, side), dtype=np.uint8)
    assert np.array_equal(apply("horizontal_flip", image, True), image[:, ::-1])
    assert np.array_equal(apply("vertical_flip", image, True), image[::-1])
    assert np.array_equal(apply("rotation", image, 90), np.rot90(image))
    moved = apply("translation", image, (1 / side, 0))
    assert np.array_equal(moved[1:], image[:-1]) and not moved[0].any()


def test_scale_enlarges_and_shear_slants():
    spot, line = np.zeros((2, 41, 41), np.float32)
    spot[20, 30] = line[:, 20] = 255
    assert np.unravel_index(apply("scale", spot, 2.0).argmax(), spot.shape) == (20, 40)
    slanted = apply("shear", line, 45.0).argmax(axis=1)
    assert slanted[20] == 20 and abs(slanted[25] - slanted[15]) == 10


def test_geometric_operations_are_one_warp_in_their_order(image, monkeypatch):
    steps = {"horizontal_flip": True, "rotation": 20.0, "shear": 7.0, "scale": 1.2, "translation": 0.05}
    one_by_one = image.astype(np.float32)
    for name, value in steps.items():
        one_by_one = apply(name, one_by_one, value)
    calls = []
    warp = ndimage.affine_transform
    monkeypatch.setattr(ndimage, "affine_transform", lambda *a, **k: calls.append(1) or warp(*a, **k))
    ranges = {name: 1.0 if value is True else (value, value) for name, value in steps.items()}
    at_once = Augmenter(ranges)(image.astype(np.float32), 0, 0)
    assert len(calls) == 1
    assert np.abs(at_once - one_by_one)[10:-10, 10:-10].max() < 4


def test_augmenter_is_a_function_of_seed_epoch_and_index(image):
    first = Augmenter(PAPER, seed=3)
    result = first(image, 2, 7)
    first(image, 0, 0)
    assert np.array_equal(result, first(image, 2, 7))
    assert np.array_equal(result, Augmenter(PAPER, seed=3)(image, 2, 7))
    for other in (Augmenter(PAPER, seed=4)(image, 2, 7), first(image, 3, 7), first(image, 2, 8)):
        assert not np.array_equal(result, other)


def test_draws_stay_in_their_ranges_and_do_not_depend_on_the_other_operations():
    augmenter = Augmenter(PAPER)
    draws = [augmenter.draw(0, index) for index in range(200)]
    for name, limits in PAPER.items():
        values = np.array([draw[name] for draw in draws], float)
        if name.endswith("_flip"):
            assert 0.35 < values.mean() < 0.65
        else:
            assert limits[0] <= values.min() < values.max() <= limits[1]
    alone = Augmenter({"rotation": PAPER["rotation"]})
    assert [alone.draw(0, i) for i in range(9)] == [{"rotation": draw["rotation"]} for draw in draws[:9]]


def test_sets_are_configurable(image):
    assert "vertical_flip" not in MILD and set(MILD) <= set(PAPER)
    assert np.array_equal(Augmenter("none")(image, 0, 0), image)
    assert Augmenter("mild").operations == MILD and Augmenter("paper").operations == PAPER
    assert np.array_equal(Augmenter({"vertical_flip": 1.0})(image, 5, 5), image[::-1])


@pytest.mark.parametrize("call, message", [
    (lambda image: apply("rotate", image, 5), "did you mean 'rotation'.*Received: 'rotate'"),
    (lambda image: apply("scale", image, 0), "above 0. Received: scale=0"),
    (lambda image: Augmenter("strong"), "one of paper, mild, none. Received: 'strong'"),
    (lambda image: Augmenter({"scales": (0.9, 1.1)}), "did you mean 'scale'"),
    (lambda image: Augmenter({"rotation": (5, -5)}), r"low first. Received: rotation=\(5, -5\)"),
    (lambda image: Augmenter({"horizontal_flip": 2}), "Received: horizontal_flip=2"),
    (lambda image: Augmenter({"scale": (0.0, 1.0)}), "scale must be above 0"),
])
def test_mistakes_are_named(image, call, message):
    with pytest.raises(ValueError, match=message):
        call(image)
