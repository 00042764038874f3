"""SARS-CoV-2 CT-scan (Soares et al. 2020, https://doi.org/10.1101/2020.04.24.20078584), no patient ids.

Copies and near-copies of a slice are kept together in one group that stands in for a patient, so that at
least they do not cross a split. Slices of one patient that differ more are not recognised.
"""

import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.datasets import listing, natural, near_duplicates, require_folders

_FOLDERS = {"covid": "COVID", "non_covid": "non-COVID"}


def load(root):
    """(manifest, classes, notes, problems); decodes every slice, for only pictures tell which are near-copies."""
    require_folders(root, list(_FOLDERS.values()), "sarscov2-ct")
    rows, hashes, thumbnails, problems = [], [], [], []
    for label, folder in _FOLDERS.items():
        paths, bad = listing.find(root, folder)
        problems += bad
        for path in sorted(paths, key=natural):
            try:
                image = readers.read_slice(root / path)
            except readers.ReadError as error:
                problems.append(error)
                continue
            rows.append({"path": path, "label": label})
            hashes.append(near_duplicates.perceptual_hash(image))
            thumbnails.append(near_duplicates.thumbnail(image))
    manifest = pd.DataFrame(rows, columns=["path", "label"])
    listing.require_images(root, manifest, _FOLDERS, "sarscov2-ct")
    pairs = near_duplicates.near_duplicates(np.array(hashes, np.uint64), np.array(thumbnails))
    groups = near_duplicates.groups(pairs, len(manifest))
    sizes = np.bincount(groups)
    note = (
        "The set names no patients, so that patient-disjointness is not known: column patient holds groups "
        f"of near-duplicates instead ({int((sizes > 1).sum())} groups of several slices, "
        f"{int((sizes == 1).sum())} slices alone)."
    )
    return manifest.assign(patient=[f"group-{group:04d}" for group in groups]), tuple(_FOLDERS), [note], problems
