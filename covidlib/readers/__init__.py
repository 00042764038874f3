"""Read one CT slice from PNG, JPEG, TIFF, DICOM or NIfTI, whatever its file is called.

Slices are shown as a radiologist sees them: anterior on top, the patient's right on the left, pixels square.
Values in Hounsfield units (HU) are trusted where the file can hold them and they look like it, see formats.values:
DICOM with rescale tags or signed pixels, and NIfTI. Anything else is a picture of grey values, for which no HU are
invented.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from covidlib.readers import dicom, nifti, raster, values
from covidlib.readers.errors import AGAIN, Companion, NoImage, NotASlice, ReadError, reading
from covidlib.readers.values import AIR

__all__ = ["AIR", "FORMATS", "Companion", "LUNG_WINDOW", "NoImage", "NotASlice", "ReadError", "Slice", "apply_window",
           "count_slices", "fit_square", "read", "read_hu", "read_mask", "read_slice", "slice_order", "sniff"]
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU
FORMATS = "PNG, JPEG, TIFF, DICOM or NIfTI"
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".nii", ".gz"}
_OTHERS = {".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".rtf", ".doc",
           ".docx", ".odt", ".xls", ".xlsx", ".ods", ".ppt", ".pptx", ".log", ".ini", ".inf", ".yaml", ".yml", ".db",
           ".py", ".ipynb", ".sh", ".bat", ".exe", ".dll", ".lnk", ".url"}
_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff",
}
_READERS = {"dicom": dicom, "nifti": nifti}


def sniff(path):
    """Format by content: "png", "jpeg", "tiff", "dicom" or "nifti"; ReadError for anything else.

    NoImage for what is neither meant nor named to be an image: text, documents, programs.
    """
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
    if path.suffix.lower() in _OTHERS or (path.suffix.lower() not in _SUFFIXES and _is_text(head)):
        raise NoImage(path, f"is not {FORMATS} but another kind of file (begins with {head[:8]!r})", "Leave it out")
    raise ReadError(path, f"is not {FORMATS} (begins with {head[:8]!r})")


def _is_text(head):
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < 2**14 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text)


class Slice(NamedTuple):
    """values (H, W), with square pixels: float32 in HU where `is_hu`, else uint8 grey; windows: the file's own;
    remark: why they are no HU though the format could hold them, or what else is doubtful, "" for nothing; stored:
    (H, W) before pixels were made square."""

    values: np.ndarray
    is_hu: bool
    windows: list
    remark: str
    stored: tuple[int, int]

    def picture(self, window=LUNG_WINDOW):
        """uint8 (H, W); HU through `window` (centre, width), None for the file's own nearest the lung window."""
        if not self.is_hu:
            return self.values
        if window is None:
            window = min(self.windows, key=lambda own: abs(own[0] - LUNG_WINDOW[0]), default=LUNG_WINDOW)
        return apply_window(self.values, window)


def read(path, slice_index=0):
    """The Slice of a file. Raises as `read_slice`."""
    return _read(path, slice_index, True)


def read_slice(path, slice_index=0, window=LUNG_WINDOW):
    """One slice of any format as grey uint8 (H, W).

    HU are seen through `window` (centre, width); None takes the file's own window, of several the one
    nearest the lung window. Pictures become grey (ITU-R 601), transparent parts black. Those with more
    than 8 bits are scaled by their own range (0.1 to 99.9 %): no HU are guessed from them.
    `slice_index` counts slices of a volume or pages of a TIFF; a file of one slice ignores it. Raises
    ReadError for a file that is damaged, too large or no CT slice (NotASlice), and FileNotFoundError.
    """
    return read(path, slice_index).picture(window)


def read_hu(path, slice_index=0, square=True):
    """One slice of a DICOM or NIfTI file as float32 (H, W) in HU; padding and all below air is -1024.

    `square`: whether pixels are made square. ReadError where the values are no HU.
    """
    found = _read(path, slice_index, square)
    if not found.is_hu:
        why = f" ({found.remark})" if found.remark else ""
        raise ReadError(path, f"holds grey values, not Hounsfield units{why}",
                        "Use read_slice, or export it from the scanner's own DICOM")
    return found.values


def read_mask(path, slice_index=0):
    """bool (H, W): where a slice drawn in any of the formats is above 0, whatever the colour; pixels square."""
    reader = _reader(path)
    with reading(path):
        found = reader.read_mask(Path(path), slice_index)
        return _squared(path, np.uint8(found.values), found.spacing, nearest=True) > 0


def slice_order(path):
    """Indices of a file's slices in the order of the body, from the feet up; [0] for a file of one slice.

    NIfTI slices are counted in that order already; frames of a DICOM file lie as they were stored, and are ordered by
    their places; pages of a TIFF follow one another.
    """
    reader = _reader(path)
    with reading(path):
        return reader.slice_order(Path(path))


def count_slices(path):
    """Number of axial slices of a volume, frames of a DICOM file or pages of a TIFF; 1 for other pictures.

    Raises as `slice_order`, which refuses frames of several phases at one place.
    """
    return len(slice_order(path))


def apply_window(hu, window=LUNG_WINDOW):
    """HU through a window (centre, width) as uint8: its lower edge is 0, its upper edge 255."""
    centre, width = window
    if not width > 0:
        raise ValueError(f"The window's width must be positive. Received: window={window}")
    scaled = (np.asarray(hu, np.float32) - (centre - width / 2)) * (255 / width)
    return np.rint(np.fmin(np.fmax(scaled, 0), 255)).astype(np.uint8)  # what is no number becomes 0


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


def _reader(path):
    return _READERS.get(sniff(path), raster)


def _read(path, slice_index, square):
    reader = _reader(path)
    with reading(path):
        found = reader.read(Path(path), slice_index)
        shape = found.values.shape
        if len(shape) != 2 or 0 in shape:
            raise ReadError(path, f"is not a grey image with pixels (shape {shape})")
        seen = found.values if found.is_hu else values.to_bytes(found.values, found.padding)
        if square:
            seen = _squared(path, seen, found.spacing)
        return Slice(seen, found.is_hu, found.windows, found.remark, shape)


def _squared(path, seen, spacing, nearest=False):
    try:
        return values.square_pixels(seen, spacing, nearest)
    except ValueError as error:
        raise ReadError(path, str(error), "Mend PixelSpacing, or resample it") from error
