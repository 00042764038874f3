"""Data augmentation of §2.1: flips, colour transformation and affine transformation.

Every operation the paper names can be applied alone (`apply`) or drawn at random (`Augmenter`). The paper
says that values come from "a range" and gives none: the ranges of `PAPER` are this project's. Images are
(H, W), (H, W, 1) or (H, W, 3), uint8 or float32, 0..255; type and shape are kept.
"""

from collections import namedtuple

import numpy as np
from scipy import ndimage
from skimage import color

from covidlib.utils.text import nearest

# One operation of §2.1. default: its range in PAPER, for flips the probability; size: number of values drawn.
# function: value -> the 2x2 matrix that maps the output's (row, column) to the input's about the image centre (family
# "geometric", none for translation), or (float32 image, value) -> image (family "colour")
Operation = namedtuple("Operation", "name family unit identity default function size", defaults=(1,))


def _rotation(degrees):
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    return np.array([[cosine, sine], [-sine, cosine]])


def _shear(degrees):
    return np.array([[1.0, 0.0], [np.tan(np.deg2rad(degrees)), 1.0]])


def _contrast(image, factor):
    return image.mean() + factor * (image - image.mean())


def _saturation(image, factor):
    grey = (image @ np.array([0.299, 0.587, 0.114], image.dtype))[..., None]
    return grey + factor * (image - grey)


def _hue(image, degrees):
    hsv = color.rgb2hsv(image / 255)
    hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
    return 255 * color.hsv2rgb(hsv)


def _on_rgb(function):
    """A colour function that leaves grey images, (H, W) and (H, W, 1), as they are."""
    return lambda image, value: function(image, value) if image.shape[2:] == (3,) else image


OPERATIONS = {operation.name: operation for operation in (
    Operation("horizontal_flip", "geometric", "", 0, 0.5, lambda flip: np.diag([1.0, -1.0 if flip else 1.0])),
    Operation("vertical_flip", "geometric", "", 0, 0.5, lambda flip: np.diag([-1.0 if flip else 1.0, 1.0])),
    Operation("rotation", "geometric", "degrees", 0, (-15.0, 15.0), _rotation),
    Operation("shear", "geometric", "degrees", 0, (-10.0, 10.0), _shear),
    Operation("translation", "geometric", "of the side", 0, (-0.1, 0.1), None, size=2),
    Operation("scale", "geometric", "times", 1, (0.9, 1.1), lambda factor: np.eye(2) / factor),
    Operation("brightness", "colour", "of white", 0, (-0.1, 0.1), lambda image, value: image + 255 * value),
    Operation("contrast", "colour", "times", 1, (0.8, 1.2), _contrast),
    Operation("saturation", "colour", "times", 1, (0.7, 1.3), _on_rgb(_saturation)),
    Operation("hue", "colour", "degrees", 0, (-18.0, 18.0), _on_rgb(_hue)),
)}
PAPER = {name: operation.default for name, operation in OPERATIONS.items()}
MILD = {
    "horizontal_flip": 0.5, "rotation": (-8.0, 8.0), "translation": (-0.05, 0.05), "scale": (0.92, 1.08),
    "brightness": (-0.05, 0.05), "contrast": (0.9, 1.1),
}
SETS = {"paper": PAPER, "mild": MILD, "none": {}}


def apply(name, image, value):
    """`image` after the operation `name` (a key of `OPERATIONS`) with exactly this `value`.

    Flips: True or False. Rotation: degrees, counter-clockwise. Shear (the paper's "stagger angle"): degrees.
    Translation: (down, right), or one number for both, as a share of the side. Scale: factor, above 1
    enlarges. Brightness: share of white added. Contrast: factor about the mean. Saturation: factor and hue:
    degrees, both without effect on grey. What leaves the frame is lost, what enters it is black.
    """
    _check_name(name)
    if name == "scale" and value <= 0:
        raise ValueError(f"scale must be above 0. Received: scale={value}")
    return _apply_all(image, {name: value})


class Augmenter:
    """Draws a value for every operation of `operations` and applies them all.

    `operations` maps names of `OPERATIONS` to a range (low, high), or to a probability for flips; it may be the name of
    one of `SETS`: "paper", "mild" (no vertical flip, small ranges) or "none". The result is a function of (`seed`,
    epoch, index) alone. Geometric operations are composed in the order of `OPERATIONS`, translation last, to one warp,
    so that an image is interpolated once.
    """

    def __init__(self, operations=PAPER, seed=0):
        if isinstance(operations, str):
            if operations not in SETS:
                raise ValueError(f"augmentation must be one of {', '.join(SETS)}. Received: {operations!r}")
            operations = SETS[operations]
        for name, limits in operations.items():
            _check_name(name)
            _check_limits(name, limits)
        self.operations, self.seed = dict(operations), seed

    def draw(self, epoch, index):
        """The value of every operation for image `index` in `epoch`: dict by name."""
        rng = np.random.default_rng([self.seed, epoch, index])
        values = {}
        for name, operation in OPERATIONS.items():
            share = rng.random(operation.size)
            limits = self.operations.get(name)
            if name.endswith("_flip") and limits is not None:
                values[name] = bool(share[0] < limits)
            elif limits is not None:
                drawn = limits[0] + share * (limits[1] - limits[0])
                values[name] = float(drawn[0]) if operation.size == 1 else tuple(drawn.tolist())
        return values

    def __call__(self, image, epoch, index):
        return _apply_all(image, self.draw(epoch, index))


def _apply_all(image, values):
    result = _warp(image.astype(np.float32), values)
    for name, operation in OPERATIONS.items():
        if name in values and operation.family == "colour":
            result = operation.function(result, values[name])
    result = np.clip(result, 0, 255)
    if np.issubdtype(image.dtype, np.integer):
        result = np.rint(result)
    return result.astype(image.dtype)


def _warp(image, values):
    """One affine warp for all geometric operations of `values`; linear interpolation, black outside."""
    geometric = [op for op in OPERATIONS.values() if op.family == "geometric" and op.name in values]
    if not any(np.any(np.asarray(values[op.name]) != op.identity) for op in geometric):
        return image
    matrix = np.eye(2)
    for operation in geometric:
        if operation.function:
            matrix = matrix @ operation.function(values[operation.name])
    size = np.array(image.shape[:2])
    centre, shift = (size - 1) / 2, np.broadcast_to(values.get("translation", 0.0), 2) * size
    offset = centre - matrix @ (centre + shift)

    def warp(plane):
        # grid-constant: "constant" blackens border pixels that rounding puts a hair outside
        return ndimage.affine_transform(plane, matrix, offset, order=1, mode="grid-constant")

    if image.ndim == 2:
        return warp(image)
    return np.stack([warp(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)


def _check_name(name):
    if name not in OPERATIONS:
        near = nearest(name, OPERATIONS)
        hint = f", did you mean {near!r}?" if near else "."
        raise ValueError(f"unknown operation{hint} Known: {', '.join(OPERATIONS)}. Received: {name!r}")


def _check_limits(name, limits):
    if name.endswith("_flip"):
        if not np.isscalar(limits) or not 0 <= limits <= 1:
            raise ValueError(f"the probability of {name} must be from 0 to 1. Received: {name}={limits}")
    elif np.size(limits) != 2 or limits[0] > limits[1]:
        raise ValueError(f"the range of {name} must be (low, high), low first. Received: {name}={limits}")
    elif name == "scale" and limits[0] <= 0:
        raise ValueError(f"scale must be above 0. Received: scale={limits}")
