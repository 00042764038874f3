"""Starting weights from slices without their labels, by Barlow Twins (https://arxiv.org/abs/2103.03230).

Two augmented views of a slice shall give the same features, and no two features shall tell the same: ResNet-50 learns
this from phantom weights on. A lever of the study (reports/published/PROTOCOL.md), tried by covidlib.pilots.
"""

import keras
import numpy as np
from keras import layers, ops

from covidlib import augmentation, pretraining
from covidlib.models import build_classifier
from covidlib.pipeline import Batches

EPOCHS, BATCH, WIDTH, OFF_DIAGONAL = 10, 64, 512, 5e-3
VIEWS = {**augmentation.PAPER, "rotation": (-25.0, 25.0), "scale": (0.8, 1.6), "translation": (-0.15, 0.15),
         "brightness": (-0.2, 0.2), "contrast": (0.5, 1.5)}


def make(images, target, start, *, epochs=EPOCHS, precision="auto"):
    """Path `target` of the weights, made where they are missing; interrupted, that goes on after its last epoch.

    images: uint8 (N, S, S); start: weights as `build_classifier` takes them.
    """
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            def network():
                return build_classifier("resnet50", ("a", "b"), images.shape[1], start, precision, pretraining.SEED)

            steps = epochs * len(TwoViews(images, 0))
            trainer = pretraining.fit(target, lambda: build(network(), steps), lambda epoch: (
                TwoViews(images, epoch), None), epochs, steps)
            pretraining.keep(trainer, network(), target)
    return target


class TwoViews(Batches):
    """Batches of both views of some slices: the first of all, then the second of all. The labels mean nothing."""

    def __init__(self, images, epoch):
        super().__init__(images, np.zeros((len(images), 1)), BATCH, seed=pretraining.SEED, epoch=epoch,
                         augmenter=augmentation.Augmenter(VIEWS, pretraining.SEED))
        self.other = augmentation.Augmenter(VIEWS, pretraining.SEED + 1)

    def __getitem__(self, index):
        views, labels = super().__getitem__(index)
        chosen = self.parts[index]
        second = np.stack([self.other(image, self.epoch, int(n))
                           for image, n in zip(self.images[chosen].astype(np.float32), chosen, strict=True)])
        return np.concatenate([views, second[..., None]]), np.concatenate([labels, labels])


def build(network, steps):
    """A trainer over `network` up to its pooled features, and a projector of two layers (three in the source)."""
    x = layers.Dense(WIDTH, use_bias=False, dtype="float32", name="projector_1")(network.get_layer("avg_pool").output)
    x = layers.BatchNormalization(dtype="float32", name="projector_normalisation")(x)
    x = layers.Dense(WIDTH, use_bias=False, dtype="float32", name="projector_2")(layers.ReLU(dtype="float32")(x))
    trainer = keras.Model(network.inputs, x)
    trainer.compile(pretraining.schedule(steps), redundancy,
                    jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    return trainer


@keras.saving.register_keras_serializable("covidlib")
def redundancy(_, features):
    """Loss of (2B, D) features, both views one below the other: the distance of their correlations from identity."""
    first, second = (_standard(view) for view in ops.split(features, 2))
    correlation = ops.matmul(ops.transpose(first), second) / ops.cast(ops.shape(first)[0], "float32")
    own = ops.diagonal(correlation)
    return ops.sum((1 - own) ** 2) + OFF_DIAGONAL * (ops.sum(correlation**2) - ops.sum(own**2))


def _standard(view):
    mean, variance = ops.moments(view, axes=0)
    return (view - mean) / ops.sqrt(variance + 1e-6)
