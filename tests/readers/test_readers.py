"""Readers: what a file is, what its values mean, and what is said when it is broken."""

import gzip
import pickle

import nibabel
import numpy as np
import pytest
from bodies import RAMP, change_dicom, image_bytes, write_dicom, write_nifti
from numpy.testing import assert_array_equal
from PIL import Image
from pydicom import uid

from covidlib import readers
from covidlib.readers import errors, raster, volume

AS_IT_LIES = [1, 0, 0, 0, 1, 0]


def refused(match):
    return pytest.raises(readers.ReadError, match=match)


def test_window_edges_and_middle():
    window = readers.apply_window(np.array([[-5000, -1350, -600, 150, 3000, np.nan]]))
    assert window.dtype == np.uint8
    assert window.tolist() == [[0, 0, 128, 255, 255, 0]]
    with pytest.raises(ValueError, match="width must be positive. Received: window=.-600, 0"):
        readers.apply_window(np.zeros((2, 2)), (-600, 0))


def test_fit_square_pads_and_does_not_stretch():
    image = np.full((40, 80), 200, np.uint8)
    square = readers.fit_square(image, 80)
    assert square.shape == (80, 80) and (square[:20] == 0).all() and (square[20:60] == 200).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert np.ptp(readers.fit_square(stripes, 16)[:, 1:-1].astype(int)) < 40  # antialiased: no moire
    assert readers.fit_square(image, 1).shape == (1, 1)
    for wrong in (image.astype(float), image[None], image[:0]):
        with pytest.raises(ValueError, match="image must be uint8"):
            readers.fit_square(wrong, 8)
    with pytest.raises(ValueError, match="size=0"):
        readers.fit_square(image, 0)


MODES = {"png": ("1", "L", "LA", "P", "RGB", "RGBA"), "jpeg": ("1", "L", "RGB", "CMYK"),
         "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_pictures_of_every_mode_become_grey(tmp_path, kind, mode):
    grey = Image.fromarray(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8) * np.ones((64, 1), np.uint8))
    image = grey.convert("LA").convert("RGBA").convert(mode) if mode != "1" else grey.convert("1")
    image.save(tmp_path / "slice.dat", format=kind)
    read = readers.read_slice(tmp_path / "slice.dat")
    assert readers.sniff(tmp_path / "slice.dat") == kind
    assert read.dtype == np.uint8 and read.shape == (64, 64)
    assert abs(read[:, :24].astype(int)).max() < 8 and read[:, 40:].min() > 247


def test_transparent_parts_are_black(tmp_path):
    pixels = np.full((8, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert readers.read_slice(tmp_path / "a.png")[0].tolist() == [0] * 4 + [255] * 4
    palette = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 4, 0), mode=None).convert("P")
    palette.putpalette([255, 255, 255, 200, 200, 200])
    palette.putdata([0, 1] * 4)
    palette.save(tmp_path / "p.png", transparency=0)
    assert readers.read_slice(tmp_path / "p.png")[0].tolist() == [0, 200]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_fill_the_range(tmp_path, name):
    Image.fromarray(RAMP + 900).save(tmp_path / name)
    read = readers.read_slice(tmp_path / name)
    assert read.min() == 0 and read.max() == 255 and (np.diff(read.ravel().astype(int)) >= 0).all()
    spike = (RAMP + 900).copy()
    spike[0, 0] = 65535  # one burnt-in pixel must not turn the rest black
    Image.fromarray(spike).save(tmp_path / name)
    assert readers.read_slice(tmp_path / name).mean() > 100


