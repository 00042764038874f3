"""DICOM CT slices (https://dicom.nema.org/medical/dicom/current/output/html/part03.html), one or many frames a file."""

import math
import zlib

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from covidlib.formats import AGAIN, MAX_BYTES, NotASlice, ReadError, check_index, check_size, held
from covidlib.formats.jpeg import check_scans, stated_size

AIR = -1024.0
MAX_RLE = 2**23  # bytes of a frame; two of them may stand for 128
_NO_SLICE = {"LOCALIZER": "a localiser", "SCOUT": "a localiser", "TOPOGRAM": "a localiser",
             "SCREEN SAVE": "a screenshot"}


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


def count(path):
    """Frames of the file."""
    return _frames(header(path), path)


def read(path, slice_index):
    """(values (H, W), is_hu, own window): float32 in HU, or stored grey values where the header gives no HU.

    Axial slices are turned so that anterior is on top and the patient's right on the left.
    """
    found = held(_dataset, path)
    check_slice(found, path)
    if found.get("PixelData") is None:
        raise ReadError(path, "holds no pixel data", "Export the image itself, not its header or DICOMDIR")
    index = check_index(path, slice_index, _frames(found, path))
    values, is_hu = _values(found, _pixels(found, path, index), path, index)
    found_place = place(found, index)
    values = upright(values, found_place[1]) if found_place else values
    return values, is_hu, _windows(found) if is_hu else None


def check_slice(found, path):
    """NotASlice where the header is of another modality, a localiser or a report; ReadError for absurd sizes."""
    modality = str(found.get("Modality") or "")
    storage = UID(str(found.get("SOPClassUID") or "")).keyword
    is_ct = modality == "CT" if modality else "CT" in storage or "Capture" in storage or not storage
    if not is_ct:
        raise NotASlice(path, f"is not a CT slice (modality {modality or storage})", "Leave it out")
    kinds = {str(kind)[:16].upper() for kind in _listed(found.get("ImageType"))}
    for kind in sorted(kinds & set(_NO_SLICE)):
        raise NotASlice(path, f"is {_NO_SLICE[kind]}, not a slice (ImageType {kind})", "Leave it out")
    if found.get("SamplesPerPixel", 1) != 1:
        raise NotASlice(path, "is a colour picture (a report or a screenshot)", "Leave it out")
    if "Rows" in found and "Columns" in found:
        check_size(path, int(found.Rows), int(found.Columns), _frames(found, path))


def place(found, index=0):
    """(origin (3,), axes (6,)) of a slice in millimetres in patient coordinates, or None where the header is silent."""
    origin, axes = (_item(found, group, name, index) for group, name in
                    (("PlanePositionSequence", "ImagePositionPatient"),
                     ("PlaneOrientationSequence", "ImageOrientationPatient")))
    if origin is None or axes is None or len(origin) != 3 or len(axes) != 6:
        return None
    found_place = np.array(origin, float), np.array(axes, float)
    return found_place if all(np.isfinite(part).all() for part in found_place) else None


def pixel_spacing(found):
    """(rows, columns) in millimetres, or None."""
    spacing = _item(found, "PixelMeasuresSequence", "PixelSpacing", 0)
    return tuple(float(value) for value in spacing) if spacing is not None and len(spacing) == 2 else None


def lacks_rescale(found):
    """Whether a CT image says nothing by which its pixels become HU."""
    return _item(found, "PixelValueTransformationSequence", "RescaleIntercept", 0) is None


def is_axial(axes):
    """Whether the slice normal of direction cosines (6,) is nearest to the patient's length."""
    return int(np.argmax(np.abs(np.cross(axes[:3], axes[3:])))) == 2


def upright(values, axes):
    """An axial slice (H, W) turned to anterior on top and the patient's right on the left; others as they are."""
    across, down = axes[:3], axes[3:]
    if not is_axial(axes):
        return values
    if abs(across[1]) > abs(across[0]):
        values, across, down = values.T, down, across
    values = values[:, ::-1] if across[0] < 0 else values
    return values[::-1] if down[1] < 0 else values


