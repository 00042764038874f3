"""The paper's three classes with its counts (§3.2: 1350, 300, 1350), put together from several sets.

`data_root` holds a sub-folder for each set, called like the set (`covid-ct-md`, `covidx-ct`, `sarscov2-ct`, ...).
No public set names other viral pneumonia, the paper's second class. Where a `folder` of your own brings the class
`viral`, it is used; else community-acquired pneumonia is used under its own name `cap`. `non_covid` and
`other_disease` are neither normal nor viral and are left out.
"""

import importlib

import numpy as np
import pandas as pd

from covidlib.datasets import COLUMNS, inside, listing, patient_or_file

PARTS = ("folder", "ucsd-covid-ct", "sarscov2-ct", "sarscov2-ct-multiclass", "covidx-ct", "covid-ct-md", "covid-ctset")
COUNTS = (1350, 300, 1350)
_KEPT = ["document", "series", "spacing_mm", "slice_mm", "mask"]
_WITHIN_COVIDX = {"covid-ct-md": "covid-ct-md", "covid-ctset": "covid-ctset"}


def load(root):
    """(manifest, classes, notes, problems); `source` is the set a slice came from, splits of the parts are not kept."""
    names = [name for name in PARTS if (root / name).is_dir()]
    if not names:
        raise FileNotFoundError(f"{root} is not a composition folder: it should hold sub-folders called like the sets, "
                                f"any of {', '.join(PARTS)}.")
    parts, problems = {}, []
    for name in names:
        module = importlib.import_module(f"covidlib.datasets.{name.replace('-', '_')}")
        parts[name], _, _, more = module.load(inside(root, name))
        problems += more
    notes = _drop_overlaps(parts)
    table = pd.concat([_prefixed(name, part) for name, part in parts.items()], ignore_index=True)
    texts = table.columns.intersection(["document", "series", "mask"])
    table[texts] = table[texts].fillna("")
    viral = (table.label == "viral").any()
    classes = ("covid", "viral" if viral else "cap", "normal")
    listing.require_images(root, table, classes, "composition")
    chosen = _choose(table, dict(zip(classes, COUNTS, strict=True)))
    if not viral:
        notes.append("No set here names other viral pneumonia: community-acquired pneumonia (cap), which is not only "
                     "viral, is used for the paper's class.")
    return chosen, classes, [*notes, *_describe(chosen, classes)], problems


def _drop_overlaps(parts):
    """Take out of `parts` what two sets share, with a note for each."""
    notes = []
    if {"sarscov2-ct", "sarscov2-ct-multiclass"} <= set(parts):
        del parts["sarscov2-ct"]
        notes.append("sarscov2-ct was left out: sarscov2-ct-multiclass grew out of it and names the patients.")
    if "covidx-ct" in parts:
        origin = parts["covidx-ct"].source.str.lower().map(_WITHIN_COVIDX)
        shared = origin.isin(parts)
        if shared.any():
            parts["covidx-ct"] = parts["covidx-ct"][~shared]
            both = " and ".join(sorted(set(origin[shared])))
            notes.append(f"{int(shared.sum())} slices of covidx-ct were left out: they were taken from {both}.")
    return notes


def _prefixed(name, part):
    part = part.reindex(columns=[*COLUMNS, *(column for column in _KEPT if column in part)])
    part["slice_index"] = part.slice_index.fillna(0).astype(int)
    texts = [column for column in ("patient", "document", "series", "mask") if column in part]
    part[texts] = part[texts].fillna("")
    for column in {"patient", "series", "mask"} & set(texts):
        part[column] = (f"{name}/" + part[column].astype(str)).where(part[column] != "", "")
    return part.assign(path=f"{name}/" + part.path, source=name, split="")


def _choose(table, counts):
    """At most counts[label] rows of each class: the sets give one slice in turn, and in each set its patients do."""
    shuffled = table.iloc[np.random.default_rng(0).permutation(len(table))]
    for keys in (["label", patient_or_file(shuffled)], ["label", "source"]):
        turn = shuffled.groupby(keys).cumcount()
        shuffled = shuffled.loc[turn.sort_values(kind="stable").index]
    kept = [rows.index[: counts[label]] for label, rows in shuffled.groupby("label") if label in counts]
    return table.loc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def _describe(chosen, classes):
    counts = pd.crosstab(chosen.label, chosen.source).reindex(classes)
    shares = [f"{label}: " + ", ".join(f"{count} of {name}" for name, count in row.items() if count)
              for label, row in counts.iterrows()]
    notes = [f"{label} falls short: {found} of {wanted} slices."
             for label, found, wanted in zip(classes, counts.sum(axis=1), COUNTS, strict=True) if found < wanted]
    confounded = counts.shape[1] > 1 and (counts.div(counts.sum(axis=1), axis=0).nunique() > 1).any()
    if confounded:
        notes.append("Class and source are confounded: a network may distinguish the sets instead of the disease.")
    return [f"Slices by class and set - {'; '.join(shares)}.", *notes]
