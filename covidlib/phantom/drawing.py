"""One slice of a phantom patient: chest wall, mediastinum, lungs, and the scanner's blur and noise."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from covidlib.phantom import anatomy
from covidlib.phantom.anatomy import (
    AIR,
    BLOOD,
    FAT,
    MUSCLE,
    cover,
    ellipse,
    paint,
    smooth_noise,
    stamp,
    superellipse,
    tube,
)

# curvature per mm, thickness and half width in mm, HU of the filling and of the shell
TABLES = ((0.0006, 22, 235, -930, 60), (0.0011, 28, 260, -960, -120), (0.0019, 16, 215, -900, 150),
          (0.0, 30, 225, -880, -40))


@dataclass(frozen=True)
class Phantom:
    """`hu` float32 (256, 256) in Hounsfield units, `lungs` and `lesions` bool (256, 256), `pixel` size in mm."""

    hu: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    pixel: float


class Slice:
    """The shapes of one patient at one height."""

    def __init__(self, patient, z, rng):
        self.patient, self.z, self.rng, self.v = patient, z, rng, patient.values
        self.grid = anatomy.Grid(patient, z)
        self.x, self.y = self.grid.x, self.grid.y
        self.a, self.b = (float(n) for n in anatomy.cavity_axes(self.v, z))
        taper = 1 + 0.11 * np.clip(self.y / self.b, -1, 1)
        self.cavity = superellipse(self.x / taper, self.y, self.a, self.b, 2.25)
        self.spine_y = 0.4 * self.b + 2
        self.texture = smooth_noise(rng, 1.8)
        self.coarse = smooth_noise(rng, 10.0)
        self._mediastinum()
        self._lungs()

    def _organs(self, x, y):
        """Names and distances (in the scale of the tables) of what the slice cuts in the mediastinum."""
        z, found = self.z, []
        for name, (start, end, radius) in anatomy.TUBES.items():
            if min(start[2], end[2]) - radius < z < max(start[2], end[2]) + radius:
                found.append((name, tube(x, y, z, start, end, radius)))
        for name, ((cx, cy, cz), (rx, ry, rz), angle, least) in anatomy.HEART.items():
            size = 1 - ((z - cz) / rz) ** 2
            size = max(size, least) if z > cz else size
            if size > 0.02:
                k = float(np.sqrt(size)) * self.v["heart"]
                found.append((name, ellipse(x, y, cx, cy, rx * k, ry * k, angle)))
        return found

    def _mediastinum(self):
        """Distance to the mediastinum: its organs, and the fat between them, narrow behind the breastbone."""
        s, z = self.v["scale"], self.z
        middle = anatomy.SIZE // 2
        self.box = np.ix_(np.abs(self.y[:, middle]) < self.b + 4, np.abs(self.x[middle]) < 105)
        x, y = self.x[self.box] / s, self.y[self.box] / s
        self.organs = self._organs(x, y)
        t = np.clip((y * s + 0.95 * self.b) / (0.8 * self.b), 0, 1)
        front = 3 + 12 * min(max((25 - z) / 40, 0), 1) + 10 * min(max((z - 130) / 60, 0), 1)
        band = np.abs(x - 2 - 3 * float(np.sin(z / 40))) - (front + 11 * t * t * (3 - 2 * t))
        band = np.maximum(band, y - (self.spine_y - 4) / s)
        near = np.exp(-band / 4)
        for _, distance in self.organs:
            near += np.exp((2 - distance) / 4)
        self.mediastinum = np.full_like(self.x, 50.0)
        self.mediastinum[self.box] = -4 * s * np.log(near + 1e-6)

    def _lungs(self):
        v, x, y = self.v, self.x, self.y
        mound = ellipse(x, y, 0, self.spine_y + 3, 21 * v["mound"], 19)
        mound = np.minimum(mound, ellipse(x, y, 0, self.b * 1.15, 50 * v["mound"], 0.62 * self.b))
        outside = np.maximum(self.cavity + 1.5, -np.minimum(self.mediastinum, mound))
        self.edge = ndimage.gaussian_filter(outside, 1.1)
        self.domes = [self._dome(-0.5, -2, v["dome"]), self._dome(0.52, 4, v["dome"] + 16)]
        self.share = cover(self.edge) * (1 - np.maximum(*self.domes))
        self.lungs = (self.edge < 0) & (np.maximum(*self.domes) < 0.5)

    def _dome(self, side, cy, top):
        """Share of the slab below one half of the diaphragm."""
        if self.z < top - 8:
            return np.zeros_like(self.x)
        rise = self.z - top - 0.06 * (self.texture + 2 * self.coarse)
        square = (self.x - side * self.a) ** 2 / (0.85 * self.a) + (self.y - cy) ** 2 / (1.15 * self.b)
        return np.clip(0.5 + (rise - square * 0.62) / (0.6 * self.v["slab"] + 1.5), 0, 1)

    def parenchyma(self):
        """Lung tissue in HU with its unresolved texture, gravity and dependent density."""
        v = self.v
        hu = v["lung"] + 13 * self.coarse + v["grain"] * 17 * self.texture + v["gravity"] * self.y / self.b
        hu = hu + 70 * np.clip(self.texture - 1.4, 0, 1)
        depth = np.maximum(0, -self.edge)
        low = np.clip((self.y / self.b - 0.35) * 2.5, 0, 1)
        hu = hu + 330 * v["dependent"] * low * np.exp(-depth / 7) * np.clip(0.8 + 0.4 * self.coarse, 0, 2)
        if v["emphysema"]:
            holes = np.clip(smooth_noise(self.rng, 3.0) - 1.1, 0, 1) * v["emphysema"]
            hu = hu - 110 * holes
        return hu.astype(np.float32)

    def vessels(self):
        """Coverage of vessels, airway walls and airway lumina in the lungs."""
        v, grid, z = self.v, self.grid, self.z
        spheres = self.patient.vessels.copy()
        spheres[:, 3] *= v["prominence"]
        vessels = stamp(grid, spheres, z, v["slab"])
        fissure = self._fissure()
        vessels *= np.clip(-self.edge / 5, 0.15, 1) * (1 - 0.7 * np.exp(-((fissure / 7) ** 2)))
        bronchi = self.patient.bronchi
        lumen = stamp(grid, bronchi, z, 0.5 * v["slab"])
        wall = bronchi.copy()
        wall[:, 3] = 1.15 * wall[:, 3] + 0.55
        wall = stamp(grid, wall, z, v["slab"])
        line = np.exp(-((fissure / 1.3) ** 2)) * 0.09
        return np.maximum(vessels, line), wall, lumen

    def _fissure(self):
        """Distance to the oblique fissures in mm."""
        x = np.abs(self.x)
        y = 58 - 0.62 * (self.z - 5) - 0.0022 * (x - 30) ** 2 + np.where(self.x < 0, 5, -4)
        return (self.y - y) * 0.85 + 1.2 * self.coarse


def _body(s):
    """Everything outside the lungs: skin, fat and muscles, between the patient's surroundings."""
    v, x, y, z, pixel = s.v, s.x, s.y, s.z, s.grid.pixel
    wide = v["width"] * v["scale"] * (1.02 + 0.03 * float(np.cos(z / 60))) + 16 + 0.6 * v["fat"]
    deep, back = s.b + 17 + 0.55 * v["fat"], 5.0
    body = superellipse(x, y - back, wide, deep, v["back"])
    body = np.maximum(body, y - back - deep * 0.93)
    if v["breast"]:
        breast = ellipse(np.abs(x), y, 0.54 * wide, -0.56 * deep, 0.46 * wide, 0.38 * deep + v["breast"], -14)
        body = np.minimum(body, breast + 6 * min(abs(z - 95) / 90, 3) ** 2)
    hu = np.full_like(x, AIR)
    _surroundings(hu, s, body, back + deep * 0.93)
    paint(hu, cover(body, pixel), FAT + 8 * s.texture)
    paint(hu, cover(np.abs(body + 1.0) - 0.9), 20)
    if v["breast"]:
        gland = cover(np.abs(y + deep) - 0.4 * deep, 20) * cover(body + 9, 6) * cover(15 - s.cavity, 6)
        paint(hu, gland * np.clip(s.coarse * 0.5 + 0.4 * s.texture, 0, 1), 20)
    muscle = np.maximum(_muscles(s) + 1.5 * s.coarse, body + 3 + 0.35 * v["fat"])
    streaks = np.clip(1 - np.abs(s.texture + 0.7 * s.coarse) * 2.5, 0, 1) * cover(2 - s.cavity)
    paint(hu, cover(muscle, 2) * (1 - 0.55 * streaks), MUSCLE + 7 * s.texture)
    return hu


