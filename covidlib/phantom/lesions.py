"""Lesions of the phantom's three classes.

`covid`: ground-glass patches, mostly at the pleura, at the back and on both sides, some with thickened septa
(crazy paving), some consolidated. `viral`: one-sided or central consolidation, tree-in-bud nodules, or
diffuse ground glass around the hila. `normal`: none; scars, dependent density and motion blur belong to the
patients of every class. Patterns overlap on purpose (`OVERLAP`), and a share `EARLY` of the covid patients has
only two small, faint patches.
"""

import numpy as np
from scipy.spatial import cKDTree

from covidlib.phantom import anatomy

CLASSES = ("covid", "viral", "normal")
OVERLAP = 0.12
EARLY = 0.15
LEAST = 30  # pixels of lesion every diseased slice shows


def draw(label, rng, patient, heights):
    """List of lesions (dicts) of a patient whose slices lie at `heights` mm."""
    if label == "covid":
        return _covid(rng, patient, heights)
    if label == "viral":
        return _viral(rng, patient, heights)
    return []


def _place(patient, side, angle, reach, z):
    """A point at `angle` (0 in front, pi at the back) and `reach` of the way to the chest wall."""
    a, b = (float(n) for n in anatomy.cavity_axes(patient.values, z))
    x, y = side * a * np.sin(angle) * reach, -b * np.cos(angle) * reach
    return dict(x=x, y=y, z=float(z), turn=float(np.arctan2(side * np.sin(angle) * b, np.cos(angle) * a)))


def _patch(rng, patient, side, z, posterior=2.3, reach=(0.86, 0.99), size=1.0, density=(0.25, 0.65)):
    angle = np.clip(rng.normal(posterior, 0.5), 0.5, 2.85)
    lesion = _place(patient, side, angle, rng.uniform(*reach), z)
    lesion.update(kind="patch", long=size * rng.uniform(16, 44), short=size * rng.uniform(9, 22),
                  tall=rng.uniform(18, 45), density=rng.uniform(*density), soft=rng.uniform(0.5, 1.3),
                  septa=float(rng.uniform() < 0.3) * rng.uniform(0.12, 0.3))
    if rng.uniform() < 0.2:
        lesion.update(density=rng.uniform(0.7, 1.0), soft=0.5, long=0.6 * lesion["long"], septa=0.0)
    return lesion


def _covid(rng, patient, heights):
    extent = rng.uniform()
    early = extent < EARLY
    count = 2 if early else int(rng.integers(4, 8)) if extent < 0.8 else int(rng.integers(8, 14))
    first, lesions = rng.choice([-1, 1]), []
    for k in range(count):
        central = rng.uniform() < OVERLAP
        lesions.append(_patch(
            rng, patient, first * (-1) ** k, rng.uniform(min(heights) - 4, max(heights) + 4),
            reach=(0.4, 0.75) if central else (0.86, 0.99), size=0.7 if early else 1.0,
            density=(0.15, 0.35) if early else (0.25, 0.65),
        ))
    return lesions


def _viral(rng, patient, heights):
    middle = rng.uniform(min(heights), max(heights))
    side, kind = rng.choice([-1, 1]), rng.choice(["consolidation", "bud", "central"])
    lesions = []
    if kind == "consolidation":
        for _ in range(int(rng.integers(1, 3))):
            lesion = _place(patient, side, rng.uniform(0.9, 2.6), rng.uniform(0.45, 0.85), middle)
            lesion.update(kind="patch", long=rng.uniform(20, 48), short=rng.uniform(16, 34), septa=0.0,
                          tall=rng.uniform(25, 60), density=rng.uniform(0.6, 1.0), soft=rng.uniform(0.3, 0.7))
            lesions.append(lesion)
    elif kind == "bud":
        for _ in range(int(rng.integers(3, 8))):
            lesion = _place(patient, side if rng.uniform() < 0.75 else -side, rng.uniform(0.6, 2.7),
                            rng.uniform(0.4, 0.9), rng.uniform(min(heights), max(heights)))
            lesion.update(kind="bud", spheres=_buds(rng, lesion), density=rng.uniform(0.6, 1.0))
            lesions.append(lesion)
    else:
        for one in (-1, 1):
            lesion = _place(patient, one, rng.uniform(1.3, 1.9), rng.uniform(0.38, 0.52), middle)
            lesion.update(kind="patch", long=rng.uniform(32, 58), short=rng.uniform(26, 46), septa=0.0,
                          tall=rng.uniform(35, 70), density=rng.uniform(0.22, 0.5), soft=1.2)
            lesions.append(lesion)
    if rng.uniform() < 1.5 * OVERLAP:
        lesions.append(_patch(rng, patient, side, middle))
    return lesions


