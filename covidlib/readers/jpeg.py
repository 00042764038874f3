"""What a JPEG, JPEG-LS or JPEG 2000 stream says of itself (ITU-T T.81 annex B, T.800 annex A).

Native decoders allocate what the stream asks for, and pass over the whole image for each of its scans: a damaged one
may ask for gigabytes or for minutes.
"""

from covidlib.readers.errors import AGAIN, ReadError

MAX_SCANS = 100
_JPEG_2000, _JPEG = b"\xff\x4f\xff\x51", b"\xff\xd8"
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_FRAME_MARKERS = {*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}  # without a length
_PILLOW_READS = 0xC0, 0xC1, 0xC2, 0xC9, 0xCA


def stated_size(data):
    """(rows, columns) of a compressed image (bytes), or None where it is no JPEG."""
    start = data.find(_JPEG_2000, 0, 1024)
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(data[start + at:start + at + 4]) for at in (8, 12, 16, 20))
        return bottom - top, right - left
    frame = _frame_header(data)
    return frame and frame[2:]


def _frame_header(data):
    """(marker, bits, rows, columns) of the first frame (SOF) of a JPEG stream, None where there is none."""
    at = 2
    while data.startswith(_JPEG) and at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at += 1
        elif marker in _FRAME_MARKERS:
            return marker, data[at + 4], int.from_bytes(data[at + 5:at + 7]), int.from_bytes(data[at + 7:at + 9])
        else:
            at += 2 if marker in _BARE_MARKERS else 2 + int.from_bytes(data[at + 2:at + 4])
    return None


def check_scans(data, path):
    """ReadError for a JPEG of more than MAX_SCANS scans; progressive ones have about ten."""
    scans = data.count(b"\xff\xda")
    if data.startswith(_JPEG) and scans > MAX_SCANS:
        raise ReadError(path, f"is damaged ({scans} scans in one JPEG image)", AGAIN)


def unsupported(data):
    """What a JPEG file (bytes) is that Pillow does not read, "" for one that it reads."""
    marker, bits, *_ = _frame_header(data) or (_PILLOW_READS[0], 8)
    kind = {_LOSSLESS: "a lossless JPEG", _JPEG_LS: "a JPEG-LS"}.get(marker, "a JPEG")
    return "" if marker in _PILLOW_READS and bits == 8 else f"{kind} of {bits} bits"
