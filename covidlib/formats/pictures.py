"""PNG, JPEG and TIFF, as grey values without Hounsfield units."""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageChops

from covidlib.formats import AGAIN, MAX_BYTES, MAX_SLICES, NotASlice, ReadError, check_index, check_size
from covidlib.formats.jpeg import check_scans

# Of the 746 pictures of COVID-CT the most coloured (arrows, tinted scans) shows 9 % of its pixels with channels
# further apart than 30.
COLOUR_SPREAD, COLOUR_SHARE = 30, 0.2
_DARK = 16
_TIFF_PHOTOMETRIC, _TIFF_TILE_WIDTH, _TIFF_TILE_LENGTH = 262, 322, 323


def count(path):
    """Pages of a TIFF; 1 for other pictures."""
    with _open(path) as image:
        pages = _pages(image)
        check_size(path, image.height, image.width, pages)
        return pages


def read(path, slice_index):
    """(values (H, W), False, None): uint8, or the stored type of pictures of more than 8 bits."""
    with _open(path) as image:
        if slice_index:
            image.seek(check_index(path, slice_index, _pages(image)))
        check_size(path, image.height, image.width)
        if image.format == "JPEG":
            check_scans(path.read_bytes(), path)
        tags = getattr(image, "tag_v2", {})
        check_size(path, tags.get(_TIFF_TILE_LENGTH, 1), tags.get(_TIFF_TILE_WIDTH, 1))
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            return (values.max() - values if tags.get(_TIFF_PHOTOMETRIC) == 0 else values), False, None
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        if image.mode not in ("1", "L"):
            image = image.convert("RGB")
            _check_grey(path, image)
        values = np.asarray(image.convert("L"))
        if values.max() < _DARK and len(np.unique(values)) > _DARK // 2:  # a mask has fewer
            raise ReadError(path, f"is almost black (its brightest value is {values.max()} of 255, as when 16 bits are "
                            "cut down to 8)", "Export it again with 16 bits, or through a lung window")
        return values, False, None


def _pages(image):
    """At most one more than may be read: a small TIFF can hold millions."""
    pages = 1
    if image.format == "TIFF":
        with suppress(EOFError):
            while pages <= MAX_SLICES:
                image.seek(pages)
                pages += 1
        image.seek(0)
    return pages


def _open(path):
    if path.stat().st_size > MAX_BYTES:
        raise ReadError(path, f"is too large (at most {MAX_BYTES >> 20} MiB are read)", "Split it or scale it down")
    try:
        return Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    except Image.DecompressionBombError as error:
        raise ReadError(path, f"is too large ({error})", "Scale it down") from error
    except Exception as error:
        raise ReadError(path, f"has a damaged header ({error})", AGAIN) from error


def _check_grey(path, image):
    """NotASlice where colour fills much of an RGB picture; arrows and labels on a slice do not."""
    red, green, blue = image.split()
    high = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    low = ImageChops.darker(ImageChops.darker(red, green), blue)
    counts = ImageChops.subtract(high, low).histogram()
    share = sum(counts[COLOUR_SPREAD + 1:]) / sum(counts)
    if share > COLOUR_SHARE:
        raise NotASlice(path, f"is a coloured picture ({share:.0%} of its pixels), a screenshot or an overlay",
                        "Export the grey slice itself")
