"""Data parallelism: each device of one machine computes its share of every batch.

The result does not depend on the number of devices, but for rounding, dropout and the slices that `batches.Batches`
leaves out: batch normalisation takes its statistics over the whole batch (https://arxiv.org/abs/1711.07240). JAX's
partitioned program does so by itself. There and in `synchronised` Keras's own code runs instead of the fused kernels.
"""

import contextlib
from types import SimpleNamespace

import keras

VIRTUAL = {
    "tensorflow": "tf.config.set_logical_device_configuration before anything else of TensorFlow runs",
    "jax": "XLA_FLAGS=--xla_force_host_platform_device_count={} in the environment",
}


def strategy(devices):
    """What models are built, compiled and fitted with, in its `scope()`, on the first `devices` GPUs, or else CPUs.

    A tf.distribute.MirroredStrategy, or a keras.distribution.DataParallel on JAX; for one device the scope does
    nothing. A CPU is one device unless it was divided into virtual ones before.

    Raises ValueError if there are fewer, or for several on PyTorch.
    """
    if devices == 1:
        return SimpleNamespace(scope=contextlib.nullcontext)
    backend = keras.backend.backend()
    if backend not in VIRTUAL:
        raise ValueError(f"several devices are not offered on {backend}: choose KERAS_BACKEND=tensorflow or jax, or "
                         f"devices=1. Received: devices={devices}")
    if backend == "tensorflow":
        import tensorflow as tf

        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        available = [device.name for device in found]
    else:
        available = keras.distribution.list_devices()
    if len(available) < devices:
        raise ValueError(f"there are fewer devices: {', '.join(available)}. Give at most devices={len(available)}, or, "
                         f"to try it on a CPU without GPUs, make virtual ones: {VIRTUAL[backend].format(devices)}. "
                         f"Received: devices={devices}")
    if backend == "jax":
        return keras.distribution.DataParallel(devices=available[:devices], auto_shard_dataset=False)
    return tf.distribute.MirroredStrategy(available[:devices])


@contextlib.contextmanager
def synchronised(model, devices):
    """Meanwhile batch normalisation on TensorFlow uses the batches of all devices; a saved model does not know it."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    several = devices > 1 and keras.backend.backend() == "tensorflow"
    for layer in layers:
        layer.synchronized = several
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False
