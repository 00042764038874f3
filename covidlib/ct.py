"""Read one CT slice from PNG, JPEG, TIFF, DICOM or NIfTI, whatever its file is called.

Slices are shown as a radiologist sees them: anterior on top, the patient's right on the left.
Values in Hounsfield units (HU) are trusted where the file can hold them: DICOM with rescale tags
or signed pixels (slope 1 and intercept 0 where the header gives none) and NIfTI with negative
values. Anything else is a picture of grey values, for which no HU are invented.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from covidlib.formats import AGAIN, NotASlice, ReadError, dicom, nifti, pictures, reading
from covidlib.formats.dicom import AIR

__all__ = ["AIR", "FORMATS", "LUNG_WINDOW", "NotASlice", "ReadError", "apply_window", "count_slices", "fit_square",
           "read_hu", "read_slice", "sniff"]
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU
FORMATS = "PNG, JPEG, TIFF, DICOM or NIfTI"
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}
_READERS = {"dicom": dicom, "nifti": nifti}


def sniff(path):
    """Format by content: "png", "jpeg", "tiff", "dicom" or "nifti"; ReadError for anything else."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Check the path and data_root.")
    if path.is_dir():
        raise ReadError(path, "is a folder, not an image", "Give one file, or use volumes.read_volume for a series")
    if not path.is_file():
        raise ReadError(path, "is no regular file")
    try:
        with open(path, "rb") as file:
            head = file.read(2**14)
    except OSError as error:
        raise ReadError(path, f"cannot be opened ({error.strerror})", "Check permissions") from error
    if not head:
        raise ReadError(path, "is empty (0 bytes)", AGAIN)
    if head[128:132] == b"DICM":
        return "dicom"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if nifti.is_nifti(head):
        return "nifti"
    if head[:2] in (b"\x08\0", b"\x02\0", b"\0\x08") and dicom.is_bare(path):
        return "dicom"
    raise ReadError(path, f"is not {FORMATS} (begins with {head[:8]!r})")


def read_slice(path, slice_index=0, window=LUNG_WINDOW):
    """One slice of any format as grey uint8 (H, W).

    HU are seen through `window` (centre, width); None takes the file's own window, of several the one
    nearest the lung window. Pictures become grey (ITU-R 601), transparent parts black. Those with more
    than 8 bits are scaled by their own range (0.1 to 99.9 %): no HU are guessed from them.
    `slice_index` counts slices of a volume or pages of a TIFF; a file of one slice ignores it. Raises
    ReadError for a file that is damaged, too large or no CT slice (NotASlice), and FileNotFoundError.
    """
    values, is_hu, own_windows = _read(path, slice_index)
    if not is_hu:
        return values
    if window is None:
        window = min(own_windows or [], key=lambda own: abs(own[0] - LUNG_WINDOW[0]), default=LUNG_WINDOW)
    return apply_window(values, window)


def read_hu(path, slice_index=0):
    """One slice of a DICOM or NIfTI file as float32 (H, W) in HU; padding and all below air is -1024."""
    values, is_hu, _ = _read(path, slice_index)
    if not is_hu:
        raise ReadError(path, "holds grey values, not Hounsfield units (no rescale tags, or no negative values)",
                        "Use read_slice, or export it from the scanner's own DICOM")
    return values


def count_slices(path):
    """Number of axial slices of a volume, frames of a DICOM file or pages of a TIFF; 1 for other pictures."""
    reader = _READERS.get(sniff(path), pictures)
    with reading(path):
        return reader.count(Path(path))


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
    """(values, is_hu, own windows): float32 HU, or a uint8 picture where is_hu is False."""
    reader = _READERS.get(sniff(path), pictures)
    with reading(path):
        values, is_hu, windows = reader.read(Path(path), slice_index)
        if values.ndim != 2 or 0 in values.shape:
            raise ReadError(path, f"is not a grey image with pixels (shape {values.shape})")
        if is_hu:
            return np.maximum(np.nan_to_num(values, nan=AIR), AIR, dtype=np.float32), True, windows
        return _scale_to_bytes(values), False, None


def _scale_to_bytes(values):
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values.astype(np.float64))
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:  # nearly constant: what little there is must not vanish
        low, high = values.min(), max(values.max(), values.min() + 1)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
