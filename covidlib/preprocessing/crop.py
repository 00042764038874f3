"""A slice cropped to the lungs, the network's input: the convex hull of both lungs, centred on black at one scale.

Public pictures are cut at the body, inside it or with the page around them, 100 to 2000 pixels wide, and in COVID-CT
each of these predicts the label. The hull lies inside nearly every picture. It is reduced to ACROSS pixels (98 % of
COVID-CT's pictures have as many across the lungs), its soft tissue is made white, then it is resized.

The price: chest wall and axillae are lost, and so is a lung that `lungs.segment` misses, which happens most where it is
dense with disease; consolidation and soft tissue are one white. docs/design.md says what remains of the shortcuts.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from covidlib.preprocessing.lungs import hull, lung_mask, segment

ACROSS = 96  # pixels of the square, its rim included
RIM = 4  # of them, black, on every side
WHITE = np.uint8(255)


def crop_to_lungs(image, size, lungs=None):
    """The slice cropped to the lungs, uint8 (size, size), and its lungs, bool (size, size).

    image: uint8 (H, W) in the lung window, or any picture of a chest slice; lungs: bool (H, W), a mask of one's own,
    else lungs.lung_mask finds them. Where there are none, the body is kept; where there is no body, all is black.
    ValueError for another kind of image, a mask of another shape, or a size below 1.
    """
    image = np.asarray(image)
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: size={size}")
    lungs = lung_mask(image) if lungs is None else np.asarray(lungs, bool)
    if lungs.shape != image.shape:
        raise ValueError(f"lungs must have the image's shape {image.shape}. Received: {lungs.shape}")
    kept = _kept(image, lungs)
    if not kept.any():
        return np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    cropped, inside, lung = (_reduce(part, kept) for part in (image, WHITE, lungs * WHITE))
    tissue = cropped[(inside == WHITE) & ~ndimage.binary_dilation(lung > 0, iterations=2)]
    return resize(_whiten(cropped, tissue), size), resize(lung, size) > 127


def warp_mask(mask, size, lungs):
    """A mask of a slice, bool (H, W), cropped as `crop_to_lungs` crops the slice given the same `lungs`.

    For example the lesions of a phantom. Returns bool (size, size), empty without lungs.
    """
    if not lungs.any():
        return np.zeros((size, size), bool)
    return resize(_reduce(mask * WHITE, hull(lungs)), size) > 127


def crop_box(image, lungs=None):
    """The square of an image that `crop_to_lungs` keeps: (top, left, side) in its pixels, None where it keeps nothing.

    All are fractional, and the square may reach beyond the image; arguments as in `crop_to_lungs`.
    """
    kept = _kept(image, lung_mask(image) if lungs is None else lungs)
    if not kept.any():
        return None
    rows, columns = _extent(kept)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    side = max(height, width) * ACROSS / (ACROSS - 2 * RIM)
    return float(rows.start + (height - side) / 2), float(columns.start + (width - side) / 2), float(side)


def resize(picture, size):
    """uint8 (H, W) -> (size, size). A cropped slice of ACROSS px becomes what `crop_to_lungs` gives at `size`."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def _kept(image, lungs):
    return hull(lungs) if lungs.any() else segment(image)[0]


def _extent(kept):
    return ndimage.find_objects(kept.astype(np.uint8))[0]


def _reduce(picture, kept):
    """The `kept` part of a picture, uint8 (H, W), on black: uint8 (ACROSS, ACROSS), with a black rim."""
    picture = np.where(kept, picture, 0)[_extent(kept)]
    scale = (ACROSS - 2 * RIM) / max(picture.shape)
    height, width = (max(1, round(n * scale)) for n in picture.shape)
    square = Image.new("L", (ACROSS, ACROSS))
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    square.paste(small, ((ACROSS - width) // 2, (ACROSS - height) // 2))
    return np.asarray(square)


def _whiten(cropped, tissue):
    """Grey scaled so that nine tenths of the tissue between the lungs, airways aside, are white."""
    if tissue.size < 20:
        return cropped
    level = np.percentile(tissue[tissue > np.median(tissue) / 2], 10) if np.median(tissue) else 0
    return np.minimum(cropped * (WHITE / max(level, 20.0)), WHITE).astype(np.uint8)
