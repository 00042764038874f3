"""From manifest rows to arrays, and from arrays to batches that are the same whenever they are asked for."""

import hashlib
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from covidlib import ct
from covidlib.files import write_atomically


def load_images(source, image_size, cache_dir=None):
    """Slices of `source` in manifest order: uint8 (N, image_size, image_size).

    With `cache_dir` the array is kept there under a name made of the manifest's files, the size and the
    code that reads them, and read back the next time. Raises ct.ReadError for a file that is no CT slice.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1. Received: image_size={image_size}")
    if cache_dir is None:
        return _decode(source, image_size)
    cached = Path(cache_dir) / f"{source.name}-{image_size}-{_key(source)}.npy"
    if cached.exists():
        return np.load(cached)
    images = _decode(source, image_size)
    write_atomically(cached, lambda file: np.save(file, images))
    return images


def _decode(source, image_size):
    images = np.empty((len(source.manifest), image_size, image_size), np.uint8)
    rows = zip(source.manifest["path"], slice_indices(source.manifest), strict=True)
    for n, (path, slice_index) in enumerate(tqdm(rows, "reading", len(images), disable=quiet(), leave=False)):
        images[n] = ct.fit_square(ct.read_slice(Path(source.root) / path, slice_index), image_size)
    return images


def slice_indices(manifest):
    """The manifest's slice_index as a list of int, 0 where it is absent or empty."""
    if "slice_index" not in manifest:
        return [0] * len(manifest)
    return pd.to_numeric(manifest["slice_index"], errors="coerce").fillna(0).astype(int).tolist()


def _key(source):
    """Names the content: sha256 of the files where the manifest has it, else their size and time."""
    digest = hashlib.sha256(Path(ct.__file__).read_bytes())
    if "sha256" in source.manifest:
        content = source.manifest["sha256"].astype(str).tolist()
    else:
        stats = [os.stat(Path(source.root) / path) for path in source.manifest["path"]]
        content = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]
    rows = zip(source.manifest["path"], slice_indices(source.manifest), content, strict=True)
    digest.update("\n".join(f"{path} {index} {what}" for path, index, what in rows).encode())
    return digest.hexdigest()[:16]


def quiet():
    """Whether a progress bar has nobody to show itself to: neither a terminal nor a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return not sys.stderr.isatty() and not hasattr(shell, "kernel")


class Batches(keras.utils.PyDataset):
    """Batches of float32 images (B, H, W, 1) in 0..255 and one-hot labels float32 (B, C).

    images: (N, H, W) uint8; labels: (N, C) one-hot. With a `seed` the order is a permutation and the
    `augmenter` draws, both functions of seed, `epoch` and the slice's place in `images` alone; without one
    the order is that of `images`. The N slices are divided as evenly as can be, at most `batch_size` to a
    batch, so that no small last batch disturbs batch normalisation.
    """

    def __init__(self, images, labels, batch_size, seed=None, epoch=0, augmenter=None):
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
        if len(images) != len(labels):
            raise ValueError("images and labels must be equally many. "
                             f"Received: {len(images)} images, {len(labels)} labels")
        self.images, self.labels = images, np.asarray(labels, np.float32)
        self.batch_size, self.seed, self.epoch, self.augmenter = batch_size, seed, epoch, augmenter
        order = np.arange(len(images))
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        self.parts = np.array_split(order, -(-len(images) // batch_size)) if len(images) else []

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        chosen = self.parts[index]
        batch = self.images[chosen].astype(np.float32)
        if self.augmenter is not None:
            pairs = zip(batch, chosen, strict=True)
            batch = np.stack([self.augmenter(image, self.epoch, int(n)) for image, n in pairs])
        return batch[..., None], self.labels[chosen]


def feed(batches):
    """What `fit`, `evaluate` and `predict` take: `batches`, on TensorFlow as a tf.data.Dataset without autotuning.

    With Keras's own conversion the autotuner's thread sleeps up to a minute between looks, and the iterator's end
    waits for it to wake: epochs then last 20.5 or 41 seconds whatever there is to do (TensorFlow 2.21).
    """
    if keras.backend.backend() != "tensorflow" or not len(batches):
        return batches
    import tensorflow as tf

    signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in batches[0])
    dataset = tf.data.Dataset.from_generator(lambda: (batches[n] for n in range(len(batches))),
                                             output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches))).prefetch(2)
    return dataset.with_options(options)
