"""A tiny network and 30 images, for tests of what stands around a training."""

import sys
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd

from covidlib.training import train

CLASSES = ("covid", "viral", "normal")
SIZE = 32
OPTIONS = {"image_size": SIZE, "epochs": 3, "batch_size": 8, "seed": 1, "precision": "mixed_bfloat16"}
FILES = {"model.keras", "best.weights.h5", "history.csv", "predictions.csv", "run.json"}


def toy():
    """30 slices whose brightness tells the class; two to a patient."""
    n, rng = 30, np.random.default_rng(0)
    codes = np.arange(n) // 2 % 3
    images = (rng.random((n, SIZE, SIZE)) * 40 + 70 * codes[:, None, None]).astype(np.uint8)
    manifest = pd.DataFrame({
        "path": [f"{k}.png" for k in range(n)], "label": np.array(CLASSES)[codes],
        "patient": [f"p{k // 2}" for k in range(n)], "slice_index": 0,
        "split": np.repeat(["train", "val", "test"], [18, 6, 6]),
    })
    return SimpleNamespace(manifest=manifest, classes=CLASSES, root="", name="toy", notes=[]), images


def tiny(variant, classes, image_size, weights, precision, seed):
    """Convolution, batch normalisation and dropout, to take the place of build_classifier."""
    layers, policy = keras.layers, precision
    x = inputs = keras.Input((image_size, image_size, 1))
    x = layers.Conv2D(4, 3, 2, dtype=policy, kernel_initializer=keras.initializers.GlorotUniform(seed))(x)
    x = layers.BatchNormalization(momentum=0.8, dtype=policy)(x)
    x = layers.GlobalAveragePooling2D(dtype="float32")(x)
    x = layers.Dropout(0.2, seed=seed, dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(len(classes), "softmax", dtype="float32")(x))


def config(**changes):
    return train.TrainingConfig(**{"variant": "tiny"} | OPTIONS | changes)


def script(folder, variant, **options):
    """The command of a process that trains a whole `variant` in `folder`."""
    code = ("import sys; sys.path.insert(0, 'tests'); from toy_runs import config, toy, train;"
            f"train.train(*toy(), {str(folder)!r}, config(variant={variant!r}, **{options!r}))")
    return [sys.executable, "-c", code]


def arrays(folder):
    return keras.saving.load_model(folder / "model.keras", compile=False, safe_mode=True).get_weights()


def assert_same_run(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert a.tobytes() == b.tobytes()
    for name in ("best.weights.h5", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (one, other)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
