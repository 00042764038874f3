"""DICOM CT slices (https://dicom.nema.org/medical/dicom/current/output/html/part03.html), one or many frames a file."""

import math
import zlib

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, get_decoder
from pydicom.pixels.utils import get_j2k_parameters
from scipy import ndimage

from covidlib.readers.errors import AGAIN, Companion, NotASlice, ReadError, check_bytes, check_index, check_size, held
from covidlib.readers.jpeg import check_scans, stated_size
from covidlib.readers.raster import grey_of_colours
from covidlib.readers.values import FEW, LUNG, REACH, Slice, assess_hu, fill_padding, to_bytes

MAX_RLE = 2**23  # bytes of a frame; two of them may stand for 128
MAX_INFLATED = 2**28  # bytes
SAME_PLACE = 0.01  # mm
_PIXEL_TAG = b"\xe0\x7f\x10\x00"
_NO_SLICE = {"LOCALIZER": "a localiser", "SCOUT": "a localiser", "TOPOGRAM": "a localiser",
             "SCREEN SAVE": "a screenshot"}
_COMPANIONS = {"PR": "a presentation state", "SR": "a report", "KO": "a selection of key images", "DOC": "a document",
               "RTSTRUCT": "contours", "RTPLAN": "a plan", "RTRECORD": "a record of treatment", "REG": "a registration",
               "FID": "fiducials", "RWV": "a table of values", "AU": "a recording", "PLAN": "a plan"}
_NO_IMAGE = "PresentationState", "MediaStorageDirectory", "RawData", "SRStorage", "KeyObject", "Encapsulated"
_PAGES = "patient protocol", "exam protocol", "protocol page", "dose report", "dose info", "dose summary"


def is_bare(path):
    """Whether a file without the DICM mark is a DICOM image all the same."""
    try:
        found = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return "Rows" in found and "Columns" in found
    except Exception:
        return False


def header(path, tags=None):
    """Dataset without its pixels, of all or of the `tags` (keywords) alone."""
    return _dataset(path, stop_before_pixels=True, specific_tags=tags)


def slice_order(path):
    """Indices of the file's frames in the order of `order`."""
    return order(header(path), path)


