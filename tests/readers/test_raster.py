"""Pictures of every depth, turned as they say, and what is said of those that cannot be read."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from bodies import CORNER, LUNG, TISSUE, chest
from PIL import Image

from covidlib import readers
from covidlib.readers.errors import ReadError

HU = chest()
GREY = readers.apply_window(HU)


def write_png(path, pixels, kind, chunks=()):
    """A PNG of 16 bits: kind 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*one) for one in chunks)
                     + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    return path


def stacked(values, kind):
    alpha = np.full(values.shape, 65535)
    alpha[:5] = 0
    return np.stack({0: [values], 2: [values] * 3, 4: [values, alpha], 6: [values, values, values, alpha]}[kind], -1)


@pytest.mark.parametrize("bits", [12, 14, 16])
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_values_of_12_and_14_bits_are_seen_whatever_the_channels(tmp_path, bits, kind):
    values = (HU.astype(int) + 1024) << (bits - 12)
    plain = readers.read_slice(write_png(tmp_path / "grey.png", values[..., None], 0)).astype(int)
    seen = readers.read_slice(write_png(tmp_path / "a.png", stacked(values, kind), kind)).astype(int)
    assert plain[TISSUE] - plain[LUNG] > 80
    assert abs(seen - plain)[6:].max() <= 3  # without transparent lines the range is another by a little
    if kind in (4, 6):
        assert not seen[:5].any()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_wide_colours(tmp_path, compression, order):
    values = np.repeat((HU + 1024).astype(np.uint16)[..., None], 3, 2)
    tifffile.imwrite(tmp_path / "grey.tif", values[..., 0], photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression=compression, byteorder=order)
    np.testing.assert_array_equal(readers.read_slice(tmp_path / "a.tif"), readers.read_slice(tmp_path / "grey.tif"))


@pytest.mark.parametrize("kind, add", [(np.int8, 0), (np.uint32, 2**31), (np.int32, -5000), (np.float32, 0)])
def test_numbers_keep_their_sign(tmp_path, kind, add):
    values = (GREY.astype(np.int64) - 128 + add).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    seen = readers.read_slice(tmp_path / "a.tif").astype(int)
    assert seen[TISSUE] > seen[LUNG] + 100 and seen[LUNG] > seen[CORNER]


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_270}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "wide.png"])
def test_orientation_tags_are_followed(tmp_path, turn, name):
    marked = GREY.copy()
    marked[:8, :20] = 210
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(marked).transpose(TURNS[turn])
    if name == "wide.png":
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 16)
    stored.save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
    seen = readers.read_slice(tmp_path / name).astype(float)
    assert np.corrcoef(seen.ravel(), marked.ravel())[0, 1] > 0.999


def test_masks_of_any_colour_and_depth(tmp_path):
    drawn = np.zeros((32, 32), bool)
    drawn[5:20, 8:30] = True
    red = np.zeros((32, 32, 3), np.uint8)
    red[drawn] = 200, 0, 0
    labels = np.uint8(drawn) * (1 + np.arange(32, dtype=np.uint8) % 10)
    for n, pixels in enumerate([red, labels, np.uint8(drawn), np.uint16(drawn), np.uint16(drawn) * 500]):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        np.testing.assert_array_equal(readers.read_mask(tmp_path / f"{n}.png"), drawn)
    for value in (1, 255):
        Image.fromarray(np.full((32, 32), value, np.uint8)).save(tmp_path / "all.png")
        assert readers.read_mask(tmp_path / "all.png").all()


@pytest.mark.parametrize("kind, what", [(np.float64, "64-bit floating point"), (np.float16, "16-bit floating point"),
                                        (np.uint64, "64-bit unsigned"), (np.complex64, "64-bit complex")])
def test_sound_files_that_are_not_read_are_not_called_damaged(tmp_path, kind, what):
    tifffile.imwrite(tmp_path / "a.tif", HU.astype(kind), photometric="minisblack")
    with pytest.raises(ReadError, match=f"is sound, but a TIFF of {what}.*float32"):
        readers.read_slice(tmp_path / "a.tif")


def test_jpegs_of_other_kinds_are_not_called_damaged(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.jpg")
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    start = data.index(b"\xff\xc0")
    for marker, precision, what in ((0xC1, 12, "a JPEG of 12 bits"), (0xC3, 16, "a lossless JPEG of 16 bits"),
                                    (0xF7, 8, "a JPEG-LS of 8 bits")):
        data[start + 1], data[start + 4] = marker, precision
        (tmp_path / "b.jpg").write_bytes(data)
        with pytest.raises(ReadError, match=f"is sound, but {what} is not read here"):
            readers.read_slice(tmp_path / "b.jpg")


def test_damaged_tags_of_a_tiff_are_not_called_sound(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", (HU + 1024).astype(np.uint16), photometric="minisblack")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    at = data.index(struct.pack("<HHI", 256, 4 if b"\0\1\4\0" in data else 3, 1))
    data[at + 8:at + 12] = bytes(4)
    (tmp_path / "b.tif").write_bytes(data)
    with pytest.raises(ReadError, match="damaged header|no pixels"):
        readers.read_slice(tmp_path / "b.tif")
