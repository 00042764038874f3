"""Starting weights from phantoms (§4: "ResNet50 as a pre-training model"): no outside weights, no patient.

    python -m covidlib.training.pretraining --image-size 96

ResNet-50 learns, on phantoms of a seed that nothing else uses, which class a slice is of and which share of every
place of the conv3 and conv4 stages is lesion, by kind. Only its backbone is kept: what a variant adds starts at random,
so all variants start from the same knowledge. The file is named by what it depends on, and computed once.
"""

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from filelock import FileLock
from skimage.measure import block_reduce

from covidlib import datasets, phantom
from covidlib.datasets import decode, splits
from covidlib.preprocessing import augmentation, crop
from covidlib.training import ct_weights
from covidlib.training.checkpoints import Checkpoints
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

SLICES, SEED, EPOCHS, BATCH = (1000, 1000, 1000), 1000, 16, 32
LEARNING_RATE, WEIGHT_DECAY, LESION_WEIGHT = 1e-3, 0.05, 3.0
# printed slices differ more in grey than phantoms do
AUGMENTATION = {**augmentation.PAPER, "brightness": (-0.15, 0.15), "contrast": (0.6, 1.4)}
GEOMETRIC = {name: limits for name, limits in AUGMENTATION.items()
             if augmentation.OPERATIONS[name].family == "geometric"}
MAPS = {"conv3_block4_out": 8, "conv4_block6_out": 16}  # stages that learn where lesions are: stride
VERSION = 1  # to be raised when a network sees a phantom otherwise than before
HOME = provenance.ROOT / "data" / "pretraining"


def path(image_size, preparation, home=HOME):
    """Where the weights for this size lie, or will: the name holds a hash of what they depend on."""
    settings = (image_size, preparation, VERSION, phantom.VERSION, SLICES, SEED, EPOCHS, BATCH, LEARNING_RATE,
                LESION_WEIGHT, AUGMENTATION, MAPS)
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    return Path(home) / f"phantom-{preparation}-{image_size}-{digest[:12]}.weights.h5"


def resolve(weights, image_size, preparation):
    """For "phantom" or "ct" the file of these weights, made where it is missing; any other `weights` as they are."""
    if weights == "phantom":
        return make(image_size, preparation)
    return ct_weights.make(HOME) if weights == "ct" else weights


def make(image_size, preparation, home=HOME, *, slices=SLICES, epochs=EPOCHS, precision="auto"):
    """Path of the weights for `image_size` pixels, which are computed where they are missing.

    That takes 20 minutes at 96 px on 2 cores, and goes on after the last finished epoch. A table of the same name
    (.csv) is the training's history.
    """
    target = path(image_size, preparation, home)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            _train(target, image_size, preparation, slices, epochs, precision)
    return target


def load(home, image_size, preparation, slices=SLICES):
    """(Source, images, lesions) of the phantoms: uint8 (N, S, S) twice; 1 marks covid's lesions, 2 viral's."""
    source = datasets.load("phantom", Path(home) / "phantom", list(slices), SEED)
    manifest = splits.assign(source.manifest.assign(split=""), SEED, (0.9, 0.0, 0.1))[0]
    source = datasets.replace(source, manifest=manifest.assign(split=manifest.split.replace("test", "val")))
    images = decode.load_images(source, image_size, preparation, Path(home) / "cache")
    maps = joblib.Parallel(-1)(joblib.delayed(decode.lesion_map)(source.root, path, image_size, preparation)
                               for path in manifest.path)
    kinds = manifest.label.map({"covid": 1, "viral": 2, "normal": 0}).to_numpy(np.uint8)
    return source, images, np.stack(maps) * kinds[:, None, None]


