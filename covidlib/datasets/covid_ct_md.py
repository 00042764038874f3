"""COVID-CT-MD (Afshar et al. 2021, https://doi.org/10.1038/s41597-021-00900-3): DICOM volumes, three classes.

Used are the slices marked as infected of COVID-19 and of community-acquired pneumonia (`cap`, not only
viral), and of normal patients those that show lung: at least LUNG_FRACTION of the body's cross-section is
below -500 HU. `slice_index` is the slice's place in its volume by slice location, feet first.
"""

import numpy as np
import pandas as pd
from scipy import ndimage

from covidlib import ct
from covidlib.datasets import inside, require_folders

LUNG_FRACTION = 0.12
_FOLDERS = {"COVID-19 subjects": "covid", "Cap subjects": "cap", "Normal subjects": "normal"}
_COLUMNS = {"file", "patient", "slice_location_mm", "infection"}


def load(root):
    """(manifest, classes, notes); slices.csv has columns file, patient, slice_location_mm and infection."""
    require_folders(root, [*_FOLDERS, "slices.csv"], "covid-ct-md")
    table = pd.read_csv(root / "slices.csv", dtype={"patient": str})
    if _COLUMNS - set(table.columns):
        raise ValueError(f"slices.csv needs columns {sorted(_COLUMNS)}. Received: {list(table.columns)}")
    for path in table.file:
        if not inside(root, path).is_file():
            raise FileNotFoundError(f"{root / path} is listed in slices.csv and does not exist.")
    table["label"] = table.file.str.split("/").str[0].map(_FOLDERS)
    stray = table.file[table.label.isna()]
    if len(stray):
        raise ValueError(f"Files must lie in {', '.join(_FOLDERS)}. Received: {stray.iloc[0]}")
    table["patient"] = table.label + "/" + table.patient
    table["slice_index"] = table.groupby("patient").slice_location_mm.rank(method="first").astype(int) - 1
    normal = table.label == "normal"
    shown = [lung_fraction(ct.read_hu(root / path)) >= LUNG_FRACTION for path in table.file[normal]]
    used = table.infection == 1
    used[normal] = shown
    manifest = table[used].sort_values(["label", "patient", "slice_index"]).rename(columns={"file": "path"})
    notes = [
        f"{len(manifest)} of {len(table)} slices are used: infected ones of COVID-19 and CAP, and of normal "
        f"patients those whose cross-section is at least {LUNG_FRACTION:.0%} lung."
    ]
    if table.patient.nunique() < 30:
        notes.append(f"{table.patient.nunique()} patients support no claim about accuracy.")
    return manifest.drop(columns=["slice_number"], errors="ignore"), tuple(_FOLDERS.values()), notes


def lung_fraction(hu):
    """Share of air (below -500 HU) in the cross-section of the body (largest dense object, holes filled)."""
    coarse = hu[::4, ::4]
    objects, count = ndimage.label(coarse > -500)
    if not count:
        return 0.0
    largest = 1 + np.argmax(np.bincount(objects.ravel())[1:])
    body = ndimage.binary_fill_holes(objects == largest)
    return float((coarse[body] < -500).mean())
