"""Warnings that a picture differs from the slices a network was trained on: a network answers whatever it is given.

A picture without warnings may still differ in something that is not measured.
"""

import numpy as np
from PIL import Image

LEAST_LUNG = 0.05  # share of the body's cross-section
COLOURED = 24  # difference between channels, of 255, from which a pixel has a colour
SOFT = 0.6  # of white: soft tissue in the lung window is brighter
SPREAD = (0.5, 99.5)  # percentiles of the training slices that are usual
MARGIN = 0.1  # of their range, on either side
# sentence about a slice outside the usual range, and its word for less and for more
FEATURES = {
    "brightness": ("the lungs and what is between them are {} than in its training slices", "darker", "brighter"),
    "contrast": ("grey values vary {} than in its training slices", "less", "more"),
    "detail": ("it is {} than its training slices", "more blurred", "more grainy"),
    "filled": ("the lungs fill {} of the picture than in its training slices", "less", "more"),
}


def features(image):
    """Features of a network's input, uint8 (S, S): name -> number; NaN where all is black."""
    image = np.asarray(image, np.float32)
    inside = image > 8
    if inside.sum() < 2:
        return dict.fromkeys(FEATURES, np.nan)
    edges = np.abs(np.diff(image, axis=1))[inside[:, 1:] & inside[:, :-1]]
    return {"brightness": float(image[inside].mean()), "contrast": float(image[inside].std()),
            "detail": float(edges.mean()) if len(edges) else np.nan, "filled": float(inside.mean())}


def feature_ranges(images):
    """The usual range of every feature, name -> [low, high], over training slices uint8 (N, S, S)."""
    found, ranges = [features(image) for image in images], {}
    for name in FEATURES:
        low, high = np.nanpercentile([one[name] for one in found], SPREAD)
        ranges[name] = [float(low - MARGIN * (high - low)), float(high + MARGIN * (high - low))]
    return ranges


def value_warnings(remark):
    """Warnings about the values of a slice, given the `remark` of its readers.Slice: a list of sentences."""
    return [f"its values are doubtful: {remark}."] if remark else []


def colour_warnings(path):
    """Warnings about the colours of a picture: a list of sentences."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                return []
            small = picture.convert("RGB")
            small.thumbnail((256, 256))
    except (OSError, ValueError, Image.DecompressionBombError):
        return []
    coloured = (np.ptp(np.asarray(small), axis=2) > COLOURED).mean()
    return [f"{coloured:.0%} of its pixels are coloured: CT slices are grey. Marks and captions mislead a network."
            ] if coloured > 0.005 else []


def shows_lung(lungs, body):
    """Whether enough lung is in view for an answer; lungs, body: bool (H, W) of lungs.segment."""
    return bool(body.any() and lungs.sum() >= LEAST_LUNG * body.sum())


def slice_warnings(picture, lungs, body, prepared, usual=None):
    """Warnings about a slice: a list of sentences, the gravest first.

    picture: uint8 (H, W), the slice before its preparation; lungs, body: bool (H, W) of lungs.segment; prepared: the
    network's input, uint8 (S, S); usual: `feature_ranges` of its training slices, None where they are not known.
    """
    found = []
    if not body.any():
        found.append("no body is found in it: is it a CT slice?")
    elif not shows_lung(lungs, body):
        found.append("no lungs are in view, or they are too dense to be found.")
    else:
        rest = picture[body & ~lungs]
        if picture[lungs].mean() < 8 and len(rest) and np.median(rest) < 255 * SOFT:
            found.append("the lungs are black: it seems to be a soft tissue window, in which lung disease is not seen.")
    if min(picture.shape) < len(prepared):
        found.append(f"it has {picture.shape[1]} x {picture.shape[0]} pixels, fewer than the {len(prepared)} x "
                     f"{len(prepared)} that the network takes.")
    if usual and not found:
        own = features(prepared)
        for name, (low, high) in usual.items():
            sentence, less, more = FEATURES[name]
            if own[name] < low or own[name] > high:
                found.append(sentence.format(more if own[name] > high else less) + ".")
    return found
