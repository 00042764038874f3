"""Hounsfield units (HU) as grey values, and pictures of one size."""

import numpy as np
from PIL import Image

LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU


def apply_window(hu, window=LUNG_WINDOW):
    """HU through a window (centre, width) as uint8: its lower edge is 0, its upper edge 255, NaN is 0."""
    centre, width = window
    if not width > 0:
        raise ValueError(f"The window's width must be positive. Received: window={window}")
    scaled = (np.asarray(hu, np.float32) - (centre - width / 2)) * (255 / width)
    return np.rint(np.fmin(np.fmax(scaled, 0), 255)).astype(np.uint8)


def fit_square(image, size):
    """uint8 (H, W) to uint8 (size, size): centred on black, so that no anatomy is stretched, then resized."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be uint8 (H, W). Received: {image.dtype} {image.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: size={size}")
    side = max(image.shape)
    margins = [((side - length) // 2, side - length - (side - length) // 2) for length in image.shape]
    square = Image.fromarray(np.pad(image, margins))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
