"""What exporting costs in accuracy: Keras, float32, bfloat16, int8 and ONNX on the test part of real slices.

    python -m benchmarks.quantisation runs/<dataset>/<profile>/<variant>/seed-0/model.keras runs/<dataset>/<profile>

The second folder is notebook 00's output (manifest.csv, dataset.json, cache/). int8 is calibrated with slices of the
training part only, chosen by a seed. Replaces the rows of this data set, network and size in quantisation_<device>.csv:
accuracy and drop_points (points lost against Keras in float32 on the same slices), with 95 % intervals, patients
resampled where they are known; changed, the share of slices that get another answer; the largest and the mean
difference of a probability. Keras's bfloat16 is there where the network was trained in it.
"""

import argparse
import csv
import datetime
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import tables
from covidlib import datasets
from covidlib.datasets import decode
from covidlib.evaluation import metrics, statistics
from covidlib.predict import predict
from covidlib.speed import export

COLUMNS = ["dataset", "variant", "image_size", "precision", "runtime", "slices", "accuracy", "low", "high",
           "drop_points", "drop_low", "drop_high", "changed", "largest_difference", "mean_difference", "calibration",
           "date"]
KEY = COLUMNS[:3]
BATCH = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="model.keras of a run directory")
    parser.add_argument("manifest", type=Path, help="folder with manifest.csv and dataset.json")
    parser.add_argument("--data-root", help="where the images are, if they moved")
    parser.add_argument("--slices", type=int, default=300, help="of the training part, for calibration")
    settings = parser.parse_args()
    model, classes = predict.load(settings.model)
    source = datasets.open_saved(settings.manifest, settings.data_root)
    if source.classes != classes:
        raise SystemExit(f"the network knows {classes}, {source.name} holds {source.classes}")
    images = decode.load_images(source, model.input_shape[1], settings.manifest / "cache")
    with tempfile.TemporaryDirectory() as place:
        chosen = calibration(source, images, settings.slices)
        export.write(model, Path(place, "export"), classes, calibration=chosen)
        rows = compare(model, Path(place, "export"), source, images)
    for row in rows:
        row["calibration"] = len(chosen) if row["precision"] == "int8" else ""
    save(rows)


def calibration(source, images, count, seed=0):
    """At most `count` training slices, uint8 (n, S, S)."""
    rows = np.flatnonzero(source.manifest["split"] == "train")
    return images[np.sort(np.random.default_rng(seed).permutation(rows)[:count])]


def compare(model, folder, source, images):
    """A row for every precision and runtime on the test part, Keras first."""
    rows = np.flatnonzero(source.manifest["split"] == "test")
    test, tested = source.manifest.iloc[rows], images[rows]
    truth = test["label"].map({name: k for k, name in enumerate(source.classes)}).to_numpy()
    patients = metrics.patient_names(test)
    reference = export.in_float32(model).predict(tested[..., None], batch_size=BATCH, verbose=0)
    answers = {("keras", "float32"): reference}
    if "bfloat16" in {layer.compute_dtype for layer in model.layers}:
        answers["keras", "bfloat16"] = model.predict(tested[..., None].astype("float32"), batch_size=BATCH, verbose=0)
    for runtime, precision in [("openvino", one) for one in export.PRECISIONS] + [("onnxruntime", "float32")]:
        answers[runtime, precision] = export.load(folder, precision, runtime, batch=BATCH)(tested)
    right = reference.argmax(1) == truth
    table = []
    for (runtime, precision), found in answers.items():
        here = found.argmax(1) == truth
        low, high = statistics.proportion_interval(here, patients)
        drop = 100 * (right.astype(float) - here)
        difference = np.abs(found - reference)
        drop_low, drop_high = statistics.cluster_bootstrap(drop, statistics.fill_unknown(patients))
        table.append({"dataset": source.name, "variant": model.name, "image_size": model.input_shape[1],
                      "precision": precision, "runtime": runtime, "slices": len(rows), "accuracy": here.mean(),
                      "low": low, "high": high, "drop_points": drop.mean(), "drop_low": drop_low,
                      "drop_high": drop_high, "changed": (found.argmax(1) != reference.argmax(1)).mean(),
                      "largest_difference": float(difference.max()),
                      "mean_difference": float(difference.mean())})
    return table


def save(rows):
    """Put `rows` in the table of this device; what it held of the same set, network and size goes."""
    path = tables.RESULTS / f"quantisation_{tables.device()}.csv"
    new = [{column: f"{value:.5g}" if isinstance(value, float) else str(value) for column, value in row.items()}
           | {"date": str(datetime.date.today())} for row in rows]
    replaced = {tuple(row[column] for column in KEY) for row in new}
    kept = []
    if path.exists():
        with open(path, newline="") as file:
            kept = [row for row in csv.DictReader(file) if tuple(row[column] for column in KEY) not in replaced]
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + new)
    print(path.read_text())


if __name__ == "__main__":
    main()
