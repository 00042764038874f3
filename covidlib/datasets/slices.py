"""From files to slices: DICOM series in order, volumes slice by slice, and of whole scans the part that shows lung."""

import hashlib

import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.datasets.covid_ct_md import LUNG_FRACTION
from covidlib.preprocessing import lungs
from covidlib.readers import ReadError, dicom, nifti, volume
from covidlib.readers.errors import reading

WHOLE = 20  # slices of a volume from which on nobody chose them by hand
SAMPLED = 32  # slices of such a volume, evenly spread, whose lungs are measured


def expand(root, table):
    """(manifest with a row per slice, problems, notes) from a table of files (path, label, patient, split and more).

    Slices of a DICOM series, all of one label and patient, are numbered from the feet up. `series` (a hash of its UID),
    `spacing_mm` (in-plane) and `slice_mm` are added where they are known. A patient who is not named is a volume, or
    the hash of a PatientID. Hashes are salted with the first DICOM file: the same set gives the same ones, and who
    has not got it cannot try identifiers. Volumes and series of at least WHOLE slices keep those that show lung.
    """
    rows, problems, groups, left_out = [], [], {}, []
    for row in table.to_dict("records"):
        file = root / row["path"]
        try:
            kind = readers.sniff(file)
            if kind == "dicom":
                groups.setdefault((row["label"], row["patient"] or file.parent), {})[file] = row
            else:
                rows += (_expand_nifti if kind == "nifti" else _expand_picture)(file, row, left_out)
        except ReadError as error:
            problems.append(error)
    of_series, more, notes = _expand_dicom(groups.values(), left_out)
    place = {path: n for n, path in enumerate(table.path)}
    rows = sorted(rows + of_series, key=lambda row: place[row["path"]])
    expanded = pd.DataFrame(rows, columns=None if rows else [*table, "slice_index"])
    known = [name for name in ("series", "spacing_mm", "slice_mm") if name in expanded and expanded[name].notna().any()]
    order = ["path", "label", "patient", "split", "slice_index", *known]
    others = [name for name in table if name not in order]
    return expanded[order + others], problems + more, _note_left_out(left_out) + notes


def _expand_picture(file, row, left_out):
    """A row for each page of a picture, of many pages for those that show lung; a picture of one page is one row."""
    slices = [(file, index) for index in readers.slice_order(file)]
    if len(slices) > 1:
        row["patient"] = row["patient"] or f"{row['label']}/{file.name}"
    shown = _with_lung(slices)
    left_out.append((len(slices) - len(shown), len(slices), row["path"]))
    return [{**row, "slice_index": index} for _, index in shown]


def _expand_nifti(file, row, left_out):
    """The same of a volume, with its spacing."""
    rows = _expand_picture(file, row, left_out)
    with reading(file):
        slice_mm, row_mm, column_mm = nifti.spacing(file)
    return [{**row, "slice_mm": slice_mm, "spacing_mm": min(row_mm, column_mm)} for row in rows]


def _expand_dicom(groups, left_out):
    """(rows, problems, notes) of the DICOM series in `groups`, each file -> row, of one label and patient."""
    rows, problems, notes, without_hu, people = [], [], [], 0, {}
    salt = hashlib.sha256(b"covidlib" + min(next(iter(groups))).read_bytes()).digest() if groups else b""
    for group in groups:
        found, ungrouped = volume.group_series(group, together=False)
        problems += ungrouped
        for series in found:
            problems += series.problems
            notes += series.notes
            headers = {frame.file: frame.header for frame in series.frames}
            without_hu += sum(map(dicom.lacks_rescale, headers.values()))
            try:
                series.require_axial()
                shown = _series_rows(series, group, people, salt)
            except ReadError as error:
                problems.append(error)
                continue
            left_out.append((len(series.slices) - len(shown), len(series.slices), group[series.files[0]]["path"]))
            rows += shown
    if without_hu:
        notes.append(f"{without_hu} DICOM files have no rescale tags: their values are taken as Hounsfield units where "
                     "they look like it, and are else scaled by their own range. Export them from the scanner's own "
                     "DICOM.")
    shared = [sorted(names - {""}) for names in people.values() if len(names - {""}) > 1]
    if shared:
        notes.append(f"{len(shared)} PatientIDs occur in several folders, such as {' and '.join(shared[0][:2])}: where "
                     "they are one person, split as several, put them into one folder of one class.")
    return rows, problems, notes


def _series_rows(series, group, people, salt):
    """Rows of one series; `people`, hash of a PatientID -> names given to it here, grows."""
    slice_mm, row_mm, column_mm = series.spacing
    facts = {"series": _short_hash(series.uid, salt) if series.uid else None, "slice_mm": slice_mm,
             "spacing_mm": min(row_mm, column_mm) if row_mm else None}
    rows = {}
    for n, (frame, file) in enumerate(zip(series.frames, series.files, strict=True)):
        row, name = group[file], str(frame.header.get("PatientID") or "")
        unnamed = f"{row['label']}/{file.name}" if frame.is_one_of_many else ""
        if name:
            unnamed = f"dicom-{_short_hash(name, salt)}"
            people.setdefault(unnamed, set()).add(row["patient"])
        rows[file, frame.index] = {**row, **facts, "patient": row["patient"] or unnamed,
                                   "slice_index": frame.index if frame.is_one_of_many else n}
    shown = _with_lung(series.slices) if series.uid else series.slices
    return [rows[one] for one in shown]


def _note_left_out(left_out):
    lost, whole, name = max(left_out, default=(0, 0, ""))
    return [f"{sum(one[0] for one in left_out)} slices of volumes and series that show no lung (less than "
            f"{LUNG_FRACTION:.0%} of the body's cross-section), or lie beyond such, were left out: most of {name} "
            f"({lost} of {whole}). A manifest.csv with slice_index keeps what it lists."] if lost else []


def _with_lung(slices):
    """Those of (file, index) from the feet up that show lung, decided by SAMPLED of them; all of a small volume."""
    if len(slices) < WHOLE:
        return slices
    sampled = np.unique(np.linspace(0, len(slices) - 1, SAMPLED).round().astype(int))
    fractions = {n: fraction for n in sampled if (fraction := _lung_fraction(*slices[n])) is not None}
    if not fractions:
        return slices
    estimated = np.interp(np.arange(len(slices)), list(fractions), list(fractions.values()))
    shown = volume.lung_run(estimated, LUNG_FRACTION)
    if not shown.any():
        raise ReadError(slices[0][0], f"begins a volume of {len(slices)} slices that shows no lung",
                        "Leave it out, or list the slices to use in a manifest.csv with slice_index")
    return [one for one, kept in zip(slices, shown, strict=True) if kept]


def _lung_fraction(file, index):
    """None for a damaged slice, which is named when all are decoded."""
    try:
        return lungs.lung_fraction(readers.read_slice(file, index))
    except ReadError:
        return None


def _short_hash(text, salt):
    return hashlib.blake2b(text.encode(), key=salt, digest_size=6).hexdigest()
