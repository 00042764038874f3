"""Near-duplicate slices: which pictures are nearly the same, found without comparing every pair.

Two slices are near-duplicates when their 64x64 thumbnails correlate by at least MIN_CORRELATION and their perceptual
hashes (64 bit, discrete cosine transform, https://www.phash.org/docs/pubs/thesis_zauner.pdf) differ in at most
MAX_DISTANCE bits.

Measured on 300 slices of two public sets: every copy is found that was stored as JPEG (quality 50), scaled by 0.5 or
1.5, made 20 grey values brighter or darker or of other contrast, and 99 % of those turned by one degree; of copies
cropped by 3 % 18 %, turned by three degrees 8 %; none that was mirrored, cropped by 10 % or given a white margin. All
168 pairs that the rule flags in these sets show one picture (27 %) or neighbouring slices of one patient (73 %); they
are listed in reports/published/near_duplicates.csv.

Chest slices resemble each other so much that one pair in a hundred lies within ten bits: the hash alone would leave 50
million pairs of 100,000 slices to look at. The thumbnails tell far more apart. Centred and scaled to length 1 they
lie on a sphere, where a correlation r is a distance of sqrt(2 - 2r); a projection to a few principal axes never
lengthens a distance, so that a k-d tree of the projections (scipy.spatial) returns every pair of the rule and some
others, which the full thumbnails then sort out. Nothing is approximate: the pairs are those of the exhaustive search.
Memory grows with the images and with the pairs that are found, of which n copies of one picture make n (n - 1) / 2.
"""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from sklearn.utils.extmath import randomized_svd

MAX_DISTANCE = 10
MIN_CORRELATION = 0.95
THUMBNAIL = 64
_AXES = 32
_FITTED = 2000
_BLOCK = 1024
_LEAF = 32  # in 32 dimensions twice as fast as scipy's 10
_MARGIN = 1e-3  # float32 rounding of the projection, far below the radius of .32


def perceptual_hash(image):
    """np.uint64 of a uint8 (H, W) image."""
    return np.packbits(imagehash.phash(Image.fromarray(image)).hash).view(np.uint64)[0]


def thumbnail(image):
    """uint8 (64, 64) of a uint8 (H, W) image, whatever its aspect ratio."""
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def near_duplicates(hashes, thumbnails):
    """Pairs a < b of near-identical images, sorted: DataFrame a, b, distance (bits), correlation.

    hashes uint64 (N,), thumbnails uint8 (N, 64, 64), which may be a memory map. Images of one single grey value match
    nothing. ValueError where the two do not fit.
    """
    hashes, count = np.asarray(hashes, np.uint64), len(thumbnails)
    if hashes.shape != (count,) or (count and thumbnails.shape[1:] != (THUMBNAIL, THUMBNAIL)):
        raise ValueError("One hash (N,) and one thumbnail (N, 64, 64) is needed of each image. Received: "
                         f"hashes.shape={hashes.shape}, thumbnails.shape={np.shape(thumbnails)}")
    if not count:
        return _pairs(hashes.astype(int), hashes.astype(int), hashes, thumbnails)
    rows, points = _project(thumbnails)
    radius = np.sqrt(2 - 2 * MIN_CORRELATION) + _MARGIN
    tree = KDTree(points, _LEAF)
    found = [_pairs(rows[:0], rows[:0], hashes, thumbnails)]
    for start in range(0, len(rows), _BLOCK):
        block = KDTree(points[start : start + _BLOCK], _LEAF)
        near = block.sparse_distance_matrix(tree, radius, output_type="ndarray")
        a, b = near["i"] + start, near["j"]
        a, b = rows[a[a < b]], rows[b[a < b]]
        alike = np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
        a, b = a[alike], b[alike]
        found += [_pairs(a[k : k + _BLOCK], b[k : k + _BLOCK], hashes, thumbnails) for k in range(0, len(a), _BLOCK)]
    return pd.concat(found).sort_values(["a", "b"], ignore_index=True)


def groups(pairs, n):
    """int (n,): images linked by pairs, directly or over others, share a number."""
    links = coo_array((np.ones(len(pairs)), (pairs.a, pairs.b)), shape=(n, n))
    return connected_components(links, directed=False)[1]


def _unit(thumbnails):
    """float32 (N, 4096), centred and of length 1; zeros where an image is of one grey value."""
    flat = np.reshape(thumbnails, (len(thumbnails), THUMBNAIL**2)).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)


def _project(thumbnails):
    """(rows that show more than one grey value (M,), their coordinates on the main axes (M, _AXES))."""
    sample = _unit(thumbnails[:: len(thumbnails) // _FITTED + 1])
    axes = randomized_svd(sample, _AXES, random_state=0)[2]
    rows, points = [np.zeros(0, int)], [np.zeros((0, len(axes)), np.float32)]
    for start in range(0, len(thumbnails), _BLOCK):
        units = _unit(thumbnails[start : start + _BLOCK])
        shown = np.flatnonzero(units.any(1))
        rows.append(start + shown)
        points.append(units[shown] @ axes.T)
    return np.concatenate(rows), np.concatenate(points)


def _pairs(a, b, hashes, thumbnails):
    distance = np.bitwise_count(hashes[a] ^ hashes[b])
    correlation = np.einsum("ij,ij->i", _unit(thumbnails[a]), _unit(thumbnails[b]))
    table = pd.DataFrame({"a": a, "b": b, "distance": distance, "correlation": correlation})
    return table[correlation >= MIN_CORRELATION]
