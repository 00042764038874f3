"""Images per second (§3.3), measured so that networks can be compared on a noisy machine.

The paper does not say how its frames per second were measured, so the harness is part of the result here:
`predict loop` calls `model.predict(x, verbose=0)` once per batch, as a script would; `compiled call` runs the network
as one compiled function; `exported` runs it without Keras, see `export`. `+ decode` adds reading the image file and
cropping it to the lungs. What is compared takes turns, see `timing`.
"""

import itertools
import math
import time
from collections import namedtuple
from functools import partial

import numpy as np

from covidlib.speed import timing
from covidlib.utils import provenance

LOOP, COMPILED, EXPORTED, DECODE = "predict loop", "compiled call", "exported", " + decode"
Case = namedtuple("Case", "variant harness precision image_size batch threads device")
COLUMNS = [*Case._fields, "median_fps", "q1", "q3", "n"]


def devices() -> list[str]:
    """Devices Keras can use here, the CPU first: `["cpu:0"]` or `["cpu:0", "gpu:0"]`."""
    import keras

    found = {name.lower().replace("cuda", "gpu") for name in keras.distribution.list_devices()}
    return ["cpu:0"] + (["gpu:0"] if any(name.startswith("gpu") for name in found) else [])


def compiled(model):
    """The model as one inference function, compiled but on PyTorch: (B, H, W, 1) 0..255 to numpy (B, classes)."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda batch: model(batch, training=False))
        return lambda batch: function(batch).numpy()
    if backend == "jax":
        import jax

        function = jax.jit(lambda state, batch: model.stateless_call(*state, batch, training=False)[0])
        groups = model.trainable_variables, model.non_trainable_variables

        def answer(batch):  # `predict` gives the variables other arrays and deletes the old ones
            return np.asarray(function([[variable.value for variable in group] for group in groups], batch))

        return answer
    import torch

    def call(batch):
        with torch.inference_mode():
            return keras.ops.convert_to_numpy(model(batch, training=False))

    return call


def keras_cases(variant, model, precision, batches=(1,), paths=(), device="cpu:0") -> dict:
    """Case -> a function that does one call of it: `model` in the predict loop and as a compiled call, on all threads.

    Build the model on the device it is timed on, `with keras.device(device): ...`, in `precision`. paths: image files
    for the compiled call with decoding, one slice at a time, which is left out where there are none.
    """
    import keras

    function, size = compiled(model), model.input_shape[1]
    case = Case(variant, LOOP, precision, size, 1, provenance.threads(), device)
    calls = {}
    for batch in batches:
        images = _noise(batch, model).astype("float32")
        calls[case._replace(batch=batch)] = partial(model.predict, images, verbose=0)
        calls[case._replace(harness=COMPILED, batch=batch)] = partial(function, images)
    if paths:
        decoded = _decoding(lambda x: function(x.astype("float32")), paths, size)
        calls[case._replace(harness=COMPILED + DECODE)] = decoded

    def run(call):
        with keras.device(device):
            call()

    return {case: partial(run, call) for case, call in calls.items()}


def exported_precisions() -> tuple[str, ...]:
    """Precisions available here: bfloat16 only where OpenVINO says that the processor computes in it."""
    from covidlib.speed import export

    able = "BF16" in export.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in export.PRECISIONS if name != "bfloat16" or able)


def exported_cases(folder, precisions, batches=(1,), paths=()) -> dict:
    """Case -> a function that does one call of it: an exported network in each precision, on the processor.

    Every batch with all threads; one slice with half, a quarter ... of them down to one, and with decoding.
    """
    from covidlib.speed import export

    every, cases = provenance.threads(), {}
    fewer = [every // 2**k for k in range(1, every.bit_length())]
    for precision in precisions:
        for batch, threads in [*((size, every) for size in batches), *((1, count) for count in fewer)]:
            call = export.load(folder, precision, threads=threads, batch=batch)
            case = Case(call.name, EXPORTED, precision, call.image_size, batch, threads, "cpu:0")
            cases[case] = partial(call, _noise(batch, call))
            if paths and (batch, threads) == (1, every):
                cases[case._replace(harness=EXPORTED + DECODE)] = _decoding(call, paths, call.image_size)
    return cases


def measure(cases, repeats, least=0.05, clock=time.perf_counter, progress=None) -> dict:
    """Case -> seconds per image in each round, float (repeats,); a short call is repeated for about `least` seconds.

    cases: of `keras_cases` and `exported_cases`; they take turns, in a new random order every round.
    """
    tasks, images = {}, {}
    for case, call in cases.items():
        call()  # the first traces, compiles and allocates
        start = clock()
        call()
        calls = max(1, math.ceil(least / max(clock() - start, 1e-9)))
        tasks[case], images[case] = lambda call=call, calls=calls: [call() for _ in range(calls)], calls * case.batch
    seconds = timing.interleave(tasks, repeats, warmup=0, clock=clock, progress=progress)
    return {case: seconds[case] / images[case] for case in cases}


def table(seconds):
    """DataFrame of COLUMNS: median and quartiles of images per second. seconds: of `measure`."""
    import pandas as pd

    return pd.DataFrame([(*case, *timing.quartiles(1 / values), len(values)) for case, values in seconds.items()],
                        columns=COLUMNS)


def ratios(seconds, variant, baseline):
    """How many times faster than `baseline`, for every case of both: DataFrame of the case's fields, ratio, q1, q3."""
    import pandas as pd

    rows = []
    for case, values in seconds.items():
        other = case._replace(variant=baseline)
        if case.variant == variant and other in seconds:
            rows.append((*case[1:], *timing.speedup(values, seconds[other])))
    return pd.DataFrame(rows, columns=[*Case._fields[1:], "ratio", "q1", "q3"])


