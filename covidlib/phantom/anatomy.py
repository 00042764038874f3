"""Healthy procedural chest anatomy: what a phantom patient looks like before any lesion.

A patient is a set of implicit shapes and vessel trees in millimetres, cut at a level. The frame has its
origin in the middle of the thorax, x to the image's right (the patient's left), y to the back and z to the
feet, 0 at the aortic arch and `HEIGHT` at the diaphragm. Shapes are signed distances in mm, negative inside.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

SIZE = 256
HEIGHT = 200.0
AIR, LUNG, FAT, MUSCLE, BLOOD = -1000.0, -862.0, -105.0, 52.0, 42.0

# tubes of the mediastinum, (x, y, z) of both ends and radius; mm of a patient of scale 1
TUBES = {
    "ascending aorta": ((-13, -30, 25), (-8, -24, 125), 16.0),
    "aortic arch": ((-10, -24, 22), (20, 12, 30), 13.5),
    "descending aorta": ((23, 18, 28), (14, 20, 230), 12.0),
    "superior vena cava": ((-25, -22, -30), (-29, -18, 120), 9.0),
    "brachiocephalic artery": ((-13, -20, -40), (-8, -20, 20), 7.0),
    "left carotid artery": ((8, -14, -40), (4, -12, 20), 5.0),
    "left subclavian artery": ((20, 4, -40), (16, 6, 20), 6.0),
    "left brachiocephalic vein": ((30, -30, -30), (-22, -26, 0), 6.5),
    "pulmonary trunk": ((20, -32, 110), (17, -22, 68), 14.5),
    "left pulmonary artery": ((17, -24, 70), (44, 4, 76), 10.5),
    "right pulmonary artery": ((12, -14, 76), (-38, -4, 86), 10.0),
    "right lower artery": ((-38, -4, 84), (-46, 10, 120), 8.0),
    "left lower artery": ((44, 4, 76), (46, 16, 118), 8.0),
    "right upper vein": ((-8, 0, 112), (-44, -10, 90), 6.0),
    "left upper vein": ((12, 0, 110), (42, -14, 88), 6.0),
    "right lower vein": ((-8, 8, 124), (-50, 16, 138), 6.0),
    "left lower vein": ((10, 10, 122), (48, 18, 134), 6.0),
    "oesophagus": ((3, 14, -40), (6, 12, 220), 7.0),
    "inferior vena cava": ((-24, 4, 172), (-26, 6, 230), 12.0),
}
# ellipsoids: centre, half axes, turn in degrees, least share of the cut's area below the centre
HEART = {
    "heart": ((19, -30, 168), (60, 43, 74), 30, 0.72),
    "right heart": ((-19, -20, 160), (28, 36, 56), 0, 0.72),
    "left atrium": ((0, 4, 122), (34, 17, 26), 0, 0.0),
}
AIRWAYS = {
    "trachea": ((0, -2, -40), (-1, 4, 58), 8.6),
    "right main": ((-3, 4, 58), (-30, 5, 82), 7.0),
    "left main": ((2, 4, 58), (38, 8, 92), 6.2),
    "right upper": ((-26, 4, 76), (-52, 2, 72), 4.6),
    "intermediate": ((-30, 5, 82), (-36, 9, 112), 5.4),
    "right lower": ((-36, 9, 112), (-48, 24, 150), 3.8),
    "middle lobe": ((-36, 7, 110), (-55, -18, 128), 3.0),
    "left upper": ((36, 7, 88), (52, -10, 84), 4.4),
    "left lower": ((38, 8, 92), (48, 26, 146), 4.2),
    "lingula": ((46, -4, 88), (58, -26, 112), 2.8),
}


@dataclass(frozen=True)
class Patient:
    """Anatomy and acquisition of one patient: `values` holds scalars, `warp` a smooth deformation,
    `vessels` and `bronchi` spheres as rows (x, y, z, radius)."""

    values: dict
    warp: np.ndarray
    vessels: np.ndarray
    bronchi: np.ndarray
    ribs: np.ndarray


def draw_patient(rng, heights=(0.0, HEIGHT)):
    """A patient drawn from `rng`, independent of any class; vessels are kept where slices between the lowest
    and highest of `heights` (mm) can meet them."""
    u, normal = rng.uniform, rng.normal
    values = dict(
        # body: sizes in mm
        scale=u(0.88, 1.08), width=u(126, 146), depth=u(83, 103), back=u(2.2, 2.7), fat=u(4, 30) * u(0.4, 1),
        breast=float(u() < 0.4) * u(0, 16), heart=u(0.85, 1.16), contrast=float(u() < 0.35) * u(60, 160),
        dome=u(156, 190), mound=u(0.9, 1.12), muscle=u(0.6, 1.25), calcium=u(), scars=int(u() < 0.3) * 2,
        # lung: HU, and what imitates disease
        lung=LUNG + normal(0, 15) + max(0.0, normal(-15, 35)), gravity=abs(normal(0, 30)),
        dependent=max(0.0, normal(-0.2, 0.5)), emphysema=float(u() < 0.12) * u(0.3, 1),
        prominence=u(0.82, 1.2), grain=u(0.5, 1.1), motion=max(0.0, normal(-1.0, 1.6)),
        # acquisition
        noise=np.exp(normal(2.85, 0.32)), blur=u(0.35, 0.8), sharp=max(0.0, u(-0.6, 0.9)), slab=u(1.0, 5.0),
        zoom=u(0.94, 1.18), shift_x=normal(0, 6), shift_y=normal(0, 8), rotation=normal(0, 2.5),
        table=int(rng.integers(4)), table_gap=u(0, 5), blanket=float(u() < 0.5) * u(40, 200),
    )
    values = {name: value if isinstance(value, int) else float(value) for name, value in values.items()}
    waves = normal(0, 1, (8, 5)) * (1 / 62, 1 / 62, 1 / 80, 0, 2) + u(0, 2 * np.pi, (8, 1)) * (0, 0, 0, 1, 0)
    ribs = np.stack([u(0, 1, 40), u(-1, 1, 40), u(0.8, 1.25, 40)], axis=1)
    reach = (min(heights) - 12, max(heights) + 12)
    trees = [_tree(rng, side, values, hilum, reach) for side in (-1, 1) for hilum in (84, 114)]
    scars = [_scar(rng, values, heights) for _ in range(values["scars"])]
    vessels = np.concatenate([spheres for spheres, _ in trees] + scars)
    bronchi = np.concatenate([spheres for _, spheres in trees[::2]])
    return Patient(values, waves.astype(np.float32), vessels, bronchi, ribs.astype(np.float32))


def cavity_axes(values, z):
    """Half width and half depth in mm of the thoracic cavity at height z."""
    t = np.clip((np.asarray(z) + 25) / 110, 0, 1)
    grow = 0.76 + 0.24 * np.sin(t * np.pi / 2)
    return values["width"] * values["scale"] * grow, values["depth"] * values["scale"] * (0.1 + 0.9 * grow)


def _spheres(starts, ends, radii, rng, reach=None, wiggle=0.05):
    """Spheres about a pixel apart along segments, a little bent; `reach` limits z."""
    bend = rng.normal(0, wiggle, (len(starts), 3)) * np.linalg.norm(ends - starts, axis=1)[:, None]
    if reach:
        low, high = np.minimum(starts, ends)[:, 2], np.maximum(starts, ends)[:, 2]
        met = (high > reach[0]) & (low < reach[1])
        starts, ends, radii, bend = starts[met], ends[met], radii[met], bend[met]
    span = ends - starts
    length = np.linalg.norm(span, axis=1)
    count = np.clip(np.ceil(length / np.maximum(0.8 * radii, 0.9)).astype(int), 1, 60)
    which = np.repeat(np.arange(len(starts)), count)
    t = ((np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) / count[which])[:, None]
    points = starts[which] + t * span[which] + np.sin(np.pi * t) * bend[which]
    return np.column_stack([points, radii[which] * (1 - 0.2 * t[:, 0])]).astype(np.float32)


def _tree(rng, side, values, hilum, reach, generations=11):
    """A tree from the hilum that fills one lung: the leaves are halved across a random direction, branch by
    branch. Returns spheres of the vessels and of the bronchi that go with their first generations."""
    leaves = 2**generations
    z = rng.uniform(-40, 225, leaves)
    a, b = cavity_axes(values, z)
    angle, out = rng.uniform(-np.pi / 2, np.pi / 2, leaves), np.sqrt(rng.uniform(0.02, 0.98, leaves))
    x = side * (0.14 * a + 0.85 * a * out * np.cos(angle))
    groups = np.column_stack([x, 0.97 * b * out * np.sin(angle), z])[None]
    root = nodes = np.array([[side * 38.0, 5.0 + rng.normal(0, 5), hilum + rng.normal(0, 6)]])
    radius, vessels, bronchi = 5.4 * rng.uniform(0.9, 1.1), [], []
    for generation in range(generations):
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


def _scar(rng, values, heights):
    """A short band near the pleura, which is no lesion."""
    z = rng.uniform(min(heights), max(heights) + 1e-6)
    a, b = cavity_axes(values, z)
    angle, side, out = rng.uniform(0.4, 2.8), rng.choice([-1, 1]), rng.uniform(0.8, 0.97)
    start = np.array([[side * a * np.sin(angle) * out, -b * np.cos(angle) * out, z]])
    ends = start + rng.normal(0, 9, (1, 3)) * (1, 1, 0.5)
    return _spheres(start, ends, rng.uniform(0.6, 1.3, 1), rng)


def smooth_noise(rng, sigma, shape=(SIZE, SIZE)):
    """Unit-variance noise of a correlation length of `sigma` pixels (made coarse and enlarged)."""
    step = max(1, int(sigma / 1.5))
    coarse = [-(-n // step) + 3 for n in shape]
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma / step, mode="wrap")
    field /= field.std() + 1e-9
    if step == 1:
        return field[: shape[0], : shape[1]]
    rows, columns = (np.arange(n, dtype=np.float32) / step + 1 for n in shape)
    return _bilinear(field, rows, columns)


def _bilinear(field, rows, columns):
    i, j = rows.astype(int), columns.astype(int)
    f, g = (rows - i)[:, None], (columns - j)[None]
    top = field[i][:, j] * (1 - g) + field[i][:, j + 1] * g
    return top * (1 - f) + (field[i + 1][:, j] * (1 - g) + field[i + 1][:, j + 1] * g) * f


def superellipse(x, y, a, b, n):
    """Distance along the ray from the centre to |x/a|^n + |y/b|^n = 1."""
    r = (np.abs(x / a) ** n + np.abs(y / b) ** n) ** (1 / n) + 1e-4
    return np.hypot(x, y) * (1 - 1 / r)


def ellipse(x, y, cx, cy, a, b, angle=0.0):
    """About the distance to a turned ellipse (angle in degrees)."""
    c, s = float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle)))
    u, v = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
    return (np.sqrt((u / a) ** 2 + (v / b) ** 2) - 1) * min(a, b)


def tube(x, y, z, start, end, radius):
    """Distance to a capsule cut at height z."""
    start, span = np.array(start, np.float32), np.array(end, np.float32) - np.array(start, np.float32)
    dx, dy, dz = x - start[0], y - start[1], np.float32(z - start[2])
    t = np.clip((dx * span[0] + dy * span[1] + dz * span[2]) / (span @ span), 0, 1)
    return np.sqrt((dx - t * span[0]) ** 2 + (dy - t * span[1]) ** 2 + (dz - t * span[2]) ** 2) - radius


def cover(distance, soft=1.4):
    """Fraction of a pixel inside a shape whose edge is `soft` mm wide."""
    return np.clip(0.5 - distance / soft, 0, 1)


def paint(hu, alpha, value):
    hu += alpha * (value - hu)


def stamp(grid, spheres, z, slab):
    """Coverage 0..1 of the spheres met by a slab of the given thickness around height z."""
    image = np.zeros(SIZE * SIZE, np.float32)
    away = np.maximum(0, np.abs(spheres[:, 2] - z) - slab / 2)
    met = away < spheres[:, 3]
    spheres, away = spheres[met], away[met]
    columns, rows = grid.to_pixels(spheres[:, 0], spheres[:, 1])
    radii = np.sqrt(spheres[:, 3] ** 2 - away**2) / grid.pixel
    peak = np.minimum(1, 2 * radii * np.minimum(1, 0.32 + 2 * spheres[:, 3] / slab))
    radii = np.maximum(radii, 0.5)
    for low, high in ((0, 1.5), (1.5, 4), (4, 20)):
        chosen = (radii >= low) & (radii < high)
        if not chosen.any():
            continue
        half = int(np.ceil(min(high, radii[chosen].max()) + 0.5))
        steps = np.arange(-half, half + 1)
        i = np.round(rows[chosen]).astype(int)[:, None, None] + steps[:, None]
        j = np.round(columns[chosen]).astype(int)[:, None, None] + steps[None]
        distance = np.hypot(i - rows[chosen, None, None], j - columns[chosen, None, None])
        alpha = np.clip(0.5 + radii[chosen, None, None] - distance, 0, 1) * peak[chosen, None, None]
        ok = (alpha > 0.02) & (i >= 0) & (i < SIZE) & (j >= 0) & (j < SIZE)
        i, j = np.broadcast_arrays(i, j)
        np.maximum.at(image, i[ok] * SIZE + j[ok], alpha[ok].astype(np.float32))
    return image.reshape(SIZE, SIZE)


class Grid:
    """Pixels of one slice in the patient's frame."""

    def __init__(self, patient, z):
        v = patient.values
        self.pixel = 2 * (1.03 * v["width"] * v["scale"] + 0.55 * v["fat"] + 26) / v["zoom"] / SIZE
        self.centre = (v["shift_x"], v["shift_y"] - 10.0)
        self.turn = float(np.radians(v["rotation"]))
        steps = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * np.float32(self.pixel)
        flat_x, flat_y = steps[None] - self.centre[0], steps[:, None] - self.centre[1]
        self.flat_x, self.flat_y = np.broadcast_arrays(flat_x.astype(np.float32), flat_y.astype(np.float32))
        c, s = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        x, y = c * flat_x + s * flat_y, c * flat_y - s * flat_x
        dx = dy = np.float32(0)
        for k, (kx, ky, kz, phase, size) in enumerate(patient.warp):
            wave = np.float32(size) * np.sin(kx * x + ky * y + np.float32(kz * z + phase))
            dx, dy = (dx + wave, dy) if k % 2 else (dx, dy + wave)
        self.x, self.y = x + dx, y + dy

    def to_pixels(self, x, y):
        """Columns and rows of points (the deformation, some mm, is left out)."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        return ((c * x - s * y + self.centre[0]) / self.pixel + (SIZE - 1) / 2,
                (c * y + s * x + self.centre[1]) / self.pixel + (SIZE - 1) / 2)
