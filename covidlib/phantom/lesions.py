"""Lesions of the phantom's three classes.

`covid`: ground-glass patches, mostly at the pleura, at the back and on both sides, some with thickened septa
(crazy paving), some consolidated. `viral`: one-sided consolidation, tree-in-bud nodules, or diffuse ground glass
around the hila. `normal`: none. Patterns overlap on purpose (`OVERLAP`), and a share `EARLY` of the covid patients
has only two small, faint patches.
"""

import numpy as np
from scipy.spatial import cKDTree

from covidlib.phantom.anatomy import cavity_axes, lung_point

CLASSES = ("covid", "viral", "normal")
OVERLAP = 0.12
EARLY = 0.15
# ranges: reach of the way to the chest wall, half axes in mm, density (1 is solid) and softness of the edge
PATCH = dict(reach=(0.86, 0.99), long=(16, 44), short=(9, 22), tall=(18, 45), density=(0.25, 0.65), soft=(0.5, 1.3))
CONSOLIDATION = dict(reach=(0.45, 0.85), long=(20, 48), short=(16, 34), tall=(25, 60), density=(0.6, 1.0),
                     soft=(0.3, 0.7))
HILAR = dict(reach=(0.38, 0.52), long=(32, 58), short=(26, 46), tall=(35, 70), density=(0.22, 0.5))


def draw(label, rng, patient, heights):
    """List of lesions (dicts) of a patient whose slices lie at `heights` mm."""
    return {"covid": _covid, "viral": _viral, "normal": lambda *_: []}[label](rng, patient, heights)


def _ellipsoid(rng, patient, side, angle, z, ranges):
    """A lesion at height z; its other values are drawn from `ranges`, in their order."""
    lesion = {name: rng.uniform(*limits) for name, limits in ranges.items()}
    x, y = lung_point(patient.values, side, angle, lesion.pop("reach"), z)
    a, b = cavity_axes(patient.values, z)
    turn = float(np.arctan2(side * np.sin(angle) * b, np.cos(angle) * a))
    return dict(soft=1.2, septa=0.0) | lesion | dict(x=x, y=y, z=float(z), turn=turn)


def _patch(rng, patient, side, z, size=1.0, **ranges):
    angle = np.clip(rng.normal(2.3, 0.5), 0.5, 2.85)
    lesion = _ellipsoid(rng, patient, side, angle, z, PATCH | ranges)
    lesion |= dict(long=size * lesion["long"], short=size * lesion["short"],
                   septa=float(rng.uniform() < 0.3) * rng.uniform(0.12, 0.3))
    if rng.uniform() < 0.2:
        lesion |= dict(density=rng.uniform(0.7, 1.0), soft=0.5, long=0.6 * lesion["long"], septa=0.0)
    return lesion


def _covid(rng, patient, heights):
    extent = rng.uniform()
    count = 2 if extent < EARLY else int(rng.integers(4, 8) if extent < 0.8 else rng.integers(8, 14))
    faint = dict(size=0.7, density=(0.15, 0.35)) if extent < EARLY else {}
    first, lesions = rng.choice([-1, 1]), []
    for k in range(count):
        reach = (0.4, 0.75) if rng.uniform() < OVERLAP else PATCH["reach"]
        z = rng.uniform(min(heights) - 4, max(heights) + 4)
        lesions.append(_patch(rng, patient, first * (-1) ** k, z, reach=reach, **faint))
    return lesions


def _viral(rng, patient, heights):
    middle = rng.uniform(min(heights), max(heights))
    side, kind = rng.choice([-1, 1]), rng.choice(["consolidation", "bud", "central"])
    if kind == "consolidation":
        lesions = [_ellipsoid(rng, patient, side, rng.uniform(0.9, 2.6), middle, CONSOLIDATION)
                   for _ in range(int(rng.integers(1, 3)))]
    elif kind == "bud":
        lesions = [_buds(rng, patient, side, heights) for _ in range(int(rng.integers(3, 8)))]
    else:
        lesions = [_ellipsoid(rng, patient, each, rng.uniform(1.3, 1.9), middle, HILAR) for each in (-1, 1)]
    if rng.uniform() < 1.5 * OVERLAP:
        lesions.append(_patch(rng, patient, side, middle))
    return lesions


def _buds(rng, patient, side, heights):
    """Nodules around small airways, with the short branches that join them."""
    side, angle, reach = side if rng.uniform() < 0.75 else -side, rng.uniform(0.6, 2.7), rng.uniform(0.4, 0.9)
    z = rng.uniform(min(heights), max(heights))
    count = int(rng.integers(60, 160))
    centre = np.array([*lung_point(patient.values, side, angle, reach, z), z])
    nodes = centre + rng.normal(0, 13, (count, 3)) * (1, 1, 1.4)
    t = np.linspace(0, 1, 6)[1:, None]
    branches = np.concatenate([node + t * rng.normal(0, 3.5, 3) for node in nodes])
    nodes = np.column_stack([nodes, rng.uniform(1.3, 3.0, count)])
    spheres = np.concatenate([nodes, np.column_stack([branches, np.full(5 * count, 0.8)])]).astype(np.float32)
    return dict(spheres=spheres, density=rng.uniform(0.6, 1.0))


def apply(lesions, s, tissue):
    """The lung tissue (HU) of the `geometry.Slice` s with the lesions in it, and their mask, bool (256, 256)."""
    mask = np.zeros(tissue.shape, bool)
    for lesion in lesions:
        if "spheres" in lesion:
            alpha = s.stamp(lesion["spheres"], s.v["slab"]) * lesion["density"]
            mask |= alpha > 0.3
        else:
            height = ((s.z - lesion["z"]) / lesion["tall"]) ** 2
            if height > 2:
                continue
            alpha = _share(lesion, s, height)
            mask |= alpha > 0.4
            alpha *= lesion["density"] * np.clip(0.85 + 0.2 * s.texture, 0.3, 1.1)
            if lesion["septa"]:
                alpha *= 1.15
                alpha += _septa(s, alpha > 0.04) * lesion["septa"] * (alpha > 0.04)
        tissue = tissue + np.minimum(alpha, 1) * (35 - tissue)
    return tissue, mask & s.lungs


def _share(lesion, s, height):
    """Share of lesion in every pixel: an ellipsoid whose edge is broken up; height: squared, in half axes."""
    c, n = np.cos(lesion["turn"]), np.sin(lesion["turn"])
    x, y = s.x - lesion["x"], s.y - lesion["y"]
    u, v = (c * x + n * y) / np.float32(lesion["long"]), (c * y - n * x) / np.float32(lesion["short"])
    inside = 1 - np.float32(height) - u * u - v * v + 0.3 * s.texture + 0.35 * s.coarse
    return np.clip(inside / np.float32(lesion["soft"]), 0, 1)


def _septa(s, where, spacing=6.5):
    """Lines between the cells of a random tiling: thickened septa of secondary lobules."""
    lines = np.zeros(where.shape, np.float32)
    rows, columns = np.nonzero(where)
    if len(rows):
        low, high = np.array([rows.min(), columns.min()]) - 6, np.array([rows.max(), columns.max()]) + 6
        count = max(4, int(np.prod(high - low) * s.pixel**2 / spacing**2))
        near = cKDTree(s.rng.uniform(low, high, (count, 2))).query(np.column_stack([rows, columns]), k=2)[0]
        lines[rows, columns] = np.clip(1.3 - (near[:, 1] - near[:, 0]), 0, 1)
    return lines
