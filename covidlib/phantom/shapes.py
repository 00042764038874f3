"""Drawing with signed distances: shapes in mm (negative inside), their coverage of pixels, paint and noise."""

import numpy as np
from scipy import ndimage

SIZE = 256  # pixels of a slice's side


def smooth_noise(rng, sigma):
    """Noise (SIZE, SIZE) of variance 1 and a correlation length of `sigma` pixels, drawn coarse and enlarged."""
    step = max(1, int(sigma / 1.5))
    coarse = (-(-SIZE // step) + 3,) * 2
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma / step, mode="wrap")
    field /= field.std() + 1e-9
    if step == 1:
        return field[:SIZE, :SIZE]
    place = np.arange(SIZE, dtype=np.float32) / step + 1
    low = place.astype(int)
    share = place - low
    field = field[:, low] * (1 - share) + field[:, low + 1] * share
    return field[low] * (1 - share[:, None]) + field[low + 1] * share[:, None]


def superellipse(x, y, a, b, n):
    """Distance along the ray from the centre to |x/a|^n + |y/b|^n = 1."""
    r = (np.abs(x / a) ** n + np.abs(y / b) ** n) ** (1 / n) + 1e-4
    return np.hypot(x, y) * (1 - 1 / r)


def ellipse(x, y, cx, cy, a, b, angle=0.0):
    """About the distance to an ellipse turned by `angle` degrees."""
    c, s = float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))
    u, v = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
    return (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b)


def tube(x, y, z, start, end, radius):
    """Distance to a capsule, cut at height z."""
    start, span = np.array(start, np.float32), np.array(end, np.float32) - np.array(start, np.float32)
    dx, dy, dz = x - start[0], y - start[1], np.float32(z - start[2])
    t = np.clip((dx * span[0] + dy * span[1] + dz * span[2]) / (span @ span), 0, 1)
    return np.sqrt((dx - t * span[0]) ** 2 + (dy - t * span[1]) ** 2 + (dz - t * span[2]) ** 2) - radius


def cover(distance, soft=1.4):
    """Fraction of a pixel inside a shape whose edge is `soft` mm wide."""
    return np.clip(0.5 - distance / soft, 0, 1)


def paint(hu, alpha, value):
    """Mix `value` into `hu`, in place, by the share `alpha`."""
    hu += alpha * (value - hu)
