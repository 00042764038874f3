"""A phantom patient before any lesion: sizes, tissue, scanner, vessels and bronchi.

The frame is in mm, its origin in the middle of the thorax: x to the image's right (the patient's left), y to the
back, z to the feet, 0 at the aortic arch and about 200 at the diaphragm.
"""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np

GENERATIONS = 11  # of branches in a vessel tree

# tubes: (x, y, z) of both ends and radius, for a patient of scale 1; heart: ellipsoids with centre, half axes, turn in
# degrees and least share of the largest cut's area below the centre
TUBES, HEART, AIRWAYS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).values()
# values: scalars by name; warp: waves of a smooth deformation, rows (kx, ky, kz, phase, mm); vessels, bronchi: spheres,
# rows (x, y, z, radius); ribs: rows (phase, tilt, size)
Patient = namedtuple("Patient", "values warp vessels bronchi ribs")


def draw_patient(rng, heights):
    """A `Patient` drawn from `rng`, independent of any class, with the vessels that slices at `heights` mm can show."""
    u, normal = rng.uniform, rng.normal
    values = dict(
        # body: sizes in mm
        scale=u(0.88, 1.08), width=u(126, 146), depth=u(83, 103), back=u(2.2, 2.7), fat=u(4, 30) * u(0.4, 1),
        breast=float(u() < 0.4) * u(0, 16), heart=u(0.85, 1.16), contrast=float(u() < 0.35) * u(60, 160),
        dome=u(156, 190), mound=u(0.9, 1.12), muscle=u(0.6, 1.25), calcium=u(), scars=int(u() < 0.3) * 2,
        # lung: HU, and what imitates disease
        lung=-862.0 + normal(0, 15) + max(0.0, normal(-15, 35)), gravity=abs(normal(0, 30)),
        dependent=max(0.0, normal(-0.2, 0.5)), emphysema=float(u() < 0.12) * u(0.3, 1),
        prominence=u(0.82, 1.2), grain=u(0.5, 1.1), motion=max(0.0, normal(-1.0, 1.6)),
        # acquisition
        noise=float(np.exp(normal(2.85, 0.32))), blur=u(0.35, 0.8), sharp=max(0.0, u(-0.6, 0.9)), slab=u(1.0, 5.0),
        zoom=u(0.94, 1.18), shift_x=normal(0, 6), shift_y=normal(0, 8), rotation=normal(0, 2.5),
        table=int(rng.integers(4)), table_gap=u(0, 5), blanket=float(u() < 0.5) * u(40, 200),
    )
    waves = normal(0, 1, (8, 5)) * (1 / 62, 1 / 62, 1 / 80, 0, 2) + u(0, 2 * np.pi, (8, 1)) * (0, 0, 0, 1, 0)
    ribs = np.stack([u(0, 1, 40), u(-1, 1, 40), u(0.8, 1.25, 40)], axis=1)
    reach = (min(heights) - 12, max(heights) + 12)
    trees = [_tree(rng, side, values, hilum, reach) for side in (-1, 1) for hilum in (84, 114)]
    scars = [_scar(rng, values, heights, reach) for _ in range(values["scars"])]
    vessels = np.concatenate([spheres for spheres, _ in trees] + scars)
    bronchi = np.concatenate([spheres for _, spheres in trees[::2]])
    return Patient(values, waves.astype(np.float32), vessels, bronchi, ribs.astype(np.float32))


def cavity_axes(values, z):
    """Half width and half depth in mm of the thoracic cavity at height z."""
    grow = 0.76 + 0.24 * np.sin(np.clip((z + 25) / 110, 0, 1) * np.pi / 2)
    return values["width"] * values["scale"] * grow, values["depth"] * values["scale"] * (0.1 + 0.9 * grow)


def lung_point(values, side, angle, reach, z):
    """(x, y) at `angle` (0 in front, pi at the back) and `reach` of the way to the chest wall; side: -1 or 1."""
    a, b = cavity_axes(values, z)
    return float(side * a * np.sin(angle) * reach), float(-b * np.cos(angle) * reach)