def test_tiffs_of_floats_of_white_zeros_and_of_pages(tmp_path):
    values = RAMP.astype(np.float32) - 1000
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.ptp(readers.read_slice(tmp_path / "f.tif")) == 255
    Image.fromarray(RAMP).save(tmp_path / "w.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "w.tif") as image:
        assert image.tag_v2[262] == 0
    assert readers.read_slice(tmp_path / "w.tif")[0, 0] == 255
    pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert readers.count_slices(tmp_path / "pages.tif") == 3
    assert [readers.read_slice(tmp_path / "pages.tif", k)[0, 0] for k in range(3)] == [10, 20, 30]
    with refused("slices 0 to 2. Received: slice_index=3"):
        readers.read_slice(tmp_path / "pages.tif", 3)


def test_dicom_in_hu(tmp_path):
    path = write_dicom(tmp_path / "no_extension", RAMP, slope=0.5, intercept=-1000)
    assert readers.sniff(path) == "dicom"
    assert_array_equal(readers.read_hu(path), RAMP * 0.5 - 1000)
    assert readers.read_hu(path).dtype == np.float32
    assert_array_equal(readers.read_slice(path), readers.apply_window(RAMP * 0.5 - 1000))
    bare = write_dicom(tmp_path / "a.png", RAMP, preamble=False)
    assert bare.read_bytes()[128:132] != b"DICM" and readers.sniff(bare) == "dicom"
    assert_array_equal(readers.read_hu(bare), RAMP - 1024.0)
    frames = write_dicom(tmp_path / "frames.dcm", np.stack([RAMP, RAMP + 1]))
    assert readers.count_slices(frames) == 2
    assert_array_equal(volume.read_volume(frames), np.stack([RAMP, RAMP + 1]) - 1024.0)


@pytest.mark.parametrize("padding", [("SS", -2000), ("US", 63536)])  # the second is -2000 read as unsigned
def test_padding_becomes_air(tmp_path, padding):
    stored = RAMP.astype(np.int16)
    stored[:3] = -2000
    hu = readers.read_hu(write_dicom(tmp_path / "a.dcm", stored, intercept=-1000, PixelPaddingValue=padding))
    assert (hu[:3] == -1024).all()
    assert_array_equal(hu[3:], stored[3:] - 1000.0)


def test_padding_range_and_below_air(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.array([[-3000, 5, 6, 7, 8]], np.int16), intercept=0,
                       PixelPaddingValue=("SS", 5), PixelPaddingRangeLimit=("SS", 7))
    assert readers.read_hu(path).tolist() == [[-1024, -1024, -1024, -1024, 8]]


def test_monochrome1_keeps_hu_and_inverts_pictures(tmp_path):
    hu = write_dicom(tmp_path / "hu.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert_array_equal(readers.read_hu(hu), RAMP - 1024.0)
    grey = RAMP.astype(np.uint8)
    picture = write_dicom(tmp_path / "b.dcm", grey, intercept=None, PhotometricInterpretation="MONOCHROME1")
    upright = write_dicom(tmp_path / "c.dcm", grey, intercept=None)
    assert_array_equal(readers.read_slice(picture), 255 - readers.read_slice(upright))
    with refused("not Hounsfield units"):
        readers.read_hu(picture)


def test_without_rescale_tags_signed_pixels_are_hu_only_where_some_are_negative(tmp_path):
    stored = RAMP.astype(np.int16) - 1000
    path = write_dicom(tmp_path / "minimal.dcm", stored, intercept=None, Modality=None)
    assert_array_equal(readers.read_hu(path), stored)
    stored = np.linspace(-1000, 500, 64).reshape(8, 8).astype(np.int16)
    assert readers.read_hu(write_dicom(path, stored, intercept=None)).min() == -1000
    for grey in (stored + np.int16(1000), RAMP):
        with refused("not Hounsfield units .it has no rescale tags"):
            readers.read_hu(write_dicom(path, grey, intercept=None))


def test_own_window_of_several(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[50, -500], WindowWidth=[350, 1200])
    assert_array_equal(readers.read_slice(path), readers.apply_window(RAMP - 1024.0, readers.LUNG_WINDOW))
    assert_array_equal(readers.read_slice(path, window=None), readers.apply_window(RAMP - 1024.0, (-500, 1200)))
    bare = write_dicom(tmp_path / "b.dcm", RAMP)
    assert_array_equal(readers.read_slice(bare, window=None), readers.read_slice(bare))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIL", "AIR"])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_nifti_of_any_orientation_shows_the_same_slices(tmp_path, codes, name):
    canonical = 10 * np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 1000  # right, anterior, superior
    path = write_nifti(tmp_path / name, canonical, codes, (0.6, 0.6, 3))
    found = volume.read_volume(path)
    assert readers.sniff(path) == "nifti" and found.shape == (4, 5, 6)
    assert found[0, 0, 0] == canonical[-1, -1, 0]  # the patient's right on the left, anterior on top
    assert_array_equal(found[2], canonical[::-1, ::-1, 2].T)
    assert_array_equal(readers.read_hu(path, 3), found[3])
    write_nifti(path, canonical, codes, (0.5, 0.6, 3))
    np.testing.assert_allclose(readers.nifti.spacing(path), (3, 0.6, 0.5))


def test_nifti_by_content_and_its_limits(tmp_path):
    canonical = np.random.default_rng(0).normal(-500, 300, (6, 5, 4)).astype(np.float32)
    path = write_nifti(tmp_path / "v.nii.gz", canonical)
    renamed = tmp_path / "slice.png"
    renamed.write_bytes(gzip.decompress(path.read_bytes()))
    assert_array_equal(volume.read_volume(renamed), volume.read_volume(path))
    with refused("slices 0 to 3"):
        readers.read_slice(path, 4)
    grey = write_nifti(tmp_path / "grey.nii", np.abs(canonical))
    assert np.ptp(readers.read_slice(grey, 1)) == 255
    with refused("not Hounsfield units"):
        volume.read_volume(grey)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3, 2), np.float32), np.eye(4)), tmp_path / "4d.nii")
    with refused("not one grey volume"):
        readers.read_slice(tmp_path / "4d.nii")
    header = bytearray((tmp_path / "4d.nii").read_bytes())
    header[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(header)
    with refused("too large .30000x30000 pixels"):
        readers.read_slice(tmp_path / "huge.nii")


def test_broken_files_say_which_and_what_to_do(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 60, 9), np.uint8)
    for name in ("whole.png", "whole.jpg", "whole.tif"):
        Image.fromarray(noise[..., 0]).save(tmp_path / name)
    write_dicom(tmp_path / "whole.dcm", RAMP)
    write_nifti(tmp_path / "whole.nii.gz", noise.astype(np.float32) - 100)
    for whole in list(tmp_path.iterdir()):
        for share in (0.1, 0.3, 0.7, 0.95):
            broken = tmp_path / whole.name.replace("whole", "broken")
            broken.write_bytes(whole.read_bytes()[: int(len(whole.read_bytes()) * share)])
            with refused("broken.*(Copy or download|Replace|Export)"):
                readers.read_slice(broken)
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>not found</html>")
    for name, what in {"empty.png": "is empty", "page.png": "is not PNG, JPEG", ".": "is a folder"}.items():
        with refused(what):
            readers.read_slice(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="Check the path"):
        readers.read_slice(tmp_path / "absent.png")


