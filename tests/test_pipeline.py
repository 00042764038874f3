from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import ct, pipeline
from covidlib.augmentation import Augmenter
from covidlib.pipeline import Batches


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 256, (30, 20 + n), dtype=np.uint8)).save(tmp_path / f"{n}.png")
    manifest = pd.DataFrame({"path": [f"{n}.png" for n in (2, 0, 3, 1)], "slice_index": ["", 0, np.nan, "0"]})
    return SimpleNamespace(manifest=manifest, root=tmp_path, name="toy", classes=("a", "b"))


@pytest.fixture
def arrays():
    images = np.random.default_rng(1).integers(0, 256, (11, 8, 8), dtype=np.uint8)
    return images, np.eye(3)[np.arange(11) % 3]


def test_images_come_in_manifest_order(source):
    images = pipeline.load_images(source, 16)
    assert images.shape == (4, 16, 16) and images.dtype == np.uint8
    for image, path in zip(images, source.manifest["path"], strict=True):
        assert np.array_equal(image, ct.fit_square(ct.read_slice(source.root / path), 16))


def test_the_cache_is_used_and_keyed_by_content(source, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = pipeline.load_images(source, 16, cache)
    with monkeypatch.context() as patch:
        patch.setattr(ct, "read_slice", lambda *_: pytest.fail("decoded again"))
        assert np.array_equal(pipeline.load_images(source, 16, cache), first)
    assert pipeline.load_images(source, 8, cache).shape == (4, 8, 8)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source.root / "2.png")
    assert not pipeline.load_images(source, 16, cache)[0].any()
    assert len(list(cache.iterdir())) == 3


def test_the_cache_trusts_a_sha256_column(source, tmp_path):
    source.manifest["sha256"] = list("abcd")
    first = pipeline._key(source)
    source.manifest["sha256"] = list("abce")
    assert pipeline._key(source) != first
    source.manifest["sha256"] = list("abcd")
    source.manifest["slice_index"] = 1
    assert pipeline._key(source) != first


def test_an_unreadable_slice_is_named_and_leaves_no_cache(source, tmp_path):
    (source.root / "3.png").write_bytes(b"no picture")
    with pytest.raises(ct.ReadError, match="3.png"):
        pipeline.load_images(source, 16, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.write_atomically(tmp_path / "x.bin", fail)
    assert not list(tmp_path.iterdir())


def test_batches_in_order_hold_the_images_as_they_are(arrays):
    images, labels = arrays
    batches = Batches(images, labels, batch_size=4)
    assert [len(y) for _, y in batches] == [4, 4, 3]
    x = np.concatenate([x for x, _ in batches])
    assert x.shape == (11, 8, 8, 1) and x.dtype == np.float32
    assert np.array_equal(x[..., 0], images)
    assert np.array_equal(np.concatenate([y for _, y in batches]), labels)


@pytest.mark.parametrize("batch_size, sizes", [(16, [11]), (5, [4, 4, 3]), (10, [6, 5]), (1, [1] * 11)])
def test_batches_are_even(arrays, batch_size, sizes):
    assert [len(y) for _, y in Batches(*arrays, batch_size)] == sizes


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(arrays):
    images, labels = arrays
    images = images + np.arange(11, dtype=np.uint8)[:, None, None]

    def batches(seed, epoch):
        return Batches(images, labels, 4, seed, epoch, Augmenter(seed=seed))

    first = batches(3, 1)
    again = batches(3, 1)
    assert np.array_equal(again[2][0], first[2][0])
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0][0], batches(3, 2)[0][0])
    assert not np.array_equal(first[0][0], batches(4, 1)[0][0])
    rows = np.concatenate(first.parts)
    assert sorted(rows) == list(range(11))
    assert np.array_equal(np.concatenate([y for _, y in first]), labels[rows])
    plain = Batches(images, labels, 4, 3, 1)
    assert np.array_equal(plain[0][0][..., 0], images[plain.parts[0]])


def test_batches_feed_fit_and_predict(arrays):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    batches = Batches(*arrays, 4, seed=0, augmenter=Augmenter())
    assert np.isfinite(model.fit(batches, shuffle=False, verbose=0).history["loss"][0])
    assert model.predict(Batches(*arrays, 4), verbose=0).shape == (11, 3)


def test_mistakes_are_named(arrays, source):
    with pytest.raises(ValueError, match="Received: batch_size=0"):
        Batches(*arrays, 0)
    with pytest.raises(ValueError, match="11 images, 10 labels"):
        Batches(arrays[0], arrays[1][:10], 4)
    with pytest.raises(ValueError, match="Received: image_size=0"):
        pipeline.load_images(source, 0)


def test_what_is_fed_are_the_same_batches_without_autotuning():
    images = np.arange(5 * 4 * 4, dtype=np.uint8).reshape(5, 4, 4)
    batches = pipeline.Batches(images, np.eye(5), 2, seed=3)
    fed = pipeline.feed(batches)
    if keras.backend.backend() == "tensorflow":
        assert fed.options().autotune.enabled is False and fed.cardinality() == len(batches)
    for (x, y), (fed_x, fed_y) in zip([batches[n] for n in range(len(batches))], fed, strict=True):
        np.testing.assert_array_equal(x, fed_x)
        np.testing.assert_array_equal(y, fed_y)
    assert len(pipeline.feed(pipeline.Batches(images[:0], np.eye(5)[:0], 2))) == 0
