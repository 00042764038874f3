"""PNG, JPEG and TIFF, as grey values without Hounsfield units, turned as their orientation tag says."""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps
from PIL import TiffImagePlugin as tiff

from covidlib.readers.errors import AGAIN, MAX_SLICES, NotASlice, ReadError, check_bytes, check_index, check_size
from covidlib.readers.jpeg import check_scans, unsupported
from covidlib.readers.values import Slice, to_bytes

# Of the 746 pictures of COVID-CT the most coloured (arrows, tinted scans) shows 9 % of its pixels with channels
# further apart than 30.
COLOUR_SPREAD, COLOUR_SHARE = 30, 0.2
_WIDE = "it is a picture of more than 8 bits, without HU and scaled by its own range"
_DARK = 16
# Pillow cuts colours of 16 bits to the upper 8. Read in the other byte order, the same pixels give the lower 8.
_LOWER = {"RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B",
          "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B", "RGBA;16N": "RGBA;16B", "LA;16B": "RGBA"}
_EIGHT_BITS = "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"
_UNSIGNED, _SIGNED = 1, 2
_TIFF_READ = {_UNSIGNED: (1, 2, 4, 8, 12, 16, 32), _SIGNED: (8, 16, 32), 3: (32,)}  # sample format: bits
_TIFF_KINDS = {_UNSIGNED: "unsigned integers", _SIGNED: "signed integers", 3: "floating point numbers",
               5: "complex numbers", 6: "complex numbers"}


def slice_order(path):
    """Indices of a TIFF's pages; [0] for other pictures."""
    with _open(path) as image:
        pages = _count_pages(image)
        check_size(path, image.height, image.width, pages)
        return list(range(pages))


def read(path, slice_index, mask=False):
    """The grey Slice of a page; `mask`: whether it is bool instead: where a picture of any colour is not black."""
    values, transparent = _levels(path, slice_index)
    if mask:
        lit = values > 0 if transparent is None else (values > 0) & ~transparent
        return Slice(lit if lit.ndim == 2 else lit.any(axis=2))
    grey = to_bytes(values, transparent)
    if values.ndim == 3:
        grey = grey_of_colours(path, grey)
    elif values.dtype == np.uint8 and values.max() < _DARK and len(np.unique(values)) > _DARK // 2:  # more than a mask
        raise ReadError(path, f"is almost black (its brightest value is {values.max()} of 255, as when 16 bits are "
                        "cut down to 8)", "Export it again with 16 bits, or through a lung window")
    return Slice(grey, remark="" if values.dtype == np.uint8 else _WIDE)


def grey_of_colours(path, colours):
    """uint8 (H, W) of colours (H, W, 3 or 4), uint8 or uint16.

    NotASlice where colour fills much of the picture; arrows and labels on a slice do not.
    """
    colours = np.ascontiguousarray(colours[..., :3])
    if colours.dtype == np.uint16:
        colours = np.uint8(colours >> 8)
    share = (colours.max(axis=2) - colours.min(axis=2) > COLOUR_SPREAD).mean()
    if share > COLOUR_SHARE:
        raise NotASlice(path, f"is a coloured picture ({share:.0%} of its pixels), a screenshot or an overlay",
                        "Export the grey slice itself")
    return np.asarray(Image.fromarray(colours).convert("L"))


def _levels(path, slice_index):
    """(values (H, W), or of a coloured picture (H, W, 3); where it is transparent, bool of that shape, or None)."""
    image, codec, tags = _load(path, slice_index)
    if max(tags.get(tiff.BITSPERSAMPLE, (8,))) > 8 and image.mode in _EIGHT_BITS and codec not in _LOWER:
        _refuse(path, _unsupported_tiff(path))  # Pillow would cut it to 8 bits, or take bytes for pixels
    if codec in _LOWER:
        lower, *_ = _load(path, slice_index, _LOWER[codec])
        return _wide_colours(np.asarray(image).astype(np.uint16), np.asarray(lower).astype(np.uint16), codec)
    kind = tags.get(tiff.SAMPLEFORMAT, (_UNSIGNED,))[0]
    if image.mode.startswith("I") or image.mode == "F" or (kind == _SIGNED and image.mode == "L"):
        values = np.asarray(image)
        integers = {"L": np.int8, "I": np.uint32 if kind == _UNSIGNED else np.int32}
        values = values.view(integers.get(image.mode, values.dtype))
        clear = image.info.get("transparency")
        transparent = values == clear if isinstance(clear, int) else None
        if tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0:
            whole = values.dtype.kind == "u"
            values = (np.iinfo(values.dtype).max if whole else values[np.isfinite(values)].max(initial=0)) - values
        return values, transparent
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")), None


