"""Time and memory against the number of slices, the size of an image and the batch, each point a process of its own.

    python -m benchmarks.growth              # about 9 minutes on 2 cores, Linux; rewrites the tables and the figure
    python -m benchmarks.growth draw         # the figure and the exponents from the table that lies there

`input`: one epoch of augmented batches (set "paper", 96 px) out of a memory-mapped cache file, as training reads it,
up to 30,000 slices. `training`: one epoch of fitting `resnet50` at 32 px, batch 32, as `session` feeds it; a warm-up
of two batches before it is not counted. `step`: the median of a few training steps of `resnet50`, by image size (batch
16) and by batch (96 px).

Memory is the peak of what the process holds for itself (resident, not backed by a file), above what importing took;
what is below 10 MiB counts as 10. `mapped_mib` is how much of the cache file the kernel left mapped: it gives that up
when somebody needs the memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import numpy as np

from benchmarks import tables
from covidlib.speed import timing

COMMAND = "python -m benchmarks.growth"
POINTS = {  # what: (values, quantity)
    "input": ([300, 1000, 3000, 10_000, 30_000], "slices"),
    "training": ([300, 1000, 3000, 10_000], "slices"),
    "step by size": ([64, 96, 144, 224, 288], "pixels"),
    "step by batch": ([1, 4, 16, 64], "images"),
}
COLUMNS = ["what", "quantity", "value", "seconds", "peak_mib", "mapped_mib", "date"]
NOISE = 10  # MiB; less is not told apart from none
LINEAR, FLAT = tables.AtMost(1.1), tables.AtMost(0.05)  # exponents: time and memory in the number of slices


def resident(kind="RssAnon"):
    """MiB resident of this process: RssAnon its own, RssFile mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{kind}:")[1].split()[0]) / 1024


class Peak:
    """Highest `resident()` inside the block, looked at every 10 ms."""

    def __enter__(self):
        self.highest, self.done = resident(), threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self):
        while not self.done.wait(0.01):
            self.highest = max(self.highest, resident())

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def cache(folder, count, size):
    """A memory-mapped cache file of `count` random slices, as `intake` leaves it."""
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, size, size))
    rng = np.random.default_rng(0)
    for start in range(0, count, 1000):
        images[start:start + 1000] = rng.integers(0, 256, images[start:start + 1000].shape, dtype=np.uint8)
    images.flush()
    del images
    return np.load(folder / "images.npy", mmap_mode="r")


def network(size):
    import keras

    from covidlib.models import build_classifier

    model = build_classifier("resnet50", ("covid", "viral", "normal"), size)
    model = keras.Model(model.inputs, model.outputs[0])
    model.compile("adamw", "categorical_crossentropy", jit_compile=False)
    return model


def epoch(what, count, folder):
    """Seconds of one epoch over `count` slices, only read or trained on."""
    from covidlib.preprocessing.augmentation import Augmenter
    from covidlib.training.batches import Batches, to_dataset

    size = 96 if what == "input" else 32
    images, labels = cache(folder, count, size), np.eye(3, dtype="float32")[np.arange(count) % 3]
    before, mapped = resident(), resident("RssFile")
    with Peak() as peak:
        batches = Batches(images, labels, 32, None, seed=0, epoch=0, augmenter=Augmenter("paper", 0))
        if what == "training":
            model = network(size)
            model.fit(to_dataset(Batches(images, labels, 32, np.arange(64))), verbose=0)
        start = time.perf_counter()
        if what == "training":
            model.fit(to_dataset(batches), verbose=0)
        else:
            for n in range(len(batches)):
                batches[n]
        seconds = time.perf_counter() - start
    return seconds, peak.highest - before, resident("RssFile") - mapped


def step(what, value):
    """Seconds of one training step (median) of `value` pixels or images."""
    size, batch = (value, 16) if what == "step by size" else (96, value)
    x = np.random.default_rng(0).integers(0, 256, (batch, size, size, 1)).astype("float32")
    y = np.eye(3, dtype="float32")[np.arange(batch) % 3]
    before = resident()
    with Peak() as peak:
        model = network(size)
        taken = timing.interleave({"step": lambda: model.train_on_batch(x, y)}, repeats=3)["step"]
    return float(np.median(taken)), peak.highest - before, 0.0