@pytest.mark.parametrize("head", [*readers._MAGIC, bytes(128) + b"DICM", b"\x08\0\5\0CS", b"\x1f\x8b\x08",
                                  bytes(344) + b"n+1\0"])
def test_random_bytes_behind_any_magic_are_a_read_error(tmp_path, head):
    (tmp_path / "x").write_bytes(head + np.random.default_rng(0).bytes(3000))
    with refused("x: "):
        readers.read_slice(tmp_path / "x")


@pytest.mark.parametrize("tags, what", [
    ({"Modality": "MR"}, "is not a CT slice .modality MR"),
    ({"Modality": None, "SOPClassUID": uid.MRImageStorage}, "is not a CT slice .modality MR"),
    ({"PixelData": None}, "no pixel data"), ({"SamplesPerPixel": 3}, "colour picture"),
    ({"Rows": 60000, "Columns": 60000}, "60000x60000"), ({"NumberOfFrames": 10**9}, "1000000000 slices, at most"),
    ({"RescaleSlope": 0}, "senseless rescale tags"), ({"RescaleSlope": b"NaN"}, "senseless rescale tags")])
def test_headers_of_what_is_no_ct_slice(tmp_path, tags, what):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    for read in (readers.read_slice, readers.read_hu):
        with refused(what):
            read(path)
    if "NumberOfFrames" in tags:
        with refused(what):
            readers.count_slices(path)


