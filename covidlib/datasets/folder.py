"""Your own slices: a folder per class, or a manifest.csv that lists them.

`<class>/...`, or `train|val|test/<class>/...` for a split of your own. A folder inside a class is a
patient, and so is a volume; DICOM files that lie loose in a class are grouped by their PatientID (of
which only a hash is kept). Volumes (NIfTI, multi-page TIFF, multi-frame DICOM) become all their slices.
"""

import hashlib

import pandas as pd
import pydicom

from covidlib import ct
from covidlib.datasets import SPLITS, inside, natural, read_manifest

ORDER = ("covid", "viral", "cap", "normal", "non_covid")
_LAYOUT = "It should hold one folder of images per class, or a manifest.csv with columns path,label"


def load(root):
    """(manifest, classes, notes) of a folder."""
    listed = (root / "manifest.csv").is_file()
    manifest, left_out = _from_csv(root) if listed else _from_folders(root)
    classes = sorted(set(manifest.label), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    if len(classes) < 2:
        raise ValueError(f"{root} needs at least two classes. {_LAYOUT}. Received: classes={classes}")
    notes = []
    if left_out:
        names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        notes.append(f"{len(left_out)} files cannot be read as {ct.FORMATS} and were left out: {names}.")
    expanded = manifest.path.duplicated(keep=False).sum()
    if expanded:
        notes.append(f"{expanded} slices come from volumes, which are used whole, slices without lung too.")
    return manifest, tuple(classes), notes


def _from_csv(root):
    table = read_manifest(root / "manifest.csv")
    for path in table.path.unique():
        if not inside(root, path).is_file():
            raise FileNotFoundError(f"{root / path} is listed in manifest.csv and does not exist.")
    if "slice_index" in pd.read_csv(root / "manifest.csv", nrows=0, encoding="utf-8-sig"):
        return table, []
    table["slice_index"] = [range(ct.count_slices(root / path)) for path in table.path]
    return table.explode("slice_index", ignore_index=True), []


def _from_folders(root):
    folders = _visible_folders(root)
    parts = [folder for folder in folders if folder.name in SPLITS]
    if parts and len(parts) < len(folders):
        others = sorted({folder.name for folder in folders} - set(SPLITS))
        raise ValueError(f"{root} mixes train, val, test with other folders. Received: {', '.join(others)}")
    class_folders = [(folder, "") for folder in folders]
    if parts:
        class_folders = [(folder, part.name) for part in parts for folder in _visible_folders(part)]
    rows, left_out = [], []
    for folder, split in class_folders:
        for file in sorted(folder.rglob("*"), key=natural):
            if file.is_dir() or any(name.startswith(".") for name in file.relative_to(root).parts):
                continue
            path = file.relative_to(root).as_posix()
            inside(root, path)
            try:
                rows += _rows(file, path, folder, split)
            except ct.ReadError:
                left_out.append(path)
    empty = {folder.name for folder, _ in class_folders} - {row["label"] for row in rows}
    if empty or not rows:
        names = ", ".join(sorted(empty)) or "any class"
        raise FileNotFoundError(f"{root} holds no images of {names}. {_LAYOUT}.")
    return pd.DataFrame(rows), left_out


def _rows(file, path, folder, split):
    count = ct.count_slices(file)
    subfolders = file.relative_to(folder).parts[:-1]
    patient = subfolders[0] if subfolders else file.name if count > 1 else _dicom_patient(file)
    patient = f"{folder.name}/{patient}" if patient and not patient.startswith("dicom-") else patient
    row = {"path": path, "label": folder.name, "patient": patient, "split": split}
    return [{**row, "slice_index": index} for index in range(count)]


def _dicom_patient(file):
    if ct.sniff(file) != "dicom":
        return ""
    header = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
    name = str(header.get("PatientID") or "")
    return f"dicom-{hashlib.sha256(name.encode()).hexdigest()[:12]}" if name else ""


def _visible_folders(folder):
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
