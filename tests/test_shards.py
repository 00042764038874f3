"""Shards: every slice comes back once, in an order of seed and epoch alone, and what is damaged is named."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest

from covidlib import datasets, models, pipeline, shards
from covidlib.augmentation import Augmenter

CLASSES = ("covid", "viral", "normal")


def made(root, count=40, size=32):
    """(Source, images): 40 slices of noise, half of them for training, of which each bears its row in a corner."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count) % 256
    rows = np.arange(count)
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in rows], "label": np.array(CLASSES)[rows % 3],
                             "patient": rows.astype(str), "source": "", "slice_index": 0,
                             "split": np.array(["train", "val", "train", "test"])[rows % 4]})
    return datasets.Source(manifest, CLASSES, root, "noise"), images


@pytest.fixture
def written(tmp_path):
    source, images = made(tmp_path)
    shards.write(source, images, tmp_path / "shards", per_shard=4)
    return tmp_path / "shards", source, images


def rows_of(dataset):
    return np.concatenate([x[:, 0, 0, 0] for x, _ in dataset.as_numpy_iterator()]).astype(int)


@pytest.mark.parametrize("split", datasets.SPLITS)
def test_a_part_comes_back_whole(written, split):
    folder, source, images = written
    dataset = shards.read(folder, split, 3)
    x, y = (np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True))
    rows = rows_of(dataset)
    assert sorted(rows) == np.flatnonzero(source.manifest.split == split).tolist()
    assert x.dtype == y.dtype == np.float32 and np.array_equal(x[..., 0], images[rows])
    assert np.array_equal(np.array(CLASSES)[y.argmax(1)], source.manifest.label[rows])
    assert dataset.cardinality() == -(-len(rows) // 3)


def test_order_is_a_matter_of_seed_and_epoch_alone(written, monkeypatch):
    folder, *_ = written
    first = rows_of(shards.read(folder, "train", 6, seed=3, epoch=1))
    monkeypatch.setattr(shards.provenance, "threads", lambda: 7)
    keras.utils.set_random_seed(8)
    assert np.array_equal(first, rows_of(shards.read(folder, "train", 6, seed=3, epoch=1)))
    assert not np.array_equal(first, rows_of(shards.read(folder, "train", 6, seed=3, epoch=2)))
    assert not np.array_equal(first, rows_of(shards.read(folder, "train", 6, seed=4, epoch=1)))
    assert len(first) == len(set(first)) == 18  # of 20, in whole batches
    monkeypatch.setattr(shards, "WINDOW", 2)
    assert not np.array_equal(first, rows_of(shards.read(folder, "train", 6, seed=3, epoch=1)))


def test_augmentation_is_that_of_batches_from_memory(written):
    folder, source, images = written
    augmenter = Augmenter("paper", 5)
    (x, _), *_ = shards.read(folder, "train", 6, seed=3, epoch=2, augmenter=augmenter).as_numpy_iterator()
    rows = rows_of(shards.read(folder, "train", 6, seed=3, epoch=2))[:6]
    batches = pipeline.Batches(images, np.eye(40), 40, seed=0, epoch=2, augmenter=augmenter)
    place = {row: n for n, row in enumerate(batches.parts[0])}
    assert np.array_equal(x, batches[0][0][[place[row] for row in rows]])


def test_fit_takes_them(written):
    folder, *_ = written
    model = keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    history = model.fit(shards.read(folder, "train", 6, seed=0), validation_data=shards.read(folder, "val", 6),
                        shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"][0]) and np.isfinite(history["val_loss"][0])
    assert model.predict(shards.read(folder, "test", 6), verbose=0).shape == (10, 3)


def test_equal_input_gives_equal_files_and_any_reader_of_the_format_reads_them(written, tmp_path):
    import tensorflow as tf

    folder, source, images = written
    shards.write(source, images, tmp_path / "again", per_shard=4)
    assert shards.read_index(folder) == shards.read_index(tmp_path / "again")
    index = shards.read_index(folder)
    assert [shard["file"] for shard in index["shards"][:2]] == [f"train-0000{k}-of-00005.tfrecord" for k in (0, 1)]
    assert sum(shard["slices"] for shard in index["shards"]) == 40 and index["classes"] == list(CLASSES)
    record = next(iter(tf.data.TFRecordDataset(str(folder / index["shards"][0]["file"]))))
    features = tf.train.Example.FromString(record.numpy()).features.feature
    row = features["row"].int64_list.value[0]
    image = tf.io.decode_png(features["image"].bytes_list.value[0]).numpy()
    assert np.array_equal(image[..., 0], images[row]) and features["label"].int64_list.value[0] == row % 3


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_shard_is_named(written, damage):
    folder, *_ = written
    victim = folder / shards.read_index(folder)["shards"][1]["file"]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.unlink()
    if damage != "gone":
        victim.write_bytes(content if damage == "flipped" else content[:-100])
    with pytest.raises(OSError, match=f"{victim.name} is {'absent' if damage == 'gone' else 'damaged'}: copy it again"):
        shards.read(folder, "train", 4)
    assert len(rows_of(shards.read(folder, "val", 4))) == 10


def test_the_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    source, images = made(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "sha256", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shards.write(source, images, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    shards.write(source, images, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    with pytest.raises(FileExistsError, match="is there already"):
        shards.write(source, images, tmp_path / "shards")


def test_mistakes_are_named(written, tmp_path):
    folder, source, images = written
    for wrong in (images[:5], images.astype(float), images[:, :3]):
        with pytest.raises(ValueError, match=r"images must be uint8 \(40, S, S\). Received"):
            shards.write(source, wrong, tmp_path / "other")
    with pytest.raises(ValueError, match="Received: per_shard=0"):
        shards.write(source, images, tmp_path / "other", per_shard=0)
    bare = datasets.replace(source, manifest=source.manifest.assign(split=""))
    with pytest.raises(ValueError, match="Received none for 40 slices"):
        shards.write(bare, images, tmp_path / "other")
    with pytest.raises(ValueError, match="Received: split='tests'"):
        shards.read(folder, "tests", 4)
    with pytest.raises(ValueError, match="Received: batch_size=0"):
        shards.read(folder, "val", 0)
    with pytest.raises(FileNotFoundError, match="has no index.json"):
        shards.read(tmp_path, "val", 4)


def test_the_page_trains_from_shards_as_it_says(written, repository, monkeypatch):
    """With a small network in place of `improved`, whose step takes a minute to trace."""
    def small(variant, classes, image_size):
        image = keras.Input((image_size, image_size, 1))
        answer = keras.layers.Dense(len(classes), "softmax")(keras.layers.Flatten()(image))
        return keras.Model(image, [answer, answer])

    monkeypatch.setattr(models, "build_classifier", small)
    page = (repository / "docs" / "shards.md").read_text(encoding="utf-8")
    code = re.search("```python\n(.*?)```", page, re.DOTALL)[1]
    folder, *_ = written
    names, set_for_a_paper = {}, "epochs, batch_size = 35, 16"
    assert set_for_a_paper in code
    monkeypatch.chdir(folder.parent)
    exec(code.replace(set_for_a_paper, "epochs, batch_size = 2, 6"), names)
    assert len(names["history"]) == 2 and np.isfinite(names["history"][1]["val_loss"][0])
    assert keras.saving.load_model("model.keras").input_shape == (None, 32, 32, 1)


EPOCH = """
import json, sys
import numpy as np
from covidlib import memory, shards
shards.WINDOW, total = 256, 0
for x, y in shards.read(sys.argv[1], "train", 32, seed=0).as_numpy_iterator():
    total += len(x)
print(json.dumps([total, memory.resident_peak()]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(tmp_path):
    """4,000 slices more are 62 MiB in the shards (noise cannot be compressed) and 250 MiB as floats; 20 may stay.

    Malloc keeps 3 to 7. The smaller set is many times the window, and of a size at which malloc's own growth, 25 MiB
    from 1,000 slices on, has ended.
    """
    peaks = {}
    for count in (4000, 8000):
        source, images = made(tmp_path, count, 128)
        source = datasets.replace(source, manifest=source.manifest.assign(split="train"))
        shards.write(source, images, tmp_path / str(count), per_shard=100)
        answer = subprocess.run([sys.executable, "-c", EPOCH, tmp_path / str(count)], capture_output=True, text=True,
                                check=True)
        total, peaks[count] = json.loads(answer.stdout.splitlines()[-1])
        assert total == count // 32 * 32
    assert peaks[8000] - peaks[4000] < 20, peaks
