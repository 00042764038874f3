"""Accuracy against speed: input size, pyramid width, attention kind and placement, on UCSD's COVID-CT.

    python -m benchmarks.frontier --data-root DIR      # trains what is not trained yet, then times, then draws
    python -m benchmarks.frontier --data-root DIR --only draw

Protocol, fixed before the first run: slices of the official training and validation parts (543 slices; the test part is
not read), harmonised; two folds of whole patients, each tested once by a network trained on the other; EPOCHS epochs
from random weights, seed 0, batch BATCH, the library's recipe, no choice of epoch. Accuracy over all slices, with
intervals that resample patients; every point also paired with `resnet50` at 224 px. Speed: exported to OpenVINO,
bfloat16 where the processor is faster in it, batch 1, all points in one interleaved run. Every point is reported.
Writes frontier_<device>.csv and frontier_<device>.png. Trainings go on where they were stopped.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks import tables
from covidlib import datasets
from covidlib.datasets import decode, patient_or_file, splits
from covidlib.evaluation import complexity, metrics, statistics
from covidlib.models import VARIANTS, build_classifier, resolve_precision
from covidlib.models.classifier import IMPROVED
from covidlib.report import figures
from covidlib.speed import export, timing
from covidlib.training import runs
from covidlib.training.train import train

FOLDS, EPOCHS, BATCH, ROUNDS = 2, 8, 16, 15
OTHERS = {  # beside those of VARIANTS
    "improved_fpn128": {**IMPROVED, "fpn_width": 128},
    "improved_fpn256": {**IMPROVED, "fpn_width": 256},
    "improved_half_width": {**IMPROVED, "reduction": 2},
}
BASELINE = ("resnet50", 224)
ARMS = ("improved_faithful", "improved_global_context", "improved_after", "improved_before", "resnet50_fpn",
        "resnet50_attention", *OTHERS)
POINTS = [("improved", 96), ("resnet50", 96), BASELINE, ("improved", 160), *((name, 96) for name in ARMS),
          ("improved", 224), ("resnet50", 160), ("improved", 128), ("resnet50", 128), ("improved", 288),
          ("resnet50", 288)]
COLUMNS = ["variant", "image_size", "gmacs", "images_per_second", "q1", "q3", "speedup", "accuracy", "low", "high",
           "auc", "points_gained", "gained_low", "gained_high", "slices"]
TICKS = [factor * power for power in (1, 10, 100, 1000) for factor in (1, 2, 3, 4, 6, 8)]
SPEEDUP, POINTS_GAINED = 1.62, 3.1  # what the paper claims, over resnet50


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="the folder of ucsd-covid-ct")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/frontier"))
    parser.add_argument("--only", choices=("train", "draw"), help="leave out the other steps")
    settings = parser.parse_args()
    VARIANTS.update(OTHERS)
    if settings.only != "draw":
        train_all(load(settings.data_root), settings.output)
    if settings.only != "train":
        rows, name = collect(settings.output), f"frontier_{tables.device()}"
        tables.save(f"{name}.csv", rows, [*COLUMNS, "date"], 3)
        draw(pd.DataFrame(rows, columns=COLUMNS)).savefig(tables.RESULTS / f"{name}.png", dpi=110)


def load(data_root):
    """UCSD's training and validation slices, as one part."""
    source = datasets.load("ucsd-covid-ct", data_root)
    manifest = source.manifest[source.manifest["split"] != "test"].reset_index(drop=True).assign(split="")
    return datasets.Source(manifest, source.classes, source.root, source.name)


def train_all(source, output):
    fold = splits.k_fold(source.manifest, FOLDS, seed=0)
    for variant, size in POINTS:
        images = decode.load_images(source, size, output / "cache")
        for k in range(FOLDS):
            manifest = source.manifest.assign(split=np.where(fold == k, "test", "train"))
            part = datasets.Source(manifest, source.classes, source.root, source.name)
            train(part, images, place(output, variant, size, k), variant, image_size=size, epochs=EPOCHS,
                  batch_size=BATCH, seed=0)
        print(f"{variant} at {size} px: {accuracy(output, variant, size)}", flush=True)


def place(output, variant, size, k):
    return output / f"{variant}-{size}" / f"fold-{k}"


def predictions(output, variant, size):
    """Those of all folds, by path, with `right`."""
    parts = [runs.read_run(place(output, variant, size, k)) for k in range(FOLDS)]
    table = pd.concat([part.predictions for part in parts]).sort_values("path", ignore_index=True)
    return table.assign(right=metrics.correct(table, parts[0].classes)), parts[0].classes


def accuracy(output, variant, size):
    table, classes = predictions(output, variant, size)
    found = metrics.metrics(table, classes)
    low, high = found["accuracy_interval"]
    return {"accuracy": found["accuracy"], "low": low, "high": high, "auc": found["auc"], "slices": found["n"]}


