"""Near-duplicates: the pairs of the exhaustive search, whatever the block, and nothing of blank pictures."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from covidlib.datasets import near_duplicates


def picture(seed, size=96):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), 4)
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def exhaustive(hashes, thumbnails):
    flat = thumbnails.reshape(len(thumbnails), -1).astype(float)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    near = np.bitwise_count(hashes[:, None] ^ hashes) <= near_duplicates.MAX_DISTANCE
    return np.argwhere(np.triu(near & (flat @ flat.T >= near_duplicates.MIN_CORRELATION), 1)).tolist()


def test_descriptors():
    image = picture(0, 150)[:, :120]
    assert isinstance(near_duplicates.perceptual_hash(image), np.uint64)
    small = near_duplicates.thumbnail(image)
    assert small.shape == (64, 64) and small.dtype == np.uint8
    copy = np.asarray(Image.fromarray(image).resize((300, 300)))
    assert np.bitwise_count(near_duplicates.perceptual_hash(copy) ^ near_duplicates.perceptual_hash(image)) <= 4


def test_pairs_and_groups():
    images = [picture(seed) for seed in range(12)]
    images[11] = images[0]
    images[7] = np.uint8(ndimage.gaussian_filter(images[3].astype(float), 1))
    pairs = near_duplicates.near_duplicates(*near_duplicates.describe(images))
    assert list(pairs) == ["a", "b", "distance", "correlation"]
    assert pairs[["a", "b"]].to_numpy().tolist() == [[0, 11], [3, 7]]
    assert pairs.distance[0] == 0 and abs(pairs.correlation[0] - 1) < 1e-5
    groups = near_duplicates.groups(pairs, len(images))
    assert groups[0] == groups[11] and groups[3] == groups[7] and len(set(groups)) == 10


@pytest.mark.parametrize("block", [1024, 64, 7])
def test_nothing_is_lost_against_the_exhaustive_search(monkeypatch, block):
    """Families of ever less similar pictures, so that many pairs lie close to the rule's edge."""
    rng = np.random.default_rng(3)
    images = []
    for family in range(40):
        first, other = picture(family).astype(float), picture(1000 + family).astype(float)
        shares = rng.uniform(0, 0.5, 8)
        images += [np.uint8((1 - share) * first + share * other) for share in shares]
    described = near_duplicates.describe(images)
    expected = exhaustive(*described)
    monkeypatch.setattr(near_duplicates, "_BLOCK", block)
    pairs = near_duplicates.near_duplicates(*described)
    assert pairs[["a", "b"]].to_numpy().tolist() == expected and len(expected) > 100


def test_blank_pictures_match_nothing_and_few_are_no_error():
    blank, some = np.zeros((20, 30), np.uint8), picture(0)
    for images in ([], [some], [blank], [blank, blank]):
        hashes, thumbnails = near_duplicates.describe(images)
        pairs = near_duplicates.near_duplicates(hashes, thumbnails)
        assert pairs.empty and list(pairs) == ["a", "b", "distance", "correlation"]
        assert near_duplicates.groups(pairs, len(images)).tolist() == list(range(len(images)))
    described = near_duplicates.describe([blank, some, np.full((9, 9), 7, np.uint8), some])
    pairs = near_duplicates.near_duplicates(*described)
    assert pairs[["a", "b"]].to_numpy().tolist() == [[1, 3]]


def test_all_pictures_the_same():
    hashes, thumbnails = near_duplicates.describe([picture(0)] * 60)
    assert len(near_duplicates.near_duplicates(hashes, thumbnails)) == 60 * 59 / 2


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"Received: hashes.shape=\(3,\), thumbnails.shape=\(2, 64, 64\)"):
        near_duplicates.near_duplicates(np.zeros(3, np.uint64), np.zeros((2, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"thumbnails.shape=\(2, 32, 32\)"):
        near_duplicates.near_duplicates(np.zeros(2, np.uint64), np.zeros((2, 32, 32), np.uint8))


@pytest.mark.slow
def test_real_slices_against_the_exhaustive_search(shared_data):
    from covidlib import readers

    files = sorted((shared_data / "sarscov2-ct-256" / "COVID").iterdir())
    described = near_duplicates.describe([readers.read_slice(file) for file in files])
    pairs = near_duplicates.near_duplicates(*described)
    assert pairs[["a", "b"]].to_numpy().tolist() == exhaustive(*described)
    names = {(files[a].name, files[b].name) for a, b in zip(pairs.a, pairs.b, strict=True)}
    assert ("Covid (128).jpg", "Covid (129).jpg") in names and len(pairs) > 50
