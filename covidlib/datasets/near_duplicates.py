"""Near-duplicate slices: which pictures are nearly the same.

Two slices are near-duplicates when their 64x64 thumbnails correlate by at least MIN_CORRELATION and their perceptual
hashes (64 bit, discrete cosine transform, https://www.phash.org/docs/pubs/thesis_zauner.pdf) differ in at most
MAX_DISTANCE bits.

Measured on 300 slices of two public sets: every copy is found that was stored as JPEG (quality 50), scaled by 0.5 or
1.5, made 20 grey values brighter or darker or of other contrast, and 99 % of those turned by one degree; of copies
cropped by 3 % 18 %, turned by three degrees 8 %; none that was mirrored, cropped by 10 % or given a white margin. All
168 pairs that the rule flags in these sets show one picture (27 %) or neighbouring slices of one patient (73 %); they
are listed in reports/published/near_duplicates.csv. A correlation of .90 would add 895 pairs, of which 58 show one
picture, cropped anew, and chain up to 55 slices into a group.

Whether a pair's thumbnails can correlate so much is first asked of 65 numbers instead of 4096. Centred and scaled to
length 1, a thumbnail u has the coordinates p on a few principal axes and a rest of length r that lies across them:
corr(u, v) <= p(u) p(v) + r(u) r(v) (Cauchy and Schwarz). All pairs are compared by this bound, a block at a time; the
hash and the full thumbnails then decide on those that it leaves. No pair is lost. Memory grows with the images and with
the pairs that are found, of which n copies of one picture make n (n - 1) / 2.
"""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils.extmath import randomized_svd

MAX_DISTANCE = 10
MIN_CORRELATION = 0.95
THUMBNAIL = 64
_AXES = 64
_FITTED = 2000  # thumbnails that the axes are fitted to
_BLOCK = 1024
_ROUNDING = 1e-4


def perceptual_hash(image):
    """np.uint64 of a uint8 (H, W) image."""
    return np.packbits(imagehash.phash(Image.fromarray(image)).hash).view(np.uint64)[0]


def thumbnail(image):
    """uint8 (64, 64) of a uint8 (H, W) image, whatever its aspect ratio."""
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def describe(images):
    """(hashes uint64 (N,), thumbnails uint8 (N, 64, 64)) of uint8 (H, W) images, which may come one by one."""
    pairs = [(perceptual_hash(image), thumbnail(image)) for image in images]
    hashes, thumbnails = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(hashes, np.uint64), np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)


def near_duplicates(hashes, thumbnails):
    """Pairs a < b of near-identical images, sorted: DataFrame a, b, distance (bits), correlation.

    hashes uint64 (N,), thumbnails uint8 (N, 64, 64), which may be a memory map. Images of one single grey value match
    nothing. ValueError where the two do not fit.
    """
    hashes, count = np.asarray(hashes, np.uint64), len(thumbnails)
    if hashes.shape != (count,) or (count and thumbnails.shape[1:] != (THUMBNAIL, THUMBNAIL)):
        raise ValueError("One hash (N,) and one thumbnail (N, 64, 64) is needed of each image. Received: "
                         f"hashes.shape={hashes.shape}, thumbnails.shape={np.shape(thumbnails)}")
    points = _bound(thumbnails)
    tables = [_pairs(a, b, hashes, thumbnails) for a, b in _candidates(points, hashes)]
    return pd.concat(tables).sort_values(["a", "b"], ignore_index=True)


def groups(pairs, n):
    """int (n,): images linked by pairs, directly or over others, share a number."""
    links = coo_array((np.ones(len(pairs)), (pairs.a, pairs.b)), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _unit(thumbnails):
    """float32 (N, 4096), centred and of length 1; zeros where an image is of one grey value."""
    flat = np.reshape(thumbnails, (len(thumbnails), THUMBNAIL**2)).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)


def _bound(thumbnails):
    """float32 (N, axes + 1): no two images correlate by more than the product of their rows; all 0 for a blank one."""
    points = np.zeros((len(thumbnails), _AXES + 1), np.float32)
    if len(thumbnails):
        axes = randomized_svd(_unit(thumbnails[:: len(thumbnails) // _FITTED + 1]), _AXES, random_state=0)[2]
    for start in range(0, len(thumbnails), _BLOCK):
        units = _unit(thumbnails[start : start + _BLOCK])
        part = points[start : start + _BLOCK]
        part[:, : len(axes)] = units @ axes.T
        part[:, -1] = np.sqrt(np.maximum(np.square(units).sum(1) - np.square(part).sum(1), 0))
    return points


def _candidates(points, hashes):
    """Positions (a, b), a < b, at most _BLOCK at a time, of images that the bound and the hashes leave."""
    for top in range(0, max(len(points), 1), _BLOCK):
        for left in range(top, max(len(points), 1), 8 * _BLOCK):
            bound = points[top : top + _BLOCK] @ points[left : left + 8 * _BLOCK].T
            a, b = np.nonzero(bound >= MIN_CORRELATION - _ROUNDING) + np.array([[top], [left]])
            near = (a < b) & (np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE)
            a, b = a[near], b[near]
            for start in range(0, max(len(a), 1), _BLOCK):
                yield a[start : start + _BLOCK], b[start : start + _BLOCK]


def _pairs(a, b, hashes, thumbnails):
    distance = np.bitwise_count(hashes[a] ^ hashes[b])
    rows, place = np.unique(np.stack([a, b]), return_inverse=True)  # a slice of a volume has many pairs
    units, (first, second) = _unit(thumbnails[rows]), place.reshape(2, -1)
    correlation = np.einsum("ij,ij->i", units[first], units[second])
    table = pd.DataFrame({"a": a, "b": b, "distance": distance, "correlation": correlation})
    return table[correlation >= MIN_CORRELATION]
