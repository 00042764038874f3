"""Does bfloat16 cost accuracy? `resnet50` and `improved` on phantoms in both precisions, three seeds each.

    python -m benchmarks.precision          # about ten minutes on two cores; goes on where it was stopped

Profile `quick` at 64 px: the same slices, order, augmentation and starting weights in both precisions of a seed. Writes
precision_phantom_<device>.csv: every run, and for each network the mean difference in points with its interval
(Student's t over the seeds). Each run's own interval, which resamples patients, stands beside it.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks import tables
from covidlib import datasets
from covidlib.datasets import decode, splits
from covidlib.training.train import train

SLICES, IMAGE_SIZE, EPOCHS, BATCH, SEEDS = [270, 60, 270], 64, 12, 32, (0, 1, 2)
PRECISIONS = ("float32", "mixed_bfloat16")
COLUMNS = ["variant", "seed", "precision", "slices", "accuracy", "low", "high", "auc", "date"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/precision"))
    folder = parser.parse_args().output
    source = datasets.load("phantom", folder / "phantoms", SLICES)
    manifest, _ = splits.assign(source.manifest, 0)
    source = datasets.Source(manifest, source.classes, source.root, source.name)
    images = decode.load_images(source, IMAGE_SIZE, folder / "cache")
    rows = []
    for variant in ("resnet50", "improved"):
        for seed in SEEDS:
            for precision in PRECISIONS:
                run = train(source, images, folder / variant / f"{precision}-{seed}", variant, image_size=IMAGE_SIZE,
                            epochs=EPOCHS, batch_size=BATCH, seed=seed, precision=precision)
                test = run["metrics"]["test"]
                low, high = test["accuracy_interval"]
                rows.append({"variant": variant, "seed": seed, "precision": precision, "slices": test["n"],
                             "accuracy": test["accuracy"], "low": low, "high": high, "auc": test["auc"]})
                print(rows[-1], flush=True)
    tables.save(f"precision_phantom_{tables.device()}.csv", [*rows, *differences(pd.DataFrame(rows))], COLUMNS, 4)


def differences(table):
    """A row per network: bfloat16 less float32, mean over the seeds, with the 95 % interval of that mean."""
    for variant, part in table.groupby("variant", sort=False):
        wide = part.pivot(index="seed", columns="precision", values="accuracy")
        difference = (wide["mixed_bfloat16"] - wide["float32"]).to_numpy()
        half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
        yield {"variant": variant, "seed": "all", "precision": "bfloat16 less float32", "slices": "",
               "accuracy": difference.mean(), "low": difference.mean() - half, "high": difference.mean() + half}


if __name__ == "__main__":
    main()
