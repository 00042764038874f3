"""Both attention blocks against plain numpy, and reading their weights."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

from covidlib.models import attention_map, build_classifier
from covidlib.models.attention import global_context, non_local

WIDTH = 3


def block(make, size, **options):
    """A model of one block with random weights, the last normalisation's included; and a batch."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((*size, 8))
    model = keras.Model(inputs, make(inputs, "block", WIDTH, **options))
    for variable in model.variables:
        variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model, rng.normal(size=(2, *size, 8)).astype("float32")


def parts(model, layer):
    return [keras.ops.convert_to_numpy(weight) for weight in model.get_layer(layer).weights]


def project(model, layer, x):
    kernel, *bias = parts(model, layer)
    return x @ kernel.reshape(kernel.shape[-2:]) + sum(bias)


def pool(x):
    """2x2 maximum, the last row or column alone where the size is odd."""
    padded = np.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)], constant_values=-np.inf)
    n, height, breadth, channels = padded.shape
    return padded.reshape(n, height // 2, 2, breadth // 2, 2, channels).max(axis=(2, 4))


@pytest.mark.parametrize("pooled_keys", [True, False])
@pytest.mark.parametrize("size", [(6, 4), (5, 3), (1, 1)], ids=str)
def test_non_local_is_the_embedded_gaussian(size, pooled_keys):
    model, x = block(non_local, size, pooled_keys=pooled_keys)
    source = (pool(x) if pooled_keys else x).reshape(2, -1, 8)
    query = project(model, "block_query", x.reshape(2, -1, 8))
    key, value = (project(model, f"block_{name}", source) for name in ("key", "value"))
    weights = softmax(query @ key.swapaxes(1, 2) / np.sqrt(WIDTH), axis=-1)
    y = project(model, "block_output", weights @ value)
    gamma, beta, mean, variance = parts(model, "block_bn")
    y = (y - mean) / np.sqrt(variance + 1.001e-5) * gamma + beta
    np.testing.assert_allclose(model.predict(x, verbose=0), x + y.reshape(x.shape), rtol=1e-3, atol=1e-3)


def test_global_context_is_one_weighted_mean_for_all_places():
    model, x = block(global_context, (5, 4))
    flat = x.reshape(2, -1, 8)
    weights = softmax(project(model, "block_key", flat), axis=1)
    y = project(model, "block_squeeze", (weights * flat).sum(1))
    gamma, beta = parts(model, "block_norm")
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * gamma + beta
    y = project(model, "block_output", np.maximum(y, 0))
    np.testing.assert_allclose(model.predict(x, verbose=0), x + y[:, None, None], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [non_local, global_context])
def test_a_block_starts_as_identity_and_can_leave_it(make):
    inputs = keras.Input((6, 6, 8))
    model = keras.Model(inputs, make(inputs, "block", WIDTH))
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype("float32")
    np.testing.assert_array_equal(model.predict(x, verbose=0), x)
    model.compile("sgd", "mse")
    model.fit(x, np.roll(x, 1, axis=0), epochs=2, verbose=0)
    assert np.any(model.predict(x, verbose=0) != x)


@pytest.mark.parametrize("make", [non_local, global_context])
def test_weights_are_float32_under_mixed_precision(make):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((6, 6, 8))
        model = keras.Model(inputs, make(inputs, "block", WIDTH))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("block_weights").output.dtype == "float32"
    assert model.output.dtype == "bfloat16"


@pytest.fixture(scope="module")
def improved(narrowed):
    with narrowed():
        return build_classifier("improved", ("a", "b"), 65, precision="float32")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (65, 65)).astype("uint8")


def test_weights_of_a_query_are_a_map_over_the_keys(improved, image):
    first = attention_map(improved, image, "attention_conv3", (0, 0))
    other = attention_map(improved, image[..., None], "attention_conv3", (4, 7))
    assert first.shape == other.shape == (5, 5)  # 9 x 9 places, pooled
    assert first.dtype == np.float32
    assert first.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.any(first != other)
    reader = keras.Model(improved.input, improved.get_layer("attention_conv3_weights").output)
    weights = reader.predict(image[None, ..., None].astype("float32"), verbose=0)
    np.testing.assert_allclose(other.ravel(), weights[0, 4 * 9 + 7], atol=1e-5)


def test_global_context_has_one_map(image, narrow):
    model = build_classifier("improved_global_context", ("a", "b"), 65, precision="float32")
    maps = [attention_map(model, image, "attention_conv4", position) for position in ((0, 0), (4, 4))]
    assert maps[0].shape == (5, 5)
    np.testing.assert_array_equal(*maps)


@pytest.mark.parametrize(
    ("layer", "position", "shape", "message"),
    [
        ("attention_conv2", (0, 0), (65, 65), "layer must be one of .*'attention_conv5'.*Received: layer="),
        ("attention_conv5", (3, 0), (65, 65), r"position must lie in the \(3, 3\) grid"),
        ("attention_conv5", (0, -1), (65, 65), "position must lie"),
        ("attention_conv5", (0, 0), (64, 65), r"image must be \(65, 65, 1\)"),
    ],
)
def test_what_cannot_be_read_is_said(improved, layer, position, shape, message):
    with pytest.raises(ValueError, match=message):
        attention_map(improved, np.zeros(shape), layer, position)
