"""Images per second (§3.3) and peak memory, measured so that variants can be compared on a noisy machine.

The paper gives frames per second without saying how they were taken, so the harness is part of the
result here: `predict loop` calls `model.predict_on_batch` once per batch, as a script would;
`compiled call` runs the network as one compiled function; `compiled call + decode` adds reading
the image files. Variants take turns in a new random order every round, after a warm-up, so that a
machine that slows down slows all of them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from . import intake

HARNESSES = ("predict loop", "compiled call", "compiled call + decode")
COLUMNS = ["variant", "harness", "batch", "device", "median_fps", "q1", "q3", "n"]


def devices() -> list[str]:
    """Devices Keras can use here, the CPU first: `["cpu:0"]` or `["cpu:0", "gpu:0"]`."""
    found = {name.lower().replace("cuda", "gpu") for name in keras.distribution.list_devices()}
    return ["cpu:0"] + (["gpu:0"] if any(name.startswith("gpu") for name in found) else [])


def compiled(model):
    """The model as one compiled inference function: (B, H, W, 1) 0..255 to numpy (B, classes)."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda batch: model(batch, training=False))
        return lambda batch: function(batch).numpy()
    if backend == "jax":
        import jax

        state = [[variable.value for variable in group]
                 for group in (model.trainable_variables, model.non_trainable_variables)]
        function = jax.jit(lambda state, batch: model.stateless_call(*state, batch, training=False)[0])
        return lambda batch: np.asarray(function(state, batch))
    import torch

    def call(batch):
        with torch.inference_mode():
            return keras.ops.convert_to_numpy(model(batch, training=False))

    return call


def measure(models, batch_sizes=(1, 16), repeats=10, calls=2, warmup=1, paths=(), device=None, seed=0,
            clock=time.perf_counter, progress=None) -> pd.DataFrame:
    """Time every model under every harness and batch size, in turns.

    models: variant -> built classifier. Build them on the device they are timed on:
    `with keras.device(device): models = ...`, once per name in `devices()`.
    paths: image files for the decoding harness, which is left out where there are none.
    One sample is `calls` calls in a row, timed together; `repeats` samples per row.
    progress: wraps the rounds, for example `tqdm.tqdm`.
    Returns one row per variant, harness and batch: median_fps, q1 and q3 in images per second.
    """
    sizes = [("batch_sizes", size) for size in batch_sizes]
    for name, value in (("repeats", repeats), ("calls", calls), *sizes):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
    device = device or devices()[-1]
    rounds = range(repeats)
    with keras.device(device):
        tasks = _tasks(models, batch_sizes, list(paths), np.random.default_rng(seed))
        samples = {key: [] for key in tasks}
        for run in tasks.values():
            for _ in range(warmup):
                run()
        for turn in progress(rounds) if progress else rounds:
            for key in _turn(list(tasks), seed, turn):
                start = clock()
                for _ in range(calls):
                    tasks[key]()
                samples[key].append(calls * key[2] / (clock() - start))
    rows = []
    for (variant, harness, batch), values in samples.items():
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        rows.append((variant, harness, batch, device, median, q1, q3, len(values)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _turn(keys, seed, turn):
    """The keys in this round's order."""
    return [keys[i] for i in np.random.default_rng([seed, turn]).permutation(len(keys))]


def _tasks(models, batch_sizes, paths, rng) -> dict:
    """(variant, harness, batch) -> a function that does one call of that harness."""
    tasks = {}
    for variant, model in models.items():
        size = model.input_shape[1]
        function = compiled(model)
        for batch in batch_sizes:
            images = rng.integers(0, 256, (batch, size, size, 1)).astype("float32")
            tasks[variant, HARNESSES[0], batch] = lambda m=model, x=images: m.predict_on_batch(x)
            tasks[variant, HARNESSES[1], batch] = lambda f=function, x=images: f(x)
            if paths:
                chosen = [paths[i % len(paths)] for i in range(batch)]
                tasks[variant, HARNESSES[2], batch] = lambda f=function, p=chosen, s=size: f(decode(p, s))
    return tasks


def decode(paths, size) -> np.ndarray:
    """Read image files as the classifier takes them: float32 (B, size, size, 1) in 0..255."""
    return np.stack([intake.see(path, 0, size) for path in paths])[..., None].astype("float32")


def peak_memory(variant, image_size, batch=1, classes=3) -> dict:
    """Peak resident memory in MiB of a fresh process that builds `variant` and predicts one batch.

    `framework_mib` is the peak before the model is built (interpreter and framework alone). On
    a GPU this is the host's memory, not the card's.
    """
    command = [sys.executable, "-m", "covidlib.speed", variant, str(image_size), str(batch), str(classes)]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    if answer.returncode:
        raise RuntimeError(f"the memory measurement of {variant} failed:\n{answer.stderr[-2000:]}")
    framework, peak = map(float, answer.stdout.split()[-2:])
    return {"framework_mib": framework, "peak_mib": peak}


def _peak_mib() -> float:
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # not ru_maxrss, which on Linux a new process inherits from the one that started it
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def main(variant, image_size, batch, classes) -> None:
    """Print this process's peak memory in MiB before and after building and using one model."""
    from .models import build_classifier

    before = _peak_mib()
    names = [f"class_{i}" for i in range(int(classes))]
    model = build_classifier(variant, names, int(image_size))
    compiled(model)(np.zeros((int(batch), int(image_size), int(image_size), 1), "float32"))
    print(f"{before:.1f} {_peak_mib():.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
