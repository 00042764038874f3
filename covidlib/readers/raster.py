"""PNG, JPEG and TIFF, as grey values without Hounsfield units, turned as their orientation tag says."""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageChops, ImageOps
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from covidlib.readers.errors import AGAIN, MAX_BYTES, MAX_SLICES, NotASlice, ReadError, check_index, check_size
from covidlib.readers.jpeg import check_scans, unusual
from covidlib.readers.values import Decoded, to_bytes

# Of the 746 pictures of COVID-CT the most coloured (arrows, tinted scans) shows 9 % of its pixels with channels
# further apart than 30.
COLOUR_SPREAD, COLOUR_SHARE = 30, 0.2
WIDE = "it is a picture of more than 8 bits, without HU and scaled by its own range"
_DARK = 16
_WIDTH, _LENGTH = 256, 257
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT, _TILE_WIDTH, _TILE_LENGTH = 258, 259, 262, 339, 322, 323
# Pillow cuts colours of 16 bits to the upper 8. Read in the other byte order, the same pixels give the lower 8.
_LOWER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B",
          "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B", "RGBA;16N": "RGBA;16B", "LA;16B": "RGBA"}
_EIGHT_BITS = "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"
_READ = {(1, 1), (1, 2), (1, 4), (1, 8), (1, 12), (1, 16), (1, 32), (2, 8), (2, 16), (2, 32), (3, 32)}  # format, bits
_KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floating point numbers", 5: "complex numbers",
          6: "complex numbers"}


def slice_order(path):
    """Indices of a TIFF's pages; [0] for other pictures."""
    with _open(path) as image:
        pages = _pages(image)
        check_size(path, image.height, image.width, pages)
        return list(range(pages))


def read(path, slice_index):
    """Decoded grey values: uint8, or the stored type of pictures of more than 8 bits."""
    values, padding = _levels(path, slice_index)
    if values.ndim == 3:
        grey = grey_of_colours(path, to_bytes(values, padding))
        return Decoded(grey, remark="" if values.dtype == np.uint8 else WIDE)
    if values.dtype == np.uint8 and values.max() < _DARK and len(np.unique(values)) > _DARK // 2:  # a mask has fewer
        raise ReadError(path, f"is almost black (its brightest value is {values.max()} of 255, as when 16 bits are "
                        "cut down to 8)", "Export it again with 16 bits, or through a lung window")
    wide = values.dtype != np.uint8
    return Decoded(values, padding=padding, remark=WIDE if wide else "")


def read_mask(path, slice_index):
    """Decoded bool values: where a picture of any colour is not black."""
    values, padding = _levels(path, slice_index)
    lit = (values if values.ndim == 2 else values.max(axis=2)) > 0
    return Decoded(lit if padding is None else lit & ~(padding if padding.ndim == 2 else padding[..., 0]))


def grey_of_colours(path, colours):
    """uint8 (H, W) of colours (H, W, 3 or 4), uint8 or uint16. NotASlice where colour fills much of the picture."""
    colours = colours[..., :3]
    image = Image.fromarray(np.uint8(colours >> 8) if colours.dtype == np.uint16 else np.ascontiguousarray(colours))
    _check_grey(path, image)
    return np.asarray(image.convert("L"))


def _levels(path, slice_index):
    """(values (H, W), or of a coloured picture (H, W, 3); where it is transparent, bool of that shape, or None)."""
    with _page(path, slice_index) as image:
        tile, tags = image.tile[0] if image.tile else None, dict(getattr(image, "tag_v2", {}))
        image.load()
        image = _turned(image)
    codec = tile and (tile.args if isinstance(tile.args, str) else tile.args[0])
    if max(tags.get(_BITS, (8,))) > 8 and image.mode in _EIGHT_BITS and codec not in _LOWER:
        _refuse(path, _unusual_tiff(path))  # Pillow would cut it to 8 bits, or take bytes for pixels
    if codec in _LOWER:
        return _wide_colours(image, codec, _lower_bytes(path, slice_index, _LOWER[codec]))
    kind = tags.get(_SAMPLE_FORMAT, (1,))[0]
    if image.mode.startswith("I") or image.mode == "F" or (kind == 2 and image.mode == "L"):
        values = np.asarray(image)
        values = values.view({"L": np.int8, "I": np.uint32 if kind == 1 else np.int32}.get(image.mode, values.dtype))
        clear = image.info.get("transparency")
        clear = values == clear if isinstance(clear, int) else None
        if tags.get(_PHOTOMETRIC) == 0:
            whole = values.dtype.kind == "u"
            values = (np.iinfo(values.dtype).max if whole else values[np.isfinite(values)].max(initial=0)) - values
        return values, clear
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), None


