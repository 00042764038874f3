"""COVID-CT-MD (Afshar et al. 2021, https://doi.org/10.1038/s41597-021-00900-3): DICOM volumes, three classes.

Used are the slices that the authors' readers marked as infected of COVID-19 and of community-acquired pneumonia
(`cap`, not only viral), and of normal patients those that show lung: at least LUNG_FRACTION of the body's
cross-section. `slice_index` is the slice's place in its volume by slice location, feet first.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom

from covidlib import readers
from covidlib.datasets import listing
from covidlib.datasets.tables import read_csv
from covidlib.preprocessing import lungs
from covidlib.readers import ReadError

LUNG_FRACTION = 0.12
_CLASSES = {"covid-19": "covid", "cap": "cap", "normal": "normal"}
_NEEDED = ("It should hold the folders COVID-19 subjects, Cap subjects and Normal subjects, and Index.csv with "
           "Slice-level-labels.npy, or slices.csv")


def load(root):
    """(manifest, classes, notes, problems) of the full set or of a part of it; reads the header of every slice.

    A folder per class (`COVID-19 subjects`, `Cap subjects`, `Normal subjects`; `cases` will do) holds a folder per
    patient. Which slices are infected is given by Index.csv with Slice-level-labels-updated-1.npy or
    Slice-level-labels.npy, as published, or in a slices.csv with columns file, patient, infection.
    """
    folders = {folder.name: label for folder in sorted(root.iterdir()) if (label := _class_of(folder))}
    listed = (root / "slices.csv").is_file()
    if set(_CLASSES.values()) - set(folders.values()) or not (listed or (root / "Index.csv").is_file()):
        raise FileNotFoundError(f"{root} is not a covid-ct-md folder. {_NEEDED}.")
    found = listing.find(root, *folders)
    table, problems = _from_csv(root, found, folders) if listed else _from_labels(root, found, folders)
    table["patient"] = table.label + "/" + table.patient
    order = table.sort_values(["patient", "slice_location_mm"])
    table["slice_mm"] = table.patient.map(order.groupby("patient").slice_location_mm.agg(lambda z: z.diff().median()))
    normal = table.label == "normal"
    used = table.infection == 1
    used[normal] = [_shows_lung(root / path, problems) for path in table.path[normal]]
    manifest = table[used].sort_values(["label", "patient", "slice_index"])
    listing.require_images(root, manifest, _CLASSES.values(), "covid-ct-md")
    notes = [f"{len(manifest)} of {len(table)} slices are used: infected ones of COVID-19 and CAP, and of normal "
             f"patients those whose cross-section is at least {LUNG_FRACTION:.0%} lung."]
    if table.patient.nunique() < 30:
        notes.append(f"{table.patient.nunique()} patients support no claim about accuracy.")
    return manifest, tuple(_CLASSES.values()), notes, problems


def _class_of(folder):
    name, _, rest = folder.name.lower().partition(" ")
    return _CLASSES.get(name) if folder.is_dir() and rest in ("", "subjects", "cases") else None


def _from_csv(root, found, folders):
    table = read_csv(root / "slices.csv")
    if {"file", "patient", "infection"} - set(table.columns):
        raise ValueError(f"slices.csv needs columns file,patient,infection. Received: {', '.join(table.columns)}")
    table = table[["file", "patient", "infection"]].rename(columns={"file": "path"}).assign(split="")
    table["infection"] = _numbers(root / "slices.csv", table.infection)
    table["path"] = listing.as_found(table.path, found[0])
    table["label"] = table.path.str.split("/").str[0].map(folders).fillna("")
    table, problems = listing.settle(root, table, found, "slices.csv")
    return _add_headers(root, table, problems)


def _from_labels(root, found, folders):
    """Slices of normal and of labelled patients; the n-th mark of a patient belongs to the n-th slice from the feet."""
    marks = _marks(root)
    parts = [path.split("/") for path in found[0] if path.lower().endswith(".dcm")]
    rows = [("/".join(names), folders[names[0]], names[-2]) for names in parts if len(names) > 2]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"]).assign(split="")
    table = table[(table.label == "normal") | table.patient.isin(marks)]
    table, problems = _add_headers(root, table, list(found[1]))
    gaps = {Path(problem.path).parent.name for problem in problems} & set(marks)
    if gaps:  # the marks go by the order of all slices of a patient
        problems += [ReadError(root, f"holds a damaged slice of {name}, so that no mark of that patient is certain",
                               "Replace it; until then the patient is left out") for name in sorted(gaps)]
        table = table[~table.patient.isin(gaps)]
    infection = [marks[patient][place] if patient in marks and place < len(marks[patient]) else 0
                 for patient, place in zip(table.patient, table.slice_index, strict=True)]
    return table.assign(infection=np.array(infection, int)), problems


def _marks(root):
    """patient -> array of 0 and 1, one for each of the patient's slices in order of slice location."""
    index = read_csv(root / "Index.csv")
    names = ("Slice-level-labels-updated-1.npy", "Slice-level-labels.npy")
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None or not {"Label Index", "Folder/ID"} <= set(index.columns):
        raise FileNotFoundError(f"{root} needs {names[1]}, and Index.csv with columns Label Index,Folder/ID.")
    labels, rows = np.load(file, allow_pickle=False), _numbers(root / "Index.csv", index["Label Index"]).to_numpy()
    if len(labels) == len(index):  # a patient was taken out of both, and the index still counts past the gap
        rows = np.arange(len(index))
    elif len(labels) <= rows.max():
        raise ValueError(f"{file} does not fit Index.csv. Received: {len(labels)} and {len(index)} patients")
    return dict(zip(index["Folder/ID"], labels[rows], strict=True))


def _numbers(file, texts):
    """Series of int; ValueError naming the first row without a whole number."""
    numbers = pd.to_numeric(texts, errors="coerce")
    odd = numbers.isna() | (numbers % 1 != 0)
    if odd.any():
        raise ValueError(f"{file} needs whole numbers in column {texts.name}. Received: {texts[odd.idxmax()]!r} in row "
                         f"{odd.idxmax() + 1}")
    return numbers.astype(int)


def _add_headers(root, table, problems):
    """(table with slice_location_mm, spacing_mm, series and slice_index, problems with those of the headers)."""
    headers = [_header(root / path) for path in table.path]
    bad = np.array([isinstance(header, ReadError) for header in headers], bool)
    problems = problems + [header for header in headers if isinstance(header, ReadError)]
    values = pd.DataFrame([header for header in headers if not isinstance(header, ReadError)],
                          columns=["slice_location_mm", "spacing_mm", "series"])
    table = pd.concat([table[~bad].reset_index(drop=True), values], axis=1)
    place = table.groupby(["label", "patient"]).slice_location_mm.rank(method="first")
    return table.assign(slice_index=place.astype(int) - 1), problems


def _header(path):
    """(slice location in mm, in-plane spacing in mm, series) of a DICOM file, or the ReadError."""
    tags = ["SliceLocation", "PixelSpacing", "SeriesInstanceUID"]
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return float(header.SliceLocation), float(header.PixelSpacing[0]), str(header.SeriesInstanceUID)
    except Exception as error:  # decoders meet damaged bytes with any exception
        return ReadError(path, f"names no slice location, pixel spacing and series ({error})",
                         "Copy or download it again")


def _shows_lung(path, problems):
    try:
        return lungs.lung_fraction(readers.read_slice(path)) >= LUNG_FRACTION
    except ReadError as error:
        problems.append(error)
        return False
