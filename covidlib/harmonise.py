"""What the network sees: the body alone, always at the same scale, blur and place, whatever the file was like."""

import numpy as np
from PIL import Image

from covidlib.lungs import body_mask, lung_mask

ACROSS = 96  # pixels of the long side at which every picture is seen once, before it is resized


def harmonise(image, size, lungs=None):
    """(uint8 (size, size), bool (size, size)): the harmonised slice and its lung mask.

    image: uint8 (H, W); lungs: bool (H, W) of the image's own shape, found by lungs.lung_mask unless given.
    """
    image = np.asarray(image)
    body = body_mask(image)
    lungs = lung_mask(image) if lungs is None else np.asarray(lungs, bool)
    if lungs.shape != image.shape:
        raise ValueError(f"lungs must have the image's shape {image.shape}. Received: {lungs.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: size={size}")
    if not body.any():
        return np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    seen = _fit(np.where(body, image, 0)[box], size)
    return seen, _fit((lungs & body)[box] * np.uint8(255), size) > 127


def _fit(picture, size):
    """uint8 (size, size): centred on a black square, reduced to ACROSS pixels, then resized."""
    height, width = picture.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    square[(side - height) // 2 :, (side - width) // 2 :][:height, :width] = picture
    small = Image.fromarray(square).resize((ACROSS, ACROSS), Image.Resampling.BOX)
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
