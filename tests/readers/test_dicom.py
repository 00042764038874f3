"""Decoded values against the header: bits, signs, padding, and when they can be Hounsfield units."""

import base64

import numpy as np
import pydicom
import pytest
from bodies import CORNER, LUNG, TISSUE, chest, enhanced, jpeg2000, outside_circle, run_lengths, with_frame, write_dicom
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, SecondaryCaptureImageStorage

from covidlib import readers
from covidlib.readers import volume
from covidlib.readers.errors import ReadError

HU = chest()
RAW = (HU + 1024).astype(np.uint16)
SIGNED = {"intercept": 0, "PixelRepresentation": 1}
OVERLAY = np.where(np.indices(HU.shape)[0] < 9, 0xF000, 0).astype(np.uint16)


def read(path):
    return readers.read_hu(path).astype(int)


@pytest.mark.parametrize("bits", [12, 13, 14, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_only_the_stored_bits_count_and_the_highest_is_the_sign(tmp_path, bits, signed):
    stored = (HU if signed else HU + 1024).view(np.uint16) & (2**bits - 1)
    noise = np.random.default_rng(0).integers(0, 2 ** (16 - bits), HU.shape).astype(np.uint16) << (bits % 16)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    path = write_dicom(tmp_path / "a.dcm", stored | (noise if bits < 16 else 0), 1, 0 if signed else -1024, **tags)
    np.testing.assert_array_equal(read(path), HU)


def test_bits_at_the_upper_end_of_the_word(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAW << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read(path), HU)
    path = write_dicom(tmp_path / "b.dcm", RAW, BitsStored=12, HighBit=15)  # the tag alone is wrong
    np.testing.assert_array_equal(read(path), HU)


@pytest.mark.parametrize("values, precision, signed, tags", [
    (HU, 16, True, SIGNED), (HU, 13, True, SIGNED | {"BitsStored": 13, "HighBit": 12}),
    (HU.view(np.uint16) & 0x1FFF, 13, False, SIGNED | {"BitsStored": 13, "HighBit": 12}),
    (HU.view(np.uint16) & 0x1FFF, 16, False, SIGNED | {"BitsStored": 13, "HighBit": 12}),
    (RAW | OVERLAY, 16, False, {"BitsStored": 12, "HighBit": 11}), (RAW, 12, False, {"BitsStored": 12, "HighBit": 11}),
    (RAW, 16, True, {}), (HU, 16, True, {"intercept": 0})])
def test_jpeg2000_whose_stream_and_header_disagree(tmp_path, values, precision, signed, tags):
    path = with_frame(tmp_path / "a.dcm", JPEG2000Lossless, jpeg2000(values, precision, signed), **tags)
    np.testing.assert_array_equal(read(path), HU)


@pytest.mark.parametrize("stored, tags", [
    (RAW | OVERLAY, {"BitsStored": 12}), (HU, SIGNED), (HU.view(np.uint16) & 0x1FFF, SIGNED | {"BitsStored": 13})])
def test_rle_is_held_against_the_header_too(tmp_path, stored, tags):
    path = with_frame(tmp_path / "a.dcm", RLELossless, run_lengths(stored), **tags)
    np.testing.assert_array_equal(read(path), HU)


def test_signed_values_declared_unsigned_are_read_and_doubted(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", HU.view(np.uint16), intercept=0)
    np.testing.assert_array_equal(read(path), HU)
    assert "only as signed numbers of 16 bits are they HU" in readers.read(path).remark


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("level", [-2000, -32768, -3024])
def test_padding_without_a_tag_is_air(tmp_path, signed, level):
    stored = np.where(outside_circle(), level, HU + 1024).astype(np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored if signed else stored.view(np.uint16))
    found = read(path)
    assert found[CORNER] == -1024
    np.testing.assert_array_equal(found[~outside_circle()], HU[~outside_circle()])
    assert (readers.read_slice(path)[outside_circle()] == readers.apply_window([-1024.0])).all()


def test_padding_beyond_the_stored_bits(tmp_path):
    """-2000 in 16 bits where 12 are stored: cut to 12 it would be dense bone."""
    stored = np.where(outside_circle(), -2000, HU + 1024).astype(np.int16).view(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11)
    assert read(path)[CORNER] == -1024 and read(path)[TISSUE] == HU[TISSUE]


@pytest.mark.parametrize("what, stored, tags", [
    ("1024 added, padded, no tags", np.where(outside_circle(), -2000, HU + 1024), {"intercept": None}),
    ("1024 added, padded, intercept 0", np.where(outside_circle(), -2000, HU + 1024), {"intercept": 0}),
    ("1024 added", (HU + 1024).astype(np.uint16), {"intercept": 0}),
    ("1024 taken off twice", HU, {"intercept": -1024}), ("tenths", HU, {"slope": 10, "intercept": 0}),
    ("grey of 8 bits", readers.apply_window(HU), {"intercept": 0}),
    ("grey of 8 bits less 1024", readers.apply_window(HU), {"intercept": -1024}),
    ("a screen's 8 bits", readers.apply_window(HU), {"intercept": 0, "SOPClassUID": SecondaryCaptureImageStorage}),
    ("iodine", RAW, {"RescaleType": "MGML"}), ("atomic number", RAW, {"RescaleType": "Z_EFF"}),
    ("unspecified", (HU + 1024).astype(np.int16), {"intercept": 0, "RescaleType": "US"})])
def test_what_cannot_be_hu_is_a_picture_with_a_doubt(tmp_path, what, stored, tags):
    stored = stored.astype(np.int16) if stored.dtype.kind == "i" else stored
    path = write_dicom(tmp_path / "a.dcm", stored, tags.pop("slope", 1), **tags)
    with pytest.raises(ReadError, match="holds grey values, not Hounsfield units"):
        readers.read_hu(path)
    picture = readers.read_slice(path).astype(int)
    assert picture[TISSUE] > picture[LUNG] + 40, what
    assert readers.read(path).remark
    if stored.dtype == np.uint8:
        np.testing.assert_array_equal(picture, stored)


@pytest.mark.parametrize("tags", [{}, {"RescaleType": "HU"}, {"RescaleType": "US"},
                                  {"SOPClassUID": SecondaryCaptureImageStorage}])
def test_what_can_be_hu_is(tmp_path, tags):
    path = write_dicom(tmp_path / "a.dcm", RAW, **tags)
    np.testing.assert_array_equal(read(path), HU)
    assert not readers.read(path).remark


@pytest.mark.parametrize("blue", [1, -1])
def test_a_palette_gives_grey_or_is_a_coloured_picture(tmp_path, blue):
    index, ramp, tags = readers.apply_window(HU), (np.arange(256) * 257).astype("<u2"), {}
    for name, table in (("Red", ramp), ("Green", ramp), ("Blue", ramp[::blue])):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = "US", [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = "OW", table.tobytes()
    path = write_dicom(tmp_path / "a.dcm", index, PhotometricInterpretation="PALETTE COLOR", **tags)
    if blue == 1:
        np.testing.assert_array_equal(readers.read_slice(path), index)
        with pytest.raises(ReadError, match="palette of colours"):
            readers.read_hu(path)
    else:
        with pytest.raises(readers.NotASlice, match="coloured picture"):
            readers.read_slice(path)


# bodies.chest(24, noise=0) without its upper three bits, compressed by CharLS
JPEG_LS = (
    "|JeWc01FTR7yuXn0TBTI_y7$7|Nj6I07C&306_oR00;pA00000009f&1OWg*AP@)y1Ox;G1Ox;G2oNAZfdT{o|9^vh=nx=4fdT*k000003BLWC??4C"
    "wFanMDpa=r61l#XG3y`=700000013!VxeI{60009BfB*pd-~jtn-+BOCg}@*IkdOc<B)JQKKn_8`0H9C?`yhU$Knsw#3_vBwTm?WN5Cm5H&=3d$GXR"
    "(cz(5=9f%;Go1VjbEOa;J11Ox#Kkhl#%E<)fn0RaGL2m?Ss8!#Xs4R9bJ2>}2|5CpgoAPI0FKoSH3Kmj2jBl28@KtLG>0UuK2Dgp!npbPAQ`H&zHFd"
    "Pejx8Hz}AV4E9CI!HO0F1yH0|6e=<R}0N@Gk=J00000000TdKnV1gAy6Oy000003BLRZr~@D%Bgt|V03aD)41bJxE<&I{0005+K%D>p00004<SGFIK"
    "sm(C>5f_ifW|)H00003+kilCPzAT&fIx5m0RPz")


def test_jpeg_ls_is_held_against_the_header_too(tmp_path):
    tags = SIGNED | {"BitsStored": 13, "HighBit": 12, "Rows": 24, "Columns": 24}
    path = with_frame(tmp_path / "a.dcm", JPEGLSLossless, base64.b85decode(JPEG_LS), **tags)
    np.testing.assert_array_equal(read(path), chest(24, noise=0))


@pytest.mark.parametrize("tags, square", [({"PixelSpacing": [3, 1.5]}, True), ({"PixelAspectRatio": [2, 1]}, True),
                                          ({"PixelSpacing": ["", ""]}, False), ({"PixelSpacing": [0, 1]}, False)])
def test_pixels_that_are_not_square(tmp_path, tags, square):
    path = write_dicom(tmp_path / "a.dcm", RAW[::2], **tags)
    assert readers.read_hu(path).shape == ((96, 96) if square else (48, 96))
    assert readers.read_hu(path, square=False).shape == (48, 96)


@pytest.mark.parametrize("centre, width", [(b"-600\\", b"1500\\"), (b"-600,0", b"1500,0"), (b"x", b"y"),
                                           (b"NaN", b"1500")])
def test_window_tags_that_are_no_numbers_are_not_needed(tmp_path, centre, width):
    path = write_dicom(tmp_path / "a.dcm", RAW, WindowCenter=centre, WindowWidth=width)
    for window in (readers.LUNG_WINDOW, None):
        np.testing.assert_array_equal(readers.read_slice(path, window=window), readers.apply_window(HU))


@pytest.mark.parametrize("tags, what", [
    ({"BitsStored": None}, "lacks BitsStored"), ({"PixelRepresentation": None}, "lacks PixelRep"),
    ({"PhotometricInterpretation": None}, "lacks Photometric"),
    ({"RescaleIntercept": b"NaN"}, "senseless rescale tags.*Correct them"),
    ({"RescaleIntercept": b"-1024,0"}, "senseless rescale tags.*Correct them")])
def test_messages_name_the_true_cause(tmp_path, tags, what):
    with pytest.raises(ReadError, match=what) as caught:
        readers.read_slice(write_dicom(tmp_path / "a.dcm", RAW, **tags))
    assert "download" not in str(caught.value)


def test_frames_have_an_order_of_the_body(tmp_path):
    heights = [20, 0, 10, 30]
    path = enhanced(tmp_path / "a.dcm", heights, np.stack([RAW + height for height in heights]).astype(np.uint16))
    assert readers.slice_order(path) == [1, 2, 0, 3]
    assert (np.diff(volume.read_volume(path)[:, 48, 48]) == 10).all()
    assert readers.read_hu(path, 0)[TISSUE] == HU[TISSUE] + 20  # a number is that of the frame as stored
    twice = enhanced(tmp_path / "b.dcm", [0, 10, 0, 10], np.stack([RAW] * 4))
    with pytest.raises(ReadError, match="2 frames at the place of another, as of several phases"):
        readers.slice_order(twice)
    alike = enhanced(tmp_path / "c.dcm", [5, 5, 5], np.stack([RAW] * 3))
    assert readers.slice_order(alike) == [0, 1, 2] and volume.read_volume(alike).shape == (3, 96, 96)


@pytest.mark.parametrize("tags, what", [
    ({"Modality": "PR"}, "a presentation state"), ({"Modality": "SR"}, "a report"),
    ({"SOPClassUID": pydicom.uid.MediaStorageDirectoryStorage, "Modality": None}, "MediaStorageDirectory"),
    ({"SeriesDescription": "Patient Protocol"}, "protocol"),
    ({"ImageType": ["DERIVED", "X", "CT_SOM5 PROT"]}, "protocol"),
    ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screenshot")])
def test_companions_of_images_are_named_as_such(tmp_path, tags, what):
    with pytest.raises(readers.Companion, match=what):
        readers.read_slice(write_dicom(tmp_path / "a.dcm", RAW, **tags))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_compressed_pixels_that_are_cut_off_are_called_truncated(tmp_path, share):
    path = with_frame(tmp_path / "a.dcm", JPEG2000Lossless, jpeg2000(RAW, 16, False))
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(ReadError, match="is truncated|is damaged"):
        readers.read_slice(path)
