"""The whole benchmark of a GPU in under 8 minutes, with Keras, NumPy and one of its backends and nothing else.

    KERAS_BACKEND=jax python -m benchmarks.gpu              # or tensorflow, or torch
    KERAS_BACKEND=jax python -m benchmarks.gpu --help       # a CPU takes small settings unless told otherwise

Writes (see `tables`) images/s of each network, from device memory and, as uint8, from host memory, as gpu-inference and
gpu-training after every measurement, and on a GPU the targets; a row that did not fit into the budget has no figure.

A sample is as many calls as take a fifth of a second, waited for at its end; images/s are medians and quartiles over
samples. `first_call` is the seconds that the first call took, compilation included; it counts nowhere else. Share of
peak: operations (two per multiply-accumulate, threefold in training) by those of a large matrix product in this run.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks import backends, tables
from benchmarks.networks import APPLICATIONS, CLASSES, build
from covidlib.evaluation import complexity
from covidlib.models import VARIANTS
from covidlib.speed import timing
from covidlib.utils import provenance

HARNESS = "from device memory"
NETWORKS = ("improved", "resnet50", "improved_faithful", APPLICATIONS)
PRECISIONS = ("mixed_bfloat16", "float32")
MORE = ("first_call", "tflops", "share_of_peak", "device_mib")
TARGETS = {"inference": 8000, "training": 2000}  # images/s of `improved`, bfloat16, batch 256, 224 px, H200-class card
LAST = 45  # seconds before the end of the budget after which no row begins


class Bench:
    """One run: its settings, its clock, and the rows so far by mode."""

    def __init__(self, settings, device):
        self.settings, self.framework, self.device = settings, keras.backend.backend(), device
        self.device.compiles = settings.compile
        self.where = tables.device(gpu=bool(self.device.gpu))
        self.end = time.perf_counter() + settings.budget
        self.rows = {"inference": [], "training": []}
        self.random = np.random.default_rng(0)
        self.peaks = {}

    def out_of_time(self):
        return time.perf_counter() > self.end - min(LAST, self.settings.budget / 4)

    def add(self, mode, precision, **row):
        threads = None if self.device.gpu else provenance.threads()
        self.rows[mode].append({"precision": precision, "framework": self.framework, "threads": threads, **row})
        tables.write(self.rows[mode], f"gpu-{mode}", MORE, self.where, show=False)
        print(f"{mode:10}", *(f"{value:.4g}" if isinstance(value, float) else value
                              for value in [precision, *row.values()] if value is not None), flush=True)

    def peak(self, precision):
        """Operations per second of a matrix product in this precision, measured once."""
        if precision not in self.peaks:
            size = 8192 if self.device.gpu else 1024
            dtype = "bfloat16" if "bfloat16" in precision else "float32"
            a, b = (keras.ops.convert_to_tensor(keras.random.normal((size, size), seed=seed, dtype=dtype))
                    for seed in (1, 2))
            rates, _ = self.rates(lambda: keras.ops.matmul(a, b), 2.0 * size**3)
            self.peaks[precision] = timing.quartiles(rates)[0]
            print(f"peak       {precision} {self.peaks[precision] / 1e12:.4g} TFLOP/s", flush=True)
        return self.peaks[precision]

    def rates(self, call, amount):
        """(`amount` per second of `call` in each sample, seconds of the first call)."""
        start = time.perf_counter()
        wait(call())
        first = time.perf_counter() - start
        start = time.perf_counter()
        wait(call())
        calls = max(1, round(0.2 / (time.perf_counter() - start)))
        rates, begun = [], time.perf_counter()
        while not rates or time.perf_counter() - begun < self.settings.seconds:
            start = time.perf_counter()
            for _ in range(calls):
                result = call()
            wait(result)
            rates.append(calls * amount / (time.perf_counter() - start))
        return rates, first

    def arrays(self, batch, size, channels):
        images = self.random.integers(0, 256, (batch, size, size, channels), dtype=np.uint8)
        return images, np.eye(len(CLASSES), dtype="float32")[self.random.integers(0, len(CLASSES), batch)]

    def network(self, name, precision):
        """Images/s of one network: in batches, trained, and one at a time."""
        model = build(name, self.settings.image_size, precision)
        for mode, batch in (("inference", self.settings.batch), ("training", self.settings.batch), ("inference", 1)):
            row = {"variant": name, "image_size": self.settings.image_size, "batch": batch}
            if self.out_of_time():
                self.add(mode, precision, **row)
            else:
                self.job(mode, precision, model, row)

    def job(self, mode, precision, model, row):
        """Images/s of a compiled function, with its input in the device's memory and in the host's."""
        device, training = self.device, mode == "training"
        operations = (6 if training else 2) * complexity.count(model).macs
        device.forget_memory()
        function = device.trainer(model) if training else device.predictor(model)
        given = self.arrays(row["batch"], *model.input_shape[2:])[:1 + training]
        given = [device.host(array) for array in given]
        held = [device.put(array) for array in given]
        rates, first = self.rates(lambda: function(*held), row["batch"])
        more = {"first_call": first, "device_mib": device.memory(function)}
        self.add(mode, precision, **row, harness=HARNESS, **self.figures(rates, operations, precision), **more)
        rates, _ = self.rates(lambda: function(*map(device.put, given)), row["batch"])
        self.add(mode, precision, **row, harness="from host memory", **self.figures(rates, operations, precision))

    def figures(self, rates, operations, precision):
        median, q1, q3 = timing.quartiles(rates)
        return {"images_per_second": median, "q1": q1, "q3": q3, "rounds": len(rates),
                "tflops": operations * median / 1e12, "share_of_peak": operations * median / self.peak(precision)}


def wait(result):
    """Until the device is done; the sum, so that no large array has to be fetched."""
    keras.ops.convert_to_numpy(keras.ops.sum(result))


def found(rows):
    """(median, q1, q3) of `improved` at the targets' settings, None where it was not measured."""
    wanted = {"variant": "improved", "image_size": 224, "batch": 256, "precision": "mixed_bfloat16", "harness": HARNESS}
    for row in rows:
        if row.items() >= wanted.items() and "images_per_second" in row:
            return row["images_per_second"], row["q1"], row["q3"]
    return None


def arguments(gpu):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64)
    parser.add_argument("--batch", type=int, default=256 if gpu else 4)
    parser.add_argument("--seconds", type=float, default=3 if gpu else 0.5, help="of each row, without its first call")
    parser.add_argument("--budget", type=float, default=450 if gpu else 180, help="seconds of the whole")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=[*VARIANTS, APPLICATIONS])
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true", help="TensorFlow through XLA, PyTorch with torch.compile")
    parser.add_argument("--results", type=Path, default=tables.RESULTS, help="folder")
    return parser.parse_args()


def main():
    device = backends.current()
    settings = arguments(device.gpu)
    tables.RESULTS = settings.results
    bench = Bench(settings, device)
    print(f"{bench.framework} on {bench.where}: {settings}", flush=True)
    for precision in settings.precisions:
        for name in settings.networks:
            keras.utils.clear_session()
            bench.network(name, precision)
    if device.gpu:
        targets = [(f"improved, {mode}, bfloat16, batch 256, 224 px, images/s", f">= {least}", found(bench.rows[mode]))
                   for mode, least in TARGETS.items()]
        tables.write_targets(targets, f"gpu-{bench.framework}", bench.where,
                             f"KERAS_BACKEND={bench.framework} python -m benchmarks.gpu")


if __name__ == "__main__":
    main()
