"""COVID-CTset (Rahimzadeh et al. 2021, https://doi.org/10.1016/j.bspc.2021.102588): 16-bit TIFF of one hospital.

Two layouts: the pictures that the authors' readers chose, `<anything><covid|normal>..._patient<N>_SR_<k>_IM<n>.tif`
in one folder ("Train&Validation"), and whole series, `<covid|normal>.../patient<N>/SR_<k>/IM<n>.tif` ("COVID-CTset"),
where slices of a COVID-19 patient that show no lesion are labelled covid too. Where both are present, the chosen
ones are used. Grey levels are stored, HU + 1024 by Patients_metadata.csv; a TIFF cannot say so, and no HU are claimed.
"""

import re

import pandas as pd

from covidlib.datasets import listing
from covidlib.datasets.tables import read_csv
from covidlib.readers import ReadError

_CLASSES = ("covid", "normal")
_CHOSEN = re.compile(r"[^/]*?(covid|normal)[^/]*_(patient\d+)_(SR_\d+)_[^/]*\.tiff?", re.IGNORECASE)
_WHOLE = re.compile(r"(?:.*/)?(covid|normal)[^/]*/(patient\d+)/(SR_\d+)/[^/]*\.tiff?", re.IGNORECASE)


def load(root):
    """(manifest, classes, notes, problems); spacing_mm comes from Patients_metadata.csv where that is present."""
    paths, problems = listing.find(root, ".")
    rows, chosen = [], False
    for path in paths:
        match = _CHOSEN.fullmatch(path.rsplit("/")[-1]) or _WHOLE.fullmatch(path)
        if match:
            rows.append((path, match[1].lower(), match[2].lower(), match[3].upper(), match.re is _CHOSEN))
            chosen |= match.re is _CHOSEN
        elif path.lower().endswith((".tif", ".tiff")):
            what = "is in no folder of a patient and a series, and its name says neither"
            problems.append(ReadError(root / path, what, "Keep the folders and names of the set's archives"))
    table = pd.DataFrame(rows, columns=["path", "label", "patient", "series", "chosen"])
    listing.require_images(root, table, _CLASSES, "covid-ctset")
    manifest = table[table.chosen == chosen].drop(columns="chosen").reset_index(drop=True)
    listing.require_images(root, manifest, _CLASSES, "covid-ctset")
    manifest["slice_index"] = pd.to_numeric(manifest.path.str.extract(r"(\d+)\.\w+$")[0]).fillna(0).astype(int)
    manifest["spacing_mm"] = _spacing(root, manifest)
    manifest["series"] = manifest.patient + "/" + manifest.series
    notes = ["Grey levels of 16 bits are scaled slice by slice, for a TIFF holds no Hounsfield units."]
    if not chosen:
        notes.append("Whole series are used: slices of COVID-19 patients that show no lesion are labelled covid too.")
    repeated = int((manifest.groupby("patient").series.nunique() > 1).sum())
    if repeated:
        notes.append(f"{repeated} patients have several series of the same breath or the next: their slices repeat.")
    return manifest, _CLASSES, notes, problems


def _spacing(root, manifest):
    """In-plane spacing in mm by patient and series, NaN where it is not known."""
    file = next(iter(sorted(root.rglob("Patients_metadata.csv"))), None)
    if file is None:
        return float("nan")
    table = read_csv(file).drop_duplicates("Patient ID")
    known = {(row["Patient ID"], name.split()[0]): row[name]
             for _, row in table.iterrows() for name in table if name.endswith(" PixelSpacing")}
    text = pd.Series([known.get(key, "") for key in zip(manifest.patient, manifest.series, strict=True)])
    return pd.to_numeric(text.str.extract(r"([\d.]+)")[0])
