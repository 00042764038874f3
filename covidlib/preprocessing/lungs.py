"""Body and lungs of one chest slice, by classical image processing: a mask to black out or to crop by.

Otsu's level (https://doi.org/10.1109/TSMC.1979.4310076) separates air from tissue; air joined to a corner is
background. Of the rest, large regions with chest wall below them are lungs, but not trachea, table, or bowel gas as
dark as the air outside. Small bays at the rib cage are closed, so that vessels and most consolidations count as lung.

Where it fails: a lung or lobe that is dense throughout is cut to what is still dark; lungs in a soft tissue window
lose consolidations; narrow crescents next to the liver lose a side; gas in stomach or colon counts as lung where no air
outside shows how dark air is; the main bronchi go with the lung; a convex stretch of chest wall may come along where a
bay is closed. docs/design.md says how often. It is no measure of disease and no segmentation for diagnosis.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

SIDE = 192  # pixels of the long side while working: every radius below counts these
USUAL = 0.2  # share of the body from which on lungs are accepted at once
HAZE = 0.25  # of the way from Otsu's level to soft tissue: hazy lung is lung
WHITE = np.uint8(255)


def segment(image):
    """(body, lungs), bool (H, W) each, of a uint8 (H, W) slice: of the lung window or any picture of one.

    Both are empty where nothing is found. ValueError for another kind of array.
    """
    size = np.shape(image)[::-1]
    return tuple(np.asarray(Image.fromarray(mask * WHITE).resize(size, Image.Resampling.BILINEAR)) > 127
                 for mask in _at_working_size(image))


def lung_mask(image):
    """bool (H, W): the lungs of a uint8 (H, W) slice, empty where none is found."""
    return segment(image)[1]


def lung_fraction(image):
    """Share of the body's cross-section that is lung, 0 where there is none (a cropped body counts as cropped)."""
    body, lungs = _at_working_size(image)
    return float(lungs.sum() / max(1, body.sum()))


def _page(image):
    """Slices (rows, columns) of the picture without white margins."""
    white = image >= 240
    rows, columns = slice(0, image.shape[0]), slice(0, image.shape[1])
    for _ in range(2):
        rows = _trim(white[:, columns].mean(1), rows)
        columns = _trim(white[rows].mean(0), columns)
    return rows, columns


