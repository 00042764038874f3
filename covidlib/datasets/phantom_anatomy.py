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

# name: (z from, z to, (x0, y0, z0), (x1, y1, z1), radius): tubes of the mediastinum
TUBES = {
    "ascending aorta": ((-13, -30, 25), (-8, -24, 125), 16.0),
    "aortic arch": ((-10, -24, 22), (20, 20, 30), 13.5),
    "descending aorta": ((23, 26, 28), (12, 27, 230), 12.0),
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
    "oesophagus": ((3, 22, -40), (8, 20, 220), 7.0),
    "inferior vena cava": ((-24, 4, 172), (-26, 6, 230), 12.0),
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


def draw_patient(rng):
    """A patient drawn from `rng`, independent of any class."""
    u = rng.uniform
    values = dict(
        scale=u(0.88, 1.08), width=u(128, 146), depth=u(84, 104), fat=u(6, 30) * u(0.5, 1.0), back=u(2.3, 2.9),
        breast=rng.choice([0.0, 1.0]) * u(10, 38), heart=u(0.85, 1.18), contrast=rng.choice([0, 0, 130]) * u(0.5, 1.2),
        arms=u(0, 1), dome=u(150, 178), lung=LUNG + rng.normal(0, 16) + max(0.0, rng.normal(-10, 40)),
        gravity=abs(rng.normal(0, 35)), dependent=max(0.0, rng.normal(-0.25, 0.5)), rotation=rng.normal(0, 2.5),
        emphysema=float(u() < 0.12) * u(0.3, 1), prominence=u(0.82, 1.25), motion=max(0.0, rng.normal(-1.0, 1.6)),
        fissure=u(40, 130), calcium=u(0, 1), mound=u(0.9, 1.15),
        # acquisition
        noise=np.exp(rng.normal(2.75, 0.45)), blur=u(0.35, 0.85), sharp=max(0.0, u(-0.6, 0.9)), slab=u(1.0, 6.0),
        zoom=u(0.9, 1.12), shift_x=rng.normal(0, 6), shift_y=rng.normal(0, 8), table=int(rng.integers(4)),
        table_gap=u(0, 5), blanket=float(u() < 0.5) * u(40, 200), grain=u(0.5, 1.1),
    )
    warp = np.stack([rng.normal(0, 1, 6) / 62, rng.normal(0, 1, 6) / 62, rng.normal(0, 1, 6) / 80,
                     u(0, 2 * np.pi, 6), rng.normal(0, 1.5, 6)], axis=1)
    trees = [_tree(rng, side, values) for side in (-1, 1) for _ in range(2)]
    vessels = np.concatenate([spheres for spheres, _ in trees])
    bronchi = np.concatenate([spheres for _, spheres in trees[::2]])
    ribs = np.stack([u(0, 1, 40), u(-1, 1, 40), u(0.8, 1.25, 40)], axis=1)
    return Patient(values, warp.astype(np.float32), vessels, bronchi, ribs)


def cavity_axes(values, z):
    """Half width and half depth in mm of the thoracic cavity at height z."""
    t = np.clip((np.asarray(z) + 25) / 110, 0, 1)
    grow = 0.76 + 0.24 * np.sin(t * np.pi / 2)
    return values["width"] * values["scale"] * grow, values["depth"] * values["scale"] * (0.1 + 0.9 * grow)


def _spheres(starts, ends, radii, rng, wiggle=0.12):
    """Spheres every 0.7 mm or so along segments, a little bent."""
    span = ends - starts
    length = np.linalg.norm(span, axis=1)
    count = np.clip(np.ceil(length / np.maximum(0.8 * radii, 0.7)).astype(int), 1, 60)
    which = np.repeat(np.arange(len(starts)), count)
    t = (np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)) / count[which]
    bend = rng.normal(0, wiggle, (len(starts), 3)) * length[:, None]
    points = starts[which] + t[:, None] * span[which] + np.sin(np.pi * t)[:, None] * bend[which]
    return np.column_stack([points, radii[which] * (1 - 0.16 * t)]).astype(np.float32)


def _tree(rng, side, values, generations=10):
    """A tree from the hilum that fills one lung: leaves are halved along their longest axis, branch by
    branch. Returns spheres of the vessels and of the bronchi that go with their first generations."""
    leaves = 2**generations
    z = rng.uniform(-35, 215, leaves)
    a, b = cavity_axes(values, z)
    angle, reach = rng.uniform(-np.pi / 2, np.pi / 2, leaves), np.sqrt(rng.uniform(0.03, 0.97, leaves))
    x = side * (0.16 * a + 0.82 * a * reach * np.cos(angle))
    groups = np.column_stack([x, 0.95 * b * reach * np.sin(angle), z])[None]
    nodes = np.array([[side * 40.0, 6.0 + rng.normal(0, 5), 92.0 + rng.normal(0, 12)]])
    radius, vessels, bronchi = 6.4 * rng.uniform(0.9, 1.1), [], []
    for generation in range(generations):
        axis = np.argmax(groups.std(axis=1), axis=1)
        order = np.argsort(np.take_along_axis(groups, axis[:, None, None], axis=2)[..., 0], axis=1)
        groups = np.take_along_axis(groups, order[..., None], axis=1)
        groups = groups.reshape(len(groups) * 2, -1, 3)
        parents = np.repeat(nodes, 2, axis=0)
        share = rng.uniform(0.3, 0.55, (len(parents), 1))
        nodes = parents + share * (groups.mean(axis=1) - parents)
        radii = radius * 0.745**generation * np.exp(rng.normal(0, 0.16, len(parents)))
        vessels.append(_spheres(parents, nodes, radii, rng))
        if 1 <= generation < 6:
            gap = rng.normal(0, 1, (1, 3))
            gap = gap / np.linalg.norm(gap) * (2.0 * radii[:, None] + 0.8)
            bronchi.append(_spheres(parents + gap, nodes + gap, 0.8 * radii, rng))
    return np.concatenate(vessels), np.concatenate(bronchi)


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
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
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
    peak = np.minimum(1, 2 * radii * np.minimum(1, 0.35 + 2 * spheres[:, 3] / slab))
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
        self.pixel = 2 * (1.0 * v["width"] * v["scale"] + 0.55 * v["fat"] + 26) / v["zoom"] / SIZE
        self.centre = np.array([v["shift_x"], v["shift_y"] - 6.0])
        self.turn = np.radians(v["rotation"])
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
