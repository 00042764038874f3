"""Read one CT slice from PNG, JPEG, TIFF, DICOM or NIfTI, whatever its file is called.

Slices are shown as a radiologist sees them: anterior on top, the patient's right on the left, pixels square.
DICOM and NIfTI hold Hounsfield units (HU) where their header says so and their values agree, see readers.values.
Anything else is a picture of grey values.
"""

from pathlib import Path

from covidlib.readers import dicom, nifti, raster
from covidlib.readers.errors import AGAIN, Companion, NoImage, NotASlice, ReadError, reading
from covidlib.readers.values import AIR, Slice, square_pixels
from covidlib.readers.window import LUNG_WINDOW, apply_window, fit_square

__all__ = ["AIR", "Companion", "LUNG_WINDOW", "NoImage", "NotASlice", "ReadError", "Slice", "apply_window",
           "count_slices", "fit_square", "read", "read_hu", "read_mask", "read_slice", "slice_order", "sniff"]
_FORMATS = "PNG, JPEG, TIFF, DICOM or NIfTI"
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom", ".ima", ".nii", ".gz"}
_OTHER_SUFFIXES = {
    ".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".htm", ".css", ".js", ".pdf", ".rtf", ".doc", ".docx",
    ".odt", ".xls", ".xlsx", ".ods", ".ppt", ".pptx", ".log", ".ini", ".inf", ".yaml", ".yml", ".db", ".py", ".ipynb",
    ".sh", ".bat", ".exe", ".dll", ".lnk", ".url"}
_MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg",
          b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff"}
_HEAD = 2**14  # bytes


def sniff(path):
    """Format by content: "png", "jpeg", "tiff", "dicom" or "nifti"; ReadError for anything else.

    NoImage for text, documents and programs.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Check the path and data_root.")
    if path.is_dir():
        raise ReadError(path, "is a folder, not an image", "Give one file, or use volume.read_volume for a series")
    if not path.is_file():
        raise ReadError(path, "is no regular file")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
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
    suffix = path.suffix.lower()
    if suffix in _OTHER_SUFFIXES or (suffix not in _IMAGE_SUFFIXES and _is_text(head)):
        raise NoImage(path, f"is not {_FORMATS} but another kind of file (begins with {head[:8]!r})", "Leave it out")
    raise ReadError(path, f"is not {_FORMATS} (begins with {head[:8]!r})")


def _is_text(head):
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t\f\ufeff" for character in text)


def read(path, slice_index=0, mask=False, square=True):
    """The Slice of a file, with bool values where it is a `mask`, as it is stored unless `square`; see `read_slice`."""
    reader = _reader(path)
    with reading(path):
        found = reader.read(Path(path), slice_index, mask)
        if found.values.ndim != 2:
            raise ReadError(path, f"is not a grey image (shape {found.values.shape})")
        squared = square_pixels(path, found.values, found.spacing) if square else found.values
        return found._replace(values=squared, stored=found.values.shape)


def read_slice(path, slice_index=0, window=LUNG_WINDOW):
    """One slice of any format as grey uint8 (H, W).

    HU are seen through `window` (centre, width); None takes the file's own window, of several the one nearest the lung
    window. Colours become grey (ITU-R 601), transparent parts black; pictures of more than 8 bits are scaled by their
    own range (0.1 to 99.9 %). `slice_index` counts slices of a volume, frames or pages; a file of one slice ignores
    it. Raises FileNotFoundError, and ReadError for a file that is damaged, too large or no CT slice (NotASlice).
    """
    return read(path, slice_index).picture(window)


def read_hu(path, slice_index=0, square=True):
    """One slice of a DICOM or NIfTI file as float32 (H, W) in HU; padding and all below air is -1024.

    `square`: whether pixels are made square. ReadError where the values are no HU.
    """
    found = read(path, slice_index, square=square)
    if not found.is_hu:
        why = f" ({found.remark})" if found.remark else ""
        raise ReadError(path, f"holds grey values, not Hounsfield units{why}",
                        "Use read_slice, or export it from the scanner's own DICOM")
    return found.values


def read_mask(path, slice_index=0):
    """bool (H, W): where a slice drawn in any of the formats is above 0, whatever the colour; pixels square."""
    return read(path, slice_index, mask=True).values


def slice_order(path):
    """Indices of a file's slices from the feet up; [0] for a file of one slice, pages of a TIFF as they follow.

    ReadError for a DICOM file with frames of several phases at one place.
    """
    reader = _reader(path)
    with reading(path):
        return reader.slice_order(Path(path))


def count_slices(path):
    """Number of axial slices of a volume, frames of a DICOM file or pages of a TIFF. Raises as `slice_order`."""
    return len(slice_order(path))


def _reader(path):
    return {"dicom": dicom, "nifti": nifti}.get(sniff(path), raster)
