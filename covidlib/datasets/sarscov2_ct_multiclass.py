"""A COVID multiclass data set of CT scans (Soares et al. 2023, https://doi.org/10.1007/s12530-023-09511-2).

A folder per class and in it a folder per patient, of hospitals in Sao Paulo. The third class holds other diseases
of the lung of every kind: `other_disease`, never viral. It grew out of SARS-CoV-2 CT-scan and shares slices with it.
"""

import pandas as pd

from covidlib.datasets import listing, natural

_CLASSES = ("covid", "normal", "other_disease")
_NAMES = {"covid": "covid", "covid-19": "covid", "healthy": "normal", "normal": "normal",
          "others": "other_disease", "other": "other_disease"}


def load(root):
    """(manifest, classes, notes, problems) of a folder with Covid, Healthy and Others, or one that wraps it."""
    top = root / "New_Data_CoV2" if (root / "New_Data_CoV2").is_dir() else root
    folders = {folder: _NAMES[folder.name.lower()] for folder in sorted(top.iterdir())
               if folder.is_dir() and folder.name.lower() in _NAMES}
    absent = set(_CLASSES) - set(folders.values())
    if absent:
        raise FileNotFoundError(f"{root} is not a sarscov2-ct-multiclass folder: it should hold the folders Covid, "
                                f"Healthy and Others. Missing: {', '.join(sorted(absent))}")
    rows, problems = [], []
    for folder, label in folders.items():
        relative = folder.relative_to(root).as_posix()
        paths, bad = listing.find(root, relative)
        problems += bad
        for path in sorted(paths, key=natural):
            parts = path[len(relative) + 1 :].split("/")
            rows.append((path, label, f"{label}/{parts[0]}" if len(parts) > 1 else ""))
    manifest = pd.DataFrame(rows, columns=["path", "label", "patient"])
    listing.require_images(root, manifest, _CLASSES, "sarscov2-ct-multiclass")
    manifest["slice_index"] = manifest.groupby("patient").cumcount().where(manifest.patient != "", 0)
    notes = ["other_disease is every disease of the lung but COVID-19; the set does not say which, and it is not the "
             "paper's class of other viral pneumonia."]
    unknown = int((manifest.patient == "").sum())
    if unknown:
        notes.append(f"{unknown} slices are in no patient's folder, so that their patient is not known.")
    return manifest, _CLASSES, notes, problems
