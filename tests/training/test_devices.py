"""Training on two virtual devices: the losses of one, resumed like any other, and not in the saved network."""

import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from toy_runs import toy

from covidlib.models.layers import BatchNormalization
from covidlib.training import batches, devices, loop, runs, train

OPTIONS = {"image_size": 32, "epochs": 3, "batch_size": 8, "seed": 1, "precision": "float32", "progress": False,
           "augmentation": "paper"}
FLAGS = {"jax": {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, "tensorflow": {}}


def normalised(variant, classes, image_size, weights, precision, seed):
    """Two normalised convolutions, to take the place of build_classifier.

    Without dropout, which differs by device, and without biases before the normalisation: their gradients are nothing
    but rounding, of which Adam makes whole steps.
    """
    x = inputs = keras.Input((image_size, image_size, 1))
    x = keras.layers.Rescaling(1 / 255)(x)
    for filters in (4, 8):
        start = keras.initializers.GlorotUniform(seed)
        x = keras.layers.Conv2D(filters, 3, 2, use_bias=False, kernel_initializer=start)(x)
        x = keras.layers.ReLU()(BatchNormalization(momentum=0.8)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    start = keras.initializers.GlorotUniform(seed)
    return keras.Model(inputs, keras.layers.Dense(len(classes), "softmax", kernel_initializer=start)(x))


def run(folder):
    """On one device, on two, and on two with an interruption; in a process of its own, which has two."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    loop.build_classifier = normalised
    source, images = toy()

    def run(name, **options):
        return train.train(source, images, folder / name, "resnet50", **OPTIONS | options)

    run("one")
    run("two", devices=2)
    save = loop.Session._save
    loop.Session._save = lambda self, row: save(self, row) if row["epoch"] < 3 else sys.exit("interrupted")
    with pytest.raises(SystemExit):
        run("resumed", devices=2)
    loop.Session._save = save
    run("resumed", devices=2)


@pytest.fixture(scope="module", params=FLAGS)
def found(request, tmp_path_factory, repository):
    folder = tmp_path_factory.mktemp(request.param)
    code = ("import pathlib, sys; sys.path[:0] = ['tests', 'tests/training']; import test_devices as here;"
            f"here.run(pathlib.Path({str(folder)!r}))")
    environment = os.environ | {"KERAS_BACKEND": request.param} | FLAGS[request.param]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: runs.read_run(folder / name) for name in ("one", "two", "resumed")}


@pytest.mark.slow
def test_losses_are_those_of_one_device(found):
    names = ["loss", "accuracy", "val_loss", "val_accuracy"]
    one, two = (found[name].history[names].to_numpy() for name in ("one", "two"))
    assert np.ptp(one[:, 0]) > 0.01  # it learns
    np.testing.assert_allclose(two, one, rtol=1e-4)
    scores = [found[name].predictions.filter(like="p_").to_numpy() for name in ("one", "two")]
    np.testing.assert_allclose(*scores, rtol=1e-3)


@pytest.mark.slow
def test_resumed_it_ends_like_an_undisturbed_run(found):
    two, resumed = found["two"], found["resumed"]
    assert two.content["model"] == resumed.content["model"] and two.content["parameters"]["devices"] == 2
    pd.testing.assert_frame_equal(two.predictions, resumed.predictions, check_exact=True)


@pytest.mark.slow
def test_a_saved_network_knows_nothing_of_devices(found):
    model = keras.saving.load_model(found["two"].path / "model.keras", safe_mode=True)
    assert not any(layer.synchronized for layer in model.layers if isinstance(layer, BatchNormalization))
    assert model.predict(np.zeros((3, 32, 32, 1)), verbose=0).shape == (3, 3)


@pytest.mark.parametrize("count, told", [(0, "whole number from 1 up. Received: devices=0"),
                                           (1.5, "Received: devices=1.5"),
                                           (64, "set_logical_device_configuration .* Received: devices=64")])
def test_devices_that_are_not_there(count, told):
    with pytest.raises(ValueError, match=told):
        devices.strategy(count)


def test_batches_divide_and_leave_others_out_in_every_epoch():
    images, labels = np.zeros((21, 8, 8), np.uint8), np.eye(21)
    seen = [batches.Batches(images, labels, 8, seed=0, epoch=epoch, multiple=4).parts for epoch in range(2)]
    for parts in seen:
        assert [len(part) for part in parts] == [8, 8, 4] and len(set(np.concatenate(parts))) == 20
    assert set(np.concatenate(seen[0])) != set(np.concatenate(seen[1]))
    with pytest.raises(ValueError, match="multiple of 3. Received: batch_size=8"):
        batches.Batches(images, labels, 8, multiple=3)