def measure(what, value):
    """One point, in this process; printed as JSON."""
    import keras  # noqa: F401  # what importing takes is not counted

    import covidlib.models
    import covidlib.training.batches  # noqa: F401

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.constant(0) + 1
    with tempfile.TemporaryDirectory() as folder:
        result = step(what, value) if what.startswith("step") else epoch(what, value, Path(folder))
    print(json.dumps(result))


def collect():
    rows = []
    for what, (values, quantity) in POINTS.items():
        for value in values:
            answer = subprocess.run([sys.executable, "-m", "benchmarks.growth", what, str(value)],
                                    capture_output=True, text=True)
            if answer.returncode:
                raise RuntimeError(f"{what} at {value} {quantity} failed:\n{answer.stderr[-2000:]}")
            seconds, peak, mapped = json.loads(answer.stdout.splitlines()[-1])
            rows.append({"what": what, "quantity": quantity, "value": value, "seconds": seconds, "peak_mib": peak,
                         "mapped_mib": mapped})
            print(f"{what:14} {value:6} {quantity:7} {seconds:8.2f} s {peak:6.0f} MiB", flush=True)
            tables.save(table_name(), rows, COLUMNS, digits=4, show=False)


def table_name():
    return f"growth_{tables.device()}.csv"


def exponent(x, y):
    """Slope of log y over log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def draw():
    """The exponents of the table on disk as a second table and bars, and the figure."""
    import pandas as pd

    from covidlib.report import figures

    figures.style()
    table = pd.read_csv(tables.RESULTS / table_name())
    figure, axes = figures.new(11, 6, 2, 3)
    names = {"input": "read and augment, 96 px", "training": "train, 32 px", "step by size": "one step, batch 16",
             "step by batch": "one step, 96 px"}
    panels = {"slices": ("slices", "one epoch"), "pixels": ("image size (px)", "one step"),
              "images": ("batch (images)", "one step")}
    fits, markers = [], {"input": "o", "training": "s", "step by size": "^", "step by batch": "D"}
    for row, (measured, label) in enumerate({"seconds": "seconds", "peak_mib": "memory above imports (MiB)"}.items()):
        for column, (quantity, (xlabel, title)) in enumerate(panels.items()):
            axis = axes[3 * row + column]
            for what, part in table[table.quantity == quantity].groupby("what", sort=False):
                values = part[measured].clip(lower=NOISE if measured == "peak_mib" else 0)
                power = exponent(part.value, values)
                fits.append({"what": what, "against": quantity, "measured": measured, "exponent": power,
                             "from": part.value.min(), "to": part.value.max()})
                axis.plot(part.value, values, marker=markers[what],
                          label=f"{names[what]}: exponent {power:.2f}")
            axis.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=label, title=title if row == 0 else "")
            if measured == "peak_mib":
                axis.set_ylim(NOISE / 2, 2 * table[measured].max())
            ticks = sorted(table[table.quantity == quantity].value.unique())
            axis.set_xticks(ticks, [f"{value:,}" for value in ticks])
            axis.minorticks_off()
            axis.legend(fontsize=8)
    figure.savefig(tables.RESULTS / f"growth_{tables.device()}.png", dpi=100, metadata={"Software": None})
    tables.save(f"growth_exponents_{tables.device()}.csv", fits, ["what", "against", "measured", "exponent", "from",
                                                                  "to", "date"])
    bars = [(f"{fit['what']}: exponent of {fit['measured']} in slices, {fit['from']} to {fit['to']}",
             LINEAR if fit["measured"] == "seconds" else FLAT, (fit["exponent"],) * 3)
            for fit in fits if fit["against"] == "slices"]
    tables.write_bars(bars, "growth", COMMAND)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        if sys.argv[1:] != ["draw"]:
            collect()
        draw()