def _wide_colours(upper, lower, codec):
    """As `_levels`, of channels of 16 bits, from their upper and lower bytes (H, W, channels)."""
    if codec == "LA;16B":  # read as four bytes a pixel: upper and lower of grey, upper and lower of alpha
        values, alpha = lower[..., :1] << 8 | lower[..., 1:2], lower[..., 2:3] << 8 | lower[..., 3:]
    else:
        values = upper << 8 | lower
        values, alpha = values[..., :3], values[..., 3:]
    transparent = None
    if alpha.size:
        values = (values * (alpha / 65535)).astype(np.uint16)
        transparent = np.broadcast_to(alpha == 0, values.shape)
    if (np.ptp(values, axis=2) == 0).all():
        return values[..., 0], None if transparent is None else transparent[..., 0]
    return values, transparent


def _load(path, slice_index, codec=None):
    """(a page turned as its tag says, the raw codec of its pixels or None, its TIFF tags); `codec`: one to use."""
    with _open(path) as image:
        if slice_index:
            image.seek(check_index(path, slice_index, _count_pages(image)))
        check_size(path, image.height, image.width)
        if image.format == "JPEG":
            data = path.read_bytes()
            check_scans(data, path)
            _refuse(path, unsupported(data))
        tags = dict(getattr(image, "tag_v2", {}))
        check_size(path, tags.get(tiff.TILELENGTH, 1), tags.get(tiff.TILEWIDTH, 1))
        if codec:
            image.tile = [one._replace(args=codec if isinstance(one.args, str) else (codec, *one.args[1:]))
                          for one in image.tile]
        codecs = [one.args if isinstance(one.args, str) else one.args[0] for one in image.tile[:1]]
        image.load()
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # whatever damaged tags raise
            turned = image.copy()
    return turned, codecs[0] if codecs else None, tags


def _count_pages(image):
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
    check_bytes(path)
    try:
        return Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    except Image.DecompressionBombError as error:
        raise ReadError(path, f"is too large ({error})", "Scale it down") from error
    except Exception as error:
        _refuse(path, _unsupported_tiff(path))
        with open(path, "rb") as file:
            _refuse(path, unsupported(file.read(2**16)))
        raise ReadError(path, f"has a damaged header ({error})", AGAIN) from error


def _refuse(path, kind):
    if kind:
        raise ReadError(path, f"is sound, but {kind} is not read here",
                        "Save it as a TIFF of float32 or of 16 bits, or as a PNG")


def _unsupported_tiff(path):
    """What a TIFF holds that Pillow does not read, "" where it is none or damaged."""
    try:
        with open(path, "rb") as file:
            tags = tiff.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        bits, (kind, *_) = tags.get(tiff.BITSPERSAMPLE, (1,)), tags.get(tiff.SAMPLEFORMAT, (_UNSIGNED,))
        compression = tags.get(tiff.COMPRESSION, 1)
        if not (tags[tiff.IMAGEWIDTH] and tags[tiff.IMAGELENGTH]):
            return ""
    except Exception:  # whatever damaged tags raise
        return ""
    if compression not in tiff.COMPRESSION_INFO:
        return f"a TIFF with compression {compression}"
    if len(bits) > 1 and max(bits) > 8:
        return f"a TIFF of {len(bits)} channels of {bits[0]} bits"
    inverted = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == 0 and kind == _SIGNED
    if bits[0] in _TIFF_READ.get(kind, ()) and not inverted:
        return ""
    return f"a TIFF of {bits[0]}-bit {_TIFF_KINDS.get(kind, f'samples of format {kind}')}" + (
        ", white at their least" if inverted else "")