def _muscles(s):
    """Distance to the muscles: between the ribs, along the spine, at the shoulder blades and in front."""
    size, up = s.v["muscle"], float(np.clip((125 - s.z) / 125, 0, 1))
    muscle = s.cavity - 6.5
    parts = [(0.2, 1.0, 27, 16, -12), (0.5, 0.93, 30, 7, -30), (1.02, 0.1, 7 + 8 * up, 50, 6)]
    if up:
        parts += [(0.4, -1.05, 50, 4 + 9 * up, -10), (0.82, 0.66, 42, 7 + 13 * up, -44),
                  (0.6, 1.0, 40, 8 * up + 3, -20)]
    x = np.abs(s.x)
    for cx, cy, rx, ry, angle in parts:
        muscle = np.minimum(muscle, ellipse(x, s.y, cx * s.a, cy * s.b, rx, ry * size, angle))
    return muscle


def _surroundings(hu, s, body, back):
    """The table, and a blanket over the patient."""
    v, x, y, pixel = s.v, s.grid.flat_x, s.grid.flat_y, s.grid.pixel
    bend, thick, half, foam, shell = TABLES[v["table"]]
    top = back + 3 + v["table_gap"] - bend * x * x
    inside = np.maximum(np.maximum(top - y, y - top - thick - bend * 0.4 * x * x), np.abs(x) - half)
    paint(hu, cover(inside, pixel), foam)
    paint(hu, cover(np.abs(inside) - 1.0, pixel), shell)
    paint(hu, cover(np.abs(y - top + 4 + 1.5 * s.coarse) - 0.5, pixel) * 0.35, -400)
    if v["blanket"]:
        for gap in (3, 9):
            sheet = np.abs(body - gap - 5 * np.abs(s.coarse) - 2 * s.texture) - 0.4
            paint(hu, cover(sheet, pixel) * (y < 0.5 * back) * 0.5, AIR + v["blanket"])


