"""What decoded values are, the same for every format: padding, Hounsfield units or grey, and the grey picture.

A header that states Hounsfield units (HU) is believed unless its values contradict it. Where it only leaves them
possible, they are HU if they look like a CT of a body: air or lung far below -500, soft tissue near 40.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from covidlib.readers.errors import MAX_PIXELS, ReadError
from covidlib.readers.window import LUNG_WINDOW, apply_window

AIR = -1024.0
VACUUM, METAL = -1150, 5000  # HU beyond which nothing is measured but noise and the largest implants
MAX_HU = 31000  # scanners store less, even of metal
LUNG, BONE = -500, 600
REACH = 1000.0  # HU between the least and the greatest value that a CT has to be able to hold
FEW = 64  # values that say nothing
_SAMPLED = 2**14  # values by which a slice or a volume is assessed
_EDGE_SHARE = 0.2  # of the edge, from which on a value that repeats is no measurement


class Slice(NamedTuple):
    """One slice, upright.

    values: (H, W), float32 in HU where `is_hu`, else uint8 grey, or bool of a mask; windows: [(centre, width)] of the
    file; remark: why they are no HU though the format could hold them, or what else is doubtful, "" for nothing;
    stored: (H, W) before pixels were made square; spacing: millimetres between the stored rows and columns, or None.
    """

    values: np.ndarray
    is_hu: bool = False
    windows: list = ()
    remark: str = ""
    stored: tuple[int, int] | None = None
    spacing: tuple[float, float] | None = None

    def picture(self, window=LUNG_WINDOW):
        """uint8 (H, W); HU through `window` (centre, width), None for the file's own nearest the lung window."""
        if not self.is_hu:
            return self.values
        if window is None:
            window = min(self.windows, key=lambda own: abs(own[0] - LUNG_WINDOW[0]), default=LUNG_WINDOW)
        return apply_window(self.values, window)


def assess_hu(values, padding=None, may_be_raw=True):
    """(True, False or None, reason): whether values (..., H, W) look like HU, contradict it, or say too little.

    Left out are `padding` (bool of the same shape), what is not finite, and one value that fills the edge.
    `may_be_raw`: whether 1024 may have been added to them; where there is no air it may in any case.
    """
    level = edge_level(values)
    step = max(1, round((values.size / _SAMPLED) ** (1 / values.ndim)))
    part = (slice(None, None, step),) * values.ndim
    measured = np.asarray(values[part], np.float32)
    kept = np.isfinite(measured)
    if padding is not None:
        kept &= ~padding[part]
    if level is not None:
        kept &= measured != level
    measured, surrounded = measured[kept], level is not None and VACUUM < level < -900
    if len(measured) < FEW:
        return True if surrounded else None, ""
    why = _contradiction(measured, may_be_raw or not surrounded and not (measured < LUNG).mean() > 0.005)
    if why:
        return False, why
    middle = np.median(measured)
    is_lung = -1100 < middle < -600 and (measured > LUNG).mean() < 0.05
    if -1100 < middle < -900 or is_lung or _looks_like_a_body(measured, surrounded):
        return True, ""
    return None, "they do not spread as those of a body in air do"


def _contradiction(measured, may_be_raw):
    """Why values (N,) cannot be HU, "" where they can; `may_be_raw`: whether bone throughout is a reason."""
    below, above = (measured < VACUUM).mean(), (measured > METAL).mean()
    if max(below, above) > 0.05:
        where = f"below {VACUUM}" if below > above else f"above {METAL}"
        return f"{max(below, above):.0%} of its values lie {where}, where no body has any"
    air, dense = (measured < LUNG).mean(), (measured > BONE).mean()
    if may_be_raw and dense > 0.25 * max(1 - air, 0.04):
        return f"{dense / (1 - air):.0%} of its values but air lie above {BONE}, as if 1024 had been added"
    if (measured > LUNG).mean() < 0.001 and (measured > -850).mean() > 0.2 and (measured < -960).mean() > 0.05:
        return f"none of its values is denser than lung ({measured.min():.0f} to {measured.max():.0f})"
    return ""


def _looks_like_a_body(measured, surrounded):
    """Whether there is soft tissue, air or lung, and as much between them as between these two."""
    tissue = ((measured > -250) & (measured < 350)).mean()
    is_air = surrounded or (measured < LUNG).mean() > 0.01
    return is_air and tissue > 0.01 and measured.max() - (-1000 if surrounded else measured.min()) > REACH / 2