def _dataset(path, **options):
    if path.stat().st_size > MAX_BYTES and not options:
        raise ReadError(path, f"is too large (at most {MAX_BYTES >> 20} MiB are read)", "Split it into single slices")
    with open(path, "rb") as file:
        read_preamble(file, force=True)
        if _read_file_meta_info(file).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            _check_inflated(file, path)
        file.seek(0)
        found = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in found.file_meta:
        implicit, little = found.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return found


def _check_inflated(file, path):
    """pydicom inflates without a limit: ReadError beforehand where that would take too much."""
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = file.read(2**16)
    while data and not stream.eof:
        size += len(stream.decompress(data, 2**20))
        if size > MAX_BYTES // 2:
            raise ReadError(path, f"is too large (inflates to more than {MAX_BYTES >> 21} MiB)", "Leave it out")
        data = stream.unconsumed_tail or file.read(2**16)


def _frames(found, path):
    frames = int(found.get("NumberOfFrames") or 1)
    check_size(path, 1, 1, frames)
    return frames


def _pixels(found, path, index):
    syntax = found.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
        missing = None if decoder.is_available else "; ".join(decoder.missing_dependencies)
    except NotImplementedError:
        missing = "no CT is stored so"
    if missing is not None:
        raise ReadError(path, f"is compressed as {syntax.name} ({syntax}), which is not read here ({missing})",
                        "Decompress it first, for instance with gdcmconv --raw or dcmdjpeg")
    if syntax.is_encapsulated:
        frame = get_frame(found.PixelData, index, number_of_frames=_frames(found, path))
        check_scans(frame, path)
        if syntax == RLELossless and len(frame) > MAX_RLE:
            raise ReadError(path, f"is too large ({len(frame)} bytes of runs in a frame)", "Decompress it first")
        stated = stated_size(frame)
        if stated and stated != (found.Rows, found.Columns):
            raise ReadError(path, f"is damaged (its compressed image is {stated[1]}x{stated[0]} pixels, in its header "
                            f"{found.Columns}x{found.Rows})", AGAIN)
    return pixel_array(found, index=index)


def _values(found, stored, path, index):
    """(float32 (H, W), is_hu)"""
    slope, intercept = (_item(found, "PixelValueTransformationSequence", name, index)
                        for name in ("RescaleSlope", "RescaleIntercept"))
    padding = _padding(found, stored)
    signed = found.get("PixelRepresentation") == 1 and bool((stored[~padding] < 0).any())
    is_hu = intercept is not None or signed
    if is_hu:
        slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
        if not (math.isfinite(slope) and slope and math.isfinite(intercept)):
            raise ReadError(path, f"has senseless rescale tags (slope {slope}, intercept {intercept})", AGAIN)
        values = stored * np.float32(slope) + np.float32(intercept)
        values[padding] = AIR
        return values, True
    values = stored.astype(np.float32)
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() - values
    if padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    return values, False


def _item(found, group, name, index):
    """Value of an attribute, which enhanced files keep per frame or shared by all, or None."""
    for groups, number in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        frames = found.get(groups) or []
        for item in (frames[number].get(group) or [])[:1] if number < len(frames) else []:
            if item.get(name) is not None:
                return item[name].value
    return found.get(name)


def _padding(found, stored):
    """bool (H, W): pixels outside the scanned circle, by PixelPaddingValue and its range limit."""
    value = found.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = found.get("PixelPaddingRangeLimit")
    # the tag may be read unsigned where pixels are signed: wrap it as the pixels are
    edges = np.array([value, value if limit is None else limit], np.int64).astype(stored.dtype)
    return (stored >= edges.min()) & (stored <= edges.max())


def _windows(found):
    """The file's own windows: [(centre, width)]."""
    pairs = zip(_listed(found.get("WindowCenter")), _listed(found.get("WindowWidth")), strict=False)
    return [(float(centre), float(width)) for centre, width in pairs if width > 0]


def _listed(value):
    """The values of an element that may hold none, one or many."""
    return [] if value in (None, "") else list(value) if isinstance(value, MultiValue) else [value]
