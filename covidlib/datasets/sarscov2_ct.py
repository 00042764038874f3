"""SARS-CoV-2 CT-scan (Soares et al. 2020, https://doi.org/10.1101/2020.04.24.20078584), no patient ids.

Copies and near-copies of a slice are kept together in one group that stands in for a patient, so that at
least they do not cross a split. Slices of one patient that differ more are not recognised.
"""

import numpy as np
import pandas as pd

from covidlib import audit, ct
from covidlib.datasets import inside, natural, require_folders

_FOLDERS = {"covid": "COVID", "non_covid": "non-COVID"}


def load(root):
    """(manifest, classes, notes)."""
    require_folders(root, list(_FOLDERS.values()), "sarscov2-ct")
    rows, images = [], []
    for label, folder in _FOLDERS.items():
        for file in sorted((root / folder).iterdir(), key=natural):
            if file.name.startswith("."):
                continue
            path = file.relative_to(root).as_posix()
            images.append(ct.read_slice(inside(root, path)))
            rows.append({"path": path, "label": label})
    if {row["label"] for row in rows} != set(_FOLDERS):
        raise FileNotFoundError(f"{root} is not a sarscov2-ct folder: COVID or non-COVID holds no images.")
    groups = audit.group_near_duplicates(images)
    manifest = pd.DataFrame(rows).assign(patient=[f"group-{group:04d}" for group in groups])
    sizes = np.bincount(groups)
    note = (
        "The set names no patients, so that patient-disjointness is not known: column patient holds groups "
        f"of near-duplicates instead ({int((sizes > 1).sum())} groups of several slices, "
        f"{int((sizes == 1).sum())} slices alone)."
    )
    return manifest, tuple(_FOLDERS), [note]