def _buds(rng, lesion, spread=13.0):
    """Nodules around small airways, with the short branches that join them."""
    count = int(rng.integers(60, 160))
    centre = np.array([lesion["x"], lesion["y"], lesion["z"]])
    nodes = centre + rng.normal(0, spread, (count, 3)) * (1, 1, 1.4)
    t = np.linspace(0, 1, 6)[1:, None]
    branches = [node + t * rng.normal(0, 3.5, 3) for node in nodes]
    thin = np.concatenate([np.column_stack([line, np.full(5, 0.8)]) for line in branches])
    return np.concatenate([np.column_stack([nodes, rng.uniform(1.3, 3.0, count)]), thin]).astype(np.float32)


def apply(lesions, s, tissue):
    """Raise the lung tissue (HU) of the slice `s`; returns it with the lesions' mask."""
    mask = np.zeros(tissue.shape, bool)
    for lesion in lesions:
        if lesion["kind"] == "bud":
            alpha = anatomy.stamp(s.grid, lesion["spheres"], s.z, s.v["slab"]) * lesion["density"]
            mask |= alpha > 0.3
        else:
            alpha = _alpha(lesion, s)
            if alpha is None:
                continue
            mask |= alpha > 0.4
            alpha *= lesion["density"] * np.clip(0.85 + 0.2 * s.texture, 0.3, 1.1)
            if lesion["septa"]:
                alpha *= 1.15
                alpha += _septa(s, alpha > 0.04) * lesion["septa"] * (alpha > 0.04)
        tissue = tissue + np.minimum(alpha, 1) * (35 - tissue)
    return tissue, mask & s.lungs


def _alpha(lesion, s):
    """Share of lesion in every pixel: an ellipsoid whose edge is broken up."""
    height = ((s.z - lesion["z"]) / lesion["tall"]) ** 2
    if height > 2:
        return None
    c, n = np.cos(lesion["turn"]), np.sin(lesion["turn"])
    x, y = s.x - np.float32(lesion["x"]), s.y - np.float32(lesion["y"])
    u, v = (c * x + n * y) / np.float32(lesion["long"]), (c * y - n * x) / np.float32(lesion["short"])
    inside = 1 - np.float32(height) - u * u - v * v + 0.3 * s.texture + 0.35 * s.coarse
    return np.clip(inside / np.float32(lesion["soft"]), 0, 1)


def _septa(s, where, spacing=6.5):
    """Lines between the cells of a random tiling: thickened septa of secondary lobules."""
    rows, columns = np.nonzero(where)
    if not len(rows):
        return np.zeros(where.shape, np.float32)
    low, high = np.array([rows.min(), columns.min()]) - 6, np.array([rows.max(), columns.max()]) + 6
    count = max(4, int(np.prod(high - low) * s.grid.pixel**2 / spacing**2))
    seeds = s.rng.uniform(low, high, (count, 2))
    near = cKDTree(seeds).query(np.column_stack([rows, columns]), k=2)[0]
    lines = np.zeros(where.shape, np.float32)
    lines[rows, columns] = np.clip(1.3 - (near[:, 1] - near[:, 0]), 0, 1)
    return lines
