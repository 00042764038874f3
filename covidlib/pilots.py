"""The runs by which the study's recipe was chosen, and its levers one by one: reports/published/pilots.csv.

    python -m covidlib.pilots       # what is missing; about 5 minutes a run on a core, half an hour for UNLABELLED

ResNet50 learns from the training part of UCSD's official split and is judged on the validation part; the test part is
taken away before. PROTOCOL.md says which runs came before the study. Needs runs/ucsd-covid-ct/study and
runs/sarscov2-ct/study (the latter with resnet50 trained); runs lie in runs/pilots, and one that is there is not trained
again.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from covidlib import datasets, evaluation, intake, pretraining, provenance, self_supervised, training
from covidlib.files import write_atomically

VARIANT, SEED, EPOCHS, LAST = "resnet50", 100, 15, 5
OTHER_SET, UNLABELLED = "sarscov2-ct", "unlabelled"  # starts: resnet50 of experiment 3; self_supervised
CHOSEN = {"learning_rate": 1e-4, "augmentation": "paper", "weights": "phantom", "batch_size": 32, "image_size": 96,
          "mixup": 0.0, "average": 0.0}
PILOTS = (  # what differs from CHOSEN, in the order in which they were run
    {"learning_rate": 3e-4},
    {"learning_rate": 1e-3},
    {"learning_rate": 1e-3, "weights": "none"},
    {"learning_rate": 3e-4, "augmentation": "mild"},
    {},
    {"batch_size": 8},
    {"weights": "none"},
    {"learning_rate": 3e-5},
    {"mixup": 0.2},
    {"average": 0.98},
    {"image_size": 160},
    {"weights": UNLABELLED},
    {"weights": OTHER_SET},
)
DIGITS = "%.4g"
HOME = provenance.ROOT / "reports" / "published" / "pilots.csv"


def open_ucsd(study, image_size):
    """(source, images) of notebook 00's folder `study` without the test part; images uint8 (N, S, S), harmonised."""
    return without_test(*_open(study, image_size))


def without_test(source, images):
    """(source, images) of the training and validation part alone."""
    kept = np.flatnonzero(source.manifest["split"] != "test")
    return replace(source, manifest=source.manifest.iloc[kept].reset_index(drop=True)), images[kept]


def _open(study, image_size):
    source = datasets.open_saved(study)
    return source, intake.load_images(source, image_size, Path(study, "cache"))


def start(recipe, study, other, home):
    """What `training.train` takes as weights; those of 96 px fit every size, since ResNet-50 pools at its end.

    study, other: folders of UCSD's and the other set's runs, whose training parts give UNLABELLED its slices.
    """
    size = CHOSEN["image_size"]
    if recipe["weights"] == OTHER_SET:
        return str(Path(other, VARIANT, "seed-0", "model.keras"))
    if recipe["weights"] == UNLABELLED:
        parts = [images[(source.manifest["split"] == "train").to_numpy()]
                 for source, images in (_open(folder, size) for folder in (study, other))]
        target = Path(home, f"{UNLABELLED}-{size}.weights.h5")
        return str(self_supervised.make(np.concatenate(parts), target, start="phantom"))
    if recipe["weights"] == "phantom" and recipe["image_size"] != size:
        return str(pretraining.make(size))
    return recipe["weights"]


def folder_name(pilot):
    """`resnet50_<rate>_<augmentation>_<weights>`, then whatever else differs from CHOSEN."""
    recipe = CHOSEN | pilot
    first = ("learning_rate", "augmentation", "weights")
    more = (f"{name}-{value:g}" for name, value in pilot.items() if name not in first)
    return "_".join([VARIANT, f"{recipe['learning_rate']:g}", recipe["augmentation"], recipe["weights"], *more])


def run(pilot, source, images, weights, home, epochs=EPOCHS, seed=SEED, **options):
    """Train one of PILOTS in `home`, or find it there: its row of the table.

    source: without test slices; images: uint8 (N, S, S) of the pilot's image_size; weights: of its `start`; options:
    more of `training.train`.
    """
    recipe = CHOSEN | pilot
    epochs = recipe.pop("epochs", epochs)
    folder = Path(home, folder_name(pilot), f"seed-{seed}")
    training.train(source, images, folder, VARIANT, epochs=epochs, seed=seed, deterministic=False,
                   **recipe | {"weights": weights}, **options)
    done = training.read_run(folder)
    late = done.history.tail(LAST)
    return {"variant": VARIANT, **recipe, "seed": seed, "epochs": epochs, "val_slices": len(done.predictions),
            "val_accuracy_last_5": late["val_accuracy"].mean(), "val_loss_last_5": late["val_loss"].mean(),
            "train_accuracy": done.history["accuracy"].iloc[-1], **_answers(done.predictions, done.classes, "val"),
            **_answers(flipped(done, images[source.manifest["split"] == "val"]), done.classes, "flips_val")}


def flipped(run, images):
    """The predictions of a run with the mean over every slice and its three flips: augmentation at test time.

    images: uint8 (N, S, S), those that the rows of the run's predictions are about.
    """
    import keras

    import covidlib.models  # noqa: F401  the layers that saved models name

    model = keras.models.load_model(run.path / "model.keras", compile=False)
    pictures = images[..., None].astype("float32")
    scores = np.mean([model.predict(pictures[:, ::down, ::right], batch_size=64, verbose=0)
                      for down in (1, -1) for right in (1, -1)], axis=0)
    return run.predictions.assign(**{f"p_{name}": scores[:, k] for k, name in enumerate(run.classes)})


def _answers(predictions, classes, name):
    truth, predicted, scores = evaluation.decide(predictions, classes)
    return {f"{name}_accuracy": np.mean(truth == predicted), f"{name}_auc": roc_auc_score(truth == 0, scores[:, 0])}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m covidlib.pilots", description=__doc__.split("\n")[0])
    parser.add_argument("--study", default=str(provenance.ROOT / "runs" / "ucsd-covid-ct" / "study"))
    parser.add_argument("--other", default=str(provenance.ROOT / "runs" / OTHER_SET / "study"))
    parser.add_argument("--home", default=str(provenance.ROOT / "runs" / "pilots"))
    parser.add_argument("--table", default=str(HOME))
    options = parser.parse_args(arguments)
    rows = []
    try:
        for pilot in PILOTS:
            recipe = CHOSEN | pilot
            weights = start(recipe, options.study, options.other, options.home)
            rows.append(run(pilot, *open_ucsd(options.study, recipe["image_size"]), weights, options.home))
            table = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format=DIGITS)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomically(Path(options.table), table)
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
