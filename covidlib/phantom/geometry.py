"""Where everything lies in one slice of a phantom patient: coordinates, distances and coverage, and the lung tissue."""

import numpy as np
from scipy import ndimage

from covidlib.phantom import anatomy
from covidlib.phantom.shapes import SIZE, cover, ellipse, smooth_noise, superellipse, tube


class Slice:
    """The shapes of one patient at the height `z` mm; `rng` draws textures and noise.

    `v`: the patient's values; `flat_x`, `flat_y`: mm in the scanner, `x`, `y`: in the patient's frame, (256, 256);
    `a`, `b`: axes of the thoracic cavity; `cavity`, `mediastinum`, `edge` (of the lungs): distances in mm.
    """

    def __init__(self, patient, z, rng):
        self.patient, self.z, self.rng, self.v = patient, z, rng, patient.values
        self._grid()
        self.a, self.b = map(float, anatomy.cavity_axes(self.v, z))
        taper = 1 + 0.11 * np.clip(self.y / self.b, -1, 1)
        self.cavity = superellipse(self.x / taper, self.y, self.a, self.b, 2.25)
        self.spine_y = 0.4 * self.b + 2
        self.texture = smooth_noise(rng, 1.8)
        self.coarse = smooth_noise(rng, 10.0)
        self._mediastinum()
        self._lungs()

    def _grid(self):
        v = self.v
        self.pixel = 2 * (1.03 * v["width"] * v["scale"] + 0.55 * v["fat"] + 26) / v["zoom"] / SIZE
        self.centre, self.turn = (v["shift_x"], v["shift_y"] - 10.0), float(np.radians(v["rotation"]))
        steps = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2) * np.float32(self.pixel)
        self.flat_x, self.flat_y = np.broadcast_arrays(steps[None] - self.centre[0], steps[:, None] - self.centre[1])
        c, s = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        x, y = c * self.flat_x + s * self.flat_y, c * self.flat_y - s * self.flat_x
        moved = [np.float32(0), np.float32(0)]
        for k, (kx, ky, kz, phase, size) in enumerate(self.patient.warp):
            wave = np.float32(size) * np.sin(kx * x + ky * y + np.float32(kz * self.z + phase))
            moved[1 - k % 2] = moved[1 - k % 2] + wave
        self.x, self.y = x + moved[0], y + moved[1]

    def stamp(self, spheres, slab):
        """Coverage 0..1 of the `spheres` met by a slab `slab` mm thick (the deformation, some mm, is left out)."""
        image = np.zeros(SIZE * SIZE, np.float32)
        away = np.maximum(0, np.abs(spheres[:, 2] - self.z) - slab / 2)
        met = away < spheres[:, 3]
        (x, y, _, size), away = spheres[met].T, away[met]
        c, s = np.cos(self.turn), np.sin(self.turn)
        columns = (c * x - s * y + self.centre[0]) / self.pixel + (SIZE - 1) / 2
        rows = (c * y + s * x + self.centre[1]) / self.pixel + (SIZE - 1) / 2
        radii = np.sqrt(size**2 - away**2) / self.pixel
        peak = np.minimum(1, 2 * radii * np.minimum(1, 0.32 + 2 * size / slab))
        radii = np.maximum(radii, 0.5)
        for low, high in ((0, 1.5), (1.5, 4), (4, 20)):
            chosen = (radii >= low) & (radii < high)
            if not chosen.any():
                continue
            half = int(np.ceil(min(high, radii[chosen].max()) + 0.5))
            row, column, radius, most = (n[chosen, None, None] for n in (rows, columns, radii, peak))
            steps = np.arange(-half, half + 1)
            i, j = np.broadcast_arrays(np.round(row).astype(int) + steps[:, None], np.round(column).astype(int) + steps)
            alpha = np.clip(0.5 + radius - np.hypot(i - row, j - column), 0, 1) * most
            inside = (alpha > 0.02) & (i >= 0) & (i < SIZE) & (j >= 0) & (j < SIZE)
            np.maximum.at(image, i[inside] * SIZE + j[inside], alpha[inside].astype(np.float32))
        return image.reshape(SIZE, SIZE)

    def box(self, half_width, y, half_depth):
        """Rows and columns within `half_width` and `half_depth` mm of (0, y)."""
        near = np.abs(self.y[:, SIZE // 2] - y) < half_depth, np.abs(self.x[SIZE // 2]) < half_width
        return tuple(slice(inside.argmax(), inside.argmax() + inside.sum()) for inside in near)

    def tubes(self, table):
        """Names and distances (in the table's scale) of the tubes that the slice cuts in the mediastinum's box."""
        return [(name, tube(*self.inner, self.z, start, end, radius)) for name, (start, end, radius) in table.items()
                if min(start[2], end[2]) - radius < self.z < max(start[2], end[2]) + radius]

    def _chambers(self):
        for name, ((cx, cy, cz), (rx, ry, rz), angle, least) in anatomy.HEART.items():
            size = 1 - ((self.z - cz) / rz) ** 2
            size = max(size, least) if self.z > cz else size
            if size > 0.02:
                k = float(np.sqrt(size)) * self.v["heart"]
                yield name, ellipse(*self.inner, cx, cy, rx * k, ry * k, angle)

    def _mediastinum(self):
        """Distance to the mediastinum: its organs, and the fat between them, narrow behind the breastbone."""
        s, z = self.v["scale"], self.z
        self.middle = self.box(105, 0, self.b + 4)
        self.inner = x, y = self.x[self.middle] / s, self.y[self.middle] / s
        self.organs = [*self.tubes(anatomy.TUBES), *self._chambers()]
        t = np.clip((y * s + 0.95 * self.b) / (0.8 * self.b), 0, 1)
        front = 3 + 12 * min(max((25 - z) / 40, 0), 1) + 10 * min(max((z - 130) / 60, 0), 1)
        band = np.abs(x - 2 - 3 * float(np.sin(z / 40))) - (front + 11 * t * t * (3 - 2 * t))
        near = np.exp(-np.maximum(band, y - (self.spine_y - 4) / s) / 4)
        for _, distance in self.organs:
            near += np.exp((2 - distance) / 4)
        self.mediastinum = np.full_like(self.x, 50.0)
        self.mediastinum[self.middle] = -4 * s * np.log(near + 1e-6)

    def _lungs(self):
        v, x, y = self.v, self.x, self.y
        mound = ellipse(x, y, 0, self.spine_y + 3, 21 * v["mound"], 19)
        mound = np.minimum(mound, ellipse(x, y, 0, self.b * 1.15, 50 * v["mound"], 0.62 * self.b))
        outside = np.maximum(self.cavity + 1.5, -np.minimum(self.mediastinum, mound))
        self.edge = ndimage.gaussian_filter(outside, 1.1)
        self.domes = [self._dome(-0.5, -2, v["dome"]), self._dome(0.52, 4, v["dome"] + 16)]
        below = np.maximum(*self.domes)
        self.share, self.lungs = cover(self.edge) * (1 - below), (self.edge < 0) & (below < 0.5)

    def _dome(self, side, cy, top):
        """Share of the slab below one half of the diaphragm."""
        if self.z < top - 8:
            return np.zeros_like(self.x)
        rise = self.z - top - 0.06 * (self.texture + 2 * self.coarse)
        square = (self.x - side * self.a) ** 2 / (0.85 * self.a) + (self.y - cy) ** 2 / (1.15 * self.b)
        return np.clip(0.5 + (rise - square * 0.62) / (0.6 * self.v["slab"] + 1.5), 0, 1)

    def tissue(self):
        """Lung tissue in HU with its unresolved texture, gravity and dependent density, float32 (256, 256)."""
        v = self.v
        hu = v["lung"] + 13 * self.coarse + v["grain"] * 17 * self.texture + v["gravity"] * self.y / self.b
        hu = hu + 70 * np.clip(self.texture - 1.4, 0, 1)
        low, pleura = np.clip((self.y / self.b - 0.35) * 2.5, 0, 1), np.exp(-np.maximum(0, -self.edge) / 7)
        hu = hu + 330 * v["dependent"] * low * pleura * np.clip(0.8 + 0.4 * self.coarse, 0, 2)
        if v["emphysema"]:
            hu = hu - 110 * (np.clip(smooth_noise(self.rng, 3.0) - 1.1, 0, 1) * v["emphysema"])
        return hu.astype(np.float32)
