"""Rates and memory of reading: a cache of PNGs, a manifest of 200,000 rows, and how long training waits for input.

    python benchmarks/intake.py cache manifest steps     # each in a process of its own; minutes on 2 cores

Appends to benchmarks/results/intake_cpu.csv: what, quantity, value, unit, date. Peak memory is the resident set's of
the measuring process (without its workers), above what imports took.
"""

import csv
import datetime
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "intake_cpu.csv"
SLICES, SIDE, ROWS, IMAGE_SIZE = 3000, 512, 200_000, 96


def peak():
    """Highest resident set of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cache(folder):
    """3000 PNGs of 512 px, all different: phantoms enlarged, with noise of their own."""
    from covidlib import datasets, phantom, readers
    from covidlib.datasets import decode

    rng = np.random.default_rng(0)
    drawn = [readers.apply_window(phantom.render(label, rng).hu) for label in phantom.CLASSES for _ in range(8)]
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in drawn]
    for n in range(SLICES):
        noisy = np.clip(large[n % len(large)] + rng.normal(0, 4, (SIDE, SIDE)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{n}.png")
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in range(SLICES)], "label": np.resize(phantom.CLASSES, SLICES),
                             "patient": [str(n // 6) for n in range(SLICES)], "source": "", "split": "",
                             "slice_index": 0})
    source = datasets.Source(manifest, phantom.CLASSES, folder, "bench")
    before, start = peak(), time.perf_counter()
    decode.load_images(source, IMAGE_SIZE, folder / "cache")
    yield "decode and harmonise once", time.perf_counter() - start, "s"
    yield "peak memory above imports", peak() - before, "MiB"
    start = time.perf_counter()
    source, _ = decode.decode_dataset(source, IMAGE_SIZE, folder / "cache2")
    yield "the same with what the audit needs", time.perf_counter() - start, "s"
    start = time.perf_counter()
    decode.load_images(source, IMAGE_SIZE, folder / "cache2")
    yield "open again", time.perf_counter() - start, "s"


def manifest(folder):
    """200,000 rows of 3,745 patients: splits, folds, leaks in the metadata, and an epoch of batches."""
    from covidlib.audit import leaks
    from covidlib.datasets import splits
    from covidlib.training.batches import Batches

    patient = np.sort(np.random.default_rng(0).integers(0, 3745, ROWS))
    table = pd.DataFrame({"path": [f"{n:06d}.png" for n in range(ROWS)],
                          "label": np.array(["covid", "cap", "normal"])[patient % 3],
                          "patient": patient.astype(str), "source": "bench", "split": "", "slice_index": 0,
                          "sha256": [f"{n % (ROWS - 50):064x}" for n in range(ROWS)]})
    before, start = peak(), time.perf_counter()
    table, _ = splits.assign(table, 0)
    yield "split by patient", time.perf_counter() - start, "s"
    start = time.perf_counter()
    splits.k_fold(table, 5, 0)
    yield "5 folds by patient", time.perf_counter() - start, "s"
    start = time.perf_counter()
    leaks.find_leaks(table)
    yield "audit of the metadata", time.perf_counter() - start, "s"
    yield "peak memory of these above imports", peak() - before, "MiB"
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (ROWS, IMAGE_SIZE, IMAGE_SIZE))
    images[:] = np.random.default_rng(1).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    images.flush()
    del images
    images = np.load(folder / "images.npy", mmap_mode="r")
    batches = Batches(images, np.eye(3)[patient % 3], 32, seed=0)
    before, start = private(), time.perf_counter()
    for n in range(len(batches)):
        batches[n]
    yield "one epoch of batches", ROWS / (time.perf_counter() - start), "images/s"
    yield "anonymous memory that it added", private() - before, "MiB"


def private():
    """Resident memory that is not the page cache of mapped files, MiB."""
    import psutil

    info = psutil.Process().memory_info()
    return (info.rss - info.shared) / 2**20


def steps(folder):
    """Training of resnet50 at 96 px, batch 32: epochs on augmented slices against one batch again and again."""
    import keras

    from covidlib.models import build_classifier
    from covidlib.preprocessing.augmentation import Augmenter
    from covidlib.training.batches import Batches, to_dataset

    count, batch = 640, 32
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 255, (count, IMAGE_SIZE, IMAGE_SIZE), np.uint8))
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.eye(3, dtype="float32")[np.arange(count) % 3]
    model = build_classifier("resnet50", ("a", "b", "c"), IMAGE_SIZE)
    model = keras.Model(model.inputs, model.outputs[0])
    model.compile("adamw", "categorical_crossentropy", jit_compile=False)
    x, y = Batches(images, labels, batch)[0]
    model.train_on_batch(x, y)
    taken = {"real": [], "constant": []}
    for epoch in range(6):
        start = time.perf_counter()
        model.fit(to_dataset(Batches(images, labels, batch, None, 0, epoch, Augmenter("paper", 0))), verbose=0)
        taken["real"].append(time.perf_counter() - start)
        start = time.perf_counter()
        model.fit(to_dataset(Constant(x, y, count // batch)), verbose=0)
        taken["constant"].append(time.perf_counter() - start)
    for name, seconds in taken.items():
        yield f"step with {name} input", 1000 * np.median(seconds[1:]) / (count // batch), "ms"
    ratios = np.array(taken["real"][1:]) / taken["constant"][1:]
    for name, share in zip(("median", "first quartile", "third quartile"), (50, 25, 75), strict=True):
        yield f"real / constant, {name}", np.percentile(ratios, share), ""


class Constant:
    """The same batch again and again."""

    def __init__(self, x, y, length):
        self.batch, self.length = (x, y), length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.batch


def measure(name):
    with tempfile.TemporaryDirectory() as folder:
        rows = [[name, quantity, f"{value:.4g}", unit, datetime.date.today()]
                for quantity, value, unit in PARTS[name](Path(folder))]
    RESULTS.parent.mkdir(exist_ok=True)
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["what", "quantity", "value", "unit", "date"]] * new + rows)
    for row in rows:
        print(*row)


PARTS = {"cache": cache, "manifest": manifest, "steps": steps}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(part,))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)
