"""Read one CT slice from PNG, JPEG, TIFF, DICOM or NIfTI, whatever its file is called.

Slices are shown as a radiologist sees them: anterior on top, the patient's right on the left.
Values in Hounsfield units (HU) are trusted where the file can hold them: DICOM with rescale tags
or signed pixels (slope 1 and intercept 0 where the header gives none) and NIfTI with negative
values. Anything else is a picture of grey values, for which no HU are invented.
"""

import functools
import gzip
import io
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.pixels import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU
AIR = -1024.0
MAX_VOXELS = 2**30
FORMATS = "PNG, JPEG, TIFF, DICOM or NIfTI"
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}


class ReadError(ValueError):
    """A file that cannot be read as a CT slice; the message names the file, what is wrong and the mend."""

    def __init__(self, path, what, mend="Replace the file or leave it out of the data set"):
        super().__init__(f"{path}: {what}. {mend}.")


def sniff(path):
    """Format by content: "png", "jpeg", "tiff", "dicom" or "nifti"; ReadError for anything else."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Check the path and data_root.")
    if path.is_dir():
        raise ReadError(path, "is a folder, not an image", "Give one file, or use read_volume for a series")
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise ReadError(path, f"cannot be opened ({error.strerror})", "Check permissions") from error
    if not head:
        raise ReadError(path, "is empty (0 bytes)", "Copy or download it again")
    if head[128:132] == b"DICM":
        return "dicom"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    header = _gunzip_head(path) if head.startswith(b"\x1f\x8b") else head
    if header[344:348] in (b"n+1\0", b"ni1\0") or header[4:8] == b"n+2\0":
        return "nifti"
    if head[:2] in (b"\x08\0", b"\x02\0", b"\0\x08") and _is_bare_dicom(path):
        return "dicom"
    raise ReadError(path, f"is not {FORMATS} (begins with {head[:8]!r})")


def read_slice(path, slice_index=0, window=LUNG_WINDOW):
    """One slice of any format as grey uint8 (H, W).

    HU are seen through `window` (centre, width); None takes the file's own window, of several the one
    nearest the lung window. Pictures become grey (ITU-R 601), transparent parts black. Those with more
    than 8 bits are scaled by their own range (0.1 to 99.9 %): no HU are guessed from them.
    `slice_index` counts slices of a volume or pages of a TIFF; a file of one slice ignores it.
    """
    values, is_hu, own_window = _read(path, slice_index)
    if not is_hu:
        return values
    return apply_window(values, own_window if window is None else window)


def read_hu(path, slice_index=0):
    """One slice of a DICOM or NIfTI file as float32 (H, W) in HU; padding and all below air is -1024."""
    values, is_hu, _ = _read(path, slice_index)
    if not is_hu:
        raise ReadError(path, "holds grey values, not Hounsfield units", "Use read_slice instead")
    return values


def read_volume(path):
    """float32 (D, H, W) in HU, feet first, of a NIfTI file, a multi-frame DICOM file, or one DICOM series.

    A series is a folder or a list of files; it is ordered by position in the patient, not by name.
    """
    if isinstance(path, (str, Path)) and not Path(path).is_dir():
        return np.stack([read_hu(path, index) for index in range(count_slices(path))])
    files = order_series(path)
    slices = [read_hu(file) for file in files]
    shapes = {values.shape for values in slices}
    if len(shapes) > 1:
        raise ReadError(files[0].parent, f"slices differ in size: {sorted(shapes)}", "Give one series")
    return np.stack(slices)


def order_series(path):
    """Files (list of Path) of one DICOM series, a folder or a list, in slice order from the feet up."""
    if isinstance(path, (str, Path)):
        if not Path(path).is_dir():
            raise FileNotFoundError(f"{path} is not a folder of DICOM slices. Check the path.")
        files = [file for file in sorted(Path(path).iterdir()) if _is_dicom(file)]
    else:
        files = [Path(file) for file in path]
    if not files:
        raise ReadError(path, "holds no DICOM slice", "Give the folder that holds the slices themselves")
    headers = [_read_header(file, stop_before_pixels=True) for file in files]
    series = {str(header.get("SeriesInstanceUID", "")) for header in headers}
    if len(series) > 1:
        raise ReadError(files[0].parent, f"holds {len(series)} series", "Keep one series in a folder")
    positions = [_position(header, file) for header, file in zip(headers, files, strict=True)]
    return [files[i] for i in np.argsort(positions, kind="stable")]


def count_slices(path):
    """Number of slices of a volume, frames of a DICOM file or pages of a TIFF; 1 for other pictures."""
    kind = sniff(path)
    if kind == "nifti":
        return len(_nifti_volume(*_identity(path)))
    if kind == "dicom":
        return int(_read_header(path, stop_before_pixels=True).get("NumberOfFrames") or 1)
    with _open_picture(path) as image:
        return getattr(image, "n_frames", 1)


def apply_window(hu, window=LUNG_WINDOW):
    """HU through a window (centre, width) as uint8: its lower edge is 0, its upper edge 255."""
    centre, width = window
    if not width > 0:
        raise ValueError(f"The window's width must be positive. Received: window={window}")
    scaled = (np.asarray(hu, np.float32) - (centre - width / 2)) * (255 / width)
    return np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)


def fit_square(image, size):
    """uint8 (H, W) to uint8 (size, size): centred on black, so that no anatomy is stretched, then resized."""
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image must be uint8 (H, W). Received: {image.dtype} {image.shape}")
    if size < 1:
        raise ValueError(f"size must be at least 1. Received: size={size}")
    height, width = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.uint8)
    square[top : top + height, left : left + width] = image
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))


def _read(path, slice_index):
    """(values, is_hu, own window): float32 HU, or a uint8 picture where is_hu is False."""
    reader = {"dicom": _read_dicom, "nifti": _read_nifti}.get(sniff(path), _read_picture)
    try:
        values, is_hu, window = reader(path, slice_index)
    except ReadError:
        raise
    except Exception as error:  # decoders meet damaged bytes with any exception
        raise ReadError(path, f"is damaged or truncated ({error})", "Copy or download it again") from error
    if values.ndim != 2 or 0 in values.shape:
        raise ReadError(path, f"is not a grey image with pixels (shape {values.shape})")
    if is_hu:
        return np.maximum(np.nan_to_num(values, nan=AIR), AIR, dtype=np.float32), True, window
    return _scale_to_bytes(values), False, window


def _scale_to_bytes(values):
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64))
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:  # nearly constant: what little there is must not vanish
        low, high = values.min(), max(values.max(), values.min() + 1)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _check_index(path, slice_index, count):
    if count == 1:
        return 0
    if not 0 <= slice_index < count:
        raise ReadError(path, f"has slices 0 to {count - 1}. Received: slice_index={slice_index}",
                        "Mend slice_index in the manifest")
    return int(slice_index)


# Pictures

def _open_picture(path):
    try:
        image = Image.open(path, formats=("PNG", "JPEG", "TIFF"))
    except Image.DecompressionBombError as error:
        raise ReadError(path, f"is too large ({error})", "Scale the picture down") from error
    except Exception as error:
        raise ReadError(path, f"has a damaged header ({error})", "Copy or download it again") from error
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ReadError(path, f"is too large ({image.width}x{image.height} pixels)", "Scale the picture down")
    return image


def _read_picture(path, slice_index):
    with _open_picture(path) as image:
        image.seek(_check_index(path, slice_index, getattr(image, "n_frames", 1)))
        image.load()
        if image.mode.startswith("I") or image.mode == "F":
            values = np.asarray(image)
            white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0
            return (values.max() - values if white_is_zero else values), False, None
        if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return np.asarray(image.convert("L")), False, None


# DICOM

def _is_dicom(path):
    try:
        return sniff(path) == "dicom"
    except ReadError:
        return False


def _is_bare_dicom(path):
    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return "Rows" in header and "Columns" in header
    except Exception:
        return False


def _read_header(path, **options):
    try:
        header = pydicom.dcmread(path, force=True, **options)
    except Exception as error:
        raise ReadError(path, f"has a damaged DICOM header ({error})", "Copy or download it again") from error
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header


def _check_ct(header, path):
    modality = str(header.get("Modality") or "")
    storage = UID(str(header.get("SOPClassUID") or "")).keyword
    is_ct = modality == "CT" if modality else "CT" in storage or "Capture" in storage or not storage
    if not is_ct:
        raise ReadError(path, f"is not a CT slice (modality {modality or storage})", "Leave it out")
    if header.get("PixelData") is None:
        raise ReadError(path, "holds no pixel data", "Export the image itself, not its header or DICOMDIR")
    if header.get("SamplesPerPixel", 1) != 1:
        raise ReadError(path, "is a colour picture (a report or a screenshot)", "Leave it out")
    if int(header.get("Rows", 0)) * int(header.get("Columns", 0)) > Image.MAX_IMAGE_PIXELS:
        raise ReadError(path, f"is too large ({header.Columns}x{header.Rows} pixels)")


def _read_dicom(path, slice_index):
    header = _read_header(path)
    _check_ct(header, path)
    index = _check_index(path, slice_index, int(header.get("NumberOfFrames") or 1))
    stored = pixel_array(header, index=index)
    slope, intercept = _rescale(header, index)
    is_hu = intercept is not None or header.get("PixelRepresentation") == 1
    padding = _padding(header, stored)
    if is_hu:
        values = stored * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
        values[padding] = AIR
        return values, True, _own_window(header)
    values = stored.astype(np.float32)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() - values
    if padding.any() and not padding.all():
        values[padding] = values[~padding].min()
    return values, False, None


def _rescale(header, index):
    """(slope, intercept), each None where the header lacks it; enhanced files keep them per frame."""
    places = [header]
    for groups, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        if len(header.get(groups) or []) > item:
            places += header[groups][item].get("PixelValueTransformationSequence") or []
    for place in places:
        if place.get("RescaleIntercept") is not None:
            return place.get("RescaleSlope"), place.RescaleIntercept
    return header.get("RescaleSlope"), None


def _padding(header, stored):
    """bool (H, W): pixels outside the scanned circle, by PixelPaddingValue and its range limit."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    # the tag may be read unsigned where pixels are signed: wrap it as the pixels are
    edges = np.array([value, value if limit is None else limit], np.int64).astype(stored.dtype)
    return (stored >= edges.min()) & (stored <= edges.max())