def _spheres(starts, ends, radii, rng, reach):
    """Spheres about a pixel apart along slightly bent segments, of those segments that meet `reach` (z, in mm)."""
    bend = rng.normal(0, 0.05, (len(starts), 3)) * np.linalg.norm(ends - starts, axis=1)[:, None]
    met = (np.maximum(starts, ends)[:, 2] > reach[0]) & (np.minimum(starts, ends)[:, 2] < reach[1])
    starts, span, radii, bend = starts[met], (ends - starts)[met], radii[met], bend[met]
    length = np.linalg.norm(span, axis=1)
    count = np.clip(np.ceil(length / np.maximum(0.8 * radii, 0.9)).astype(int), 1, 60)
    which = np.repeat(np.arange(len(starts)), count)
    t = ((np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) / count[which])[:, None]
    points = starts[which] + t * span[which] + np.sin(np.pi * t) * bend[which]
    return np.column_stack([points, radii[which] * (1 - 0.2 * t[:, 0])]).astype(np.float32)


def _tree(rng, side, values, hilum, reach):
    """A tree from the hilum that fills one lung: its leaves are halved across a random direction, branch by branch.

    Returns the spheres of the vessels and of the bronchi along their first generations.
    """
    leaves = 2**GENERATIONS
    z = rng.uniform(-40, 225, leaves)
    a, b = cavity_axes(values, z)
    angle, out = rng.uniform(-np.pi / 2, np.pi / 2, leaves), np.sqrt(rng.uniform(0.02, 0.98, leaves))
    x = side * (0.14 * a + 0.85 * a * out * np.cos(angle))
    groups = np.column_stack([x, 0.97 * b * out * np.sin(angle), z])[None]
    root = nodes = np.array([[side * 38.0, 5.0 + rng.normal(0, 5), hilum + rng.normal(0, 6)]])
    radius, vessels, bronchi = 5.4 * rng.uniform(0.9, 1.1), [], []
    for generation in range(GENERATIONS):
        ahead = groups.mean(axis=1) - root
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        across = rng.normal(0, 1, (len(groups), 3)) * groups.std(axis=1) ** 1.5
        across -= 0.85 * (across * ahead).sum(axis=1, keepdims=True) * ahead
        order = np.argsort(np.einsum("gnk,gk->gn", groups, across), axis=1)
        groups = np.take_along_axis(groups, order[..., None], axis=1).reshape(len(groups) * 2, -1, 3)
        parents = np.repeat(nodes, 2, axis=0)
        share = rng.uniform(0.26, 0.4, (len(parents), 1)) + 0.045 * generation
        nodes = parents + share * (groups.mean(axis=1) - parents)
        radii = radius * 0.75**generation * np.exp(rng.normal(0, 0.18, len(parents)))
        vessels.append(_spheres(parents, nodes, radii, rng, reach))
        if 1 <= generation < 5:
            gap = rng.normal(0, 1, 3)
            gap = gap * (1.6 * radii[:, None] + 1.0) / np.linalg.norm(gap)
            bronchi.append(_spheres(parents + gap, nodes + gap, 0.57 * radii, rng, reach))
    return np.concatenate(vessels), np.concatenate(bronchi)


def _scar(rng, values, heights, reach):
    """Spheres of a short band near the pleura, which is no lesion."""
    z = rng.uniform(min(heights), max(heights) + 1e-6)
    angle, side, out = rng.uniform(0.4, 2.8), rng.choice([-1, 1]), rng.uniform(0.8, 0.97)
    start = np.array([[*lung_point(values, side, angle, out, z), z]])
    ends = start + rng.normal(0, 9, (1, 3)) * (1, 1, 0.5)
    return _spheres(start, ends, rng.uniform(0.6, 1.3, 1), rng, reach)
