"""A drawn cross-section in Hounsfield units, and DICOM files of it with headers and codestreams as they are found."""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from test_ct import write_dicom

LUNG, TISSUE, CORNER = (52, 28), (48, 48), (1, 1)
RAW_LUNG = 600  # stored values below are air or lung, where 1024 is added


def chest(side=96, noise=12, seed=0):
    """int16 (side, side): air near -1000, two lungs near -850, soft tissue near 40, a spine near 500."""
    down, across = (np.indices((side, side)) + 0.5) / side - 0.5
    hu = np.where(np.hypot(across / 0.46, down / 0.38) < 1, 40, -1000)
    for middle in (-0.21, 0.21):
        hu[np.hypot((across - middle) / 0.15, (down - 0.02) / 0.26) < 1] = -850
    hu[np.hypot(across / 0.07, (down - 0.26) / 0.07) < 1] = 500
    noisy = hu + np.random.default_rng(seed).normal(0, noise, hu.shape)
    return np.rint(np.maximum(noisy, -1024)).astype(np.int16)


def outside_circle(side=96):
    """bool (side, side): what a scanner's circle leaves out."""
    down, across = np.indices((side, side)) - (side - 1) / 2
    return np.hypot(down, across) > side / 2


def with_frame(path, syntax, frame, **tags):
    """A DICOM file at `path` whose pixels are the compressed `frame` (bytes)."""
    stored = np.zeros((96, 96), np.uint8 if tags.get("BitsAllocated") == 8 else np.uint16)
    found = pydicom.dcmread(write_dicom(path, stored, **tags))
    found.file_meta.TransferSyntaxUID = syntax
    found.PixelData = encapsulate([frame])
    found["PixelData"].VR = "OB"
    found.save_as(path, implicit_vr=False, little_endian=True)
    return path


def jpeg2000(values, precision, signed):
    """A JPEG 2000 codestream of int (H, W) whose header names this precision and sign.

    Pillow writes 16 bits without sign. The level shift that a decoder undoes depends on what the header (SIZ) says, so
    the values are moved by as much.
    """
    moved = values.astype(np.int64) + 2**15 - (0 if signed else 2 ** (precision - 1))
    buffer = io.BytesIO()
    Image.fromarray(moved.astype(np.uint16)).save(buffer, "jpeg2000", no_jp2=True)
    stream = bytearray(buffer.getvalue())
    stream[stream.index(b"\xff\x51") + 40] = (precision - 1) | (128 if signed else 0)
    return bytes(stream)


def enhanced(path, heights, stored, axes=(1, 0, 0, 0, 1, 0), **tags):
    """An Enhanced CT whose frames lie at `heights` millimetres."""
    frames = []
    for height in heights:
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = [-10, -10, float(height)]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    shared, plane, scale = (pydicom.Dataset() for _ in range(3))
    plane.ImageOrientationPatient, scale.RescaleSlope, scale.RescaleIntercept = list(axes), 1, -1024
    shared.PlaneOrientationSequence, shared.PixelValueTransformationSequence = [plane], [scale]
    return write_dicom(path, stored, intercept=None, SOPClassUID=pydicom.uid.EnhancedCTImageStorage,
                       SeriesInstanceUID="1.2.3", PerFrameFunctionalGroupsSequence=frames,
                       SharedFunctionalGroupsSequence=[shared], **tags)
