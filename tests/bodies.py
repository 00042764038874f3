"""A drawn cross-section in Hounsfield units, and DICOM files of it with headers and codestreams as they are found."""

import io

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

LUNG, TISSUE, CORNER = (52, 28), (48, 48), (1, 1)

RAMP = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)


def write_dicom(path, stored, slope=1, intercept=-1024, preamble=True, **tags):
    header = pydicom.Dataset()
    header.SOPClassUID = tags.pop("SOPClassUID", CTImageStorage)
    header.SOPInstanceUID = pydicom.uid.generate_uid()
    header.Modality = "CT"
    header.Rows, header.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        header.NumberOfFrames = len(stored)
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = stored.dtype.itemsize * 8
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    if intercept is not None:
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
    for keyword, value in tags.items():
        if value is None:
            del header[keyword]
        else:
            setattr(header, keyword, value)
    header.PixelData = stored.tobytes()
    if preamble:
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)
    else:
        pydicom.dcmwrite(path, header, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return path


def write_nifti(path, canonical, codes="RAS"):
    """Store a volume given in RAS order with another orientation of its axes."""
    image = nibabel.Nifti1Image(canonical, np.diag([1, 1, 2, 1.0]))
    there = nibabel.orientations.axcodes2ornt(codes)
    change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), there)
    nibabel.save(image.as_reoriented(change), path)
    return path
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
