"""One slice of a phantom patient: chest wall, mediastinum, lungs, and the scanner's blur and noise."""

from collections import namedtuple

import numpy as np
from scipy import ndimage

from covidlib.phantom import anatomy
from covidlib.phantom.shapes import SIZE, cover, ellipse, paint, smooth_noise, superellipse, tube

AIR, FAT, MUSCLE, BLOOD = -1000.0, -105.0, 52.0, 42.0
# curvature per mm, thickness and half width in mm, HU of the filling and of the shell
TABLES = ((0.0006, 22, 235, -930, 60), (0.0011, 28, 260, -960, -120), (0.0019, 16, 215, -900, 150),
          (0.0, 30, 225, -880, -40))
# float32 (256, 256) in HU, bool (256, 256) twice, and the pixels' side in mm
Phantom = namedtuple("Phantom", "hu lungs lesions pixel")


def scan(s, tissue, lesions):
    """The `Phantom` of the `Slice` s, given its lung tissue in HU and the mask of the lesions in it."""
    hu = np.full_like(s.x, AIR)
    _body(hu, s)
    _organs(hu, s)
    _skeleton(hu, s)
    _vessels(tissue, s)
    paint(hu, s.share, tissue)
    airways = [distance * s.v["scale"] for _, distance in s.tubes(anatomy.AIRWAYS)]
    if airways:
        paint(hu[s.middle], cover(np.minimum.reduce(airways) - 1.6), 20)
        paint(hu[s.middle], cover(np.minimum.reduce(airways)), AIR)
    return Phantom(_acquire(hu, s), s.lungs, lesions, s.pixel)


def _body(hu, s):
    """Everything outside the lungs: skin, fat and muscles, and what surrounds the patient."""
    v, x, y = s.v, s.x, s.y
    wide = v["width"] * v["scale"] * (1.02 + 0.03 * float(np.cos(s.z / 60))) + 16 + 0.6 * v["fat"]
    deep, back = s.b + 17 + 0.55 * v["fat"], 5.0
    body = np.maximum(superellipse(x, y - back, wide, deep, v["back"]), y - back - deep * 0.93)
    if v["breast"]:
        breast = ellipse(np.abs(x), y, 0.54 * wide, -0.56 * deep, 0.46 * wide, 0.38 * deep + v["breast"], -14)
        body = np.minimum(body, breast + 6 * min(abs(s.z - 95) / 90, 3) ** 2)
    _surroundings(hu, s, body, back + deep * 0.93)
    paint(hu, cover(body, s.pixel), FAT + 8 * s.texture)
    paint(hu, cover(np.abs(body + 1.0) - 0.9), 20)
    if v["breast"]:
        gland = cover(np.abs(y + deep) - 0.4 * deep, 20) * cover(body + 9, 6) * cover(15 - s.cavity, 6)
        paint(hu, gland * np.clip(s.coarse * 0.5 + 0.4 * s.texture, 0, 1), 20)
    muscle = np.maximum(_muscles(s) + 1.5 * s.coarse, body + 3 + 0.35 * v["fat"])
    streaks = np.clip(1 - np.abs(s.texture + 0.7 * s.coarse) * 2.5, 0, 1) * cover(2 - s.cavity)
    paint(hu, cover(muscle, 2) * (1 - 0.55 * streaks), MUSCLE + 7 * s.texture)


def _muscles(s):
    """Distance to the muscles: between the ribs, along the spine, at the shoulder blades and in front."""
    up = float(np.clip((125 - s.z) / 125, 0, 1))
    muscle = s.cavity - 6.5
    parts = [(0.2, 1.0, 27, 16, -12), (0.5, 0.93, 30, 7, -30), (1.02, 0.1, 7 + 8 * up, 50, 6)]
    if up:
        parts += [(0.4, -1.05, 50, 4 + 9 * up, -10), (0.82, 0.66, 42, 7 + 13 * up, -44),
                  (0.6, 1.0, 40, 8 * up + 3, -20)]
    for cx, cy, rx, ry, angle in parts:
        part = ellipse(np.abs(s.x), s.y, cx * s.a, cy * s.b, rx, ry * s.v["muscle"], angle)
        muscle = np.minimum(muscle, part)
    return muscle


