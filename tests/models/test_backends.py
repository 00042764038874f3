"""The same network on another backend, in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from covidlib.models import attention_map, build_classifier

CLASSES = ("covid", "viral", "normal")

ON_JAX = """
import sys
sys.path.insert(0, "tests")
import keras, numpy as np
from conftest import NARROW
from covidlib.models import attention_map, build_classifier, resnet
folder, resnet.STAGES = sys.argv[1], NARROW
assert keras.backend.backend() == "jax"
x, y = np.load(folder + "/x.npy"), np.eye(3, dtype="float32")
model = build_classifier("improved", ("covid", "viral", "normal"), 64, precision="float32", seed=5)
model.save_weights(folder + "/fresh.weights.h5")
model.load_weights(folder + "/saved.weights.h5")
np.save(folder + "/saved.npy", model.predict(x, verbose=0))
np.save(folder + "/map.npy", attention_map(model, x[0], "attention_conv3", (3, 4)))
model.compile("sgd", "categorical_crossentropy")
before = model.get_weights()
model.fit(x, y, batch_size=3, verbose=0)
assert any(np.any(a != b) for a, b in zip(before, model.get_weights()))
assert np.isfinite(model.predict(x, verbose=0)).all()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs the extra jax")
def test_jax_builds_trains_and_agrees(tmp_path, narrow, repository):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 64, 64, 1)).astype("float32")
    model = build_classifier("improved", CLASSES, 64, precision="float32", seed=5)
    start = model.get_weights()
    for variable in model.variables:  # attention that does something
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.0, variable.shape))
    model.save_weights(tmp_path / "saved.weights.h5")
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", ON_JAX, tmp_path], cwd=repository, capture_output=True, text=True,
                          env=os.environ | {"KERAS_BACKEND": "jax"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    want = keras.ops.convert_to_numpy(model(x, training=False))
    np.testing.assert_allclose(np.load(tmp_path / "saved.npy"), want, atol=1e-4)
    want = attention_map(model, x[0], "attention_conv3", (3, 4))
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), want, atol=1e-4)
    model.load_weights(tmp_path / "fresh.weights.h5")
    assert all(np.array_equal(have, want) for have, want in zip(model.get_weights(), start, strict=True))
