import keras
import numpy as np
import pytest

from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training import batches
from covidlib.training.batches import Batches


@pytest.fixture
def arrays():
    images = np.random.default_rng(1).integers(0, 256, (11, 8, 8), dtype=np.uint8)
    return images, np.eye(3)[np.arange(11) % 3]


def test_batches_in_order_hold_the_images_as_they_are(arrays):
    images, labels = arrays
    made = Batches(images, labels, batch_size=4)
    assert [len(y) for _, y in made] == [4, 4, 3]
    x = np.concatenate([x for x, _ in made])
    assert x.shape == (11, 8, 8, 1) and x.dtype == np.float32
    assert np.array_equal(x[..., 0], images)
    assert np.array_equal(np.concatenate([y for _, y in made]), labels)


@pytest.mark.parametrize("batch_size, sizes", [(16, [11]), (5, [4, 4, 3]), (10, [6, 5]), (1, [1] * 11)])
def test_batches_are_even(arrays, batch_size, sizes):
    assert [len(y) for _, y in Batches(*arrays, batch_size)] == sizes


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(arrays):
    images, labels = arrays
    images = images + np.arange(11, dtype=np.uint8)[:, None, None]

    def order(seed, epoch):
        return Batches(images, labels, 4, None, seed, epoch, Augmenter(seed=seed))

    first, again = order(3, 1), order(3, 1)
    assert np.array_equal(again[2][0], first[2][0])
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0][0], order(3, 2)[0][0])
    assert not np.array_equal(first[0][0], order(4, 1)[0][0])
    rows = np.concatenate(first.parts)
    assert sorted(rows) == list(range(11))
    assert np.array_equal(np.concatenate([y for _, y in first]), labels[rows])
    plain = Batches(images, labels, 4, seed=3, epoch=1)
    assert np.array_equal(plain[0][0][..., 0], images[plain.parts[0]])


def test_a_part_is_read_from_a_memory_map_without_copying_it(arrays, tmp_path):
    images, labels = arrays
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    made = Batches(mapped, labels, 4, rows=[1, 3, 10])
    assert made.images is mapped and len(made) == 1
    x, y = made[0]
    assert np.array_equal(x[..., 0], images[[1, 3, 10]]) and np.array_equal(y, labels[[1, 3, 10]])
    drawn = Batches(mapped, labels, 4, [3, 10], 0, 0, Augmenter(seed=1))
    whole = Batches(mapped, labels, 20, None, 0, 0, Augmenter(seed=1))
    place = int(np.flatnonzero(whole.parts[0] == 3)[0])
    assert np.array_equal(drawn[0][0][int(np.flatnonzero(drawn.parts[0] == 3)[0])], whole[0][0][place])


def test_images_without_labels_are_refused(arrays):
    with pytest.raises(ValueError, match="11 images, 10 labels"):
        Batches(arrays[0], arrays[1][:10], 4)


def test_the_dataset_gives_the_same_batches_without_autotuning(arrays):
    made = Batches(*arrays, 2, seed=3)
    dataset = batches.to_dataset(made)
    if keras.backend.backend() == "tensorflow":
        assert dataset.options().autotune.enabled is False and dataset.cardinality() == len(made)
    for wanted, found in zip(made, dataset, strict=True):
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(batches.to_dataset(Batches(arrays[0][:0], arrays[1][:0], 2))) == 0


def test_prefetched_batches_stay_in_their_place_when_an_iteration_is_broken_off():
    made = Batches(np.zeros((40, 4, 4), np.uint8), np.eye(40), 2, seed=3)
    ahead = batches.Prefetcher(made)
    for count in (1, 9, len(made)):
        for n in range(count):
            np.testing.assert_array_equal(ahead[n][1], made[n][1])
