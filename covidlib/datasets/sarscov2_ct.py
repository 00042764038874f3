"""SARS-CoV-2 CT-scan (Soares et al. 2020, https://doi.org/10.1101/2020.04.24.20078584), no patient ids.

Near-duplicates form a group that stands in for a patient, so that at least they do not cross a split. Slices of one
patient that differ more are not recognised.
"""

import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.datasets import listing, natural, near_duplicates, require_folders

_FOLDERS = {"covid": "COVID", "non_covid": "non-COVID"}


def load(root):
    """(manifest, classes, notes, problems); decodes every slice to find near-duplicates."""
    return load_without_patients(root, _FOLDERS, "sarscov2-ct")


def load_without_patients(root, folders, dataset):
    """As `load`, of a folder for every class, `folders` {label: folder}, in which groups stand in for patients."""
    require_folders(root, list(folders.values()), dataset)
    rows, problems = [], []
    described = near_duplicates.describe(_images(root, folders, rows, problems))
    manifest = pd.DataFrame(rows, columns=["path", "label"])
    listing.require_images(root, manifest, folders, dataset)
    pairs = near_duplicates.near_duplicates(*described)
    groups = near_duplicates.groups(pairs, len(manifest))
    sizes = np.bincount(groups)
    note = (
        "The set names no patients, so that patient-disjointness is not known: column patient holds groups "
        f"of near-duplicates instead ({int((sizes > 1).sum())} groups of several slices, "
        f"{int((sizes == 1).sum())} slices alone)."
    )
    return manifest.assign(patient=[f"group-{group:04d}" for group in groups]), tuple(folders), [note], problems


def _images(root, folders, rows, problems):
    """Every readable slice in order, each with a row; `rows` and `problems` grow."""
    for label, folder in folders.items():
        paths, unusable = listing.find(root, folder)
        problems += unusable
        for path in sorted(paths, key=natural):
            try:
                image = readers.read_slice(root / path)
            except readers.ReadError as error:
                problems.append(error)
                continue
            rows.append({"path": path, "label": label})
            yield image
