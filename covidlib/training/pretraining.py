"""Starting weights from phantoms (§4: "ResNet50 as a pre-training model"): no outside weights, no patient.

    python -m covidlib.training.pretraining --image-size 96

ResNet-50 learns, on phantoms of a seed that nothing else uses, which class a slice is of and which share of every
place of the conv3 and conv4 stages is lesion, by kind. Only its backbone is kept: what a variant adds starts at random,
so all variants start from the same knowledge. The file is named by what it depends on, and made once.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import phantom
from covidlib.preprocessing import augmentation
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

SLICES, SEED, EPOCHS, BATCH = (1000, 1000, 1000), 1000, 16, 32
LEARNING_RATE, LESION_WEIGHT = 1e-3, 3.0
# printed slices differ more in grey than phantoms do
AUGMENTATION = {**augmentation.PAPER, "brightness": (-0.15, 0.15), "contrast": (0.6, 1.4)}
MAPS = {"conv3_block4_out": 8, "conv4_block6_out": 16}  # stages that learn where lesions are: stride
VERSION = 1  # to be raised when a network sees a phantom otherwise than before
HOME = provenance.ROOT / "data" / "pretraining"


def path(image_size, home=HOME):
    """Where the weights for this size lie, or will: the name holds a hash of what they depend on."""
    settings = (image_size, VERSION, phantom.VERSION, SLICES, SEED, EPOCHS, BATCH, LEARNING_RATE, LESION_WEIGHT,
                AUGMENTATION, MAPS)
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()
    return Path(home) / f"phantom-{image_size}-{digest[:12]}.weights.h5"


def resolve(weights, image_size):
    """For "phantom" the file of these weights, made here where it is missing; any other `weights` as they are."""
    return make(image_size) if weights == "phantom" else weights


def make(image_size, home=HOME, *, slices=SLICES, epochs=EPOCHS, precision="auto"):
    """Path of the weights for `image_size` pixels, which are made where they are missing.

    That takes 20 minutes at 96 px on 2 cores, and goes on after the last finished epoch. A table of the same name
    (.csv) tells the training.
    """
    from filelock import FileLock

    target = path(image_size, home)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            _train(target, image_size, slices, epochs, precision)
    return target


def _train(target, image_size, slices, epochs, precision):
    images, lesions, kinds, held_out = draw(target, image_size, slices)
    labels = np.eye(len(phantom.CLASSES), dtype=np.float32)[kinds]
    steps = -(-int((~held_out).sum()) // BATCH) * epochs

    def data(epoch):
        return (_batches(images, labels, lesions, np.flatnonzero(~held_out), seed=SEED, epoch=epoch,
                         augmenter=augmentation.Augmenter(AUGMENTATION, SEED)),
                _batches(images, labels, lesions, np.flatnonzero(held_out)))

    trainer = fit(target, lambda: _build(phantom.CLASSES, image_size, precision, steps), data, epochs, steps)
    keep(trainer, _classifier(phantom.CLASSES, image_size, precision), target)


def draw(target, image_size, slices=SLICES):
    """What is learnt from, kept beside `target` as .npz: images and lesions as of `load`, classes int (N,), held out
    or not bool (N,).
    """
    names = ("images", "lesions", "kinds", "held_out")
    kept = target.with_name(target.name.replace(".weights.h5", ".npz"))
    if not kept.is_file():
        source, images, lesions = load(target.parent, image_size, slices)
        kinds = source.manifest.label.map({name: k for k, name in enumerate(source.classes)}).to_numpy()
        found = (images, lesions, kinds, (source.manifest.split == "val").to_numpy())
        write_atomically(kept, lambda file: np.savez_compressed(file, **dict(zip(names, found, strict=True))))
    with np.load(kept) as arrays:
        return tuple(arrays[name] for name in names)


def fit(target, build, data, epochs, steps):
    """The model of `build()` after `epochs`, `steps` in all; an interrupted training goes on after its last epoch.

    data: epoch -> (training, validation) `pipeline.Batches`, the second may be None. A state lies beside `target`
    until `keep`, and a table of the same name (.csv) tells the training.
    """
    import keras

    import covidlib.models  # noqa: F401  the layers that a state names
    from covidlib.training.batches import to_dataset

    keras.utils.set_random_seed(SEED)
    state, log = _state(target), target.with_suffix(".csv")
    history = pd.read_csv(log).to_dict("records") if state.is_file() and log.is_file() else []
    trainer = keras.models.load_model(state) if history else build()
    # the log is written first: an epoch that only it knows is done again
    history = history[: int(trainer.optimizer.iterations) * epochs // steps]
    for epoch in range(len(history), epochs):
        train, val = data(epoch)
        found = trainer.fit(to_dataset(train), validation_data=to_dataset(val) if val else None, initial_epoch=epoch,
                            epochs=epoch + 1, shuffle=False, verbose=0).history
        history.append({"epoch": epoch + 1, **{name: values[0] for name, values in found.items()}})
        figures = ", ".join(f"{name} {history[-1][name]:.3f}" for name in ("loss", "val_probabilities_accuracy")
                            if name in found)
        print(f"{target.name}: epoch {epoch + 1} of {epochs}, {figures}", flush=True)
        trainer.save(f"{state}.new.keras")
        write_atomically(log, pd.DataFrame(history).to_csv(index=False))
        os.replace(f"{state}.new.keras", state)
    return trainer


def keep(trainer, classifier, target):
    """Write at `target` the weights of `classifier` as `trainer` learnt them: the layers that both have."""
    known = {layer.name for layer in trainer.layers}
    for layer in classifier.layers:
        if layer.name in known:
            layer.set_weights(trainer.get_layer(layer.name).get_weights())
    classifier.save_weights(f"{target}.new.weights.h5")
    os.replace(f"{target}.new.weights.h5", target)
    _state(target).unlink()


def _state(target):
    return target.with_suffix(".partial.keras")


def load(home, image_size, slices=SLICES):
    """(Source, images, lesions) of the phantoms: uint8 (N, S, S) twice; 1 marks covid's lesions, 2 viral's."""
    import joblib

    from covidlib import datasets
    from covidlib.datasets import decode, splits

    source = datasets.load("phantom", Path(home) / "phantom", list(slices), SEED)
    manifest = splits.assign(source.manifest.assign(split=""), SEED, (0.9, 0.0, 0.1))[0]
    source = datasets.replace(source, manifest=manifest.assign(split=manifest.split.replace("test", "val")))
    images = decode.load_images(source, image_size, Path(home) / "cache")
    maps = joblib.Parallel(-1)(joblib.delayed(decode.lesion_map)(source.root, path, image_size)
                               for path in manifest.path)
    kinds = manifest.label.map({"covid": 1, "viral": 2, "normal": 0}).to_numpy(np.uint8)
    return source, images, np.stack(maps) * kinds[:, None, None]


def _classifier(classes, image_size, precision):
    from covidlib.models import build_classifier

    return build_classifier("resnet50", classes, image_size, precision=precision, seed=SEED)


def _build(classes, image_size, precision, steps):
    import keras
    from keras import layers

    model = _classifier(classes, image_size, precision)
    heads = [layers.Conv2D(2, 1, activation="sigmoid", dtype="float32", name=_head(stage))(
        model.get_layer(stage).output) for stage in MAPS]
    trainer = keras.Model(model.inputs, [model.outputs[0], *heads])
    optimizer = schedule(steps)
    names = [_head(stage) for stage in MAPS]
    trainer.compile(optimizer, ["categorical_crossentropy", *["binary_crossentropy"] * len(names)],
                    loss_weights=[1.0, *[LESION_WEIGHT] * len(names)], metrics=[["accuracy"], *[[]] * len(names)],
                    jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    return trainer


def schedule(steps):
    """AdamW with a rate that rises over the first tenth of the steps and falls along a cosine."""
    import keras

    from covidlib.training.optimizer import AdamW

    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, alpha=0.01, warmup_target=LEARNING_RATE, warmup_steps=steps // 10)
    optimizer = AdamW(rate, weight_decay=0.05)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _head(stage):
    return f"lesions_{stage.split('_')[0]}"


def _batches(images, labels, lesions, rows, **options):
    from covidlib.training.batches import Batches

    # an augmenter of the same seed draws the same values, whatever else it does
    move = augmentation.Augmenter({name: limits for name, limits in AUGMENTATION.items()
                                   if augmentation.OPERATIONS[name].family == "geometric"}, SEED)

    class WithLesions(Batches):
        def __getitem__(self, index):
            batch, truth = super().__getitem__(index)
            masks = np.stack([lesions[self.parts[index]] == kind for kind in (1, 2)], axis=-1).astype(np.float32)
            if self.augmenter is not None:
                masks = np.stack([move(mask, self.epoch, int(n)) for mask, n in
                                  zip(masks * 255, self.parts[index], strict=True)]) / 255
            return batch, (truth, *(_shares(masks, stride) for stride in MAPS.values()))

    return WithLesions(images, labels, BATCH, rows, **options)


def _shares(masks, stride):
    """(B, H, W, 2) -> (B, ceil(H / stride), ceil(W / stride), 2): the share of every place that is lesion."""
    count, height, width, kinds = masks.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.pad(masks, ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0)))
    return padded.reshape(count, rows, stride, columns, stride, kinds).mean(axis=(2, 4))


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m covidlib.training.pretraining", description=__doc__.split("\n")[0])
    parser.add_argument("--image-size", type=int, default=96, help="pixels, as in the training that starts from them")
    print(make(parser.parse_args(arguments).image_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
