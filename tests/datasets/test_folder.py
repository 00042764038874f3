"""The reader's own slices: class folders, parts, patients, volumes and a manifest."""

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from covidlib import datasets


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)).save(path, format="png")


def write_dicom(path, patient):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, pydicom.uid.generate_uid()
    header.PatientID, header.Rows, header.Columns = patient, 1, 1
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


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
    assert "1 files cannot be read" in source.notes[0] and "normal/notes.txt" in source.notes[0]


def test_parts_above_the_classes(tmp_path):
    for part in ("train", "test"):
        for label in ("covid", "non_covid"):
            write_image(tmp_path / part / label / "a.png")
    source = datasets.load("folder", tmp_path)
    assert source.official_split and source.classes == ("covid", "non_covid")
    assert source.manifest.split.value_counts().to_dict() == {"train": 2, "test": 2}
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
    assert "7 slices come from volumes" in source.notes[0]


def test_loose_dicom_files_are_grouped_by_patient_without_naming_them(tmp_path):
    for name, patient in {"covid/1": "Doe", "covid/2": "Doe", "normal/3": "Doe", "normal/4": ""}.items():
        write_dicom(tmp_path / name, patient)
    patients = datasets.load("folder", tmp_path).manifest.patient.tolist()
    assert patients[0] == patients[1] == patients[2] != "" and patients[3] == ""
    assert "Doe" not in patients[0]


def test_manifest_csv(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    rows = ["path,label,patient,split,age", "a.png,normal,007,train,4"]
    rows += ["b.png,covid,NA,test,5", "c.png,covid,1,train,"]
    (tmp_path / "manifest.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    source = datasets.load("folder", tmp_path)
    assert source.manifest.patient.tolist() == ["007", "NA", "1"] and source.official_split
    assert source.classes == ("covid", "normal") and list(source.manifest)[-1] == "age"


@pytest.mark.parametrize(
    "text, error, what",
    [
        ("label\ncovid\n", ValueError, "needs columns path,label"),
        ("path,label\n", ValueError, "at least one row"),
        ("path,label\na.png,covid\nb.png,covid\n", ValueError, "at least two classes"),
        ("path,label\na.png,covid\nb.png,\n", ValueError, "needs a label"),
        ("path,label\na.png,covid\na.png,normal\n", ValueError, "listed once"),
        ("path,label\na.png,covid\nx.png,normal\n", FileNotFoundError, "does not exist"),
        ("path,label\na.png,covid\n../b.png,normal\n", ValueError, "stay inside data_root"),
        ("path,label\na.png,covid\n/x.png,normal\n", ValueError, "stay inside data_root"),
        ("path,label,split\na.png,covid,train\nb.png,normal,dev\n", ValueError, "Received: split='dev'"),
        ("path,label,slice_index\na.png,covid,0\nb.png,normal,x\n", ValueError, "slice_index must be"),
    ],
)
def test_bad_manifests(tmp_path, text, error, what):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(error, match=what):
        datasets.load("folder", tmp_path)


def test_links_out_of_the_folder_are_refused(tmp_path):
    write_image(tmp_path / "outside" / "secret.png")
    for label in ("covid", "normal"):
        write_image(tmp_path / "set" / label / "a.png")
    (tmp_path / "set" / "covid" / "link.png").symlink_to(tmp_path / "outside" / "secret.png")
    with pytest.raises(ValueError, match="stay inside data_root.*covid/link.png"):
        datasets.load("folder", tmp_path / "set")


def test_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images of any class"):
        datasets.load("folder", tmp_path)
    write_image(tmp_path / "covid" / "a.png")
    (tmp_path / "normal").mkdir()
    with pytest.raises(FileNotFoundError, match="no images of normal. It should hold one folder"):
        datasets.load("folder", tmp_path)
