"""COVID-CT (Zhao et al. 2020, https://arxiv.org/abs/2003.13865) with its official, patient-wise split.

Its second class is "not COVID-19": healthy lungs and other disease alike, never called normal here.
"""

import re

import pandas as pd

from covidlib.datasets import SPLITS, listing, require_folders
from covidlib.datasets.tables import read_csv

_PARTS = {"covid": "COVID", "non_covid": "NonCOVID"}
# a preprint's number, or whatever stands before the page and picture numbers of a figure
_PREPRINT = re.compile(r"(\d{4}\.\d\d\.\d\d\.\d+)-p\d")
_ARTICLE = re.compile(r"([A-Za-z].*?|\d{4}-.*?[A-Za-z].*?)(?:-p\d+-\d.*|_\d+(?:%\d+)?|%\d+)$")


def load(root):
    """(manifest, classes, notes, problems); patients and DOIs come from patients.csv (folder, file, patient, doi)."""
    folders = [f"Images-processed/CT_{part}" for part in _PARTS.values()]
    lists = [f"Data-split/{part}/{split}CT_{part}.txt" for part in _PARTS.values() for split in SPLITS]
    require_folders(root, folders + lists, "ucsd-covid-ct")
    found = listing.find(root, *folders)
    rows = [row for label, part in _PARTS.items() for row in _rows(root, label, part)]
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    left_out = listing.unlisted(table, found)
    table, problems = listing.settle(root, table, found, "Data-split")
    listing.require_images(root, table, _PARTS, "ucsd-covid-ct")
    manifest, notes = _add_patients(root, table)
    names = manifest.path.str.rsplit("/").str[-1].str.rsplit(".", n=1).str[0]
    manifest["document"] = manifest.document.where(manifest.document != "", names.map(document))
    notes.append(f"{int((manifest.document == '').sum())} of {len(manifest)} slices name no source document: two of "
                 "them may be cut from one figure unnoticed.")
    if left_out:
        notes.append(f"{left_out} images are in no part of the official split and were left out.")
    return manifest, tuple(_PARTS), notes, problems


def document(stem):
    """Key of the paper that a picture was cut from, read from its file name without suffix; "" where it shows none.

    A medRxiv or bioRxiv preprint is given as its DOI, an article by the name of its PDF.
    """
    preprint, article = _PREPRINT.match(stem), _ARTICLE.match(stem)
    return f"10.1101/{preprint[1]}" if preprint else article[1] if article else ""


def _rows(root, label, part):
    for split in SPLITS:
        text = (root / f"Data-split/{part}/{split}CT_{part}.txt").read_text(encoding="utf-8")
        for name in filter(None, map(str.strip, text.splitlines())):
            yield f"Images-processed/CT_{part}/{name}", label, split


def _add_patients(root, manifest):
    manifest = manifest.assign(document="")
    if not (root / "patients.csv").is_file():
        note = "Patients are unknown (no patients.csv); the set's authors made the official split by patient."
        return manifest.assign(patient=""), [note]
    table = read_csv(root / "patients.csv").set_index(["folder", "file"])
    keys = pd.MultiIndex.from_frame(manifest.path.str.split("/", expand=True)[[1, 2]])
    table = table[~table.index.duplicated()].reindex(keys).fillna("").reset_index(drop=True)
    # each folder numbers its patients on its own
    manifest["patient"] = (manifest.label + "/" + table.patient).where(table.patient != "", "")
    manifest["document"] = table["doi"].str.replace(" ", "") if "doi" in table else ""
    unknown = int((manifest.patient == "").sum())
    return manifest, [f"{unknown} slices have no patient in patients.csv."] if unknown else []
