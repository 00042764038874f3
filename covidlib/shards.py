"""Decoded slices in shards, for sets larger than memory, and than one machine's disk can read in random order.

A folder of `<split>-<number>-of-<count>.tfrecord`, the format and the names of TensorFlow Datasets, and `index.json`
with their checksums. A record is a tf.train.Example of `image` (a grey PNG), `label` (the place in the index's
`classes`) and `row` (that in the manifest); each bears a CRC. tf.data reads several files at once and decodes outside
of Python; its batches are what `fit` takes on every backend of Keras, and what a loop in JAX takes:

    for x, y in shards.read(folder, "train", 32, seed=0, epoch=epoch).as_numpy_iterator():

Slices are dealt to shards at random when they are written. The order of an epoch is then a shuffle of the shards, of
which READERS are read in turns, and one of the slices within each WINDOW that follow: less random than that of
pipeline.Batches, which can put any two slices side by side, and, like it, a function of seed and epoch alone.
"""

import json
import os
import shutil
from pathlib import Path

import joblib
import numpy as np

from covidlib import provenance
from covidlib.datasets import SPLITS
from covidlib.files import sha256, sha256_once, write_atomically

READERS = 8  # files; another number is another order
WINDOW = 4096  # slices, held as PNG
_TURN = 16  # slices of one file after another


def write(source, images, folder, per_shard=4096):
    """Write all slices of a datasets.Source with a split to shards of at most `per_shard` in `folder`, which is new.

    images: uint8 (N, S, S) in the manifest's order, which may be a memory map (intake.load_images). The folder appears
    whole or not at all. Equal input gives equal files. ValueError for images or a split that do not fit,
    FileExistsError if `folder` is there.
    """
    folder, split = Path(folder), source.manifest["split"]
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1. Received: per_shard={per_shard}")
    if images.dtype != np.uint8 or images.ndim != 3 or len(images) != len(split) or images.shape[1] != images.shape[2]:
        raise ValueError(f"images must be uint8 ({len(split)}, S, S). Received: {images.dtype} {images.shape}")
    if not split.isin(SPLITS).all():
        raise ValueError("every slice needs a part: give the manifest a split with splits.assign. "
                         f"Received none for {(~split.isin(SPLITS)).sum()} slices")
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: choose another folder, or remove it")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    labels = source.manifest["label"].map({name: k for k, name in enumerate(source.classes)}).to_numpy(int)
    calls = []
    for number, name in enumerate(SPLITS):
        rows = np.random.default_rng([number]).permutation(np.flatnonzero(split == name))
        parts = np.array_split(rows, -(-len(rows) // per_shard)) if len(rows) else []
        for k, part in enumerate(parts):
            path = partial / f"{name}-{k:05d}-of-{len(parts):05d}.tfrecord"
            calls.append(joblib.delayed(_write_shard)(path, name, images, labels, part))
    shards = joblib.Parallel(provenance.threads(), prefer="threads")(calls)
    index = {"name": source.name, "classes": list(source.classes), "image_size": images.shape[1], "shards": shards}
    write_atomically(partial / "index.json", json.dumps(index, indent=1) + "\n")
    os.replace(partial, folder)


def read_index(folder):
    """What index.json holds: name, classes, image_size, shards (file, split, slices, sha256)."""
    path = Path(folder, "index.json")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no folder of shards, it has no index.json: make one with shards.write")
    return json.loads(path.read_text(encoding="utf-8"))


def read(folder, split, batch_size, seed=None, epoch=0, augmenter=None):
    """tf.data.Dataset of float32 images (B, S, S, 1) in 0..255 and one-hot labels (B, C): a part of what `write` left.

    With a `seed` the order is shuffled (see above), the `augmenter` draws as it does in pipeline.Batches, and slices
    that fill no whole batch are left out, others in every epoch; without one, all come in one fixed order. Memory does
    not grow with the set. A process checks every shard once, the first time that it reads it: OSError naming the one
    that is absent or damaged. ValueError for a part without slices.
    """
    import tensorflow as tf

    index = read_index(folder)
    shards = [shard for shard in index["shards"] if shard["split"] == split]
    count = sum(shard["slices"] for shard in shards)
    if not count:
        raise ValueError(f"{folder} has no such part. Received: split={split!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Received: batch_size={batch_size}")
    files = [_checked(Path(folder, shard["file"]), shard["sha256"]) for shard in shards]
    shuffled, batch_size, threads = seed is not None, min(batch_size, count), provenance.threads()
    if shuffled:
        rng = np.random.default_rng([seed, epoch])
        files = [files[k] for k in rng.permutation(len(files))]
    dataset = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset, READERS, _TURN, num_parallel_calls=min(READERS, threads), deterministic=True)
    if shuffled:
        key = int(rng.integers(2**62))  # Dataset.shuffle would draw from the program's global seed, too
        dataset = dataset.batch(WINDOW).enumerate().map(
            lambda n, records: tf.random.experimental.stateless_shuffle(records, [key, n])).unbatch()
    side, classes = index["image_size"], len(index["classes"])

    def decode(record):
        kinds = {"image": tf.string, "label": tf.int64, "row": tf.int64}
        found = tf.io.parse_single_example(record, {name: tf.io.FixedLenFeature([], kind)
                                                    for name, kind in kinds.items()})
        image = tf.ensure_shape(tf.io.decode_png(found["image"], 1), (side, side, 1))
        image = tf.cast(image, tf.float32)
        if augmenter is not None:
            image = tf.ensure_shape(tf.numpy_function(augment, (image, found["row"]), tf.float32), image.shape)
        return image, tf.one_hot(found["label"], classes)

    def augment(image, row):
        return augmenter(image[..., 0], epoch, int(row))[..., None]

    dataset = dataset.map(decode, num_parallel_calls=threads, deterministic=True)
    batches = count // batch_size if shuffled else -(-count // batch_size)
    dataset = dataset.batch(batch_size, drop_remainder=shuffled)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches)).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False  # see pipeline.feed
    return dataset.with_options(options)


def _write_shard(path, split, images, labels, rows):
    """Write one shard; its entry in the index."""
    import tensorflow as tf

    def whole(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    with tf.io.TFRecordWriter(str(path)) as file:
        for row in rows:
            image = tf.io.encode_png(images[row][..., None], compression=1).numpy()
            features = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
                        "label": whole(labels[row]), "row": whole(row)}
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return {"file": path.name, "split": split, "slices": len(rows), "sha256": sha256(path)}


def _checked(path, wanted):
    """`path` as a text. OSError where it is absent or not what was written."""
    if not path.is_file():
        raise OSError(f"{path} is absent: copy it again, or write the shards anew with shards.write")
    if sha256_once(path) != wanted:
        raise OSError(f"{path} is damaged: copy it again, or write the shards anew with shards.write")
    return str(path)
