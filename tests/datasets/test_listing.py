"""What is wrong with the files of a set is found without decoding them, and all of it."""

import numpy as np
import pandas as pd
import pydicom
import pytest
from bodies import RAMP, write_dicom
from PIL import Image

from covidlib import datasets
from covidlib.datasets import listing
from covidlib.predict import predict, scans


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    (root / "a/b c").mkdir(parents=True)
    for name in ("a/1%2.png", "a/b c/ü.png", "a/.hidden", "a/Thumbs.db", "a/10.png"):
        (root / name).write_bytes(b"x")
    return root


def test_find(root, tmp_path):
    (root / "a/empty.png").touch()
    (tmp_path / "outside.png").write_bytes(b"x")
    (root / "a/out.png").symlink_to(tmp_path / "outside.png")
    (root / "a/nowhere.png").symlink_to(root / "gone.png")
    (root / "a/folder").symlink_to(root / "a/b c")
    (root / "a/inside.png").symlink_to(root / "a/10.png")
    paths, problems = listing.find(root, "a")
    assert paths == ["a/1%2.png", "a/10.png", "a/b c/ü.png", "a/inside.png"]
    messages = "\n".join(map(str, problems))
    for name, what in [("empty.png", "is empty"), ("out.png", "leads out of the folder"), ("nowhere.png", "to nothing"),
                       ("folder", "to a folder")]:
        assert any(name in line and what in line for line in messages.splitlines()), messages
    assert len(problems) == 4


def test_folder_that_leads_out(root, tmp_path):
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="stay inside data_root"):
        listing.find(root, "link")


def test_settle(root):
    (root / "a/empty.png").touch()
    rows = [("a/1%2.png", "x", "train"), ("a/1%2.png", "x", "train"), ("a/10.png", "x", "train"), ("a/10.png", "y", ""),
            ("a/gone.png", "x", "test"), ("../../etc/hostname", "x", "test"), ("a/empty.png", "x", "test"),
            ("a/b c/ü.png", "y", "test")]
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    kept, problems = listing.settle(root, table, listing.find(root, "a"), "the list")
    assert kept.path.tolist() == ["a/1%2.png", "a/b c/ü.png"]
    messages = sorted(str(problem).removeprefix(str(root)) for problem in problems)
    assert len(messages) == 4
    assert "outside data_root" in messages[0] and "as x train and y" in messages[1]
    assert "is empty" in messages[2] and "does not exist" in messages[3]
    assert listing.unlisted(table, listing.find(root, "a")) == 0


LEFT = ["__MACOSX/covid/._a.png", "lost+found/1", "covid/P1/@eaDir/t.jpg", "$RECYCLE.BIN/a.png", "#recycle/a.png",
        ".Trash-1/a.png", "covid/P1/.@__thumb/a.png", "covid/Thumbs.db", "covid/desktop.ini", "covid/.DS_Store",
        "covid/P1/DICOMDIR", "covid/~$notes.docx", "System Volume Information/x"]


def test_what_systems_leave_behind_is_passed_over_by_every_reader(tmp_path):
    for n, name in enumerate(["covid/P1/a.png", "normal/P2/b.png", *LEFT]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 255, (20, 20), np.uint8)
        Image.fromarray(pixels).save(path, format="png")
    assert listing.find(tmp_path, ".") == (["covid/P1/a.png", "normal/P2/b.png"], [])
    source = datasets.load("folder", tmp_path)
    assert source.classes == ("covid", "normal") and len(source.manifest) == 2 and not source.notes
    slices, errors = predict.find_slices(tmp_path)
    assert slices.patient.tolist() == ["covid/P1", "normal/P2"] and errors.empty
    assert [scan.title for scan in scans.find(tmp_path)[0]] == ["covid/P1/a.png", "normal/P2/b.png"]


def test_companions_and_other_files_are_passed_over_and_others_are_told(tmp_path):
    for n, label in enumerate(("covid", "normal")):
        (tmp_path / label / "p").mkdir(parents=True)
        write_dicom(tmp_path / label / "p" / "a.dcm", RAMP + n, PatientID=label, SeriesInstanceUID=f"1.{n}")
    place = tmp_path / "covid" / "p"
    write_dicom(place / "state", RAMP, Modality="PR", SeriesInstanceUID="1.7")
    write_dicom(place / "page.dcm", RAMP, SeriesDescription="Patient Protocol", SeriesInstanceUID="1.8")
    write_dicom(place / "directory", RAMP, Modality=None, SOPClassUID=pydicom.uid.MediaStorageDirectoryStorage)
    (place / "README").write_text("read me")
    (place / "table.xlsx").write_bytes(b"PK34")
    source = datasets.load("folder", tmp_path)
    assert len(source.manifest) == 2 and source.notes[0] == (
        "5 files are no images and were passed over, such as covid/p/README.")
    slices, errors = predict.find_slices(tmp_path)
    assert len(slices) == 2 and errors.path.tolist() == ["covid/p/README", "covid/p/table.xlsx"]
    assert [problem.path.name for problem in scans.find(tmp_path)[1]] == ["README", "table.xlsx"]
    (place / "cut.png").write_text("<html>not found</html>")  # by its name it should be one
    with pytest.raises(datasets.DataError, match="cut.png: is not PNG"):
        datasets.load("folder", tmp_path)


def test_images_of_other_formats_are_errors_and_not_passed_over(tmp_path):
    for label in ("covid", "normal"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((9, 9), len(label), np.uint8)).save(tmp_path / label / "a.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "covid" / "b.bmp")
    (tmp_path / "covid" / "IM0001").write_bytes(bytes(200) + b"\xff\x00cut off")
    with pytest.raises(datasets.DataError, match="(?s)IM0001: is not PNG.*b.bmp: is not PNG"):
        datasets.load("folder", tmp_path)
