"""Body and lungs of one chest slice, by classical image processing: a mask to black out or to crop by.

Otsu's level (https://doi.org/10.1109/TSMC.1979.4310076) parts air from tissue; air joined to a corner is
background, and of the rest large regions with chest wall below them are lungs, without trachea, bowel gas as dark
as the air outside, and table. Small bays at the rib cage are closed, so that vessels and most consolidations belong
to the lung. White page margins are no body. All work is done at SIDE pixels: 13 ms for a 512 x 512 slice.

Dice on 300 phantoms drawn after the code was fixed (100 of each class, seed 11): mean .980, median .982, 5th
percentile .960, least .859; phantoms are easier than patients. By eye, one reader, random slices, good / partial / a
lung lost: SARS-CoV-2 CT 54 / 6 / 0 of 60, COVID-CT 40 / 16 / 4 of 60, COVID-CT-MD 48 / 5 / 3 of 56 that show lung;
of 4 without lung 2 stayed empty and 2 gave bowel gas. Settings were tuned on other draws from the same sets.

Where it fails: lungs dense throughout or a whole lobe (white-out, effusion) are cut to what is still dark, 10 of
746 COVID-CT pictures to less than 3 % of the body on one side; lungs in a soft tissue window lose consolidations;
narrow crescents beside the liver lose a side; gas in stomach or colon counts as lung where no air outside shows how
dark air is; the main bronchi go with the lung; a convex stretch of chest wall may come along where a bay is closed.
It is no measure of disease and no segmentation for diagnosis.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.filters import threshold_otsu
from skimage.measure import regionprops

from covidlib import readers

SIDE = 192  # pixels of the long side while working: every radius below counts these
USUAL = 0.2  # share of the body from which on lungs are believed at once
HAZE = 0.25  # of the way from Otsu's level to soft tissue: hazy lung is lung


def segment(image):
    """(body, lungs), bool (H, W) each, of a uint8 (H, W) slice: of the lung window or any picture of one.

    Both are empty where nothing is found. ValueError for another kind of array.
    """
    body, lungs = _at_working_size(image)
    return _full(body, np.shape(image)), _full(lungs, np.shape(image))


def body_mask(image):
    """bool (H, W): the body of a uint8 (H, W) slice, the whole picture where it was cut inside the body."""
    return _full(_at_working_size(image)[0], np.shape(image))


def lung_mask(image):
    """bool (H, W): the lungs of a uint8 (H, W) slice, empty where none is found."""
    return _full(_at_working_size(image)[1], np.shape(image))


def lung_fraction(image):
    """Share of the body's cross-section that is lung, 0 where there is none (a cropped body counts as cropped)."""
    body, lungs = _at_working_size(image)
    return float(lungs.sum() / max(1, body.sum()))


def read_mask(path, slice_index=0):
    """bool (H, W): a mask drawn elsewhere, in any format of ct.read_slice; above 0 is lung. Raises ct.ReadError."""
    return readers.read_mask(path, slice_index)


def _full(mask, shape):
    picture = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture) > 127


def _page(image):
    """Slices (rows, columns) of the picture without white margins."""
    height, width = image.shape
    white = image >= 240
    top, left, bottom, right = 0, 0, height, width
    for _ in range(2):
        rows = white[:, left:right].mean(1)
        top, bottom = _trim(rows, top, bottom)
        columns = white[top:bottom].mean(0)
        left, right = _trim(columns, left, right)
    return slice(top, bottom), slice(left, right)


def _trim(share, start, stop):
    """Ends without the white lines, where these end abruptly (a page), not little by little (a chest wall)."""
    dark = np.flatnonzero(share[start:stop] < 0.97)
    if not len(dark):
        return start, stop
    first, last = start + dark[0], start + dark[-1]
    near = max(1, (stop - start) // 100)
    begin = first if share[first : first + near + 1].min() < 0.7 else start
    end = last + 1 if share[last - near : last + 1].min() < 0.7 else stop
    return begin, end


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

    A bay in the outline of a lung is taken in where it lies at the rim of the rib cage (the hull of both lungs),
    is small beside the lung, and is not the heart's or the diaphragm's.
    """
    box = ndimage.find_objects(lungs.astype(np.uint8))[0]
    inner = lungs[box]
    width = inner.shape[1]
    cage = hull(inner)
    rim = cage & ~ndimage.binary_erosion(cage, iterations=4)
    filled = inner.copy()
    for side in (slice(width // 2), slice(width // 2, None)):
        half = np.zeros_like(inner)
        half[:, side] = inner[:, side]
        labels, _ = ndimage.label(hull(half) & ~half)
        for bay in regionprops(labels):
            if bay.area < 20:  # left to closing
                continue
            at_rim = rim[*bay.coords.T].mean()
            aside = abs(bay.centroid[1] / width - 0.5) > 0.15
            if bay.area < 0.25 * half.sum() and at_rim > 0.25 and aside:
                half[*bay.coords.T] = True
        filled |= ndimage.binary_fill_holes(_close(half, 7))
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


def _close(mask, radius):
    return ndimage.binary_closing(np.pad(mask, radius), iterations=radius)[(slice(radius, -radius),) * 2]


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