@pytest.mark.parametrize("kind, what", [("LOCALIZER", "is a localiser"), ("SCOUT", "is a localiser"),
                                        ("SCREEN SAVE", "a screenshot")])
def test_images_of_another_kind_and_their_errors(tmp_path, kind, what):
    path = write_dicom(tmp_path / "a.dcm", RAMP, ImageType=["ORIGINAL", "PRIMARY", kind])
    with pytest.raises(readers.NotASlice, match=what) as caught:
        readers.read_slice(path)
    assert caught.value.path == path and what in caught.value.reason and caught.value.hint == "Leave it out"
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is type(caught.value) and str(again) == str(caught.value)


@pytest.mark.parametrize("side", [4097, 20000])  # the second is beyond what Pillow itself opens
def test_pictures_that_unpack_to_too_much(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with refused("is too large .*. Scale it down"):
        readers.read_slice(tmp_path / "a.png")


def test_jpegs_of_endless_scans_and_tiffs_of_endless_pages(tmp_path, monkeypatch):
    data = image_bytes(Image.fromarray(RAMP.astype(np.uint8)).convert("RGB"), "jpeg", progressive=True)
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:last] + data[last:-2] * 200 + b"\xff\xd9")
    with refused("scans in one JPEG"):
        readers.read_slice(tmp_path / "a.jpg")
    page = Image.fromarray(np.zeros((1, 1), np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 30)
    for module in (errors, raster):
        monkeypatch.setattr(module, "MAX_SLICES", 20)
    with refused("21 slices, at most 20"):
        readers.count_slices(tmp_path / "a.tif")


def test_files_that_unpack_to_too_much(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((2048, 2048, 200))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(2**16)))
    with refused("too large .*Split the volume"):
        readers.read_slice(tmp_path / "a.nii.gz")
    path = write_dicom(tmp_path / "c.dcm", RAMP, syntax=uid.DeflatedExplicitVRLittleEndian,
                       EncapsulatedDocument=("OB", bytes(2**24) * 17))
    assert path.stat().st_size < 2**20
    with refused("inflates to more than 256 MiB"):
        readers.read_slice(path)


def test_real_files(shared_data):
    sample = shared_data / "covid-ct-md-sample" / "Normal subjects" / "normal001"
    hu = readers.read_hu(sample / "slice076.dcm")  # JPEG Lossless
    assert hu.shape == (512, 512) and hu.min() == -1024 and 500 < hu.max() < 3100
    minimal = readers.read_hu(shared_data / "fixtures" / "dicom-lungmask" / "0.dcm")
    assert minimal.min() == -1024 and minimal.max() == 1502
    found = volume.read_volume(shared_data / "fixtures" / "nifti" / "ct_cropped.nii.gz")
    assert found.shape == (112, 102, 122) and found.min() == -1024


@pytest.mark.parametrize("place", [20, 3000])
def test_a_damaged_deflate_stream_is_a_read_error(tmp_path, place):
    rng = np.random.default_rng(0)
    path = write_nifti(tmp_path / "v.nii.gz", rng.normal(-500, 200, (12, 12, 12)).astype(np.float32))
    data = bytearray(path.read_bytes())
    data[place:place + 40] = b"\xff" * 40
    path.write_bytes(data)
    with refused("v.nii.gz"):
        volume.read_volume(path)


