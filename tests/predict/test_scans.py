"""Files become scans, and nothing of an archive is written outside its folder."""

import io
import shutil
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from covidlib import phantom, readers
from covidlib.predict import scans


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    phantom.generate(root, (6, 3, 3), seed=0)
    return root


def picture(path, shade=90, size=(40, 50)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, shade, np.uint8)).save(path)


def test_a_folder_holds_series_volumes_and_pictures(phantoms, tmp_path):
    files = sorted(phantoms.rglob("*.dcm"))[:3]
    for file in files:
        shutil.copy(file, tmp_path / f"{file.parent.name}-{file.name}")
    picture(tmp_path / "set" / "b.png", 200)
    picture(tmp_path / "set" / "a.png", 10)
    volume = np.zeros((20, 24, 5), np.int16) - 1000
    volume[5:15, 5:15] = 40
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    (tmp_path / "notes.txt").write_text("not a picture")
    found, problems = scans.find(tmp_path)
    by_kind = {scan.slices[0][0].suffix: scan for scan in found}
    assert len(by_kind[".gz"]) == 5 and by_kind[".gz"].is_hu and by_kind[".gz"].values(2).shape == (24, 20)
    pictures = by_kind[".png"]
    assert pictures.title == "set/a.png and 1 more" and not pictures.is_hu
    assert [int(pictures.picture(n).mean()) for n in (0, 1)] == [10, 200]
    series = [scan for scan in found if scan.slices[0][0].suffix == ".dcm"]
    assert sum(map(len, series)) == 3 and all(scan.is_hu for scan in series)
    assert [problem.path.name for problem in problems] == ["notes.txt"]


@pytest.fixture
def header(phantoms):
    return pydicom.dcmread(sorted(phantoms.rglob("*.dcm"))[0])


def test_a_window_is_chosen_where_there_are_hu(phantoms):
    scan = scans.of_file(sorted(phantoms.rglob("*.dcm"))[0])
    hu = readers.read_hu(*scan.slices[0])
    assert np.array_equal(scan.values(0), hu)
    assert np.array_equal(scan.picture(0, (40, 400)), readers.apply_window(hu, (40, 400)))
    assert not np.array_equal(scan.picture(0), scan.picture(0, (40, 400)))


def test_facts_are_those_of_the_acquisition_and_not_of_the_patient(header, tmp_path):
    header.SeriesDescription, header.PatientName, header.PatientID = "<b>thin</b>", "Doe^Jane", "4711"
    header.save_as(tmp_path / "a.dcm")
    facts = scans.of_file(tmp_path / "a.dcm").facts
    assert facts["series"] == "<b>thin</b>" and "4711" not in str(facts) and "Doe" not in str(facts)


def test_a_file_that_is_no_slice_is_an_error(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    with pytest.raises(readers.ReadError, match="is not PNG"):
        scans.of_file(tmp_path / "a.dcm")


def test_a_coronal_series_is_shown_from_the_feet(header, tmp_path):
    rows, columns, count = 40, 50, 30
    header.Rows, header.Columns, header.NumberOfFrames = rows, columns, None
    header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    header.PixelData = np.full((rows, columns), 30, np.int16).tobytes()
    for n in range(count):
        header.SOPInstanceUID, header.InstanceNumber = f"1.2.{n + 1}", n + 1
        header.ImagePositionPatient = [0, 2 * n, 0]
        header.save_as(tmp_path / f"{n:02}.dcm")
    scan = scans.find(tmp_path)[0][0]
    assert len(scan) == rows and scan.is_hu
    deep = round(count * 2 / header.PixelSpacing[1])  # of millimetres, as high as wide
    assert scan.values(rows - 1).shape == (deep, columns)
    scan.forget()
    assert scan._volume.cache_info().currsize == 0 and scan.values(0).shape == (deep, columns)


def test_a_scan_is_opened_though_its_first_file_is_no_slice(tmp_path):
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[..., 0] = 200
    Image.fromarray(colours).save(tmp_path / "!cover.png")
    picture(tmp_path / "a.png", 70)
    scan = scans.find(tmp_path)[0][0]
    assert not scan.is_hu and int(scan.values(1)[0, 0]) == 70
    with pytest.raises(readers.ReadError, match="coloured"):
        scan.values(0)


def test_only_few_slices_are_kept(tmp_path):
    for n in range(scans.KEPT + 4):
        picture(tmp_path / f"{n:02}.png", n)
    scan = scans.find(tmp_path)[0][0]
    assert [int(scan.values(n)[0, 0]) for n in range(len(scan))] == list(range(scans.KEPT + 4))
    assert scan._cached.cache_info().currsize == scans.KEPT


def pack(path, names, content=b"x", link=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def test_an_archive_is_unpacked_with_its_folders(tmp_path):
    assert scans.unpack(pack(tmp_path / "a.zip", ["one/a.png", "two/a.png"]), tmp_path / "out", limit=10) == 8
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")) == [
        "one/a.png", "two/a.png"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "..\\a.png", "C:/a.png", "."])
def test_paths_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads elsewhere"):
        scans.unpack(pack(tmp_path / "a.zip", [name]), tmp_path / "in" / "out")
    assert not [path for path in tmp_path.rglob("*.png")]


def test_links_bombs_and_crowds_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="leads elsewhere"):
        scans.unpack(pack(tmp_path / "link.zip", ["a"], b"/etc/passwd", link=True), tmp_path / "1")
    with pytest.raises(ValueError, match="more than 1 MB when unpacked"):
        scans.unpack(pack(tmp_path / "bomb.zip", ["a"], bytes(5_000_000)), tmp_path / "2", limit=1_000_000)
    with pytest.raises(ValueError, match="at most 5000"):
        scans.unpack(pack(tmp_path / "crowd.zip", map(str, range(100_000))), tmp_path / "4")
    assert not list((tmp_path / "4").rglob("*"))
    monkeypatch.setattr(scans, "MAX_FILES", 3)
    with pytest.raises(ValueError, match="holds 4 files; at most 3"):
        scans.unpack(pack(tmp_path / "many.zip", "abcd"), tmp_path / "3")
    for name in "abcd":
        picture(tmp_path / "many" / f"{name}.png")
    with pytest.raises(ValueError, match="at most 3 files can be opened together"):
        scans.find(tmp_path / "many", scans.MAX_FILES)


def test_a_damaged_archive_is_an_error(tmp_path):
    whole = pack(tmp_path / "a.zip", ["a.png"], np.random.default_rng(0).bytes(9000)).read_bytes()
    damaged = bytearray(whole)
    damaged[500:520] = bytes(20)
    for content in (b"PK nothing", whole[:4000], bytes(damaged)):
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be unpacked"):
            scans.unpack(tmp_path / "b.zip", tmp_path / f"out-{len(content)}")
    assert zipfile.is_zipfile(io.BytesIO(whole))
