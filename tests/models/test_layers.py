"""The fused layer against Keras's own."""

import keras
import numpy as np
import pytest

from covidlib.models import BatchNormalization

on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="kernel of TensorFlow")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("flags", [
    {"momentum": 0.5, "epsilon": 0.1, "gamma_initializer": "zeros",
     "moving_variance_initializer": keras.initializers.Constant(2.0)},
    {"center": False}, {"scale": False}, {"trainable": False}, {"axis": 1}, {"renorm": True}], ids=",".join)
def test_with_every_flag_it_can_be_called_fitted_saved_and_loaded(flags, policy, tmp_path):
    shape = (4, 5, 6, 3)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = BatchNormalization(**flags, dtype=keras.DTypePolicy(policy))
    assert BatchNormalization.from_config(layer.get_config()).get_config() == layer.get_config()
    inputs = keras.Input(shape[1:])
    outputs = layer(inputs)
    assert outputs.shape[1:] == shape[1:] and outputs.dtype == layer.compute_dtype
    model = keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(outputs))
    model.compile("sgd", "mse")
    model.fit(x, np.zeros(shape, "float32"), verbose=0)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def pair(dtype, shape, **flags):
    """Keras's layer and ours with the same random weights, and a batch."""
    rng = np.random.default_rng(1)
    made = [kind(dtype=dtype, **flags) for kind in (keras.layers.BatchNormalization, BatchNormalization)]
    for layer in made:
        layer.build(shape)
    values = [rng.uniform(0.5, 2.0, variable.shape) for variable in made[0].weights]
    for layer in made:
        layer.set_weights(values)
    return *made, rng.normal(3.0, 2.0, shape).astype("float32")


def step(layer, x, training):
    """Output, and gradients of a weighted sum of it with respect to input and weights."""
    import tensorflow as tf

    x = tf.cast(x, layer.compute_dtype)
    weight = tf.cast(tf.random.stateless_normal(x.shape, seed=(1, 2)), x.dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_sum(y * weight)
    gradients = tape.gradient(loss, [x, *[variable.value for variable in layer.trainable_variables]])
    return [tf.cast(value, "float32").numpy() for value in (y, *gradients)]


@on_tensorflow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 7), (2, 1, 1, 7), (1, 1, 1, 7)], ids=str)
@pytest.mark.parametrize("flags", [{}, {"scale": False}, {"center": False}, {"trainable": False}], ids=str)
def test_output_gradients_and_statistics_are_those_of_keras(flags, shape, training):
    theirs, ours, x = pair("float32", shape, momentum=0.8, epsilon=1.001e-5, **flags)
    for batch in (x, 2 * x - 1):
        for want, have in zip(step(theirs, batch, training), step(ours, batch, training), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=2e-4)
    for want, have in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@on_tensorflow
@pytest.mark.parametrize("training", [True, False])
def test_bfloat16_agrees_within_its_precision(training):
    theirs, ours, x = pair("mixed_bfloat16", (8, 9, 9, 16))
    pairs = zip(step(theirs, x, training), step(ours, x, training), strict=True)
    for want, have in pairs:
        np.testing.assert_allclose(have, want, rtol=0.02, atol=0.02 * np.abs(want).max())
    for want, have in zip(theirs.get_weights(), ours.get_weights(), strict=True):
        assert have.dtype == np.float32
        np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-3)


@on_tensorflow
@pytest.mark.parametrize(
    ("flags", "shape", "fused"),
    [
        ({}, (2, 3, 3, 4), True),
        ({}, (2, 4), False),
        ({"axis": 1}, (2, 3, 3, 4), False),
        ({"renorm": True}, (2, 3, 3, 4), False),
    ],
    ids=str,
)
def test_kernel_is_used_where_it_fits(flags, shape, fused):
    import tensorflow as tf

    layer = BatchNormalization(**flags)
    layer.build(shape)
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(tf.TensorSpec(shape)).graph
    assert ("FusedBatchNormV3" in {operation.type for operation in graph.get_operations()}) is fused


def test_masked_positions_are_left_out_as_in_keras():
    theirs, ours, x = pair("float32", (2, 3, 3, 4))
    mask = np.array([True, False, True])[None, :, None] & np.ones((2, 3, 3), bool)
    outputs = [keras.ops.convert_to_numpy(layer(x, training=True, mask=mask)) for layer in (theirs, ours)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_frozen_statistics_stay_while_scale_and_offset_learn():
    layer = BatchNormalization()
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(3, 2, (4, 5, 5, 2)).astype("float32"))
    layer.build(x.shape)
    layer.frozen_statistics = True
    before = [keras.ops.convert_to_numpy(v).copy() for v in layer.non_trainable_variables]
    np.testing.assert_allclose(layer(x, training=True), layer(x, training=False), rtol=1e-5)
    for variable, value in zip(layer.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    assert len(layer.trainable_variables) == 2
