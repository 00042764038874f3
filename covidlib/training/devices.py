"""Training on several devices of one machine: each computes its share of every batch (data parallelism).

The result does not depend on the number of devices, but for rounding, dropout, and what `pipeline.Batches` leaves out
where slices do not divide. So batch normalisation takes its statistics over the whole batch of all devices
(https://arxiv.org/abs/1711.07240), not over a device's share: `synchronised` on TensorFlow; on JAX the one program
that is partitioned over the devices does so by itself. Keras's own code computes it there, not the fused kernel of
models/normalization.py, with a variance of E(x²) - E(x)², and Keras's own AdamW.
"""

import contextlib
from types import SimpleNamespace

import keras

VIRTUAL = {
    "tensorflow": "tf.config.set_logical_device_configuration before anything else of TensorFlow runs",
    "jax": "XLA_FLAGS=--xla_force_host_platform_device_count={} in the environment",
}


def strategy(devices):
    """What Keras trains with on the first `devices` GPUs, or CPU devices where there is no GPU: has a `scope()`.

    That is a tf.distribute.MirroredStrategy on TensorFlow and a keras.distribution.DataParallel on JAX. In its scope
    models are built, compiled and fitted; for one device the scope does nothing. A CPU is one device unless it was
    divided into virtual ones before.

    Raises ValueError if `devices` is no whole number from 1 up, if there are fewer, or for several on PyTorch.
    """
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices must be a whole number from 1 up. Received: devices={devices!r}")
    if devices == 1:
        return SimpleNamespace(scope=contextlib.nullcontext)
    backend = keras.backend.backend()
    if backend not in VIRTUAL:
        raise ValueError(f"several devices are not offered on {backend}: choose KERAS_BACKEND=tensorflow or jax, or "
                         f"devices=1. Received: devices={devices}")
    found = _found(backend)
    if len(found) < devices:
        raise ValueError(f"there are fewer devices: {', '.join(found)}. Give at most devices={len(found)}, or, to try "
                         f"it on a CPU without GPUs, make virtual ones: {VIRTUAL[backend].format(devices)}. "
                         f"Received: devices={devices}")
    if backend == "jax":
        return keras.distribution.DataParallel(devices=found[:devices], auto_shard_dataset=False)
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(found[:devices])


def _found(backend):
    if backend == "jax":
        return keras.distribution.list_devices()
    import tensorflow as tf

    return [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


@contextlib.contextmanager
def synchronised(model):
    """Meanwhile the batch normalisation of `model` sees the batches of all devices, in a strategy of TensorFlow.

    Only meanwhile, so that a model that is saved knows nothing of devices.
    """
    layers = []
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.distribute.has_strategy():
            layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in layers:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.synchronized = False