def _lower_bytes(path, slice_index, codec):
    with _page(path, slice_index) as image:
        image.tile = [one._replace(args=codec if isinstance(one.args, str) else (codec, *one.args[1:]))
                      for one in image.tile]
        image.load()
        return np.asarray(_turned(image)).astype(np.uint16)


def _turned(image):
    """As its orientation tag says; as it is where its tags are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever damaged tags raise
        return image.copy()


def _wide_colours(image, codec, lower):
    """As `_levels`, of channels of 16 bits, of which `image` has the upper bytes."""
    if codec == "LA;16B":  # read as four bytes a pixel: upper and lower of grey, upper and lower of alpha
        values, alpha = (lower[..., k] << 8 | lower[..., k + 1] for k in (0, 2))
    else:
        values = np.asarray(image).astype(np.uint16) << 8 | lower
        alpha = values[..., 3] if values.shape[2] == 4 else None
        values = values[..., :3]
    if alpha is not None:
        alpha = alpha if values.ndim == 2 else np.repeat(alpha[..., None], 3, axis=2)
        values = (values * (alpha / 65535)).astype(np.uint16)
    clear = None if alpha is None else alpha == 0
    if values.ndim == 3 and (np.ptp(values, axis=2) == 0).all():
        return values[..., 0], None if clear is None else clear[..., 0]
    return values, clear


def _page(path, slice_index):
    """A page, opened and looked at, but not yet loaded."""
    image = _open(path)
    if slice_index:
        image.seek(check_index(path, slice_index, _pages(image)))
    check_size(path, image.height, image.width)
    if image.format == "JPEG":
        data = path.read_bytes()
        check_scans(data, path)
        _refuse(path, unusual(data))
    tags = getattr(image, "tag_v2", {})
    check_size(path, tags.get(_TILE_LENGTH, 1), tags.get(_TILE_WIDTH, 1))
    return image


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
        _refuse(path, _unusual_tiff(path))
        with open(path, "rb") as file:
            _refuse(path, unusual(file.read(2**16)))
        raise ReadError(path, f"has a damaged header ({error})", AGAIN) from error


def _refuse(path, kind):
    if kind:
        raise ReadError(path, f"is sound, but {kind} is not read here",
                        "Save it as a TIFF of float32 or of 16 bits, or as a PNG")


def _unusual_tiff(path):
    """What a TIFF holds that Pillow does not read, "" where it is none or cannot be told."""
    try:
        with open(path, "rb") as file:
            tags = ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
        compression = tags.get(_COMPRESSION, 1)
        if not (tags[_WIDTH] and tags[_LENGTH]):
            return ""
    except Exception:  # whatever damaged tags raise
        return ""
    if compression not in COMPRESSION_INFO:
        return f"a TIFF with compression {compression}"
    if len(bits) > 1 and max(bits) > 8:
        return f"a TIFF of {len(bits)} channels of {bits[0]} bits"
    inverted = tags.get(_PHOTOMETRIC) == 0 and kinds[0] == 2
    if (kinds[0], bits[0]) in _READ and not inverted:
        return ""
    return f"a TIFF of {bits[0]}-bit {_KINDS.get(kinds[0], f'samples of format {kinds[0]}')}" + (
        ", white at their least" if inverted else "")


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