def _surroundings(hu, s, body, back):
    """The table below `back` mm, and a blanket over the `body`."""
    v, x, y, pixel = s.v, s.flat_x, s.flat_y, s.pixel
    bend, thick, half, foam, shell = TABLES[v["table"]]
    top = back + 3 + v["table_gap"] - bend * x * x
    inside = np.maximum(np.maximum(top - y, y - top - thick - bend * 0.4 * x * x), np.abs(x) - half)
    paint(hu, cover(inside, pixel), foam)
    paint(hu, cover(np.abs(inside) - 1.0, pixel), shell)
    paint(hu, cover(np.abs(y - top + 4 + 1.5 * s.coarse) - 0.5, pixel) * 0.35, -400)
    for gap in (3, 9) if v["blanket"] else ():
        sheet = np.abs(body - gap - 5 * np.abs(s.coarse) - 2 * s.texture) - 0.4
        paint(hu, cover(sheet, pixel) * (y < 0.5 * back) * 0.5, AIR + v["blanket"])


def _organs(hu, s):
    v, texture, part = s.v, s.texture[s.middle], hu[s.middle]
    paint(hu, cover(s.mediastinum), FAT + 30 + 8 * s.texture)
    for name, distance in s.organs:
        enhanced = -8 if name == "oesophagus" else v["contrast"]
        value = BLOOD + enhanced * (0.7 if "heart" in name else 1) + 5 * texture
        paint(part, cover(distance * v["scale"], 2.2), value)
        if name == "descending aorta" and v["calcium"] > 0.75:
            paint(part, cover(np.abs(distance) - 0.8) * (texture > 0.8), 600)
    for dome, value in zip(s.domes, (58, 40), strict=True):  # liver and spleen
        paint(hu, dome * cover(s.cavity + 1.0), value + 6 * s.texture + v["contrast"] * 0.4)


def _bone(hu, distance, cortex=700, marrow=190, shell=1.6, alpha=1.0):
    paint(hu, cover(distance) * alpha, marrow)
    paint(hu, cover(np.abs(distance + shell / 2) - shell / 2) * alpha, cortex)


def _skeleton(hu, s):
    """Ribs, vertebra, breastbone and shoulder blades."""
    _ribs(hu, s)
    k, cy, swing = s.v["mound"], s.spine_y, 5 * float(np.sin(s.z / 4.2))
    box = s.box(50, cy + 22, 60)
    x, y = s.x[box], s.y[box]
    arch = np.abs(ellipse(x, y, 0, cy + 20, 11, 11)) - 2.4
    arch = np.minimum(arch, tube(np.abs(x), y, 0, (11, cy + 19, 0), (31, cy + 24 + swing, 0), 4.0))
    arch = np.minimum(arch, tube(x, y, 0, (0, cy + 31, 0), (0, cy + 52 + swing, 0), 2.6))
    _bone(hu[box], arch, 750, 260)
    vertebra = ellipse(x, y, 0, cy, 17 * k, 13 * k)
    paint(hu[box], cover(vertebra), 175 + 60 * s.texture[box])
    paint(hu[box], cover(np.abs(vertebra + 0.7) - 0.8), 520)
    paint(hu[box], cover(ellipse(x, y, 0, cy + 20, 8.5, 8)), 25)
    box = s.box(40, -s.b, 20)
    _bone(hu[box], superellipse(s.x[box], s.y[box] + s.b + 3, 20 if s.z < 100 else 15, 5.5, 3.5), 480, 140, 1.4)
    if s.z < 85:
        slope = 8 * float(np.sin(s.z / 20))
        start, end = (s.a * 0.66, 1.04 * s.b + slope, 0), (s.a * 1.07, 0.5 * s.b - slope, 0)
        _bone(hu, tube(np.abs(s.x), s.y, 0, start, end, 2.0), 650, 300, 1.4)


