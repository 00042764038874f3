"""The network's image of a slice, in one of two preparations.

- `whole`: padded to a square and resized, as in the paper and the literature. What lies around the lungs, and how a
  picture was cut, stays visible, and in public sets predicts the label.
- `lungs`: the convex hull of both lungs on black, at one scale and place and of one resolution.

The price of `lungs`: chest wall and axillae are lost, and so is a lung that `lungs.segment` misses, which happens most
where it is dense with disease. Its numbers are those of the first study (docs/design.md); how they are to be chosen
anew says reports/published/PROTOCOL.md.
"""

import numpy as np
from PIL import Image
from scipy import ndimage

from covidlib import readers
from covidlib.preprocessing.lungs import hull, lung_mask, segment

PREPARATIONS = ("whole", "lungs")
ACROSS = 96  # pixels of the square that holds the lungs, its rim included
RIM = ACROSS // 24  # of them, black, on every side
WHITE = np.uint8(255)


def check(preparation):
    """ValueError unless it is one of PREPARATIONS."""
    if preparation not in PREPARATIONS:
        raise ValueError(f"preparation must be one of {', '.join(PREPARATIONS)}. Received: preparation={preparation!r}")


def prepare(image, size, preparation, lungs=None):
    """(the prepared slice uint8 (size, size), its lungs bool (size, size)).

    image: uint8 (H, W) in the lung window, or any picture of a chest slice; lungs: bool (H, W), a mask of one's own,
    else lungs.lung_mask finds them. `lungs` keeps the body where there are none, and is black where there is no body.
    ValueError for another preparation, a mask of another shape, or a size below 1.
    """
    check(preparation)
    image = np.asarray(image)
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: size={size}")
    lungs = lung_mask(image) if lungs is None else np.asarray(lungs, bool)
    if lungs.shape != image.shape:
        raise ValueError(f"lungs must have the image's shape {image.shape}. Received: {lungs.shape}")
    if preparation == "whole":
        return readers.fit_square(image, size), _fit_mask(lungs, size)
    kept = _kept(image, lungs)
    if not kept.any():
        return np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    cropped, inside, lung = (_reduce(part, kept) for part in (image, WHITE, lungs * WHITE))
    tissue = cropped[(inside == WHITE) & ~ndimage.binary_dilation(lung > 0, iterations=2)]
    return resize(_whiten(cropped, tissue), size), resize(lung, size) > 127


def prepare_mask(mask, size, preparation, lungs):
    """A mask of a slice, bool (H, W), at the place where `prepare` puts it given the same `lungs`: bool (size, size).

    For example the lesions of a phantom. Empty where `lungs` finds none.
    """
    if preparation == "whole":
        return _fit_mask(mask, size)
    if not lungs.any():
        return np.zeros((size, size), bool)
    return resize(_reduce(mask * WHITE, hull(lungs)), size) > 127


def kept_square(image, preparation, lungs=None):
    """The square of an image that `prepare` keeps: (top, left, side) in its pixels, None where it keeps nothing.

    All are fractional, and the square may reach beyond the image; arguments as in `prepare`.
    """
    if preparation == "whole":
        side = max(image.shape)
        return *(-float((side - length) // 2) for length in image.shape), float(side)
    kept = _kept(image, lung_mask(image) if lungs is None else lungs)
    if not kept.any():
        return None
    rows, columns = _extent(kept)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    side = max(height, width) * ACROSS / (ACROSS - 2 * RIM)
    return float(rows.start + (height - side) / 2), float(columns.start + (width - side) / 2), float(side)


def _fit_mask(mask, size):
    return readers.fit_square(np.uint8(mask) * WHITE, size) > 127


def resize(picture, size):
    """uint8 (H, W) -> (size, size). A slice prepared as `lungs` at ACROSS px becomes what `prepare` gives at `size`."""
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