def _bone(hu, distance, cortex=700, marrow=190, shell=1.6, alpha=1.0):
    paint(hu, cover(distance) * alpha, marrow)
    paint(hu, cover(np.abs(distance + shell / 2) - shell / 2) * alpha, cortex)


def _ribs(hu, s):
    """Oblique cuts of the ribs: pieces of arc outside the cavity that move along it with height."""
    near = (s.cavity > -1) & (s.cavity < 14)
    x, y, cavity, texture = s.x[near], s.y[near], s.cavity[near], s.texture[near]
    angle = np.arctan2(x / s.a, -y / s.b)
    spacing, round_ = 0.47, 0.5 * (s.a + s.b)
    u = np.abs(angle) / spacing - s.z / 34 - float(s.patient.ribs[0, 0])
    index = np.round(u).astype(int)
    table = s.patient.ribs[(index + 20 * (angle > 0)) % 40]
    arc = (u - index + 0.12 * table[:, 1]) * spacing * round_
    length = 15 * table[:, 2] * (0.7 + 0.5 * np.abs(np.sin(angle)))
    depth = cavity - 4.8 - (0.13 + 0.07 * table[:, 1]) * arc
    distance = (np.sqrt((arc / length) ** 4 + (depth / 3.6) ** 2) - 1) * 3.6
    front, value = np.abs(angle) < 0.62, hu[near]
    _bone(value, distance, alpha=~front & (np.abs(angle) < 2.7))
    paint(value, cover(distance - 0.8) * front, 105 + 220 * s.v["calcium"] * (texture > 0.9))
    hu[near] = value


def _skeleton(hu, s):
    """Ribs, vertebra, breastbone and shoulder blades."""
    x, y, z, k, cy = s.x, s.y, s.z, s.v["mound"], s.spine_y
    _ribs(hu, s)
    box = np.ix_(np.abs(y[:, 128] - cy - 22) < 60, np.abs(x[128]) < 50)
    part, px, py, texture = hu[box], x[box], y[box], s.texture[box]
    swing = 5 * float(np.sin(z / 4.2))
    arch = np.abs(ellipse(px, py, 0, cy + 20, 11, 11)) - 2.4
    arch = np.minimum(arch, tube(np.abs(px), py, 0, (11, cy + 19, 0), (31, cy + 24 + swing, 0), 4.0))
    arch = np.minimum(arch, tube(px, py, 0, (0, cy + 31, 0), (0, cy + 52 + swing, 0), 2.6))
    _bone(part, arch, 750, 260)
    body = ellipse(px, py, 0, cy, 17 * k, 13 * k)
    paint(part, cover(body), 175 + 60 * texture)
    paint(part, cover(np.abs(body + 0.7) - 0.8), 520)
    paint(part, cover(ellipse(px, py, 0, cy + 20, 8.5, 8)), 25)
    hu[box] = part
    box = np.ix_(np.abs(y[:, 128] + s.b) < 20, np.abs(x[128]) < 40)
    part = hu[box]
    _bone(part, superellipse(x[box], y[box] + s.b + 3, 20 if z < 100 else 15, 5.5, 3.5), 480, 140, 1.4)
    hu[box] = part
    if z < 85:
        slope = 8 * float(np.sin(z / 20))
        start, end = (s.a * 0.66, 1.04 * s.b + slope, 0), (s.a * 1.07, 0.5 * s.b - slope, 0)
        _bone(hu, tube(np.abs(x), y, 0, start, end, 2.0), 650, 300, 1.4)


