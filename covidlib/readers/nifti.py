"""NIfTI volumes (https://nifti.nimh.nih.gov), one file, plain or gzipped, in any orientation.

The stored values are kept as they are and scaled slice by slice: a volume in float32 takes twice the memory.
"""

import gzip
import math
import zlib
from typing import NamedTuple

import nibabel
import numpy as np

from covidlib.readers.errors import AGAIN, MAX_BYTES, ReadError, check_index, check_size, held
from covidlib.readers.values import Decoded, assess_hu, fill_padding

MAX_OFFSET = 2**24
_CHUNK = 2**20
_JUDGED = 32  # slices by which a volume is judged


class Volume(NamedTuple):
    """`stored` (D, H, W) feet first, patient's right on the left, anterior on top; HU = stored * slope + intercept."""

    stored: np.ndarray
    slope: float
    intercept: float
    is_hu: bool
    spacing: tuple[float, float]
    remark: str


def is_nifti(head):
    """Whether a file's first kilobyte, plain or gzipped, is a NIfTI header."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 1024)
        except zlib.error:
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"


def slice_order(path):
    """Indices of the axial slices from the feet up."""
    with _open(path) as stream:
        header, shape = _header(stream, path)
    return list(range(_upright(np.broadcast_to(np.int8(0), shape), _affine(header)).shape[0]))


def spacing(path):
    """Millimetres between slices, rows and columns."""
    with _open(path) as stream:
        return _spacing(_affine(_header(stream, path)[0]))


def _spacing(affine):
    order = list(nibabel.orientations.io_orientation(affine)[:, 0])
    sizes = nibabel.affines.voxel_sizes(affine)
    return tuple(float(sizes[order.index(axis)]) for axis in (2, 1, 0))


def _affine(header):
    """The header's best affine that has a volume: its sform, its qform, or that of its voxel sizes alone."""
    for find in (header.get_best_affine, lambda: header.get_qform(coded=True)[0], header.get_base_affine):
        try:
            affine = find()
        except ValueError:  # a quaternion that turns nothing
            continue
        if affine is not None and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
            return affine
    return np.diag([-1.0, 1.0, 1.0, 1.0])


def read(path, slice_index):
    """Decoded values of a slice: float32, in HU where those of the whole volume look like it."""
    volume = load(path)
    values = _scaled(volume.stored[check_index(path, slice_index, len(volume.stored))], volume.slope, volume.intercept)
    if volume.is_hu:
        return Decoded(fill_padding(values), True, spacing=volume.spacing)
    return Decoded(values, spacing=volume.spacing, remark=volume.remark)


def read_mask(path, slice_index):
    """Decoded bool values of a slice: where what is stored is above 0, whatever its header has left of a CT's scale."""
    volume = load(path)
    stored = volume.stored[check_index(path, slice_index, len(volume.stored))]
    return Decoded(stored > 0, spacing=volume.spacing)


def _scaled(stored, slope, intercept):
    return stored * np.float32(slope) + np.float32(intercept)


def load(path):
    """Volume of a file, held until another one is read."""
    return held(_load, path)


def _load(path):
    with _open(path) as stream:
        header, shape = _header(stream, path)
        dtype, size = header.get_data_dtype(), math.prod(shape)
        slope, intercept = _slope_and_intercept(header)
        keep = dtype.newbyteorder("=") if dtype.itemsize <= 4 else np.dtype(np.float32)
        offset = int(header["vox_offset"]) - stream.tell()
        if not 0 <= offset <= MAX_OFFSET:
            raise ReadError(path, f"is damaged (its voxels begin at {header['vox_offset']})", AGAIN)
        stream.read(offset)
        values = np.empty(size, keep)
        for start in range(0, size, _CHUNK):
            part = values[start:start + _CHUNK]
            data = stream.read(len(part) * dtype.itemsize)
            if len(data) < len(part) * dtype.itemsize:
                raise ReadError(path, f"is truncated after {start} of {size} voxels", AGAIN)
            part[:] = np.frombuffer(data, dtype)
        if len(stream.read(_CHUNK)) == _CHUNK:  # less than that is padding, and at its end gzip compares its checksum
            raise ReadError(path, f"is damaged (it holds more than its {size} voxels)", AGAIN)
    affine = _affine(header)
    stored = _upright(values.reshape(shape, order="F"), affine)
    stored.setflags(write=False)
    some = stored[:: max(1, len(stored) // _JUDGED, stored.size >> 23)]  # float32 takes memory
    looks, remark = assess_hu(_scaled(some, slope, intercept))
    return Volume(stored, slope, intercept, bool(looks), _spacing(affine)[1:], remark)


def _slope_and_intercept(header):
    """As the header has them, where they are numbers that scale; else the stored values stand for themselves."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not (math.isfinite(slope) and slope):
        return 1.0, 0.0
    return slope, intercept if math.isfinite(intercept) else 0.0


def _open(path):
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def _header(stream, path):
    """(nibabel header, (x, y, z)); the stream stands behind the header."""
    head = stream.read(348)
    second = head[4:8] == b"n+2\0"
    header = nibabel.Nifti2Header(head + stream.read(192)) if second else nibabel.Nifti1Header(head)
    if bytes(header["magic"])[:3] == b"ni1":
        raise ReadError(path, "is the header of a NIfTI pair", "Convert .hdr and .img to one .nii file")
    full = tuple(int(length) for length in header.get_data_shape())
    shape = (*full, 1, 1)[:3]
    dtype = header.get_data_dtype()
    if math.prod(full[3:]) != 1 or not full or dtype.kind not in "iuf":
        raise ReadError(path, f"is not one grey volume (shape {full}, {dtype})", "Give a three-dimensional CT volume")
    for height, width, depth in (shape, shape[1:] + shape[:1], shape[2:] + shape[:2]):
        check_size(path, height, width, depth)
    if math.prod(shape) * min(dtype.itemsize, 4) > MAX_BYTES:
        raise ReadError(path, f"is too large (shape {shape}, {dtype})", "Split the volume or store it as int16")
    return header, shape


def _upright(values, affine):
    """A view (D, H, W) of (x, y, z) as stored: feet to head, front to back, patient's right to left."""
    axes = nibabel.orientations.io_orientation(affine)
    return nibabel.orientations.apply_orientation(values, axes)[::-1, ::-1, :].transpose(2, 1, 0)