def edge_level(values):
    """The one value that fills much of the edge of (..., H, W), or its corners: padding, or air cut off; else None."""
    edge = np.concatenate([part.ravel() for part in (values[..., [0, -1], :], values[..., [0, -1]])])
    edge = edge[np.isfinite(edge)]
    if not len(edge):
        return None
    corners = values[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    for some, share in ((edge, _EDGE_SHARE), (corners, 0.7)):
        levels, counts = np.unique(some, return_counts=True)
        level = float(levels[counts.argmax()])
        if counts.max() > share * some.size and np.isfinite(level):
            return level
    return None


def fill_padding(values, padding=None):
    """float32 (H, W) of HU in which all that was not measured, and all below air, is AIR."""
    values = np.asarray(values, np.float32)
    level = edge_level(values)
    dense = level is not None and level > BONE / 2  # no edge of a slice is bone throughout
    if padding is not None or dense or not values.max() < MAX_HU:  # also where it is no number
        outside = ~(np.isfinite(values) & (values < MAX_HU))
        if padding is not None:
            outside |= padding
        if dense:
            outside |= values == level
        values = np.where(outside, np.float32(AIR), values)
    return np.maximum(values, np.float32(AIR))


def to_bytes(values, padding=None):
    """uint8 of grey values (H, W, ...): those of more than 8 bits scaled by the range of what was measured.

    That range is 0.1 to 99.9 % of the values, without `padding`, what is not finite, and a value that fills the edge of
    the picture and lies far from all others. What was not measured becomes black.
    """
    if values.dtype == np.uint8:
        return values if padding is None or padding.all() else np.where(padding, np.uint8(0), values)
    values = values.astype(np.float64)
    outside = ~np.isfinite(values)
    if padding is not None and not padding.all():
        outside |= padding
    if values.ndim == 2:
        outside |= _detached(values, outside)
    measured = values[~outside]
    if not len(measured):
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(_without_marks(measured), (0.1, 99.9))
    if high <= low:  # nearly constant: what little there is must not vanish
        low, high = measured.min(), max(measured.max(), measured.min() + 1)
    scaled = np.rint(np.clip((np.where(outside, low, values) - low) / (high - low), 0, 1) * 255)
    return scaled.astype(np.uint8)


def _without_marks(measured):
    """Values (N,) without one that is repeated at either end, far from all others: letters burnt into the picture."""
    for end in (measured.max(), measured.min()):
        rest = measured[measured != end]
        if len(rest) > max(FEW, 0.9 * len(measured)) and _is_far(end, rest, 1):
            measured = rest
    return measured


def _detached(values, outside):
    """bool (H, W): the value that fills the edge, where a quarter of all others' range lies between it and them."""
    level = edge_level(np.where(outside, np.nan, values))
    rest = values[~outside & (values != level)] if level is not None else []
    return (values == level) & (len(rest) >= FEW and _is_far(level, rest, 1 / 4))


def _is_far(value, others, ranges):
    """Whether so many ranges (0.1 to 99.9 %) of the others (N,) lie between them and the value."""
    low, high = np.percentile(others, (0.1, 99.9))
    gap = (high - low) * ranges
    return not low - gap <= value <= high + gap


def square_pixels(path, values, spacing):
    """(H, W) with pixels as high as they are wide, the closer of the two: float32, uint8 or bool, as given.

    `spacing`: millimetres between rows and columns, None where it is not known.
    """
    if spacing is None or not (np.isfinite(spacing).all() and 1.01 * min(spacing) < max(spacing) and min(spacing) > 0):
        return values
    fine = min(spacing)
    height, width = (max(1, round(n * mm / fine)) for n, mm in zip(values.shape, spacing, strict=True))
    if height * width > MAX_PIXELS:
        raise ReadError(path, f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm: resampled to squares they are too "
                        "many", "Correct PixelSpacing, or resample it")
    is_mask = values.dtype == bool
    image = Image.fromarray(values.view(np.uint8) if is_mask else values)
    image = image.resize((width, height), Image.Resampling.NEAREST if is_mask else Image.Resampling.BILINEAR)
    return np.asarray(image).astype(values.dtype, copy=False)
