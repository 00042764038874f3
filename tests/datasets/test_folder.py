"""The reader's own slices: class folders, parts, patients, volumes and a manifest."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from bodies import write_dicom
from PIL import Image

from covidlib import datasets
from covidlib.datasets import folder, slices

PIXEL = np.zeros((1, 1), np.uint16)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(str(path).encode())).integers(0, 255, (9, 9), np.uint8)
    Image.fromarray(pixels).save(path, format="png")


def write_series(place, heights, axes=(1, 0, 0, 0, 1, 0), normal=(0, 0, 1), **tags):
    """One file per height in millimetres along `normal`, in the order given."""
    place.mkdir(parents=True)
    tags = {"SeriesInstanceUID": pydicom.uid.generate_uid(), "PixelSpacing": [0.7, 0.7],
            "ImageOrientationPatient": list(axes), **tags}
    for number, height in enumerate(heights):
        write_dicom(place / f"{number}.dcm", PIXEL, ImagePositionPatient=[height * n for n in normal], **tags)


def test_class_folders(tmp_path):
    names = ["covid/P1/slice2.png", "covid/P1/slice10.png", "normal/a%20b.jpg", "viral/x"]
    for name in [*names, "normal/.hidden"]:
        write_image(tmp_path / name)
    (tmp_path / "normal" / "notes.txt").write_text("no image")
    source = datasets.load("folder", tmp_path)
    assert source.classes == ("covid", "viral", "normal")
    table = source.manifest.set_index("path")
    assert table.index.tolist() == names
    assert table.patient.tolist() == ["covid/P1", "covid/P1", "", ""]
    assert list(source.manifest) == datasets.COLUMNS and not source.official_split
    assert "1 files are no images and were passed over" in source.notes[0] and not source.problems


@pytest.mark.parametrize("parts", [{"train": "train", "test": "test"},
                                   {"Train": "train", "Validation": "val", "TESTING": "test"}])
def test_parts_above_the_classes(tmp_path, parts):
    for part in parts:
        for label in ("covid", "non_covid"):
            write_image(tmp_path / part / label / "a.png")
    source = datasets.load("folder", tmp_path)
    assert source.official_split and source.classes == ("covid", "non_covid")
    assert source.manifest.split.value_counts().to_dict() == dict.fromkeys(parts.values(), 2)
    write_image(tmp_path / "other" / "a.png")
    with pytest.raises(ValueError, match="mixes train, val, test with other folders. Received: other"):
        datasets.load("folder", tmp_path)


def test_volumes_become_slices(tmp_path):
    write_image(tmp_path / "normal" / "a.png")
    (tmp_path / "covid").mkdir()
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "covid" / "v.nii.gz")
    source = datasets.load("folder", tmp_path)
    volume = source.manifest[source.manifest.label == "covid"]
    assert volume.slice_index.tolist() == list(range(7)) and set(volume.patient) == {"covid/v.nii.gz"}
    assert set(volume.slice_mm) == {1.0} and set(volume.spacing_mm) == {1.0}
    assert source.manifest.slice_mm.isna().sum() == 1


def test_loose_dicom_files_are_grouped_by_patient_without_naming_them(tmp_path):
    for name, patient in {"covid/1": "Doe", "covid/2": "Doe", "normal/3": "Doe", "normal/4": ""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_dicom(tmp_path / name, PIXEL, PatientID=patient)
    patients = datasets.load("folder", tmp_path).manifest.patient.tolist()
    assert patients[0] == patients[1] == patients[2] != "" and patients[3] == ""
    assert "Doe" not in patients[0]
    again = datasets.load("folder", tmp_path).manifest
    assert again.patient.tolist() == patients
    write_dicom(tmp_path / "covid" / "0", PIXEL, PatientID="Roe")  # of another set the salt is another
    assert datasets.load("folder", tmp_path).manifest.patient[1] not in patients


def test_manifest_csv(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    rows = ["path,label,patient,split,age", "a.png,normal,007,train,4"]
    rows += ["b.png,covid,NA,test,5", "c.png,covid,1,train,"]
    (tmp_path / "manifest.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    source = datasets.load("folder", tmp_path)
    assert source.manifest.patient.tolist() == ["007", "NA", "1"] and source.official_split
    assert source.classes == ("covid", "normal") and list(source.manifest)[-1] == "age"


def test_every_bad_line_of_a_manifest_is_named(tmp_path):
    root = tmp_path / "set"
    for name in ("a.png", "b.png", "c.png", "d.png", "lungs.png", "both.png", "bare.png", "e.png"):
        write_image(root / name)
    write_image(tmp_path / "outside.png")
    (root / "empty.png").touch()
    (root / "page.png").write_text("<html>not found</html>")
    lines = ["a.png,covid,lungs.png", "b.png,normal,", "c.png,covid,gone.png", "d.png,normal,../outside.png",
             "both.png,covid,", "both.png,normal,", "bare.png,,", "x.png,covid,", "../outside.png,covid,",
             "/etc/hostname,normal,", "empty.png,covid,", "page.png,viral,"]
    (root / "manifest.csv").write_text("path,label,mask\n" + "\n".join(lines))
    manifest, classes, _, problems = folder.load(root)
    assert manifest.path.tolist() == ["a.png", "b.png"] and manifest["mask"].tolist() == ["lungs.png", ""]
    assert classes == ("covid", "viral", "normal")  # viral has but one file, which is bad
    said = "\n".join(map(str, problems))
    for name, what in {"gone.png": "as a mask", "set/../outside.png": "as a mask", "both.png": "covid and normal",
                       "bare.png": "no label", "x.png": "does not exist", "hostname": "outside data_root",
                       "empty.png": "is empty", "page.png": "is not PNG"}.items():
        assert any(name in line and what in line for line in said.splitlines()), (name, said)
    assert len(problems) == 9
    with pytest.raises(datasets.DataError, match="9 files cannot be used"):
        datasets.load("folder", root)


def test_every_bad_file_of_a_folder_is_named(tmp_path):
    root = tmp_path / "set"
    for name in ("covid/a.png", "covid/100% ü.png", "normal/b.png", "normal/c.png"):
        write_image(root / name)
    write_image(tmp_path / "outside" / "secret.png")
    (root / "covid" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    (root / "covid" / "folder").symlink_to(tmp_path / "outside")
    (root / "covid" / "empty.png").touch()
    (root / "normal" / "page.jpg").write_text("<html>not found</html>")
    (root / "normal" / "copy.jpg").write_bytes((root / "covid" / "a.png").read_bytes())
    manifest, _, _, problems = folder.load(root)
    assert manifest.path.tolist() == ["covid/100% ü.png", "normal/b.png", "normal/c.png"]
    said = {Path(problem.path).relative_to(root).as_posix(): str(problem) for problem in problems}
    for name, what in {"covid/link.png": "leads out", "covid/folder": "leads out", "covid/empty.png": "is empty",
                       "normal/page.jpg": "is not PNG", "covid/a.png": "covid here, and normal as the same file",
                       "normal/copy.jpg": "normal here, and covid as the same file covid/a.png"}.items():
        assert what in said.pop(name)
    assert not said
    source = datasets.load("folder", root, on_error="skip")
    assert len(source.manifest) == 3 and len(source.problems) == 6


def test_dicom_series_are_ordered_and_what_is_not_in_them_is_named(tmp_path):
    write_series(tmp_path / "covid" / "P1", [4, 0, 2, 10])
    write_series(tmp_path / "covid" / "P1" / "scout", [4], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "covid" / "P2", range(3), [1, 0, 0, 0, 0, -1], (0, 1, 0))
    write_series(tmp_path / "normal" / "P1", [0, 0, 1], PatientID="Doe")
    write_series(tmp_path / "normal" / "P2", [0], Modality="MR")
    manifest, _, notes, problems = folder.load(tmp_path)
    table = manifest.set_index("path")
    places = table.slice_index.to_dict()
    assert places == {"covid/P1/0.dcm": 2, "covid/P1/1.dcm": 0, "covid/P1/2.dcm": 1, "covid/P1/3.dcm": 3,
                      "normal/P1/0.dcm": 0, "normal/P1/2.dcm": 1}
    assert table.patient.unique().tolist() == ["covid/P1", "normal/P1"] and table.series.nunique() == 2
    assert table.series.str.fullmatch("[0-9a-f]{12}").all() and table.slice_mm.iloc[0] == 2
    assert any("6.0 mm between 0.dcm and 3.dcm" in note for note in notes)
    said = {error.path.relative_to(tmp_path).as_posix(): error.reason for error in problems}
    assert "localiser" in said["covid/P1/scout/0.dcm"] and "3 slices that are not axial" in said["covid/P2/0.dcm"]
    assert "at the place of 0.dcm" in said["normal/P1/1.dcm"] and "modality MR" in said["normal/P2/0.dcm"]
    assert len(said) == 4


def test_of_whole_scans_the_slices_with_lung_are_used(tmp_path, monkeypatch):
    fractions = np.concatenate([np.zeros(10), np.full(25, 0.3), np.zeros(15)])
    monkeypatch.setattr(slices.lungs, "lung_fraction", lambda image: fractions[image[0, 0] - 60])
    body = np.zeros((6, 6, 50), np.float32)
    body[:] = -1350 + (60 + np.arange(50)) * 1500 / 255  # seen as 60, 61, ...
    body[2:4, 2:4] = 40
    for name, content in (("covid/a.nii", body), ("normal/b.nii", body), ("normal/c.nii", body[..., :19]),
                          ("normal/d.nii", body[..., 36:].repeat(2, axis=2))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(content[::-1, ::-1], np.eye(4)), tmp_path / name)
    (tmp_path / "covid" / "a.nii").write_bytes((tmp_path / "normal" / "b.nii").read_bytes() + b"x")
    manifest, _, notes, problems = folder.load(tmp_path)
    kept = manifest.groupby("path").slice_index.agg(["min", "max", "size"])
    assert abs(kept.loc["covid/a.nii"] - [10, 34, 25]).max() <= 1 and kept.loc["normal/c.nii"].tolist() == [0, 18, 19]
    assert "slices of volumes and series that show no lung" in notes[0]
    assert "28 slices that shows no lung" in str(problems[0]) and "d.nii" in str(problems[0]) and len(problems) == 1


def test_dicom_files_without_rescale_tags_are_noted(tmp_path):
    write_series(tmp_path / "covid" / "P1", [0, 1], RescaleIntercept=None, RescaleSlope=None)
    write_series(tmp_path / "normal" / "P1", [0, 1], PatientID="other")
    notes = folder.load(tmp_path)[2]
    assert len(notes) == 1 and "2 DICOM files have no rescale tags" in notes[0]


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images of any class"):
        datasets.load("folder", tmp_path)
    write_image(tmp_path / "covid" / "a.png")
    for name in ("normal", "viral"):
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="no images of normal, viral. It should hold one folder"):
        datasets.load("folder", tmp_path)


def test_when_no_file_of_a_class_is_left_the_files_are_named(tmp_path):
    for label in ("covid", "normal"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / label / "a.png")
    (tmp_path / "covid" / "a.png").write_bytes(b"")
    with pytest.raises(datasets.DataError, match=r"(?s)No usable slice of covid.*a\.png: is empty"):
        datasets.load("folder", tmp_path, on_error="skip")


def test_a_damaged_slice_leaves_its_series_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(slices.readers, "read_slice", lambda file, index: np.zeros((4, 4), np.uint8) + int(file.stem))

    def lung_fraction(image):
        if image[0, 0] in (3, 9):
            raise slices.ReadError("x", "is damaged")
        return 0.3

    monkeypatch.setattr(slices.lungs, "lung_fraction", lung_fraction)
    for label in ("covid", "normal"):
        write_series(tmp_path / label / "P1", range(24), PatientID=label)
    manifest, _, _, problems = folder.load(tmp_path)
    assert manifest.label.value_counts().to_dict() == {"covid": 24, "normal": 24} and problems == []


def test_one_patient_id_in_several_folders_is_noted(tmp_path):
    for place in ("covid/P1", "covid/P2", "normal/P1"):
        write_series(tmp_path / place, [0, 1], PatientID="SAME")
    manifest, _, notes, _ = folder.load(tmp_path)
    assert manifest.patient.nunique() == 3
    assert "1 PatientIDs occur in several folders, such as covid/P1 and covid/P2" in notes[-1]
    assert "SAME" not in notes[-1] and "SAME" not in manifest.to_csv()


@pytest.mark.parametrize("first, second", [("covid", "COVID"), ("normal", "Normal "), ("lésion", "le\u0301sion")])
def test_classes_spelled_in_two_ways_are_named(tmp_path, first, second):
    for label in (first, second, "other"):
        write_image(tmp_path / label / "a.png")
    with pytest.raises(ValueError, match="classes whose names are spelled in two ways.*Received: .* and "):
        datasets.load("folder", tmp_path)
    rows = "".join(f"{label}/a.png,{label.strip()}\n" for label in (first, second, "other"))
    (tmp_path / "manifest.csv").write_text("path,label\n" + rows, encoding="utf-8")
    if first != "normal":  # blanks around labels are not theirs
        with pytest.raises(ValueError, match="spelled in two ways"):
            datasets.load("folder", tmp_path)


ROWS = [("covid/a.png", "covid", "0"), ("normal/é.png", "normal", "0"), ("normal/c.png", "normal", "0")]
MANIFESTS = {
    "plain": "path,label,slice_index\ncovid/a.png,covid,0\nnormal/é.png,normal,0\nnormal/c.png,normal,0\n",
    "bom": "\ufeffpath,label\ncovid/a.png,covid\nnormal/é.png,normal\nnormal/c.png,normal\n",
    "semicolons": "path;label;slice_index\r\ncovid/a.png;covid;0\r\nnormal/é.png;normal;0\r\nnormal/c.png;normal;\r\n",
    "tabs": "path\tlabel\ncovid/a.png\tcovid\nnormal/é.png\tnormal\nnormal/c.png\tnormal\n",
    "excel": "sep=;\npath;label\ncovid/a.png;covid\nnormal/é.png;normal\nnormal/c.png;normal\n",
    "windows": "path,label\ncovid\\a.png,covid\n.\\normal\\é.png,normal\nnormal\\c.png,normal\n",
    "dots": "path,label\n./covid/a.png,covid\n./normal//é.png,normal\nnormal/../normal/c.png,normal\n",
    "decomposed": "path,label\ncovid/a.png,covid\nnormal/e\u0301.png,normal\nnormal/c.png,normal\n",
    "floats": "path,label,slice_index\ncovid/a.png,covid,0.0\nnormal/é.png,normal,0.00\nnormal/c.png,normal,\n",
    "empty columns": "path,label,,\ncovid/a.png,covid,,\nnormal/é.png,normal,,\nnormal/c.png,normal,,\n,,,\n\n",
    "blanks": "path , label\ncovid/a.png , covid\nnormal/é.png,normal \nnormal/c.png, normal\n",
    "a hint in quotes": '\n"sep=;"\npath;label\ncovid/a.png;covid\nnormal/é.png;normal\nnormal/c.png;normal\n',
    "numbered": ",,path,label\n0,0,covid/a.png,covid\n1,1,normal/é.png,normal\n2,2,normal/c.png,normal\n",
    "commas in quotes": '"path";"label";"a, b, c"\ncovid/a.png;covid;1\nnormal/é.png;normal;2\nnormal/c.png;normal;3\n',
    "quotes": 'path,"label"\n"covid/a.png",covid\n"normal/é.png",normal\nnormal/c.png,"normal"\n',
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_manifests_as_people_have_them(tmp_path, name, encoding):
    for path, _, _ in ROWS:
        write_image(tmp_path / path)
    (tmp_path / "manifest.csv").write_bytes(MANIFESTS[name].encode(encoding))
    table = datasets.load("folder", tmp_path).manifest
    assert dict(zip(table.path, table.label, strict=True)) == {path: label for path, label, _ in ROWS}
    assert set(table.slice_index) == {0}
    datasets.save(datasets.load("folder", tmp_path), tmp_path / "out")


def test_parts_and_masks_of_a_manifest_as_people_write_them(tmp_path):
    for name in ("covid/a.png", "normal/b.png", "masks/é.png"):
        write_image(tmp_path / name)
    (tmp_path / "manifest.csv").write_text(
        "path;label;split;mask\ncovid\\a.png;covid;Train;masks\\e\u0301.png\nnormal\\b.png;normal;Validation;\n",
        encoding="utf-8")
    table = datasets.load("folder", tmp_path).manifest
    assert table["split"].tolist() == ["train", "val"] and table["mask"].tolist() == ["masks/é.png", ""]


@pytest.mark.parametrize("text, what", [
    (b"", "manifest.csv cannot be read as a CSV"), (b"\n,,\n", "it is empty"),
    (b"label\ncovid\n", "needs columns path,label"), (b"path,label\n", "at least one row"),
    (b"path,label,Patient\na.png,x,1\n", "manifest.csv needs .*in small letters"),
    (b"path,label,label\na.png,covid,x\n", "has a column twice"),
    ("path,label\n\u00e4.png,x\n".encode("latin-1"), "manifest.csv cannot be read as text.*in UTF-8"),
    (b"path,label\na.png,covid\nb,1.png,normal\n", "line 3 has 3 fields where the header has 2: put names that hold"),
    (b"path,label\na.png,covid\nb.png,covid\n", "at least two classes"),
    (b"path,label,split\na.png,covid,train\nb.png,normal,dev\n", "Received: split='dev'"),
    (b"path,label,slice_index\na.png,covid,0\nb.png,normal,x\n", "slice_index must be"),
    (b"path,label,slice_index\na.png,covid,0\nb.png,normal,1.5\n", "slice_index='1.5' in row 2, b.png")])
def test_bad_manifests(tmp_path, text, what):
    for name in ("a.png", "b.png", "b,1.png"):
        write_image(tmp_path / name)
    (tmp_path / "manifest.csv").write_bytes(text)
    with pytest.raises(ValueError, match=f"(?s){what}"):
        datasets.load("folder", tmp_path)


def test_images_beside_the_class_folders_are_noted(tmp_path):
    for name in ("covid/a.png", "normal/b.png", "loose.png"):
        write_image(tmp_path / name)
    assert datasets.load("folder", tmp_path).notes == [
        "1 images lie next to the class folders and were left out, such as loose.png."]


@pytest.mark.parametrize("rows, what", [
    ("a.png,covid,P1,\na.png,covid,P2,\nb.png,normal,P3,\n", "twice, with another patient .P1 and P2."),
    ("a.png,covid,P1,b.png\na.png,covid,P1,\nb.png,normal,P3,\n", "twice, with another mask"),
    (",covid,P1,\na.png,covid,P1,\nb.png,normal,P3,\n", "is listed in a row of manifest.csv without a path"),
    ("sub,covid,P1,\na.png,covid,P1,\nb.png,normal,P3,\n", "is listed in manifest.csv and is a folder"),
    (".c.png,covid,P1,\na.png,covid,P1,\nb.png,normal,P3,\n", "is hidden")])
def test_rows_that_contradict_each_other_or_name_no_file(tmp_path, rows, what):
    for name in ("a.png", "b.png", ".c.png", "sub/d.png"):
        write_image(tmp_path / name)
    (tmp_path / "manifest.csv").write_text("path,label,patient,mask\n" + rows)
    with pytest.raises(datasets.DataError, match=what):
        datasets.load("folder", tmp_path)
