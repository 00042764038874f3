"""Small sound files of every kind, made here, for the fuzzer to damage; and small real ones where they are at hand."""

import gzip
import io
import struct
import sys
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from pydicom import uid

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bodies import image_bytes, run_lengths, write_dicom  # noqa: E402

SIDE = 48


def make(folder, real=None):
    """Paths of the seeds written to `folder`; `real` is a folder of real CT images, of which small ones are added."""
    rng = np.random.default_rng(0)
    wide = (rng.integers(0, 60, (3, SIDE, SIDE)) + 20 * np.arange(SIDE)).astype(np.uint16)
    grey = (wide[0] >> 3).astype(np.uint8)
    files = {**_pictures(grey, wide), **_niftis(wide), **_dicoms(grey, wide)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    paths = [folder / name for name in files]
    return paths + (_real(real) if real else [])


def _pictures(grey, wide):
    image, colour = Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))
    pages = [Image.fromarray(page) for page in wide]
    return {
        "grey.png": image_bytes(image, "png"), "palette.png": image_bytes(image.convert("P"), "png", transparency=0),
        "rgba.png": image_bytes(colour.convert("RGBA"), "png"), "wide.png": image_bytes(pages[0], "png"),
        "grey.jpg": image_bytes(image, "jpeg"), "progressive.jpg": image_bytes(colour, "jpeg", progressive=True),
        "cmyk.jpg": image_bytes(colour.convert("CMYK"), "jpeg"), "wide.tif": image_bytes(pages[0], "tiff"),
        "pages.tif": image_bytes(pages[0], "tiff", save_all=True, append_images=pages[1:], compression="tiff_lzw"),
        "deflate.tif": image_bytes(colour, "tiff", compression="tiff_adobe_deflate"),
        "jpeg.tif": image_bytes(colour, "tiff", compression="jpeg"),
        "float.tif": image_bytes(pages[0].convert("F"), "tiff"),
    }


def _niftis(wide):
    first = nibabel.Nifti1Image(wide.astype(np.int16).T - 1000, np.diag([-0.7, -0.7, 2, 1])).to_bytes()
    second = nibabel.Nifti2Image(wide.astype(np.float64).T - 1000, np.diag([0.7, 0.7, 2, 1])).to_bytes()
    return {"first.nii": first, "second.nii": second, "first.nii.gz": gzip.compress(first, mtime=0)}


def _dicoms(grey, wide):
    lossless = lossless_jpeg(wide[0])
    made = {
        "explicit.dcm": _dicom(wide[0], uid.ExplicitVRLittleEndian),
        "implicit.dcm": _dicom(wide[0], uid.ImplicitVRLittleEndian),
        "deflated.dcm": _dicom(wide[0], uid.DeflatedExplicitVRLittleEndian),
        "frames.dcm": _dicom(wide, uid.ExplicitVRLittleEndian),
        "lossless.dcm": _dicom(wide[0], uid.JPEGLosslessSV1, [lossless]),
        "lossless-frames.dcm": _dicom(wide, uid.JPEGLosslessSV1, [lossless] * 3),
        "baseline.dcm": _dicom(grey, uid.JPEGBaseline8Bit, [image_bytes(grey, "jpeg")]),
        "jpeg2000.dcm": _dicom(wide[0], uid.JPEG2000Lossless, [image_bytes(wide[0], "jpeg2000", no_jp2=True)]),
        "rle.dcm": _dicom(wide[0], uid.RLELossless, [run_lengths(wide[0])]),
    }
    made["bare"] = made["implicit.dcm"][132:]
    return made


def _dicom(pixels, syntax, frames=None):
    buffer = io.BytesIO()
    write_dicom(buffer, pixels, syntax=syntax, frames=frames, SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2",
                ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], PatientID="A", ImagePositionPatient=[0, 0, 5],
                ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[0.7, 0.7], PixelPaddingValue=("US", 0),
                WindowCenter=[-600, 40], WindowWidth=[1500, 400])
    return buffer.getvalue()


def lossless_jpeg(pixels):
    """A lossless JPEG (ITU-T T.81 annex H, process 14, predictor 1) of uint16 (H, W).

    Each of the 17 categories of differences has a Huffman code of eight bits, its own number.
    """
    rows, columns = pixels.shape
    values = pixels.astype(np.int64)
    before = np.empty_like(values)
    before[:, 1:] = values[:, :-1]
    before[1:, 0], before[0, 0] = values[:-1, 0], 1 << 15
    bits = []
    for difference in ((values - before + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(difference).bit_length()
        bits.append(f"{size:08b}")
        if size:
            bits.append(format(difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b"))
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    data = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\0")
    table = bytes([0, 0, 0, 0, 0, 0, 0, 0, 17] + [0] * 8) + bytes(range(17))
    return (b"\xff\xd8" + _segment(0xC3, struct.pack(">BHHB", 16, rows, columns, 1) + bytes([1, 0x11, 0]))
            + _segment(0xC4, table) + _segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + data + b"\xff\xd9")


def _segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _real(folder, largest=600_000, each=6):
    paths = []
    for pattern in ("fixtures/dicom-series/*.dcm", "fixtures/dicom-lungmask/*.dcm", "fixtures/nifti/*.nii.gz",
                    "covid-ct-md-sample/*/*/*.dcm", "ucsd-covid-ct/Images-processed/*/*"):
        found = [path for path in sorted(Path(folder).glob(pattern)) if path.stat().st_size <= largest]
        paths += found[:: max(1, len(found) // each)][:each]
    return paths
