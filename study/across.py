"""Networks of one set tested on the slices of another, both ways: experiment 4 of the study.

    python -m study.across runs/ucsd-covid-ct/study runs/sarscov2-ct/study

The runs of VARIANTS with SEED in the first folder answer all slices of the second's set, and the other way round;
`across-<set>.csv` in their folders holds the answers. Nothing is trained.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from covidlib import datasets
from covidlib.datasets import decode
from covidlib.evaluation import metrics
from covidlib.training import runs
from covidlib.utils.files import write_atomically

VARIANTS, SEED = ("resnet50", "improved"), 0


def predict(run, source, images):
    """Answers of a run to all slices of a datasets.Source: DataFrame as predictions.csv, without a split.

    images: uint8 (N, S, S) of the run's image_size. ValueError for other classes.
    """
    if tuple(source.classes) != run.classes:
        raise ValueError(f"{run.path} knows the classes {run.classes}, {source.name} has others. "
                         f"Received: classes={tuple(source.classes)}")
    scores = run.model.predict(images[..., None].astype("float32"), batch_size=64, verbose=0)
    chosen = source.manifest
    return pd.DataFrame({"path": chosen["path"], "slice_index": decode.slice_indices(chosen),
                         "patient": metrics.patient_names(chosen), "label": chosen["label"],
                         **{f"p_{name}": scores[:, k] for k, name in enumerate(run.classes)}})


def both_ways(folders):
    """Write `across-<set>.csv` in two folders of runs, where it is absent; returns the new files."""
    written = []
    for own, other in (folders, folders[::-1]):
        source = datasets.open_saved(other)
        for run in runs.find_runs(own):
            target = run.path / f"across-{source.name}.csv"
            if run.variant in VARIANTS and run.seed == SEED and not target.exists():
                images = decode.load_images(source, run.parameters["image_size"], run.preparation, Path(other, "cache"))
                write_atomically(target, predict(run, source, images).to_csv(index=False, lineterminator="\n"))
                written.append(target)
    return written


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m study.across", description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs=2, metavar="RUNS", help="runs/<dataset>/<profile>")
    try:
        for path in both_ways(parser.parse_args(arguments).folders):
            print(path)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
