"""NIfTI volumes (https://nifti.nimh.nih.gov), one file, plain or gzipped, in any orientation.

The stored values are kept as they are and scaled slice by slice: a volume in float32 takes twice the memory.
"""

import gzip
import math
import zlib

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage

from covidlib.readers.errors import AGAIN, MAX_BYTES, ReadError, check_index, check_size, held
from covidlib.readers.values import Slice, assess_hu, fill_padding, to_bytes

MAX_OFFSET = 2**24
_CHUNK = 2**20
_ASSESSED = 32  # slices by which a volume is assessed


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
    return list(range(len(_layout(path)[0])))


def spacing(path):
    """Millimetres between slices, rows and columns."""
    return _layout(path)[1]


def _layout(path):
    """As `to_axial`, of voxels that are not read."""
    with _open(path) as stream:
        header, shape = _header(stream, path)
    return to_axial(np.broadcast_to(np.int8(0), shape), _affine(header))


def to_axial(values, affine):
    """(view (D, H, W) of (x, y, z): feet to head, front to back, patient's right to left; its spacing (3,) in mm).

    affine: (4, 4), from indices to millimetres towards the patient's left, back and head, as in DICOM.
    """
    image = nibabel.as_closest_canonical(SpatialImage(values, affine))
    return image.dataobj.T, tuple(nibabel.affines.voxel_sizes(image.affine)[::-1].tolist())


def _affine(header):
    """Of the header's affines the best that has a volume: sform, qform, voxel sizes alone; as in `to_axial`."""
    for find in (header.get_best_affine, lambda: header.get_qform(coded=True)[0], header.get_base_affine):
        try:
            affine = find()
        except ValueError:  # a quaternion that turns nothing
            continue
        if affine is not None and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
            return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return np.diag([1.0, -1.0, 1.0, 1.0])


def read(path, slice_index, mask=False):
    """The Slice of an index, in HU where the values of the whole volume look like it.

    mask: whether it is bool instead: stored values above 0, whatever scale the header has left of a CT.
    """
    stored, scale, is_hu, remark, mm = held(_load, path)
    stored = stored[check_index(path, slice_index, len(stored))]
    if mask:
        return Slice(stored > 0, spacing=mm)
    values = _scaled(stored, *scale)
    return Slice(fill_padding(values) if is_hu else to_bytes(values), is_hu, remark=remark, spacing=mm)


def _scaled(stored, slope, intercept):
    return stored * np.float32(slope) + np.float32(intercept)


def _load(path):
    """(stored values (D, H, W), (slope, intercept), whether these are HU, why not, spacing of rows and columns)"""
    with _open(path) as stream:
        header, shape = _header(stream, path)
        dtype, size = header.get_data_dtype(), math.prod(shape)
        offset = int(header["vox_offset"]) - stream.tell()
        if not 0 <= offset <= MAX_OFFSET:
            raise ReadError(path, f"is damaged (its voxels begin at {header['vox_offset']})", AGAIN)
        stream.read(offset)
        values = np.empty(size, dtype.newbyteorder("=") if dtype.itemsize <= 4 else np.float32)
        for start in range(0, size, _CHUNK):
            part = values[start:start + _CHUNK]
            data = stream.read(part.size * dtype.itemsize)
            if len(data) < part.size * dtype.itemsize:
                raise ReadError(path, f"is truncated after {start} of {size} voxels", AGAIN)
            part[:] = np.frombuffer(data, dtype)
        if len(stream.read(_CHUNK)) == _CHUNK:  # less than that is padding, and at its end gzip compares its checksum
            raise ReadError(path, f"is damaged (it holds more than its {size} voxels)", AGAIN)
    stored, mm = to_axial(values.reshape(shape, order="F"), _affine(header))
    stored.setflags(write=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not (math.isfinite(slope) and slope):  # the stored values stand for themselves
        slope, intercept = 1.0, 0.0
    scale = slope, intercept if math.isfinite(intercept) else 0.0
    some = stored[:: max(1, len(stored) // _ASSESSED, stored.size >> 23)]  # float32 takes memory
    looks, remark = assess_hu(_scaled(some, *scale))
    return stored, scale, bool(looks), remark, mm[1:]


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
