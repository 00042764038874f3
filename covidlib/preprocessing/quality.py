"""Reasons to doubt that a picture is of the kind that a network was trained on: a network answers whatever it is shown.

These are warnings and no gate: a picture without any may still be unlike the training data in what nobody measured.
"""

import numpy as np

LEAST_LUNG = 0.05  # share of the body's cross-section
COLOURED = 24  # difference between channels, of 255, from which a pixel has a colour
SOFT = 0.6  # of white: soft tissue in the lung window is brighter
SPREAD = (0.5, 99.5)  # percentiles of the training slices that are usual
MARGIN = 0.1  # of their range, on either side
FEATURES = {"brightness": "the lungs and what is between them are {} than in its training slices",
            "contrast": "grey values vary {} than in its training slices",
            "detail": "it is {} than its training slices",
            "filled": "the lungs fill {} of the picture than in its training slices"}
WORDS = {"brightness": ("darker", "brighter"), "contrast": ("less", "more"), "detail": ("more blurred", "more grainy"),
         "filled": ("less", "more")}


def features(image):
    """What is measured of a slice as a network sees it, uint8 (S, S): name -> number; NaN where all is black."""
    image = np.asarray(image, np.float32)
    inside = image > 8
    if inside.sum() < 2:
        return dict.fromkeys(FEATURES, np.nan)
    edges = np.abs(np.diff(image, axis=1))[inside[:, 1:] & inside[:, :-1]]
    return {"brightness": float(image[inside].mean()), "contrast": float(image[inside].std()),
            "detail": float(edges.mean()) if len(edges) else np.nan, "filled": float(inside.mean())}


def feature_ranges(images):
    """The usual range of every feature, name -> [low, high], over training slices uint8 (N, S, S)."""
    found = [features(image) for image in images]
    ranges = {}
    for name in FEATURES:
        low, high = np.nanpercentile([one[name] for one in found], SPREAD)
        ranges[name] = [float(low - MARGIN * (high - low)), float(high + MARGIN * (high - low))]
    return ranges


def file_warnings(path, index=0):
    """Warnings about a file and the values of its slice `index`, which is read: a list of sentences."""
    from covidlib import readers

    try:
        return [*value_warnings(readers.read(path, index).remark), *colour_warnings(path)]
    except (OSError, ValueError):
        return []


def value_warnings(remark):
    """Warnings about values of which ct.Slice has a `remark`."""
    return [f"its values are doubtful: {remark}."] if remark else []


def colour_warnings(path):
    """Warnings about the colours of a picture: a list of sentences."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if picture.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
                return []
            small = picture.convert("RGB")
            small.thumbnail((256, 256))
    except (OSError, ValueError, Image.DecompressionBombError):
        return []
    values = np.asarray(small).astype(int)
    coloured = (np.ptp(values, axis=2) > COLOURED).mean()
    return [f"{coloured:.0%} of its pixels are coloured: CT slices are grey. Marks and captions mislead a network."
            ] if coloured > 0.005 else []


def slice_warnings(picture, lungs, body, seen, usual=None):
    """Warnings about a slice: a list of sentences, the gravest first.

    picture: uint8 (H, W) as a network's preparation gets it; lungs, body: bool (H, W) of lungs.segment; seen:
    uint8 (S, S); usual: `typical` of the network's training slices, None where it is not known.
    """
    found = []
    if not body.any():
        found.append("no body is found in it: is it a CT slice?")
    elif lungs.sum() < LEAST_LUNG * body.sum():
        found.append("no lungs are in view, or they are too dense to be found.")
    else:
        rest = picture[body & ~lungs]
        if picture[lungs].mean() < 8 and len(rest) and np.median(rest) < 255 * SOFT:
            found.append("the lungs are black: it seems to be a soft tissue window, in which lung disease is not seen.")
    if min(picture.shape) < len(seen):
        found.append(f"it has {picture.shape[1]} x {picture.shape[0]} pixels, fewer than the {len(seen)} x "
                     f"{len(seen)} that the network looks at.")
    if usual and not found:
        own = features(seen)
        for name, (low, high) in usual.items():
            if own[name] < low or own[name] > high:
                found.append(FEATURES[name].format(WORDS[name][int(own[name] > high)]) + ".")
    return found
