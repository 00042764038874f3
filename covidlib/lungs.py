"""Body and lungs of one chest slice, by classical image processing."""

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from covidlib import ct

SIDE = 192  # pixels of the long side while working: every radius below counts these


def body_mask(image):
    return _full(body_and_lungs(image)[0], np.shape(image))


def lung_mask(image):
    return _full(body_and_lungs(image)[1], np.shape(image))


def lung_fraction(image):
    body, lungs = body_and_lungs(image)
    return float(lungs.sum() / max(1, body.sum()))


def read_mask(path, slice_index=0):
    return ct.read_slice(path, slice_index, window=None) > 0


def _full(mask, shape):
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture) > 127


def page(image):
    """Slices (rows, columns) of the picture without white margins."""
    height, width = image.shape
    white = image >= 240
    top, left, bottom, right = 0, 0, height, width
    for _ in range(2):
        rows = white[:, left:right].mean(1)
        top, bottom = _trim(rows, top, bottom)
        columns = white[top:bottom].mean(0)
        left, right = _trim(columns, left, right)
    return slice(top, bottom), slice(left, right)


def _trim(share, start, stop):
    """Ends without the white lines, where these end abruptly (a page), not little by little (a chest wall)."""
    dark = np.flatnonzero(share[start:stop] < 0.97)
    if not len(dark):
        return start, stop
    first, last = start + dark[0], start + dark[-1]
    near = max(1, (stop - start) // 100)
    begin = first if share[first : first + near + 1].min() < 0.7 else start
    end = last + 1 if share[last - near : last + 1].min() < 0.7 else stop
    return begin, end


def body_and_lungs(image):
    """(body, lungs), bool at working size."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be uint8 (H, W). Received: {image.dtype} {image.shape}")
    height, width = image.shape
    scale = SIDE / max(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    rows, columns = page(image)
    inner = tuple(slice(round(s.start * n / o), max(round(s.start * n / o) + 1, round(s.stop * n / o)))
                  for s, n, o in zip((rows, columns), shape, image.shape, strict=True))
    size = inner[1].stop - inner[1].start, inner[0].stop - inner[0].start
    small = np.asarray(Image.fromarray(image[rows, columns]).resize(size, Image.Resampling.BOX))
    body, lungs = np.zeros(shape, bool), np.zeros(shape, bool)
    body[inner], lungs[inner] = _segment(small)
    return body, lungs


def _segment(small):
    empty = np.zeros(small.shape, bool)
    if min(small.shape) < 16 or small.max() - int(small.min()) < 20:
        return empty, empty
    smooth = ndimage.uniform_filter(small, 3)
    level = threshold_otsu(smooth)
    dark = smooth <= level
    background = _background(dark)
    body = _largest(_open(~background & ~_thin(~background), 0))
    body = ndimage.binary_fill_holes(body)
    lungs = _lungs(smooth, dark & body, body)
    return body, lungs


def _grow(mask, radius):
    return ndimage.distance_transform_edt(~mask) <= radius if mask.any() else mask


def _shrink(mask, radius):
    padded = np.pad(mask, 1)
    return (ndimage.distance_transform_edt(padded) > radius)[1:-1, 1:-1]


def _open(mask, radius):
    return _grow(_shrink(mask, radius), radius) if radius else mask


def _thin(mask):
    return mask & ~_open(mask, 3)


def _largest(mask):
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _background(dark):
    """Dark pixels joined to a corner, not through a gap of a pixel or two in the chest wall."""
    height, width = dark.shape
    framed = np.pad(dark, 4, mode="edge")
    core = _open(framed, 2)[4:-4, 4:-4]
    labels, count = ndimage.label(core)
    if not count:
        return np.zeros_like(dark)
    rows, columns = max(2, height // 25), max(2, width // 25)
    corners = {int(n) for r in (slice(rows), slice(-rows, None)) for c in (slice(columns), slice(-columns, None))
               for n in np.unique(labels[r, c])} - {0}
    chosen = np.isin(labels, sorted(corners))
    return ndimage.binary_dilation(chosen, iterations=2, mask=dark) if chosen.any() else chosen


def _lungs(smooth, dark, body):
    labels, count = ndimage.label(_open(dark, 1))
    area, lungs = body.sum(), np.zeros_like(body)
    rows, columns = np.nonzero(body)
    if not len(rows) or not count:
        return lungs
    middle, span = (columns.min() + columns.max()) / 2, columns.max() - columns.min() + 1
    regions = [r for r in regionprops(labels) if r.area >= 0.005 * area]
    regions.sort(key=lambda r: -r.area)
    for region in regions:
        central = abs(region.centroid[1] - middle) < 0.12 * span and region.area < 0.04 * area
        if not central and len([1]) and region.area >= 0.12 * regions[0].area:
            lungs |= _fill(labels == region.label, body)
    return lungs


def _fill(lung, body):
    closed = _shrink(np.pad(_grow(np.pad(lung, 12), 8), 0), 8)[12:-12, 12:-12]
    return ndimage.binary_fill_holes(closed | lung) & body
