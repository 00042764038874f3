"""The pyramid: sizes, alignment, width."""

import keras
import numpy as np
import pytest
from keras import layers

from covidlib.models import fpn


def pyramid(sizes, width=4):
    inputs = [keras.Input((size, size, 3)) for size in sizes]
    return keras.Model(inputs, fpn.build_fpn(inputs, width))


@pytest.mark.parametrize("sizes", [(8, 4, 2, 1), (9, 5, 3, 2), (17, 9, 5, 3), (57, 29, 15, 8)], ids=str)
@pytest.mark.parametrize("width", [1, 6])
def test_each_level_keeps_its_size(sizes, width):
    levels = pyramid(sizes, width).outputs
    assert [tuple(level.shape[1:]) for level in levels] == [(size, size, width) for size in sizes]


@pytest.mark.parametrize("size", [(6, 6), (5, 5), (6, 5)], ids=str)
def test_upsampling_repeats_pixels_from_the_near_corner(size):
    small = np.random.default_rng(0).normal(size=(1, 3, 3, 2)).astype("float32")
    inputs = keras.Input((3, 3, 2))
    large = keras.Model(inputs, fpn._enlarge(inputs, size, "any")).predict(small, verbose=0)
    rows, columns = (np.arange(length) // 2 for length in size)
    np.testing.assert_array_equal(large, small[:, rows][:, :, columns])


def test_a_fine_level_sees_the_coarse_ones_and_not_the_other_way():
    model = pyramid((16, 8, 4, 2))
    rng = np.random.default_rng(0)
    stages = [rng.normal(size=(1, size, size, 3)).astype("float32") for size in (16, 8, 4, 2)]
    before = model.predict(stages, verbose=0)
    stages[2] = stages[2] + 1
    changed = [bool(np.any(a != b)) for a, b in zip(before, model.predict(stages, verbose=0), strict=True)]
    assert changed == [True, True, True, False]


def test_levels_are_not_linear_before_they_are_pooled():
    model = pyramid((8, 4, 2, 1))
    assert all(isinstance(level._keras_history.operation, layers.Activation) for level in model.outputs)
    assert all(level._keras_history.operation.activation is keras.activations.relu for level in model.outputs)
