"""Near-duplicate slices: which pictures are nearly the same, found without comparing every pair.

Two slices are near-duplicates when their 64x64 thumbnails correlate by at least MIN_CORRELATION and their perceptual
hashes (64 bit, discrete cosine transform, https://www.phash.org/docs/pubs/thesis_zauner.pdf) differ in at most
MAX_DISTANCE bits.

Measured on 300 slices of two public sets: every copy is found that was stored as JPEG (quality 50), scaled by 0.5 or
1.5, made 20 grey values brighter or darker or of other contrast, and 99 % of those turned by one degree; of copies
cropped by 3 % 18 %, turned by three degrees 8 %; none that was mirrored, cropped by 10 % or given a white margin. All
168 pairs that the rule flags in these sets show one picture (27 %) or neighbouring slices of one patient (73 %); they
are listed in reports/published/near_duplicates.csv. A correlation of .90 would add 895 pairs, of which 58 show one
picture, cropped anew, and chain up to 55 slices into a group.

Chest slices resemble each other so much that one pair in a hundred lies within ten bits: the hash alone would leave 50
million pairs of 100,000 slices to look at. The thumbnails tell far more apart. Centred and scaled to length 1 they
lie on a sphere, where a correlation r is a distance of sqrt(2 - 2r), and a projection to a few principal axes never
lengthens a distance: every pair of the rule lies within that radius of the projections, with few others, which the hash
and the full thumbnails then sort out. Who lies there is looked up in usearch's graph (HNSW, Malkov and Yashunin 2018,
https://arxiv.org/abs/1603.09320), and up to EXACT images by comparing all. The graph may lose a pair in principle; it
lost none in benchmarks/results/near_duplicates_cpu.csv. Equal input gives equal pairs. Memory grows with the images and
with the pairs that are found, of which n copies of one picture make n (n - 1) / 2.
"""

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.utils.extmath import randomized_svd
from usearch.index import Index

MAX_DISTANCE = 10
MIN_CORRELATION = 0.95
THUMBNAIL = 64
EXACT = 5000
_AXES = 64
_FITTED = 2000
_BLOCK = 1024
_NEIGHBOURS = 32
_MARGIN = 1e-3  # for rounding, beside the radius of .32


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
    keys = [np.zeros(0, int)]
    for a, b in _candidates(points) if len(rows) else ():
        a, b = rows[a], rows[b]
        alike = np.bitwise_count(hashes[a] ^ hashes[b]) <= MAX_DISTANCE
        keys.append(a[alike] * count + b[alike])
    a, b = np.divmod(np.unique(np.concatenate(keys)), count)
    parts = range(0, max(len(a), 1), _BLOCK)
    return pd.concat([_pairs(a[k : k + _BLOCK], b[k : k + _BLOCK], hashes, thumbnails) for k in parts],
                     ignore_index=True)


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


def _candidates(points):
    """Positions (a, b), a < b, of points within the rule's radius; most pairs come twice, once from either side."""
    count, radius = len(points), np.sqrt(2 - 2 * MIN_CORRELATION) + _MARGIN
    index = Index(ndim=points.shape[1], metric="l2sq", dtype="f32", connectivity=32, expansion_add=128,
                  expansion_search=128)
    rng = np.random.default_rng(0)
    for start in range(0, count, _BLOCK):  # a graph of hundreds of equal points falls apart; far below the margin
        part = points[start : start + _BLOCK]
        part += rng.normal(0, 1e-5, part.shape).astype(np.float32)
    index.add(np.arange(count), points, threads=1)  # several would make the graph a matter of chance
    for start in range(0, count, _BLOCK):
        queries, wanted = np.arange(start, min(start + _BLOCK, count)), _NEIGHBOURS
        while len(queries):
            wanted = min(wanted, count)
            several = np.resize(queries, max(len(queries), 2))  # of one, usearch's answer has another shape
            near = index.search(points[several], wanted, exact=count <= EXACT)
            inside = (near.distances <= radius**2) & (np.arange(wanted) < near.counts[:, None])
            inside = inside[: len(queries)]
            whole = ~inside.all(1) | (wanted == count)
            a, place = np.nonzero(inside & whole[:, None])
            b = near.keys[a, place].astype(int)
            a = queries[a]
            yield np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
            queries, wanted = queries[~whole], 4 * wanted


def _pairs(a, b, hashes, thumbnails):
    distance = np.bitwise_count(hashes[a] ^ hashes[b])
    rows, place = np.unique(np.stack([a, b]), return_inverse=True)  # a slice of a volume has many pairs
    units, (first, second) = _unit(thumbnails[rows]), place.reshape(2, -1)
    correlation = np.einsum("ij,ij->i", units[first], units[second])
    table = pd.DataFrame({"a": a, "b": b, "distance": distance, "correlation": correlation})
    return table[correlation >= MIN_CORRELATION]
