"""Batches of the decoded slices, the same whenever they are asked for."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

THREADS = 4  # of `Prefetcher`; SciPy's warps release the interpreter's lock


class Batches(keras.utils.PyDataset):
    """Batches of float32 images (B, H, W, 1) in 0..255 and one-hot labels float32 (B, C).

    images: (N, H, W) uint8, also memory-mapped, of which a batch reads its own; labels: (N, C) one-hot; rows: the
    slices to use, by default all. With a `seed` the order is a permutation, a function of seed and `epoch`, without one
    that of `rows`. What the `augmenter` draws is a function of its seed, `epoch` and the slice's index in `images`.
    The slices are divided evenly, at most `batch_size` to a batch, so that no small last batch disturbs batch
    normalisation; each holds a multiple of `multiple`, for which at most multiple - 1 slices are left out, with a seed
    others every epoch.
    """

    def __init__(self, images, labels, batch_size, rows=None, seed=None, epoch=0, augmenter=None, multiple=1):
        super().__init__()
        if len(images) != len(labels):
            raise ValueError("images and labels must be equally many. "
                             f"Received: {len(images)} images, {len(labels)} labels")
        self.images, self.labels = images, np.asarray(labels, np.float32)
        self.epoch, self.augmenter = epoch, augmenter
        order = np.arange(len(images)) if rows is None else np.asarray(rows)
        if seed is not None:
            order = np.random.default_rng([seed, epoch]).permutation(order)
        order = order[:len(order) - len(order) % multiple].reshape(-1, multiple)
        parts = np.array_split(order, max(1, -(-order.size // batch_size)))
        self.parts = [part.ravel() for part in parts if len(part)]

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        chosen = self.parts[index]
        batch = self.images[chosen].astype(np.float32)
        if self.augmenter is not None:
            pairs = zip(batch, chosen, strict=True)
            batch = np.stack([self.augmenter(image, self.epoch, int(n)) for image, n in pairs])
        return batch[..., None], self.labels[chosen]


class Prefetcher(keras.utils.PyDataset):
    """The batches of another dataset, computed ahead by threads.

    Keras's own threads fail where an iteration is broken off and begun again, as its JAX trainer does to inspect the
    first batch: the epoch then has some batches twice and others not at all (Keras 3.15).
    """

    def __init__(self, batches):
        super().__init__()
        self.batches, self.pool, self.pending = batches, ThreadPoolExecutor(THREADS), {}

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        for n in range(index, min(index + 2 * THREADS, len(self))):
            if n not in self.pending:
                self.pending[n] = self.pool.submit(self.batches.__getitem__, n)
        return self.pending.pop(index).result()


def to_dataset(batches):
    """What `fit`, `evaluate` and `predict` take: `batches`, computed ahead; on TensorFlow a Dataset without autotuning.

    With Keras's own conversion the end of an epoch waits until the autotuner's thread wakes: epochs then last 20.5 or
    41 seconds whatever there is to do (TensorFlow 2.21).
    """
    if keras.backend.backend() != "tensorflow" or not len(batches):
        return Prefetcher(batches)
    import tensorflow as tf

    signature = keras.tree.map_structure(lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype), batches[0])
    dataset = tf.data.Dataset.from_generator(lambda: (batches[n] for n in range(len(batches))),
                                             output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches))).prefetch(2)
    return dataset.with_options(options)
