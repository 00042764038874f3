"""What every custom layer must do, in one place."""

import keras
import numpy as np


def run_layer_test(make, shape, folder):
    """Build, call, fit, save and safely load `make(dtype=...)`, a layer that keeps the shape."""
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    for policy in ("float32", "mixed_bfloat16"):
        layer = make(dtype=keras.DTypePolicy(policy))
        assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
        inputs = keras.Input(shape[1:])
        outputs = layer(inputs)
        assert outputs.shape[1:] == shape[1:]
        assert outputs.dtype == layer.compute_dtype
        model = keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(outputs))
        model.compile("sgd", "mse")
        model.fit(x, np.zeros(shape, "float32"), verbose=0)
        model.save(folder / "layer.keras")
        loaded = keras.saving.load_model(folder / "layer.keras", safe_mode=True)
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