def first_calls(model, frames) -> np.ndarray:
    """Seconds of each of the first `frames` calls of a new predict loop, float (frames,); the first one compiles."""
    import keras

    fresh, image, ends = keras.Model(model.inputs, model.outputs[0]), _noise(1, model), [time.perf_counter()]
    for _ in range(frames):
        fresh.predict(image.astype("float32"), verbose=0)
        ends.append(time.perf_counter())
    return np.diff(ends)


def fading(cold, warm):
    """Speed of `warm` over `cold` when only the first n frames of `cold` are timed: DataFrame (frames, ratio, q1, q3).

    cold: float (repeats, frames), of `first_calls`; warm: float (repeats,), seconds per image of the other network.
    """
    import pandas as pd

    means = cold.cumsum(axis=1) / np.arange(1, cold.shape[1] + 1)
    return pd.DataFrame([(n, *timing.speedup(warm, mean)) for n, mean in enumerate(means.T, start=1)],
                        columns=["frames", "ratio", "q1", "q3"])


def mistakes(seconds, pairs):
    """Speed of one network over another with and without benchmarking errors.

    seconds: of `measure`; pairs: error -> (the faster case, what it is wrongly compared with, the fair comparison).
    DataFrame: mistake, in_front and beside (in what the two differ), apparent and honest ratio with their quartiles.
    """
    import pandas as pd

    names = [f"{kind}{end}" for kind in ("apparent", "honest") for end in ("", "_q1", "_q3")]
    rows = []
    for mistake, (own, unfair, fair) in pairs.items():
        ratios = [ratio for other in (unfair, fair) for ratio in timing.speedup(seconds[own], seconds[other])]
        rows.append([mistake, _differing(own, unfair), _differing(unfair, own), *ratios])
    return pd.DataFrame(rows, columns=["mistake", "in_front", "beside", *names])


def _differing(case, other):
    return ", ".join(f"{name} {value}" for name, value, its in zip(Case._fields[1:], case[1:], other[1:], strict=True)
                     if value != its)


def _noise(batch, model):
    return np.random.default_rng(0).integers(0, 256, (batch, *model.input_shape[1:]), dtype=np.uint8)


def _decoding(call, paths, size):
    from covidlib.datasets import decode

    turn = itertools.cycle(paths)
    return lambda: call(decode.preprocess_slice(next(turn), 0, size, "whole")[None, ..., None])
