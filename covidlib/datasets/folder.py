"""Your own slices: a folder per class, or a manifest.csv that lists them.

`<class>/...`, or `train|val|test/<class>/...` for a split of your own, in capitals too. A folder inside a class is a
patient, and so is a volume; DICOM files directly in a class are grouped by their PatientID (of
which only a hash is kept). Volumes (NIfTI, multi-page TIFF, multi-frame DICOM) and DICOM series become
their slices, see slices.expand.
"""

import hashlib
import unicodedata
from pathlib import Path

import pandas as pd

from covidlib import readers
from covidlib.datasets import listing, natural, slices
from covidlib.datasets.tables import PARTS, read_table
from covidlib.readers import NoImage, ReadError
from covidlib.utils.files import sha256

ORDER = ("covid", "viral", "cap", "normal", "non_covid")
_LAYOUT = "It should hold one folder of images per class, or a manifest.csv with columns path,label"


def load(root):
    """(manifest, classes, notes, problems) of a folder; headers are read, and a few slices of each volume.

    The manifest has also the columns series (hash of the SeriesInstanceUID), spacing_mm (in-plane) and slice_mm where
    they are known, and whatever manifest.csv adds, such as mask; volumes without a slice_index there are taken as in
    class folders. ValueError or FileNotFoundError where the folder has fewer than two classes or a class holds no file.
    """
    root = Path(root)
    listed = (root / "manifest.csv").is_file()
    table, problems, notes = _from_csv(root) if listed else _from_folders(root)
    classes = sorted(set(table.label), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    _refuse_twins(root, classes)
    if len(classes) < 2:
        raise ValueError(f"{root} needs at least two classes. {_LAYOUT}. Received: classes={classes}")
    table = table[table.path != ""]
    whole = table.slice_index == "" if "slice_index" in table else pd.Series(True, table.index)
    if whole.any():
        expanded, found, said = slices.expand(root, table[whole].drop(columns="slice_index", errors="ignore"))
        table = pd.concat([expanded, table[~whole]]) if not whole.all() else expanded
        if not listed:  # a file that somebody listed is meant to be one
            passed_over = [problem.path.relative_to(root) for problem in found if isinstance(problem, NoImage)]
            found = [problem for problem in found if not isinstance(problem, NoImage)]
            notes += _note_passed_over(root, table, passed_over)
        problems, notes = problems + found, notes + said
    twins = _under_two_labels(root, table)
    table = table[~table.path.isin([problem.path.relative_to(root).as_posix() for problem in twins])]
    return table.reset_index(drop=True), tuple(classes), notes, problems + twins


def _from_csv(root):
    table = read_table(root / "manifest.csv")
    table = table.assign(**{name: "" for name in ("patient", "split") if name not in table})
    unlabelled = table[table.label == ""].path.unique()
    problems = [ReadError(root / path, "has no label in manifest.csv", "Give it one") for path in unlabelled]
    table = table[~table.path.isin(unlabelled)]
    found = listing.find(root, ".")
    table["path"] = listing.as_found(table.path, found[0])
    usable, settled = listing.settle(root, table[["path", "label", "split"]], found, "manifest.csv")
    listed = {str(root / path) for path in table.path}
    problems += [problem for problem in settled if str(problem.path) in listed]
    keep = table.path.isin(usable.path)
    if "mask" in table:
        table["mask"] = listing.as_found(table["mask"], found[0])
        lost = keep & (table["mask"] != "") & ~table["mask"].isin(found[0])
        problems += [ReadError(root / mask, "is listed in manifest.csv as a mask and is no file within data_root",
                               "Correct manifest.csv") for mask in table["mask"][lost].unique()]
        keep &= ~lost
    table["path"] = table.path.where(keep, "")  # an unusable file still says that its class exists
    alike = ["path", "slice_index"] if "slice_index" in table else ["path"]
    repeated = table[keep & table.duplicated(alike, keep=False)]
    for (path, *_), rows in repeated.groupby(alike):
        other = [name for name in table if rows[name].nunique() > 1]
        if other:
            problems.append(ReadError(root / path, f"is listed in manifest.csv twice, with another {other[0]} "
                                      f"({' and '.join(rows[other[0]].unique()[:2])})", "Keep the line that is right"))
            keep &= table.path != path
    return table[~table.duplicated(alike) | ~keep], problems, []


def _from_folders(root):
    folders = _visible_folders(root)
    parts = [folder for folder in folders if folder.name.lower() in PARTS]
    if parts and len(parts) < len(folders):
        others = sorted(folder.name for folder in folders if folder not in parts)
        raise ValueError(f"{root} mixes train, val, test with other folders. Received: {', '.join(others)}")
    class_folders = [(folder, "") for folder in folders]
    if parts:
        class_folders = [(folder, PARTS[part.name.lower()]) for part in parts for folder in _visible_folders(part)]
    rows, problems = [], []
    for folder, split in class_folders:
        paths, wrong = listing.find(root, folder.relative_to(root).as_posix())
        problems += wrong
        for path in sorted(paths, key=natural):
            inner = Path(path).relative_to(folder.relative_to(root)).parts[:-1]
            patient = f"{folder.name}/{inner[0]}" if inner else ""
            rows.append({"path": path, "label": folder.name, "patient": patient, "split": split})
        if wrong and not paths:
            rows.append({"path": "", "label": folder.name, "patient": "", "split": split})
    empty = {folder.name for folder, _ in class_folders} - {row["label"] for row in rows}
    if empty or not rows:
        names = ", ".join(sorted(empty)) or "any class"
        raise FileNotFoundError(f"{root} holds no images of {names}. {_LAYOUT}.")
    loose = _loose_images(root, [root, *parts])
    notes = [f"{len(loose)} images lie next to the class folders and were left out, such as {loose[0]}."
             ] if loose else []
    return pd.DataFrame(rows), problems, notes


def _note_passed_over(root, table, passed_over):
    """A note on files that are no images; FileNotFoundError where a class holds nothing else."""
    names = {path.as_posix() for path in passed_over}
    empty = sorted(set(table.label) - set(table.label[~table.path.isin(names)]))
    if empty:
        raise FileNotFoundError(f"{root} holds no images of {', '.join(empty)}. {_LAYOUT}.")
    return [f"{len(names)} files are no images and were passed over, such as {min(names)}."] if names else []


def _loose_images(root, folders):
    """Images directly in these folders, relative to `root`."""
    return [file.relative_to(root).as_posix() for folder in folders for file in sorted(folder.iterdir())
            if file.is_file() and not listing.is_left_behind(file.name) and _may_be_image(file)]


def _may_be_image(file):
    try:
        readers.sniff(file)
    except NoImage:
        return False
    except ReadError:
        pass
    return True


def _refuse_twins(root, classes):
    """ValueError for classes whose names differ in case, blanks or the form of their accents alone."""
    names = {}
    for name in classes:
        names.setdefault(unicodedata.normalize("NFC", name).strip().casefold(), []).append(name)
    twins = [" and ".join(alike) for alike in names.values() if len(alike) > 1]
    if twins:
        raise ValueError(f"{root} has classes whose names are spelled in two ways. Give each one name. "
                         f"Received: {'; '.join(twins)}")


def _under_two_labels(root, table):
    """A ReadError for each file that occurs under another label too; whole files are read only where needed."""
    files = table.drop_duplicates("path")[["path", "label"]]
    for key in (lambda file: file.stat().st_size, _beginning, sha256):
        files = files.assign(key=[key(root / path) for path in files.path])
        files = files[files.groupby("key").label.transform("nunique") > 1]
        if files.empty:
            return []
    problems = []
    for _, same in files.groupby("key", sort=False):
        for path, label in zip(same.path, same.label, strict=True):
            other = same[same.label != label].iloc[0]
            problems.append(ReadError(root / path, f"is {label} here, and {other.label} as the same file {other.path}",
                                      "Keep it under the label that is right"))
    return problems


def _beginning(file):
    with open(file, "rb") as stream:
        return hashlib.sha256(stream.read(4096)).digest()


def _visible_folders(folder):
    return sorted(f for f in folder.iterdir() if f.is_dir() and not listing.is_left_behind(f.name))
