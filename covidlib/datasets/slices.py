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
LOOKED_AT = 32  # slices of such a volume, evenly spread, whose lungs are measured


def expand(root, table):
    """(manifest with a row per slice, problems, notes) from a table of files (path, label, patient, split and more).

    Slices of a DICOM series, all of one label and patient, are numbered from the feet up. `series` (a hash of its UID),
    `spacing_mm` (in-plane) and `slice_mm` are added where they are known. A patient who is not named is a volume, or
    the hash of a PatientID. Hashes are salted with the first DICOM file: the same set gives the same ones, and who
    has not got it cannot try identifiers. Volumes and series of at least WHOLE slices keep those that show lung.
    """
    rows, problems, notes, groups, left_out = [], [], [], {}, []
    for row in table.to_dict("records"):
        file = root / row["path"]
        try:
            if readers.sniff(file) == "dicom":
                groups.setdefault((row["label"], row["patient"] or file.parent), {})[file] = row
                continue
            slices = [(file, index) for index in readers.slice_order(file)]
            if len(slices) > 1:
                row["patient"] = row["patient"] or f"{row['label']}/{file.name}"
            shown = _with_lung(slices)
            left_out.append((len(slices) - len(shown), len(slices), row["path"]))
            rows += [{**row, **_nifti_spacing(file), "slice_index": index} for _, index in shown]
        except ReadError as error:
            problems.append(error)
    without_hu, people = 0, {}
    salt = hashlib.sha256(b"covidlib" + min(next(iter(groups.values()))).read_bytes()).digest() if groups else b""
    for group in groups.values():
        series, ungrouped = volume.group_series(group, together=False)
        problems += ungrouped
        for one in series:
            problems += one.problems
            notes += one.notes
            without_hu += sum(map(dicom.lacks_rescale, {each.file: each.header for each in one.frames}.values()))
            try:
                one.require_axial()
                shown = _series_rows(one, group, people, salt)
                left_out.append((len(one.slices) - len(shown), len(one.slices), group[one.files[0]]["path"]))
            except ReadError as error:
                problems.append(error)
                continue
            rows += shown
    lost, whole, name = max(left_out, default=(0, 0, ""))
    if lost:
        notes.append(f"{sum(one[0] for one in left_out)} slices of volumes and series that show no lung (less than "
                     f"{LUNG_FRACTION:.0%} of the body's cross-section), or lie beyond such, were left out: most of "
                     f"{name} ({lost} of {whole}). A manifest.csv with slice_index keeps what it lists.")
    if without_hu:
        notes.append(f"{without_hu} DICOM files have no rescale tags: their values are taken as Hounsfield units where "
                     "they look like it, and are else seen through their own range. Export them from the scanner's own "
                     "DICOM.")
    shared = [sorted(names - {""}) for names in people.values() if len(names - {""}) > 1]
    if shared:
        notes.append(f"{len(shared)} PatientIDs stand in several folders, such as {' and '.join(shared[0][:2])}: where "
                     "they are one person, split as several, put them into one folder of one class.")
    place = {path: n for n, path in enumerate(table.path)}
    expanded = pd.DataFrame(rows, columns=list(table) + ["slice_index"] if not rows else None)
    expanded = expanded.assign(place=expanded.path.map(place))
    known = [name for name in ("series", "spacing_mm", "slice_mm") if name in expanded and expanded[name].notna().any()]
    order = ["path", "label", "patient", "split", "slice_index", *known]
    others = [name for name in table if name not in order]
    return expanded.sort_values("place", kind="stable")[order + others], problems, notes


def _series_rows(series, group, people, salt):
    """Rows of one series; `people`, hash of a PatientID -> names given to it here, grows."""
    slice_mm, row_mm, column_mm = series.spacing
    facts = {"series": _short_hash(series.uid, salt) if series.uid else None, "slice_mm": slice_mm,
             "spacing_mm": min(row_mm, column_mm) if row_mm else None}
    found = {}  # slice -> (patient, slice_index)
    for n, (one, file) in enumerate(zip(series.frames, series.files, strict=True)):
        name = str(one.header.get("PatientID") or "")
        if name:
            people.setdefault(_short_hash(name, salt), set()).add(group[file]["patient"])
        alone = f"{group[file]['label']}/{file.name}" if one.is_one_of_many else ""
        loose = f"dicom-{_short_hash(name, salt)}" if name else alone
        found[file, one.index] = group[file]["patient"] or loose, one.index if one.is_one_of_many else n
    shown = _with_lung(series.slices) if series.uid else series.slices
    return [{**group[one[0]], **facts, "patient": found[one][0], "slice_index": found[one][1]} for one in shown]


def _with_lung(slices):
    """Those of (file, index) from the feet up that show lung, judged by LOOKED_AT of them; all of a small volume."""
    if len(slices) < WHOLE:
        return slices
    looked_at = np.unique(np.linspace(0, len(slices) - 1, LOOKED_AT).round().astype(int))
    seen = {n: fraction for n in looked_at if (fraction := _lung_fraction(*slices[n])) is not None}
    if not seen:
        return slices
    looked_at, fractions = list(seen), list(seen.values())
    shown = volume.lung_run(np.interp(np.arange(len(slices)), looked_at, fractions), LUNG_FRACTION)
    if not shown.any():
        raise ReadError(slices[0][0], f"begins a volume of {len(slices)} slices that shows no lung",
                        "Leave it out, or list the slices to use in a manifest.csv with slice_index")
    return [one for one, kept in zip(slices, shown, strict=True) if kept]


def _lung_fraction(file, index):
    """None for a damaged slice: intake names it when all are decoded."""
    try:
        return lungs.lung_fraction(readers.read_slice(file, index))
    except ReadError:
        return None


def _nifti_spacing(file):
    if readers.sniff(file) != "nifti":
        return {}
    with reading(file):
        slice_mm, row_mm, column_mm = nifti.spacing(file)
    return {"slice_mm": slice_mm, "spacing_mm": min(row_mm, column_mm)}


def _short_hash(text, salt):
    return hashlib.blake2b(text.encode(), key=salt, digest_size=6).hexdigest()