def _own_window(header):
    def listed(keyword):
        value = header.get(keyword)
        return [float(v) for v in np.atleast_1d(value)] if value not in (None, "") else []

    pairs = zip(listed("WindowCenter"), listed("WindowWidth"), strict=False)
    windows = [(centre, width) for centre, width in pairs if width > 0]
    return min(windows, key=lambda w: abs(w[0] - LUNG_WINDOW[0]), default=LUNG_WINDOW)


def _position(header, path):
    """Millimetres along the slice normal (towards the head in axial slices), else the number given."""
    origin, axes = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if origin and axes and len(origin) == 3 and len(axes) == 6:
        return float(np.dot(np.cross(axes[:3], axes[3:]), origin))
    for keyword in ("SliceLocation", "InstanceNumber"):
        if header.get(keyword) is not None:
            return float(header[keyword].value)
    raise ReadError(path, "says nothing of its place in the series", "Order the slices in a manifest")


# NIfTI

def _gunzip_head(path):
    try:
        with gzip.open(path) as file:
            return file.read(1024)
    except (OSError, EOFError, zlib.error):
        return b""


def _identity(path):
    return str(path), Path(path).stat().st_mtime_ns


def _read_nifti(path, slice_index):
    volume = _nifti_volume(*_identity(path))
    values = volume[_check_index(path, slice_index, len(volume))]
    return values.copy(), bool(volume.min() < 0), LUNG_WINDOW


@functools.lru_cache(maxsize=1)  # slices of one volume are asked for one after another
def _nifti_volume(path, modified):
    """float32 (D, H, W), feet first."""
    with open(path, "rb") as file:
        data = file.read()
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if data.startswith(b"\x1f\x8b") else io.BytesIO(data)
    try:
        head = stream.read(8)
        stream.seek(0)
        kind = nibabel.Nifti2Image if head[4:8] == b"n+2\0" else nibabel.Nifti1Image
        image = kind.from_stream(stream)
        shape = image.shape + (1,) * (3 - len(image.shape))
        shape = shape[:3] if set(shape[3:]) == {1} else shape
        if len(shape) != 3 or 0 in shape or image.get_data_dtype().names or np.prod(shape) > MAX_VOXELS:
            raise ReadError(path, f"is not one grey volume of usual size (shape {image.shape})",
                            "Give a three-dimensional CT volume")
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(path, f"is damaged or truncated ({error})", "Copy or download it again") from error
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, image.affine))
    values = np.asarray(canonical.dataobj)[::-1, ::-1, :]  # right to left, front to back, feet to head
    volume = np.ascontiguousarray(values.transpose(2, 1, 0))
    volume.setflags(write=False)
    return volume