def collect(output):
    """One row per point that is trained in full."""
    done = [point for point in POINTS if all((place(output, *point, k) / "run.json").exists() for k in range(FOLDS))]
    for variant, size in set(POINTS) - set(done):
        print(f"not trained yet, left out of the accuracies: {variant} at {size} px")
    seconds, macs = time_all()
    base, _ = predictions(output, *BASELINE) if BASELINE in done else (None, None)
    rows = []
    for point in POINTS:
        found = {}
        if point in done:
            found = accuracy(output, *point)
            if base is not None:
                own, _ = predictions(output, *point)
                gain = own["right"].astype(float) - base["right"].astype(float)
                low, high = statistics.cluster_bootstrap(gain, patient_or_file(own))
                found |= {"points_gained": 100 * gain.mean(), "gained_low": 100 * low, "gained_high": 100 * high}
        fps, slow, fast = timing.quartiles(1 / seconds[point])
        ratio, *_ = timing.speedup(seconds[point], seconds[BASELINE])
        rows.append({"variant": point[0], "image_size": point[1], "gmacs": macs[point] / 1e9, "images_per_second": fps,
                     "q1": slow, "q3": fast, "speedup": ratio, **found})
    return rows


def time_all():
    """(point -> seconds per slice of every round, point -> MACs)."""
    tasks, macs = {}, {}
    precision = resolve_precision().removeprefix("mixed_")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for variant, size in POINTS:
            model = build_classifier(variant, ("covid", "non_covid"), size, precision="float32")
            macs[variant, size] = complexity.count(model).macs
            ready = export.load(export.write(model, Path(folder, f"{variant}-{size}"), ("covid", "non_covid"),
                                             onnx=False), precision)
            image = rng.integers(0, 256, (1, size, size), np.uint8)
            tasks[variant, size] = lambda ready=ready, image=image: [ready(image) for _ in range(5)]
        seconds = timing.interleave(tasks, ROUNDS)
    return {point: values / 5 for point, values in seconds.items()}, macs


def draw(table):
    """Accuracy with intervals over speed; the region that the paper claims is shaded."""
    figures.style()
    figure = Figure((9, 5.5), layout="constrained")
    axes = figure.subplots()
    known = table.dropna(subset=["accuracy"])
    kinds = {"resnet50": ("resnet50", "s"), "improved": ("improved", "o")}
    sides = {"improved": (4, 5), "resnet50": (4, -12)}
    for name, part in known.groupby(known["variant"].map(lambda name: kinds.get(name, ("other arms, 96 px", "^"))[0])):
        colour = {"resnet50": "C0", "improved": "C1"}.get(name, "C2")
        part = part.sort_values("images_per_second")
        spread = [part["accuracy"] - part["low"], part["high"] - part["accuracy"]]
        axes.errorbar(part["images_per_second"], part["accuracy"], spread, label=name, color=colour, capsize=2,
                      marker=kinds.get(name, ("", "^"))[1], ls="-" if name in kinds else "", lw=1, alpha=0.85)
        for row in part.itertuples() if name in kinds else ():
            axes.annotate(f"{row.image_size} px", (row.images_per_second, row.accuracy), sides[name],
                          textcoords="offset points", color=colour, fontsize=8)
    base = known[(known["variant"] == BASELINE[0]) & (known["image_size"] == BASELINE[1])]
    if len(base):
        row = base.iloc[0]
        corner = row["images_per_second"] * SPEEDUP, row["accuracy"] + POINTS_GAINED / 100
        axes.set_xlim(known["images_per_second"].min() / 1.3, known["images_per_second"].max() * 1.3)
        axes.set_ylim(min(0.4, known["low"].min()) - 0.01, max(0.7, known["high"].max()) + 0.01)
        axes.fill_between([corner[0], axes.get_xlim()[1]], corner[1], axes.get_ylim()[1], color="0.5", alpha=0.15, lw=0,
                          label=f"claimed: {SPEEDUP} times as fast, {POINTS_GAINED} points better")
    axes.set(xscale="log", xlabel="slices per second, exported, batch 1", ylabel="accuracy, grouped cross-validation",
             title=f"{finding(table)}\nUCSD COVID-CT without its test part, 95 % intervals that resample patients")
    ticks = [tick for tick in TICKS if axes.get_xlim()[0] < tick < axes.get_xlim()[1]]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.legend(loc="lower left", fontsize=8)
    return figure


def finding(table):
    """One sentence: which points are as much faster and better than BASELINE as the paper claims."""
    reached = table[(table["speedup"] >= SPEEDUP) & (table["points_gained"] >= POINTS_GAINED)]
    names = [f"{row.variant} at {row.image_size} px"
             + ("" if row.gained_low > 0 else ", its gain within chance") for row in reached.itertuples()]
    end = f"{SPEEDUP} times as fast as {BASELINE[0]} at {BASELINE[1]} px and {POINTS_GAINED} points better"
    return f"{'; '.join(names)}: {end}" if names else f"No point of {table['accuracy'].count()} is {end}"


if __name__ == "__main__":
    main()