def _ribs(hu, s):
    """Oblique cuts of the ribs: pieces of arc outside the cavity that move along it with height."""
    near = (s.cavity > -1) & (s.cavity < 14)
    angle = np.arctan2(s.x[near] / s.a, -s.y[near] / s.b)
    spacing = 0.47
    u = np.abs(angle) / spacing - s.z / 34 - float(s.patient.ribs[0, 0])
    index = np.round(u).astype(int)
    _, tilt, size = s.patient.ribs[(index + 20 * (angle > 0)) % 40].T
    arc = (u - index + 0.12 * tilt) * spacing * (0.5 * (s.a + s.b))
    length = 15 * size * (0.7 + 0.5 * np.abs(np.sin(angle)))
    depth = s.cavity[near] - 4.8 - (0.13 + 0.07 * tilt) * arc
    distance = (np.sqrt((arc / length) ** 4 + (depth / 3.6) ** 2) - 1) * 3.6
    front, value = np.abs(angle) < 0.62, hu[near]
    _bone(value, distance, alpha=~front & (np.abs(angle) < 2.7))
    paint(value, cover(distance - 0.8) * front, 105 + 220 * s.v["calcium"] * (s.texture[near] > 0.9))
    hu[near] = value


def _vessels(tissue, s):
    """Vessels, fissures and bronchi in the lung tissue."""
    v, spheres, bronchi = s.v, s.patient.vessels.copy(), s.patient.bronchi
    spheres[:, 3] *= v["prominence"]
    behind = 58 - 0.62 * (s.z - 5) - 0.0022 * (np.abs(s.x) - 30) ** 2 + np.where(s.x < 0, 5, -4)
    fissure = (s.y - behind) * 0.85 + 1.2 * s.coarse
    vessels = s.stamp(spheres, v["slab"])
    vessels *= np.clip(-s.edge / 5, 0.15, 1) * (1 - 0.7 * np.exp(-((fissure / 7) ** 2)))
    walls = bronchi.copy()
    walls[:, 3] = 1.15 * walls[:, 3] + 0.55
    paint(tissue, np.maximum(vessels, np.exp(-((fissure / 1.3) ** 2)) * 0.09), BLOOD)
    paint(tissue, s.stamp(walls, v["slab"]), -60)
    paint(tissue, s.stamp(bronchi, 0.5 * v["slab"]), AIR + 40)


def _acquire(hu, s):
    """Motion, the kernel's blur, noise, and the circle of reconstruction: float32 (256, 256) in HU."""
    v = s.v
    if v["motion"] > 0.2:
        moved = ndimage.shift(hu, (1.6 * v["motion"], 1.2 * v["motion"]), order=1, mode="nearest")
        around = np.exp(-((s.x - 25) ** 2 + (s.y + 15) ** 2) / 75**2).astype(np.float32)
        hu = hu + 0.5 * around * (moved - hu)
    hu = ndimage.gaussian_filter(hu, v["blur"])
    if v["sharp"]:
        hu = hu + v["sharp"] * (hu - ndimage.gaussian_filter(hu, 1.0))
    noise = smooth_noise(s.rng, 0.45 + 0.5 * v["blur"])
    noise = noise - 0.6 * ndimage.uniform_filter(noise, 5)
    hu = hu + v["noise"] * (0.45 + 0.75 * np.exp(-(s.x**2 + s.y**2) / 110**2)) * noise
    if v["zoom"] < 1:
        hu[np.hypot(s.flat_x + s.centre[0], s.flat_y + s.centre[1]) > 1.02 * SIZE / 2 * s.pixel] = -1024
    return np.clip(hu, -1024, 3071).astype(np.float32)
