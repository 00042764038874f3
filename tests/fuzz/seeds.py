"""Small sound files of every kind, made here, for the fuzzer to damage; and small real ones where they are at hand."""

import gzip
import io
import struct
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

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
        "grey.png": _save(image, "png"), "palette.png": _save(image.convert("P"), "png", transparency=0),
        "rgba.png": _save(colour.convert("RGBA"), "png"), "wide.png": _save(pages[0], "png"),
        "grey.jpg": _save(image, "jpeg"), "progressive.jpg": _save(colour, "jpeg", progressive=True),
        "cmyk.jpg": _save(colour.convert("CMYK"), "jpeg"), "wide.tif": _save(pages[0], "tiff"),
        "pages.tif": _save(pages[0], "tiff", save_all=True, append_images=pages[1:], compression="tiff_lzw"),
        "deflate.tif": _save(colour, "tiff", compression="tiff_adobe_deflate"),
        "jpeg.tif": _save(colour, "tiff", compression="jpeg"), "float.tif": _save(pages[0].convert("F"), "tiff"),
    }


def _save(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _niftis(wide):
    first = nibabel.Nifti1Image(wide.astype(np.int16).T - 1000, np.diag([-0.7, -0.7, 2, 1])).to_bytes()
    second = nibabel.Nifti2Image(wide.astype(np.float64).T - 1000, np.diag([0.7, 0.7, 2, 1])).to_bytes()
    return {"first.nii": first, "second.nii": second, "first.nii.gz": gzip.compress(first)}


def _dicoms(grey, wide):
    lossless = lossless_jpeg(wide[0])
    rle = pydicom.pixels.get_encoder(RLELossless)
    made = {
        "explicit.dcm": _dicom(wide[0], ExplicitVRLittleEndian),
        "implicit.dcm": _dicom(wide[0], ImplicitVRLittleEndian),
        "deflated.dcm": _dicom(wide[0], DeflatedExplicitVRLittleEndian),
        "frames.dcm": _dicom(wide, ExplicitVRLittleEndian),
        "lossless.dcm": _dicom(wide[0], pydicom.uid.JPEGLosslessSV1, [lossless]),
        "lossless-frames.dcm": _dicom(wide, pydicom.uid.JPEGLosslessSV1, [lossless] * 3),
        "baseline.dcm": _dicom(grey, JPEGBaseline8Bit, [_save(Image.fromarray(grey), "jpeg")]),
        "jpeg2000.dcm": _dicom(wide[0], JPEG2000Lossless, [_save(Image.fromarray(wide[0]), "jpeg2000", no_jp2=True)]),
        "rle.dcm": _dicom(wide[0], RLELossless, [rle.encode(wide[0], rows=SIDE, columns=SIDE, samples_per_pixel=1,
                          bits_allocated=16, bits_stored=16, pixel_representation=0, number_of_frames=1,
                          photometric_interpretation="MONOCHROME2")]),
    }
    made["bare"] = made["implicit.dcm"][132:]
    return made


def _dicom(pixels, syntax, frames=None):
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, "1.2.3"
    header.Modality, header.ImageType, header.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], "A"
    header.SeriesInstanceUID = "1.2"
    header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
    header.Rows, header.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        header.NumberOfFrames = len(pixels)
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = pixels.dtype.itemsize * 8
    header.HighBit, header.PixelRepresentation = header.BitsStored - 1, 0
    header.PixelSpacing, header.PixelPaddingValue = [0.7, 0.7], 0
    header.WindowCenter, header.WindowWidth = [-600, 40], [1500, 400]
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = encapsulate(frames) if frames else pixels.tobytes()
    header["PixelData"].VR = "OB" if frames else "OW"
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
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