def _trim(share, part):
    """`part` without the white lines at its ends if they end abruptly (a page), not little by little (a chest wall)."""
    dark = part.start + np.flatnonzero(share[part] < 0.97)
    if not len(dark):
        return part
    first, last, near = dark[0], dark[-1], max(1, (part.stop - part.start) // 100)
    return slice(first if share[first : first + near + 1].min() < 0.7 else part.start,
                 last + 1 if share[last - near : last + 1].min() < 0.7 else part.stop)


def _at_working_size(image):
    """(body, lungs), bool, reduced or enlarged to SIDE."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be uint8 (H, W). Received: {image.dtype} {image.shape}")
    height, width = image.shape
    scale = SIDE / max(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    rows, columns = _page(image)
    inner = tuple(slice(round(s.start * n / o), max(round(s.start * n / o) + 1, round(s.stop * n / o)))
                  for s, n, o in zip((rows, columns), shape, image.shape, strict=True))
    size = inner[1].stop - inner[1].start, inner[0].stop - inner[0].start
    small = np.asarray(Image.fromarray(image[rows, columns]).resize(size, Image.Resampling.BOX))
    body, lungs = np.zeros(shape, bool), np.zeros(shape, bool)
    body[inner], lungs[inner] = _segment(small)
    return body, lungs


def _segment(small):
    """The first grey level that gives lungs of a usual size, else the one that gives most lung."""
    best = np.zeros(small.shape, bool), np.zeros(small.shape, bool)
    if min(small.shape) < 16 or np.ptp(small) < 20:
        return best
    smooth = ndimage.uniform_filter(small, 3)
    for level in _levels(smooth):
        body, lungs = _split(smooth, smooth <= level)
        if lungs.sum() > best[1].sum() or not best[0].any():
            best = body, lungs
        if lungs.sum() >= USUAL * body.sum() and body.mean() > 0.25:
            break
    return best


def _levels(smooth):
    """Grey levels between lung and tissue: Otsu's, one for soft tissue windows (fat is dark), one for hazy lungs."""
    middle = threshold_otsu(smooth)
    below, above = smooth[smooth <= middle], smooth[smooth > middle]
    yield middle + HAZE * (np.median(above) - middle)
    if np.percentile(below, 5) <= 8:  # a lung window shows air as grey
        yield threshold_otsu(below)
    level = threshold_otsu(above)
    upper = above > level
    if upper.any() and above[upper].mean() - above[~upper].mean() > 0.2 * np.ptp(smooth):
        yield level


def _split(smooth, dark):
    background = _background(dark)
    tissue = ~dark
    body = ndimage.binary_fill_holes(_largest(_open(~background, 4)))
    labels, count = ndimage.label(_open(dark & body, 1))
    if not count:
        return body, np.zeros_like(body)
    thick = _open(tissue, 2)
    regions = [r for r in regionprops(labels) if r.area >= 0.005 * body.sum() and _covered(r, thick)]
    if background.any():
        regions = _without_gas(regions, labels, smooth, np.percentile(smooth[background], 5))
    columns = np.flatnonzero(body.any(0))
    middle, width = (columns[0] + columns[-1]) / 2, np.ptp(columns) + 1
    kept = [r for r in regions
            if r.area >= 0.04 * body.sum() or abs(r.centroid[1] - middle) >= 0.12 * width]  # not the trachea
    largest = max((r.area for r in kept), default=0)
    lungs = np.isin(labels, [r.label for r in kept if r.area >= 0.12 * largest])
    return body, _fill(lungs, body) if kept else lungs


def _without_gas(regions, labels, smooth, air):
    """Regions but those as dark as the air around the body, unless lungs are as dark in this window."""
    tissue = np.median(smooth[labels == 0])
    limit = air + 0.04 * max(1, tissue - air)
    kept = [r for r in regions if np.median(smooth[labels == r.label]) >= limit]
    gas = sum(r.area for r in regions) - sum(r.area for r in kept)
    saturated = air <= 8 and not kept
    return regions if saturated or gas > 0.1 * (labels == 0).sum() else kept


def _covered(region, thick):
    """Whether the chest wall lies below, or the frame of the picture, and not the table or nothing."""
    top, left, bottom, right = region.bbox
    height, width = thick.shape
    if right - left > 0.6 * width and bottom - top < 0.3 * height and bottom > 0.8 * height:
        return False
    if bottom >= height - 1:
        return True
    return thick[bottom:, left:right].any(0).mean() > 0.25


def _fill(lungs, body):
    """Lungs with their vessels, and with consolidations that open to the chest wall.

    A bay in the outline of a lung is filled where it lies at the rim of the rib cage (the hull of both lungs), is small
    against the lung, and is not the heart's or the diaphragm's.
    """
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    inner, cage = lungs[box], hull(lungs[box])
    width = inner.shape[1]
    rim = cage & ~ndimage.binary_erosion(cage, iterations=4)
    filled = inner.copy()
    for side in (slice(width // 2), slice(width // 2, None)):
        half = np.zeros_like(inner)
        half[:, side] = inner[:, side]
        labels, _ = ndimage.label(hull(half) & ~half)
        for bay in regionprops(labels):
            if bay.area < 20:  # left to closing
                continue
            aside = abs(bay.centroid[1] / width - 0.5) > 0.15
            if bay.area < 0.25 * half.sum() and rim[*bay.coords.T].mean() > 0.25 and aside:
                half[*bay.coords.T] = True
        closed = ndimage.binary_closing(np.pad(half, 7), iterations=7)[7:-7, 7:-7]
        filled |= ndimage.binary_fill_holes(closed)
    lungs = lungs.copy()
    lungs[box] = filled
    return lungs & body


def hull(mask):
    """bool (H, W): the convex hull of a mask (H, W); a mask on one line is returned as it is."""
    rows = np.flatnonzero(mask.any(1))
    first, last = mask[rows].argmax(1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    edge = np.concatenate([np.stack([first, rows], 1), np.stack([last, rows], 1)])
    if not len(edge) or min(np.ptp(edge, axis=0)) == 0:
        return mask
    try:
        corners = edge[ConvexHull(edge).vertices]
    except QhullError:
        return mask
    picture = Image.new("1", mask.shape[::-1])
    ImageDraw.Draw(picture).polygon([tuple(map(float, corner)) for corner in corners], fill=1, outline=1)
    return np.asarray(picture)


def _open(mask, radius):
    return ndimage.binary_opening(np.pad(mask, radius, mode="edge"), iterations=radius)[(slice(radius, -radius),) * 2]


def _largest(mask):
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _background(dark):
    """Dark pixels joined to a corner, not through a gap of a pixel or two in the chest wall.

    A compact region inside the picture is a lung cut by the corner, not background.
    """
    height, width = dark.shape
    labels, _ = ndimage.label(_open(dark, 2))
    down, across = max(2, height // 25), max(2, width // 25)
    corners = [labels[r, c].ravel() for r in (slice(down), slice(-down, None))
               for c in (slice(across), slice(-across, None))]
    chosen = np.zeros_like(dark)
    for number in set(np.concatenate(corners)) - {0}:
        part = labels == number
        y, x = np.nonzero(part)
        box = (np.ptp(y) + 1) * (np.ptp(x) + 1)
        inside = 0.2 < y.mean() / height < 0.8 and 0.12 < x.mean() / width < 0.88
        if not (inside and np.ptp(x) < 0.65 * width and len(y) > 0.06 * dark.size and len(y) > 0.5 * box):
            chosen |= part
    return ndimage.binary_dilation(chosen, iterations=2, mask=dark) if chosen.any() else chosen