@pytest.mark.parametrize("syntax, name", [(uid.MPEG2MPML, "MPEG2 Main Profile"), (uid.UID("1.2.3.4"), "1.2.3.4")])
def test_transfer_syntax_without_a_decoder_is_named(tmp_path, syntax, name):
    path = write_dicom(tmp_path / "a.dcm", RAMP, syntax=syntax, frames=[RAMP.tobytes()])
    with refused(f"compressed as {name}.*Decompress it first"):
        readers.read_slice(path)


@pytest.mark.parametrize("axes, stored", [
    (AS_IT_LIES, RAMP), ([-1, 0, 0, 0, -1, 0], RAMP[::-1, ::-1]), ([0, 1, 0, 1, 0, 0], RAMP.T),
    ([1, 0, 0, 0, -1, 0], RAMP[::-1]), ([1, 0, 0, 0, 0, -1], RAMP)])  # the last is coronal
def test_axial_slices_are_shown_upright_however_the_patient_lay(tmp_path, axes, stored):
    path = write_dicom(tmp_path / "a.dcm", stored, ImageOrientationPatient=axes, ImagePositionPatient=[0, 0, 0])
    assert_array_equal(readers.read_hu(path), RAMP - 1024.0)


def test_coloured_pictures_are_refused_and_arrows_are_not(tmp_path):
    grey = np.repeat(np.random.default_rng(0).integers(0, 255, (60, 60, 1), np.uint8), 3, 2)
    arrow, screen = grey.copy(), grey.copy()
    arrow[10:20, 10:40] = 255, 230, 0
    Image.fromarray(arrow).save(tmp_path / "arrow.png")
    assert readers.read_slice(tmp_path / "arrow.png").shape == (60, 60)
    screen[:20] = 30, 90, 200
    Image.fromarray(screen).save(tmp_path / "screen.png")
    Image.fromarray(screen).convert("P").save(tmp_path / "palette.png")
    for name in ("screen.png", "palette.png"):
        with pytest.raises(readers.NotASlice, match="is a coloured picture"):
            readers.read_slice(tmp_path / name)


def test_sixteen_bits_cut_down_to_black_are_refused_and_masks_are_not(tmp_path):
    Image.fromarray((RAMP * 2 >> 8).astype(np.uint8)).save(tmp_path / "black.png")
    with refused("almost black .its brightest value is 14 of 255"):
        readers.read_slice(tmp_path / "black.png")
    Image.fromarray((RAMP > 900).astype(np.uint8)).save(tmp_path / "mask.png")
    assert readers.read_slice(tmp_path / "mask.png").max() == 1


def test_names_with_percent_spaces_and_other_scripts(tmp_path):
    folder = tmp_path / "Größe 50% \u80ba"
    folder.mkdir()
    Image.fromarray(RAMP.astype(np.uint8)).save(folder / "a%20b %s {0} é.png")
    write_dicom(folder / "μ %d.dcm", RAMP)
    write_nifti(folder / "50%.nii.gz", np.ones((4, 4, 4), np.float32))
    for file in folder.iterdir():
        assert readers.count_slices(file) in (1, 4) and readers.read_slice(file).ndim == 2
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with refused("") as caught:
            readers.read_slice(file)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("kind, options, syntax", [("jpeg", {}, uid.JPEGBaseline8Bit),
                                                   ("jpeg2000", {"no_jp2": True}, uid.JPEG2000Lossless)])
def test_compressed_frames_of_another_size_than_the_header(tmp_path, kind, options, syntax):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", noise, intercept=-1000, syntax=syntax,
                       frames=[image_bytes(noise, kind, **options)])
    assert readers.read_slice(path).shape == (64, 64)
    with refused("compressed image is 64x64 pixels, in its header 64x32"):
        readers.read_slice(change_dicom(path, Rows=32))
