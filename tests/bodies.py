"""A drawn cross-section in Hounsfield units, and DICOM and NIfTI files of it with headers as they are found."""

import io

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

LUNG, TISSUE, CORNER = (52, 28), (48, 48), (1, 1)
RAW_LUNG = 600  # stored values below are air or lung, where 1024 is added
RAMP = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)


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


def with_tags(header, **tags):
    """`header` with tags by keyword: a value, (VR, value), bytes of decimal strings as they are written, or None."""
    for keyword, value in tags.items():
        tag = pydicom.tag.Tag(keyword)
        if value is None:
            del header[tag]
        elif isinstance(value, bytes):
            header[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)
        elif isinstance(value, tuple):
            header.add_new(tag, *value)
        else:
            setattr(header, keyword, value)
    return header


def write_dicom(path, stored, slope=1, intercept=-1024, preamble=True, syntax=ExplicitVRLittleEndian, frames=None,
                **tags):
    """A CT file of `stored` (H, W) or (D, H, W), its pixels instead `frames` (list of bytes) where it is compressed."""
    header = with_tags(pydicom.Dataset(), SOPClassUID=CTImageStorage, SOPInstanceUID=pydicom.uid.generate_uid(),
                       Modality="CT", Rows=stored.shape[-2], Columns=stored.shape[-1], SamplesPerPixel=1,
                       PhotometricInterpretation="MONOCHROME2", PixelRepresentation=int(stored.dtype.kind == "i"))
    header.BitsAllocated = header.BitsStored = stored.dtype.itemsize * 8
    header.HighBit = header.BitsStored - 1
    if stored.ndim == 3:
        header.NumberOfFrames = len(stored)
    if intercept is not None:
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
    header.add_new("PixelData", "OB" if frames else "OW", encapsulate(frames) if frames else stored.tobytes())
    with_tags(header, **tags)
    if preamble:
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = syntax
    implicit = not preamble or syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(path, header, implicit_vr=implicit, little_endian=True, enforce_file_format=preamble)
    return path


def change_dicom(path, **tags):
    """The file with other tags, see `with_tags`."""
    with_tags(pydicom.dcmread(path), **tags).save_as(path)
    return path


def with_frame(path, syntax, frame, **tags):
    """A DICOM file of 96 x 96 pixels, the compressed `frame` (bytes)."""
    stored = np.zeros((96, 96), np.uint8 if tags.get("BitsAllocated") == 8 else np.uint16)
    return write_dicom(path, stored, syntax=syntax, frames=[frame], **tags)


def enhanced(path, heights, stored, axes=(1, 0, 0, 0, 1, 0), **tags):
    """An Enhanced CT whose frames lie at `heights` millimetres."""
    def item(group, **tags):
        return with_tags(pydicom.Dataset(), **{group: [with_tags(pydicom.Dataset(), **tags)]})

    frames = [item("PlanePositionSequence", ImagePositionPatient=[-10, -10, float(height)]) for height in heights]
    shared = item("PlaneOrientationSequence", ImageOrientationPatient=list(axes))
    shared.update(item("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024))
    return write_dicom(path, stored, intercept=None, SOPClassUID=EnhancedCTImageStorage, SeriesInstanceUID="1.2.3",
                       PerFrameFunctionalGroupsSequence=frames, SharedFunctionalGroupsSequence=[shared], **tags)


def jpeg2000(values, precision, signed):
    """A JPEG 2000 codestream of int (H, W) whose header names this precision and sign.

    Pillow writes 16 bits without sign. The level shift that a decoder undoes depends on what the header (SIZ) says, so
    the values are moved by as much.
    """
    moved = values.astype(np.int64) + 2**15 - (0 if signed else 2 ** (precision - 1))
    stream = bytearray(image_bytes(moved.astype(np.uint16), "jpeg2000", no_jp2=True))
    stream[stream.index(b"\xff\x51") + 40] = (precision - 1) | (128 if signed else 0)
    return bytes(stream)


def run_lengths(stored):
    """A frame of 16 bits, (H, W), compressed as RLE Lossless."""
    return get_encoder(RLELossless).encode(
        stored, rows=stored.shape[0], columns=stored.shape[1], samples_per_pixel=1, bits_allocated=16, bits_stored=16,
        number_of_frames=1, pixel_representation=int(stored.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2")


def image_bytes(image, kind, **options):
    """A file of a Pillow image or of an array, as bytes."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def write_nifti(path, canonical, codes="RAS", size=(1, 1, 2)):
    """Store a volume given in RAS order with another orientation of its axes."""
    image = nibabel.Nifti1Image(canonical, np.diag([*size, 1.0]), dtype=canonical.dtype)
    there = nibabel.orientations.axcodes2ornt(codes)
    change = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), there)
    nibabel.save(image.as_reoriented(change), path)
    return path


def write_series(folder, heights, axes=(1, 0, 0, 0, 1, 0), normal=(0, 0, 1), stored=RAMP, uid=None, **tags):
    """Files 000.dcm ... of one series whose slices lie at `heights` along `normal`; `stored`: (H, W), or of each."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or pydicom.uid.generate_uid()
    return [write_dicom(folder / f"{n:03}.dcm", stored if stored.ndim == 2 else stored[n], SeriesInstanceUID=uid,
                        ImageOrientationPatient=list(axes), ImagePositionPatient=[height * part for part in normal],
                        **tags) for n, height in enumerate(heights)]
