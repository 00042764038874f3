"""What a JPEG, JPEG-LS or JPEG 2000 stream says of its size (ITU-T T.81 annex B, T.800 annex A).

Native decoders allocate what the stream asks for, and pass over the whole image for each of its scans: a damaged one
may ask for gigabytes or for minutes.
"""

from covidlib.readers.errors import AGAIN, ReadError

MAX_SCANS = 100

_SOF = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def stated_size(data):
    """(rows, columns) of a compressed image (bytes), or None where it is no JPEG."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 1024)
    if start >= 0:
        edge = [int.from_bytes(data[start + at:start + at + 4]) for at in (8, 12, 16, 20)]
        return edge[1] - edge[3], edge[0] - edge[2]
    if not data.startswith(b"\xff\xd8"):
        return None
    at = next(_frames(data), None)
    return at and (int.from_bytes(data[at + 5:at + 7]), int.from_bytes(data[at + 7:at + 9]))


def _frames(data):
    """Where the headers of frames (SOF) begin in a JPEG stream."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in _SOF:
            yield at
        at += 1 if marker == 0xFF else 2 if marker in _BARE else 2 + int.from_bytes(data[at + 2:at + 4])


def check_scans(data, path):
    """ReadError for a JPEG of more than MAX_SCANS scans; progressive ones have about ten."""
    scans = data.count(b"\xff\xda")
    if data.startswith(b"\xff\xd8") and scans > MAX_SCANS:
        raise ReadError(path, f"is damaged ({scans} scans in one JPEG image)", AGAIN)


def unusual(data):
    """What a JPEG file (bytes) is that Pillow does not read, "" for one that it reads."""
    if not data.startswith(b"\xff\xd8"):
        return ""
    at = next(_frames(data), None)
    marker, precision = (data[at + 1], data[at + 4]) if at else (None, 8)
    kind = {0xC3: "a lossless JPEG", 0xF7: "a JPEG-LS"}.get(marker, "a JPEG" if marker in _SOF else "")
    plain = marker in (None, 0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and precision == 8
    return "" if plain else f"{kind} of {precision} bits"