def _train(target, image_size, preparation, slices, epochs, precision):
    import keras

    from covidlib.training.batches import Batches, to_dataset

    source, images, lesions = load(target.parent, image_size, preparation, slices)
    labels = np.eye(len(source.classes), dtype=np.float32)[source.manifest.label.map(source.classes.index)]
    held_out = (source.manifest.split == "val").to_numpy()
    steps = -(-int((~held_out).sum()) // BATCH) * epochs
    keras.utils.set_random_seed(SEED)
    model, trainer = _build(source.classes, image_size, precision, steps)
    variables = [*trainer.variables, *trainer.optimizer.variables]
    checkpoints = Checkpoints(target.with_suffix(".partial"), {"slices": list(slices), "epochs": epochs})
    if checkpoints.history:
        checkpoints.restore(variables)
    validation = LesionBatches(Batches(images, labels, BATCH, np.flatnonzero(held_out)), lesions)
    for epoch in range(len(checkpoints.history), epochs):
        training = LesionBatches(Batches(images, labels, BATCH, np.flatnonzero(~held_out), SEED, epoch,
                                         augmentation.Augmenter(AUGMENTATION, SEED)), lesions)
        found = trainer.fit(to_dataset(training), validation_data=to_dataset(validation), initial_epoch=epoch,
                            epochs=epoch + 1, shuffle=False, verbose=0).history
        row = {"epoch": epoch + 1, **{name: values[0] for name, values in found.items()}}
        print(f"{target.name}: epoch {epoch + 1} of {epochs}, loss {row['loss']:.3f}, "
              f"val_probabilities_accuracy {row['val_probabilities_accuracy']:.3f}", flush=True)
        checkpoints.save(row, variables, trainer.get_weights())
    write_atomically(target.with_suffix(".csv"), pd.DataFrame(checkpoints.history).to_csv(index=False))
    model.save_weights(f"{target}.new.weights.h5")
    os.replace(f"{target}.new.weights.h5", target)
    shutil.rmtree(checkpoints.folder)


def _build(classes, image_size, precision, steps):
    """ResNet-50, and the compiled model over its layers that learns class and lesions."""
    import keras
    from keras import layers

    from covidlib.models import build_classifier
    from covidlib.training.optimizer import scheduled_adamw

    model = build_classifier("resnet50", classes, image_size, precision=precision, seed=SEED)
    heads = [layers.Conv2D(2, 1, activation="sigmoid", dtype="float32", name=f"lesions_{stage.split('_')[0]}")(
        model.get_layer(stage).output) for stage in MAPS]
    trainer = keras.Model(model.inputs, [model.outputs[0], *heads])
    trainer.compile(scheduled_adamw(steps, LEARNING_RATE, WEIGHT_DECAY),
                    ["categorical_crossentropy", *["binary_crossentropy"] * len(heads)],
                    loss_weights=[1.0, *[LESION_WEIGHT] * len(heads)], metrics=[["accuracy"], *[[]] * len(heads)],
                    jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    trainer.optimizer.build(trainer.trainable_variables)
    return model, trainer


class LesionBatches:
    """`batches` whose labels are (labels, share of every place that is lesion (B, h, w, 2) for each stage of `MAPS`).

    lesions: as of `load`.
    """

    def __init__(self, batches, lesions):
        self.batches, self.lesions = batches, lesions
        # an augmenter of the same seed draws the same values, whatever else it does
        self.move = batches.augmenter and augmentation.Augmenter(GEOMETRIC, SEED)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        images, labels = self.batches[index]
        rows = self.batches.parts[index]
        masks = np.stack([self.lesions[rows] == kind for kind in (1, 2)], axis=-1).astype(np.float32)
        if self.move:
            moved = [self.move(mask, self.batches.epoch, int(n)) for mask, n in zip(masks * 255, rows, strict=True)]
            masks = np.stack(moved) / 255
        shares = (block_reduce(masks, (1, stride, stride, 1), np.mean) for stride in MAPS.values())
        return images, (labels, *shares)


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m covidlib.training.pretraining", description=__doc__.split("\n")[0])
    parser.add_argument("--image-size", type=int, default=96, help="pixels, as in the training that starts from them")
    parser.add_argument("--preparation", default="whole", choices=crop.PREPARATIONS)
    given = parser.parse_args(arguments)
    print(make(given.image_size, given.preparation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
