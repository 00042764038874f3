"""COVID-CT (Zhao et al. 2020, https://arxiv.org/abs/2003.13865) with its official, patient-wise split.

Its second class is "not COVID-19": healthy lungs and other disease alike, never called normal here.
"""

import pandas as pd

from covidlib.datasets import SPLITS, inside, require_folders

_PARTS = {"covid": "COVID", "non_covid": "NonCOVID"}


def load(root):
    """(manifest, classes, notes); patients come from patients.csv (folder, file, patient, doi) if present."""
    images = [f"Images-processed/CT_{part}" for part in _PARTS.values()]
    lists = [f"Data-split/{part}/{split}CT_{part}.txt" for part in _PARTS.values() for split in SPLITS]
    require_folders(root, images + lists, "ucsd-covid-ct")
    manifest = pd.DataFrame([row for label, part in _PARTS.items() for row in _rows(root, label, part)])
    manifest, notes = _add_patients(root, manifest)
    listed = set(manifest.path)
    found = {file.relative_to(root).as_posix() for folder in images for file in (root / folder).iterdir()}
    if found - listed:
        notes.append(f"{len(found - listed)} images are in no part of the official split and were left out.")
    return manifest, tuple(_PARTS), notes


def _rows(root, label, part):
    for split in SPLITS:
        text = (root / f"Data-split/{part}/{split}CT_{part}.txt").read_text(encoding="utf-8")
        for name in filter(None, map(str.strip, text.splitlines())):
            path = f"Images-processed/CT_{part}/{name}"
            if not inside(root, path).is_file():
                raise FileNotFoundError(f"{root / path} is missing. Unpack CT_{part}.zip completely.")
            yield {"path": path, "label": label, "split": split}


def _add_patients(root, manifest):
    if not (root / "patients.csv").is_file():
        note = "Patients are unknown (no patients.csv); the set's authors made the official split by patient."
        return manifest, [note]
    table = pd.read_csv(root / "patients.csv", dtype=str, keep_default_na=False)
    table["path"] = "Images-processed/" + table.folder + "/" + table.file
    merged = manifest.merge(table[["path", "patient"]], on="path", how="left", validate="one_to_one")
    # each folder numbers its patients on its own
    merged["patient"] = (merged.label + "/" + merged.patient).fillna("")
    unknown = int((merged.patient == "").sum())
    return merged, [f"{unknown} slices have no patient in patients.csv."] if unknown else []
