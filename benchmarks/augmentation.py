"""Augmenting slices (§2.1, the set "paper") on one core: one warp against a chain of resamplings, and against training.

    python -m benchmarks.augmentation        # about a minute on 2 cores

`one warp` is `preprocessing.augmentation`. `chain` does the same draws with one resampling for every operation, as a
straightforward implementation does. Both take turns with training steps of `resnet50` (all cores, precision auto):
augmentation is fast enough if one core stays well ahead of training. `keras layers` is a process of its own, bound to
one core: batches of 16 through Keras's preprocessing layers with the same ranges, compiled.
"""

import argparse
import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import numpy as np
from scipy import ndimage

from benchmarks import tables
from benchmarks.networks import CLASSES, build
from covidlib.preprocessing.augmentation import OPERATIONS, PAPER, Augmenter
from covidlib.speed import timing

SIZES = {224: 120, 96: 450}  # px: images/s that one core has to reach, ten times what training took beforehand
BATCH = 16


def chain(image, values):
    """`image` (H, W) after the operations of `values` one by one, each geometric one resampled on its own."""
    image = image[:, ::-1] if values["horizontal_flip"] else image
    image = image[::-1] if values["vertical_flip"] else image
    sides = np.array(image.shape)
    image = ndimage.rotate(image, values["rotation"], reshape=False, order=1)
    for name in ("shear", "scale"):
        matrix, centre = OPERATIONS[name].function(values[name]), (sides - 1) / 2
        image = ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1)
    image = ndimage.shift(image, np.multiply(values["translation"], sides), order=1)
    for name in ("brightness", "contrast"):  # the others do nothing to grey
        image = OPERATIONS[name].function(image, values[name])
    return np.clip(image, 0, 255)


def sides(size):
    """Tasks of BATCH images each."""
    import keras

    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size)).astype("float32")
    augmenter, epoch = Augmenter(PAPER), iter(range(1 << 30))
    model = build("resnet50", size)
    model.compile("adamw", "categorical_crossentropy", jit_compile=False)
    labels = np.eye(len(CLASSES), dtype="float32")[np.arange(BATCH) % len(CLASSES)]
    return {
        "one warp": lambda: [augmenter(image, next(epoch), n) for n, image in enumerate(images)],
        "chain": lambda: [chain(image, augmenter.draw(next(epoch), n)) for n, image in enumerate(images)],
        f"training of resnet50 on {keras.backend.backend()}": lambda: model.train_on_batch(images[..., None], labels),
    }


def keras_layers(rounds):
    """Seconds of each round of the preprocessing layers, printed as JSON: {size: [...]}; bound to one core."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    import tensorflow as tf
    from keras import Sequential, layers

    fill = {"fill_mode": "constant", "interpolation": "bilinear"}
    zoom = tuple(1 / factor - 1 for factor in PAPER["scale"])
    model = Sequential([
        layers.RandomFlip(), layers.RandomRotation(PAPER["rotation"][1] / 360, **fill),
        layers.RandomShear(y_factor=float(np.tan(np.deg2rad(PAPER["shear"][1]))), **fill),
        layers.RandomZoom(sorted(zoom), **fill), layers.RandomTranslation(0.1, 0.1, **fill),
        layers.RandomBrightness(0.1), layers.RandomContrast(0.2)])
    function = tf.function(lambda batch: model(batch, training=True))
    taken = {}
    for size in SIZES:
        images = tf.random.uniform((BATCH, size, size, 1), 0, 255)
        tasks = {size: lambda images=images: function(images).numpy()}
        taken |= timing.interleave(tasks, rounds)
    print(json.dumps({size: seconds.tolist() for size, seconds in taken.items()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--keras-layers", action="store_true", help="time these alone, and print their seconds")
    settings = parser.parse_args()
    if settings.keras_layers:
        return keras_layers(settings.rounds)
    rows, targets = [], []
    taken = {size: timing.interleave(sides(size), settings.rounds) for size in SIZES}
    if hasattr(os, "sched_setaffinity"):
        answer = subprocess.run([sys.executable, "-m", "benchmarks.augmentation", "--keras-layers", "--rounds",
                                 str(settings.rounds)], capture_output=True, text=True, check=True,
                                env={**os.environ, "KERAS_BACKEND": "tensorflow"})
        for size, seconds in json.loads(answer.stdout.splitlines()[-1]).items():
            taken[int(size)]["keras layers"] = np.array(seconds)
    for size, needed in SIZES.items():
        for name, seconds in taken[size].items():
            threads = {} if name.startswith("training") else {"threads": 1}
            rows.append(tables.rate(name, "set paper", size, BATCH, BATCH / seconds, "float32", "scipy", **threads))
        warp, training = taken[size]["one warp"], next(taken[size][key] for key in taken[size] if "training" in key)
        targets += [(f"one warp, one core, {size} px, images/s", f">= {needed}", timing.quartiles(BATCH / warp)),
                    (f"one warp on one core / training of resnet50, {size} px", ">= 10",
                     timing.speedup(warp, training))]
    tables.write(rows, "augmentation")
    tables.write_targets(targets, "augmentation")


if __name__ == "__main__":
    main()
