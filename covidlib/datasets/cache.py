"""Decoded images on disk: an .npy file that appears complete, sealed by a checksum, or not at all."""

import functools
import math
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from covidlib.datasets.near_duplicates import THUMBNAIL
from covidlib.utils.files import orphans, owned, require_room, require_writable

DECODING = ".decoding."  # begins the name of a file until it is whole; the process that writes it follows
_SEALED = 0x2144DF1C  # the CRC-32 of everything that ends with its own


class ImageWriter:
    """A context in which images (S, S) are written one after another; `keep` puts the file in its place."""

    def __init__(self, folder, image_size, length):
        self.folder, self.shape, self.written = Path(folder), (length, image_size, image_size), 0

    def __enter__(self):
        require_writable(self.folder)
        for left in orphans(self.folder, DECODING):
            left.unlink(missing_ok=True)
        require_room(self.folder, math.prod(self.shape) + self.shape[0] * THUMBNAIL**2)
        self.file = tempfile.NamedTemporaryFile(dir=self.folder, prefix=owned(DECODING), suffix=".npy", delete=False)
        self._write_header(self.shape[0])
        return self

    def write(self, image):
        self.file.write(np.asarray(image, np.uint8).tobytes())
        self.written += 1

    def keep(self, path):
        """Move the file to `path`; there may be fewer images than were planned for."""
        self.file.seek(0)
        self._write_header(self.written)
        self.file.close()
        with open(self.file.name, "ab") as file:
            file.write(_crc(self.file.name).to_bytes(4, "little"))
        os.chmod(self.file.name, 0o644)
        os.replace(self.file.name, path)

    def _write_header(self, length):
        """NumPy leaves room in it for any length."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (length, *self.shape[1:])}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __exit__(self, *_):
        self.file.close()
        Path(self.file.name).unlink(missing_ok=True)


def is_whole(path, shape):
    """Whether an .npy file holds uint8 of this shape, undamaged."""
    try:
        found = np.load(path, mmap_mode="r")
        return found.shape == shape and found.dtype == np.uint8 and _is_sealed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, EOFError):
        return False


@functools.lru_cache(maxsize=64)  # once in a process: a large cache takes a second for every gigabyte
def _is_sealed(path, modified):
    return _crc(path) == _SEALED


def _crc(path):
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            crc = zlib.crc32(part, crc)
    return crc
