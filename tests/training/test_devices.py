"""Training on two virtual devices: the losses of one, resumed like any other, and not in the saved network."""

import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from toy_runs import config, toy

from covidlib.models.layers import BatchNormalization
from covidlib.training import batches, loop, runs, train

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

    def run(name, **options):
        train.train(*toy(), folder / name, config(precision="float32", **options), progress=False)

    run("one")
    run("two", devices=2)
    fit = loop.Session._fit_epoch
    loop.Session._fit_epoch = lambda self, epoch: fit(self, epoch) if epoch < 2 else sys.exit("interrupted")
    with pytest.raises(SystemExit):
        run("resumed", devices=2)
    loop.Session._fit_epoch = fit
    run("resumed", devices=2)


@pytest.fixture(scope="module", params=FLAGS)
def found(request, tmp_path_factory, repository):
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    code = ("import pathlib, sys; sys.path[:0] = ['tests', 'tests/training']; import test_devices as here;"
            f"here.run(pathlib.Path({str(folder)!r}))")
    environment = os.environ | {"KERAS_BACKEND": request.param} | FLAGS[request.param]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: runs.read_run(folder / name) for name in ("one", "two", "resumed")}
    assert all(run.parameters["backend"] == request.param for run in found.values())
    return found


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
    model = found["two"].model
    assert not any(layer.synchronized for layer in model.layers if isinstance(layer, BatchNormalization))
    assert model.predict(np.zeros((3, 32, 32, 1)), verbose=0).shape == (3, 3)


def test_batches_divide_and_leave_others_out_in_every_epoch():
    images, labels = np.zeros((21, 8, 8), np.uint8), np.eye(21)
    seen = [batches.Batches(images, labels, 8, seed=0, epoch=epoch, multiple=4).parts for epoch in range(2)]
    for parts in seen:
        assert [len(part) for part in parts] == [8, 8, 4] and len(set(np.concatenate(parts))) == 20
    assert set(np.concatenate(seen[0])) != set(np.concatenate(seen[1]))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr("covidlib.training.config.strategy", lambda devices: None)
    with pytest.raises(ValueError, match="multiple of them. Received: batch_size=8, devices=3"):
        config(devices=3)