def read(path, slice_index, mask=False):
    """The Slice of a frame: HU, or grey values where they cannot be HU, with a remark why.

    Axial slices are turned so that anterior is on top and the patient's right on the left. `mask`: whether it is bool
    instead: where stored values are above 0, whatever rescale tags are left of a CT.
    """
    found = held(_dataset, path)
    if not mask:
        check_slice(found, path)
    if not any(name in found for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if _PIXEL_TAG in path.read_bytes():  # pydicom leaves out compressed pixels whose end is missing
            raise ReadError(path, "is truncated (its pixels have no end)", AGAIN)
        raise ReadError(path, "holds no pixel data", "Export the image itself, not its header")
    index = check_index(path, slice_index, count_frames(found, path))
    stored, readings = _stored(found, path, index)
    decoded = (Slice(_interpret(stored, *readings[0]) > 0) if mask else
               _decoded(found, path, index, stored, readings))
    spacing = pixel_spacing(found, index) or _pair(found.get("PixelAspectRatio"))  # for their shape alone
    axes = (place(found, index) or (None, None))[1]
    if axes is not None and not is_axial(axes):
        decoded = decoded._replace(remark=decoded.remark or "it is not an axial slice")
    elif axes is not None:
        decoded = decoded._replace(values=upright(decoded.values, axes))
        if spacing and abs(axes[1]) > abs(axes[0]):
            spacing = spacing[::-1]
    return decoded._replace(spacing=spacing)


def order(found, path):
    """Indices of the frames from the feet up; as stored where they do not say their places.

    ReadError where several lie at one place: phases of a heart, or several stacks, which are not one scan.
    """
    stored = list(range(count_frames(found, path)))
    places = [place(found, index) for index in stored] if len(stored) > 1 else [None]
    if None in places or len({plane(axes) for _, axes in places}) > 1:
        return stored
    towards_head = normal(places[0][1])
    heights = np.array([origin @ towards_head for origin, _ in places])
    if np.ptp(heights) < SAME_PLACE:
        return stored
    indices = np.argsort(heights, kind="stable")
    shared = int((np.diff(heights[indices]) < SAME_PLACE).sum())
    if shared:
        raise ReadError(path, f"holds {shared} frames at the place of another, as of several phases",
                        "Export each phase as a series of its own")
    return indices.tolist()


def check_slice(found, path):
    """NotASlice where the header is of another modality, a localiser or a report; ReadError for absurd sizes.

    Companion where the file goes with images without being one.
    """
    modality = str(found.get("Modality") or "")
    storage = uid.UID(str(found.get("SOPClassUID") or "")).keyword
    if modality in _COMPANIONS or any(word in storage for word in _NO_IMAGE) or found.get("DirectoryRecordSequence"):
        raise Companion(path, f"is no image ({_COMPANIONS.get(modality) or storage or 'a directory of DICOM files'})",
                      "Leave it out")
    is_ct = modality == "CT" if modality else "CT" in storage or "Capture" in storage or not storage
    if not is_ct:
        raise NotASlice(path, f"is not a CT slice (modality {modality or storage})", "Leave it out")
    kinds = {str(kind)[:16].upper() for kind in _listed(found.get("ImageType"))}
    for kind in sorted(kinds & set(_NO_SLICE)):
        error = Companion if kind == "SCREEN SAVE" else NotASlice
        raise error(path, f"is {_NO_SLICE[kind]}, not a slice (ImageType {kind})", "Leave it out")
    about = str(found.get("SeriesDescription") or "").lower()
    if any(kind.endswith(" PROT") for kind in kinds) or any(page in about for page in _PAGES):
        raise Companion(path, "is a page of the scanner's protocol, not a slice", "Leave it out")
    if found.get("SamplesPerPixel", 1) != 1:
        raise NotASlice(path, "is a colour picture (a report or a screenshot)", "Leave it out")
    if "Rows" in found and "Columns" in found:
        check_size(path, int(found.Rows), int(found.Columns), count_frames(found, path))


def place(found, index=0):
    """(origin (3,), axes (6,)) of a slice in millimetres in patient coordinates, or None where the header is silent."""
    origin, axes = (_item(found, group, name, index) for group, name in
                    (("PlanePositionSequence", "ImagePositionPatient"),
                     ("PlaneOrientationSequence", "ImageOrientationPatient")))
    if origin is None or axes is None or len(origin) != 3 or len(axes) != 6:
        return None
    origin, axes = np.array(origin, float), np.array(axes, float)
    flat = np.linalg.norm(np.cross(axes[:3], axes[3:])) < 0.5
    return None if flat or not (np.isfinite(origin).all() and np.isfinite(axes).all()) else (origin, axes)


def plane(axes):
    """Direction cosines (6,) as a key: slices of one key are parallel."""
    return tuple(np.round(axes, 2) + 0.0)


def normal(axes):
    """The slices' normal, along which positions grow: towards the head, or where they are not axial left or back."""
    found = np.cross(axes[:3], axes[3:])
    return found * np.sign(found[np.argmax(np.abs(found))])


def is_axial(axes):
    """Whether the slice normal of direction cosines (6,) is nearest to the patient's length."""
    return int(np.argmax(np.abs(normal(axes)))) == 2


def upright(values, axes):
    """An axial slice (H, W) turned to anterior on top and the patient's right on the left."""
    across, down = axes[:3], axes[3:]
    if abs(across[1]) > abs(across[0]):
        values, across, down = values.T, down, across
    values = values[:, ::-1] if across[0] < 0 else values
    return values[::-1] if down[1] < 0 else values


def pixel_spacing(found, index=0):
    """(rows, columns) in millimetres, or None."""
    return _pair(_item(found, "PixelMeasuresSequence", "PixelSpacing", index))


def count_frames(found, path):
    """Number of frames of a file; ReadError where they are too many."""
    frames = int(found.get("NumberOfFrames") or 1)
    check_size(path, 1, 1, frames)
    return frames


def lacks_rescale(found):
    """Whether a CT image says nothing by which its pixels become HU."""
    return _item(found, "PixelValueTransformationSequence", "RescaleIntercept", 0) is None


def number(value):
    """float of a DICOM value, NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _listed(value):
    """The values of an element that may hold none, one or many."""
    return [] if value in (None, "") else list(value) if isinstance(value, MultiValue) else [value]


def _pair(value):
    """Two numbers above 0, or None where they are absent or no such."""
    pair = tuple(map(number, _listed(value)))
    return pair if len(pair) == 2 and all(0 < one < math.inf for one in pair) else None


def _item(found, group, name, index):
    """Value of an attribute, which enhanced files keep per frame or shared by all, or None."""
    for groups, at in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        frames = found.get(groups) or []
        for item in (frames[at].get(group) or [])[:1] if at < len(frames) else []:
            if item.get(name) is not None:
                return item[name].value
    return found.get(name)


def _dataset(path, **options):
    if not options:
        check_bytes(path)
    with open(path, "rb") as file:
        read_preamble(file, force=True)
        if _read_file_meta_info(file).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            _check_inflated(file, path)
        file.seek(0)
        found = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in found.file_meta:
        implicit, little = found.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return found


def _check_inflated(file, path):
    """pydicom inflates without a limit: ReadError beforehand where that would take too much."""
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = file.read(2**16)
    while data and not stream.eof:
        size += len(stream.decompress(data, 2**20))
        if size > MAX_INFLATED:
            raise ReadError(path, f"is too large (inflates to more than {MAX_INFLATED >> 20} MiB)", "Leave it out")
        data = stream.unconsumed_tail or file.read(2**16)


def _check_pixel_tags(found, path):
    syntax = found.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
        missing = None if decoder.is_available else "; ".join(decoder.missing_dependencies)
    except NotImplementedError:
        missing = "no CT is stored so"
    if missing is not None:
        raise ReadError(path, f"is compressed as {syntax.name} ({syntax}), which is not read here ({missing})",
                        "Decompress it first, for instance with gdcmconv --raw or dcmdjpeg")
    for name in ("BitsAllocated", "BitsStored", "PixelRepresentation", "Rows", "Columns", "PhotometricInterpretation"):
        if found.get(name) is None and (name not in ("BitsStored", "PixelRepresentation") or "PixelData" in found):
            raise ReadError(path, f"lacks {name}, without which its pixels cannot be read", "Export it again")
    if found.BitsAllocated % 8:
        raise ReadError(path, f"is sound, but pixels of {found.BitsAllocated} bits are not read here",
                        "Save it with 16 bits a pixel")


def _stored(found, path, index):
    """(stored values (H, W), [(signed, bits), ...]): how they may be meant.

    First as the header says, then as the compressed stream says, then with the other sign.
    """
    _check_pixel_tags(found, path)
    syntax, options, stream = found.file_meta.TransferSyntaxUID, {"view_only": True}, []
    if syntax.is_encapsulated:
        frame = get_frame(found.PixelData, index, number_of_frames=count_frames(found, path))
        check_scans(frame, path)
        if syntax == uid.RLELossless and len(frame) > MAX_RLE:
            raise ReadError(path, f"is too large ({len(frame)} bytes of runs in a frame)", "Decompress it first")
        stated = stated_size(frame)
        if stated and stated != (found.Rows, found.Columns):
            raise ReadError(path, f"is damaged (its compressed image is {stated[1]}x{stated[0]} pixels, in its header "
                            f"{found.Columns}x{found.Rows})", AGAIN)
        options = {"apply_jls_sign_correction": False} if syntax in uid.JPEGLSTransferSyntaxes else {}
        if syntax in uid.JPEG2000TransferSyntaxes:
            parameters = get_j2k_parameters(frame)
            stream = [(bool(parameters["is_signed"]), int(parameters["precision"]))]
            options = {"pixel_representation": int(stream[0][0])}
    stored, _ = get_decoder(syntax).as_array(found, index=index, raw=True, correct_unused_bits=False, **options)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.kind == "f":
        return stored, [(True, 32)]
    width = 8 * stored.dtype.itemsize
    signed, bits = bool(found.PixelRepresentation), min(int(found.BitsStored), width)
    shift = int(found.get("HighBit") or 0) + 1 - bits
    if 0 < shift <= width - bits and not (stored & ((1 << shift) - 1)).any():  # stored at the upper end of their word
        stored = stored >> shift
    return stored, list(dict.fromkeys([(signed, bits), *stream, (not signed, width)]))


def _interpret(stored, signed, bits):
    """Integers of which only `bits` count, the highest of them as a sign where they are `signed`."""
    if stored.dtype.kind == "f":
        return stored
    kind = np.dtype(f"{'i' if signed else 'u'}{stored.dtype.itemsize}")
    unused = 8 * kind.itemsize - bits
    meant = np.ascontiguousarray(stored).view(kind)
    if not signed or not unused:
        return meant & kind.type(2**bits - 1) if unused else meant
    return (meant << unused) >> unused


def _range(values, signed, bits):
    """The least and the greatest value that can be stored."""
    if values.dtype.kind == "f":
        return float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _decoded(found, path, index, stored, readings):
    """The Slice of `_stored` values, not turned."""
    slope, intercept, kind = (_item(found, "PixelValueTransformationSequence", name, index)
                              for name in ("RescaleSlope", "RescaleIntercept", "RescaleType"))
    scale = number(1 if slope is None else slope), number(intercept or 0)
    if not (all(map(math.isfinite, scale)) and scale[0]):
        raise ReadError(path, f"has senseless rescale tags (slope {scale[0]}, intercept {scale[1]})",
                        "Correct them, or export it again")
    integers = _interpret(stored, *readings[0])
    if found.PhotometricInterpretation == "PALETTE COLOR":
        return Slice(grey_of_colours(path, apply_color_lut(integers, found)), remark="it has a palette of colours")
    kind = str(kind or "").strip().upper()
    remark = (f"by its RescaleType its values are {kind}" if kind not in ("", "HU", "US") else
              "its values go through a table of their own" if found.get("ModalityLUTSequence") else "")
    if not remark:
        stated = intercept is not None and kind != "US"
        for reading in readings:
            hu, why = _as_hu(found, stored, reading, scale, stated and reading == readings[0])
            if hu is not None:
                if reading != readings[0]:
                    said = f"{'signed' if reading[0] else 'unsigned'} numbers of {reading[1]} bits"
                    why = f"its header says otherwise, but only as {said} are they HU"
                return Slice(hu, True, _windows(found), why)
            remark = remark or why
        remark = remark if intercept is not None else f"it has no rescale tags, and {remark}"
    padding = _padding(found, stored, integers, *scale)
    if found.PhotometricInterpretation == "MONOCHROME1":
        integers = sum(_range(integers, *readings[0])) - integers.astype(np.float64)
    grey = integers.astype(np.uint8 if readings[0] == (False, 8) else np.float32)
    return Slice(to_bytes(grey, padding), remark=remark)


def _as_hu(found, stored, reading, scale, stated):
    """(float32 in HU of stored values in this `reading` (signed, bits), what is doubtful), or (None, why not).

    `stated`: whether the header says that they are HU. An intercept of zero says little: it is also written for grey.
    """
    slope, intercept = scale
    values = _interpret(stored, *reading)
    edges = [slope * edge + intercept for edge in _range(values, *reading)]
    if max(edges) - min(edges) < REACH or min(edges) > LUNG:
        return None, f"its {reading[1]} bits reach from {min(edges):.0f} to {max(edges):.0f}"
    padding = _padding(found, stored, values, *scale)
    hu = values.astype(np.float32)
    if slope != 1:
        hu *= np.float32(slope)
    hu += np.float32(intercept)
    looks, why = assess_hu(hu, padding, may_be_raw=intercept > LUNG)
    believed = stated and looks is None and (intercept != 0 or _may_be_inside(hu, padding))
    if not (looks or believed):
        return None, why
    if intercept != 0:
        cut = (values.astype(stored.dtype) != stored).any()
        cut = cut and not any(element.tag.group & 0xFF01 == 0x6000 for element in found)  # where overlays lie
        why = f"bits above the {found.BitsStored} that its header names are set, and were cut off" if cut else ""
    return fill_padding(hu, padding), why


def _may_be_inside(hu, padding):
    """Whether values could be of the inside of a body: some are fat, and they spread."""
    measured = hu if padding is None else hu[~padding]
    low, high = np.percentile(measured, (1, 99)) if measured.size else (0, 0)
    return measured.size < FEW or (low < -30 and high - low > 100)


def _padding(found, stored, values, slope, intercept):
    """bool (H, W): pixels outside the scanned circle, by PixelPaddingValue and its range limit; None without them.

    Where the tags would take HU of a body, only what is joined to the edge counts, and nothing where all of it is.
    """
    value, limit = found.get("PixelPaddingValue"), found.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    outside, inner = np.zeros(values.shape, bool), False
    for kind in {values.dtype, stored.dtype}:
        # the tag may be read unsigned where pixels are signed: wrap it as the pixels are
        edges = np.array([value, value if limit is None else limit], np.int64).astype(kind)
        for pixels in (values, stored.view(kind)):  # whether or not it was cut to the bits that count
            outside |= (pixels >= edges.min()) & (pixels <= edges.max())
        inner |= LUNG - 400 < float(edges.max()) * slope + intercept < 3000
    if outside.all() or not outside.any():
        return None
    return ndimage.binary_propagation(np.zeros_like(outside), mask=outside, border_value=1) if inner else outside


def _windows(found):
    """The file's own windows, [(centre, width)], without those that are no numbers."""
    pairs = zip(*(map(number, _listed(found.get(name))) for name in ("WindowCenter", "WindowWidth")), strict=False)
    return [(centre, width) for centre, width in pairs if math.isfinite(centre) and 0 < width < math.inf]