def _organs(hu, s):
    v, texture = s.v, s.texture[s.box]
    paint(hu, cover(s.mediastinum), FAT + 30 + 8 * s.texture)
    box = hu[s.box]
    for name, distance in s.organs:
        vessel = name not in ("oesophagus",)
        value = BLOOD + (v["contrast"] if vessel else -8) * (0.7 if "heart" in name else 1) + 5 * texture
        paint(box, cover(distance * v["scale"], 2.2), value)
        if name == "descending aorta" and v["calcium"] > 0.75:
            paint(box, cover(np.abs(distance) - 0.8) * (texture > 0.8), 600)
    hu[s.box] = box
    for dome, value in zip(s.domes, (58, 40), strict=True):
        paint(hu, dome * cover(s.cavity + 1.0), value + 6 * s.texture + (s.v["contrast"] * 0.4))


def _airways(hu, s):
    x, y = s.x[s.box], s.y[s.box]
    box, k = hu[s.box], s.v["scale"]
    cut = [tube(x / k, y / k, s.z, *line) * k for line in anatomy.AIRWAYS.values()
           if min(line[0][2], line[1][2]) - line[2] < s.z < max(line[0][2], line[1][2]) + line[2]]
    if cut:
        distance = np.minimum.reduce(cut)
        paint(box, cover(distance - 1.6), 20)
        paint(box, cover(distance), AIR)
        hu[s.box] = box


def _scan(hu, s):
    """Blur of the kernel, noise, and the circle of reconstruction."""
    v, rng = s.v, s.rng
    if v["motion"] > 0.2:
        moved = ndimage.shift(hu, (1.6 * v["motion"], 1.2 * v["motion"]), order=1, mode="nearest")
        around = np.exp(-((s.x - 25) ** 2 + (s.y + 15) ** 2) / 75**2).astype(np.float32)
        hu = hu + 0.5 * around * (moved - hu)
    hu = ndimage.gaussian_filter(hu, v["blur"])
    if v["sharp"]:
        hu = hu + v["sharp"] * (hu - ndimage.gaussian_filter(hu, 1.0))
    noise = smooth_noise(rng, 0.45 + 0.5 * v["blur"])
    noise = noise - 0.6 * ndimage.uniform_filter(noise, 5)
    centre = 0.45 + 0.75 * np.exp(-(s.x**2 + s.y**2) / 110**2)
    hu = hu + v["noise"] * centre * noise
    radius = np.hypot(s.grid.flat_x + s.grid.centre[0], s.grid.flat_y + s.grid.centre[1])
    if v["zoom"] < 1:
        hu[radius > 1.02 * anatomy.SIZE / 2 * s.grid.pixel] = -1024
    return np.clip(hu, -1024, 3071).astype(np.float32)


def slice_of(patient, lesions, z, rng):
    """Render the patient at height `z` mm. `lesions(slice, tissue)` gives the lung tissue back in HU with the
    lesions in it, and their mask. Noise is drawn from `rng`."""
    s = Slice(patient, z, rng)
    hu = _body(s)
    _organs(hu, s)
    _skeleton(hu, s)
    tissue = s.parenchyma()
    tissue, mask = lesions(s, tissue)
    vessels, wall, lumen = s.vessels()
    paint(tissue, vessels, BLOOD)
    paint(tissue, wall, -60)
    paint(tissue, lumen, AIR + 40)
    paint(hu, s.share, tissue)
    _airways(hu, s)
    return Phantom(_scan(hu, s), s.lungs, mask & s.lungs, s.grid.pixel)
