"""Numerical precision of a model: which one is faster on this machine, and setting it for one model only."""

import contextlib
import functools
from pathlib import Path

import keras

PRECISIONS = ("auto", "float32", "mixed_bfloat16")


def resolve_precision(precision="auto"):
    """The Keras dtype policy for `precision`.

    `auto` is "mixed_bfloat16" where the hardware is faster in bfloat16: a GPU of compute capability 8 or more; without
    a GPU a CPU with AMX, or with AVX512-BF16 unless it is Intel's with AVX512-FP16. That marks Sapphire Rapids in a
    virtual machine that hides its AMX, where training in bfloat16 takes 1.5 times as long (benchmarks/README.md).

    Raises ValueError for anything but "auto", "float32" and "mixed_bfloat16".
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}. Received: precision={precision!r}")
    if precision != "auto":
        return precision
    capability = _gpu_capability()
    fast = capability >= 8 if capability else _cpu_is_faster_in_bfloat16()
    return "mixed_bfloat16" if fast else "float32"


@contextlib.contextmanager
def dtype_policy(name):
    """Layers created inside get this dtype policy; the global one is as before afterwards."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _gpu_capability():
    """Major compute capability of the first GPU, 0 without one."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        return details.get("compute_capability", (0, 0))[0]
    if backend == "jax":
        import jax

        return int(float(getattr(jax.devices()[0], "compute_capability", 0)))
    if backend == "torch":
        import torch

        return torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    return 0


def _cpu_is_faster_in_bfloat16():
    flags = _cpu_flags()
    hidden_amx = "GenuineIntel" in flags and "avx512_fp16" in flags
    return "amx_bf16" in flags or ("avx512_bf16" in flags and not hidden_amx)


@functools.cache
def _cpu_flags():
    """The processor's features, and its vendor's name."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        return table.read_text(encoding="utf-8").split()
    import cpuinfo

    found = cpuinfo.get_cpu_info()
    return [*found.get("flags", []), found.get("vendor_id_raw", "")]
