"""Split a manifest into train, val and test by patient, keeping the classes' proportions; folds alike.

Shipped splits (covidlib/datasets/splits/*.csv, read by `apply_shipped`): `name` is the path without its ending,
`sha256` the first 16 hexadecimal digits of the file's, then `split` and a column per fold, which no near-duplicates
cross. `python -m covidlib.datasets.splits DATASET DATA_ROOT NAME` writes them.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import datasets, readers
from covidlib.datasets import SPLITS, near_duplicates, patient_or_file
from covidlib.utils.files import sha256, write_atomically

FOLDS = 5
_SHIPPED = Path(__file__).with_name("splits")
DIGITS = 16


def assign(manifest, seed, fractions=(0.7, 0.1, 0.2)):
    """(manifest with its split column filled, notes as sentences for a report).

    An official split is kept. Otherwise each class is dealt out patient by patient so that every part comes near its
    fraction of the slices; slices of unknown patients are dealt out one by one, those of one file together. ValueError
    for one patient in a class, a half-filled split or a patient in two parts.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or 0 in (fractions[0], fractions[2]):
        raise ValueError("fractions must be three shares (train, val, test) that sum to 1, train and test above 0. "
                         f"Received: fractions={fractions}")
    given = manifest.split != ""
    if given.any():
        if not given.all():
            raise ValueError(f"Give every slice a split or none. Received: {(~given).sum()} without")
        check_disjoint(manifest)
        missing = [part for part in SPLITS if part not in set(manifest.split)]
        absent = [f"It has no {' and no '.join(missing)} part."] if missing else []
        notes = ["The split that the data set brings along is kept.", *absent, *_note_unknown_patients(manifest)]
        return manifest.copy(), notes
    groups = _groups(manifest)
    counts = groups.groupby("label").size()
    if counts.min() < 2:
        raise ValueError(f"Class {counts.idxmin()!r} has one patient, who cannot be in both training and test. Add "
                         "patients, leave the class out, or give a split of your own. Received: patients=1")
    notes = _note_unknown_patients(manifest)
    fractions = np.array(fractions, float)
    if counts.min() < 3:
        notes.append(f"Class {counts.idxmin()} has fewer than three patients ({counts.min()}): there are a training "
                     "and a test part only, the validation part is left out.")
        fractions[1] = 0
    parts = _deal_classes(manifest, groups, fractions / fractions.sum(), [seed])
    return _with_split(manifest, parts), notes


def k_fold(manifest, folds, seed):
    """int Series: the fold, 0 to folds - 1, of every slice; whole patients, every class spread evenly."""
    groups = _groups(manifest)
    if not 2 <= folds <= len(groups):
        raise ValueError(f"folds must be at least 2 and at most the number of patients, {len(groups)}. "
                         f"Received: folds={folds}")
    return _deal_classes(manifest, groups, np.full(folds, 1 / folds), [seed])


def assign_fold(manifest, fold, folds, seed):
    """`manifest` with a split in which that fold is the test part and a tenth of the rest, by patient, is val.

    A split that the manifest has is replaced. Without val where a class has one patient left. ValueError for fewer
    patients than folds, no such fold, or a class that is missing from a part.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"fold must be 0 to {folds - 1}. Received: fold={fold}")
    rest = manifest[k_fold(manifest, folds, seed) != fold]
    groups = _groups(rest)
    share = 0.1 if groups.groupby("label").size().min() > 1 else 0
    parts = _deal_classes(rest, groups, np.array([1 - share, share]), [seed, fold])
    return _with_split(manifest, parts.reindex(manifest.index, fill_value=SPLITS.index("test")))


def check(split, fold):
    """ValueError unless `split` is "own" or shipped, and `fold` -1 (none) to FOLDS - 1."""
    if split != "own" and split not in _names():
        raise ValueError(f"split must be own or one that is shipped: {', '.join(_names())}. Received: split={split!r}")
    if not -1 <= fold < FOLDS:
        raise ValueError(f"fold must be 0 to {FOLDS - 1}, or -1 for none. Received: fold={fold}")


def choose(source, split="own", fold=-1, seed=0):
    """(source with its split, notes): what `split` and `fold` of the notebooks ask for, see `check`.

    "own" is the split that the set brings along or one by patient, dealt out by `seed`; its folds are always dealt out
    by 0, so that all runs share them. A shipped split needs the manifest's column sha256.
    """
    check(split, fold)
    if split != "own":
        manifest, notes = apply_shipped(source.manifest, split, "split" if fold < 0 else f"fold_{fold}")
    elif fold >= 0:
        manifest = assign_fold(source.manifest, fold, FOLDS, 0)
        notes = [f"The test part is fold {fold} of 0 to {FOLDS - 1}."]
    else:
        manifest, notes = assign(source.manifest, seed)
    official = source.official_split and fold < 0
    return replace(source, manifest=manifest, notes=[*source.notes, *notes], official_split=official), notes


def _names():
    return sorted(file.stem for file in _SHIPPED.glob("*.csv"))


def shipped(dataset):
    """The shipped table of `dataset`, all texts. ValueError, naming those there are, where there is none."""
    if dataset not in _names():
        raise ValueError(f"Splits are shipped for {', '.join(_names())}. Received: dataset={dataset!r}")
    return pd.read_csv(_SHIPPED / f"{dataset}.csv", dtype=str, keep_default_na=False)


def apply_shipped(manifest, dataset, column="split"):
    """(manifest with the shipped split, notes); `column` is "split" or a fold, "fold_0" and so on.

    `manifest` needs a column sha256, as datasets.save writes it. A file of other bytes but the same name and folder,
    such as the original of a copy that was scaled down, is taken for the same picture and counted in the notes.
    ValueError that counts the files which are neither.
    """
    table = shipped(dataset)
    if column not in table.columns[2:]:
        raise ValueError(f"column must be one of {', '.join(table.columns[2:])}. Received: column={column!r}")
    by_name = manifest.path.map(_name).map(table.set_index("name")[column])
    by_bytes = manifest.sha256.str[:DIGITS].map(table.drop_duplicates("sha256").set_index("sha256")[column])
    split = by_bytes.fillna(by_name)
    if split.isna().any():
        raise ValueError(f"{split.isna().sum()} of {len(manifest)} slices are not among the {len(table)} that the "
                         f"split of {dataset} was made for, such as {manifest.path[split.isna()].iloc[0]}. "
                         "Use splits.assign, or the set as its authors publish it.")
    renamed = int(by_bytes.isna().sum())
    notes = [f"{len(manifest)} slices have the {column} that this project ships for {dataset}."]
    if renamed:
        notes.append(f"{renamed} of them were known by their names only: their bytes are others.")
    return manifest.assign(split=split), notes


def ship(dataset, data_root, seed=0):
    """The table to ship for a data set: the split it brings along or one by patient, and up to FOLDS folds.

    No fold divides a patient, a source document or a group of near-duplicates.
    """
    source = datasets.load(dataset, data_root)
    manifest = source.manifest
    images = (readers.read_slice(source.root / row.path, row.slice_index) for row in manifest.itertuples())
    pairs = near_duplicates.near_duplicates(*near_duplicates.describe(images))
    keys = [patient_or_file(manifest)]
    if "document" in manifest:
        keys.append(manifest.document.where(manifest.document != "", manifest.path))
    same = [pd.DataFrame({"a": key.map(pd.Series(manifest.index, key).groupby(level=0).first()), "b": manifest.index})
            for key in keys]
    groups = near_duplicates.groups(pd.concat([pairs[["a", "b"]], *same]), len(manifest))
    linked = manifest.assign(patient=groups.astype(str))
    table = pd.DataFrame({
        "sha256": [sha256(source.root / path)[:DIGITS] for path in manifest.path],
        "name": manifest.path.map(_name),
        "split": assign(manifest if source.official_split else linked, seed)[0].split,
    })
    folds = min(FOLDS, int(_groups(linked).groupby("label").size().min()))
    for fold in range(folds):
        table[f"fold_{fold}"] = assign_fold(linked, fold, folds, seed).split
    return table


def check_disjoint(manifest):
    """ValueError naming patients, or files of unknown patients, that lie in more than one part."""
    count, shown = datasets.crossing(manifest)
    if count:
        raise ValueError(f"{count} patients lie in more than one part of the split: {shown}. Put all slices of a "
                         "patient into one part, or make a new split (fold=0 to 4 in notebook 00_data).")


def _groups(manifest):
    """One row per group with its number of slices and its most frequent label."""
    table = manifest.assign(group=patient_or_file(manifest))
    counted = table.groupby(["group", "label"], sort=False).size().rename("n").reset_index()
    label = counted.sort_values("n", kind="stable").groupby("group", sort=False).label.last()
    return table.groupby("group", sort=False).size().rename("slices").to_frame().join(label)


def _deal_classes(manifest, groups, fractions, seed):
    """int Series: the part of every slice, each class dealt out by itself."""
    rng = np.random.default_rng(seed)
    part = {}
    for _, members in groups.groupby("label"):
        part.update(zip(members.index, _deal(members.slices.to_numpy(), fractions, rng), strict=True))
    return patient_or_file(manifest).map(part)


def _deal(sizes, fractions, rng):
    """int (groups,): the parts for one class, of up to 25 seeded deals (of many groups, one) the nearest to them."""
    target = fractions * sizes.sum()
    deals = (_deal_once(sizes, target, rng) for _ in range(int(np.clip(50_000 // len(sizes), 1, 25))))
    return min(deals, key=lambda parts: np.abs(np.bincount(parts, sizes, len(target)) - target).sum())


def _deal_once(sizes, target, rng):
    """Each group, in random order, goes to the part that lacks most; the last groups go to parts that are empty."""
    used = np.flatnonzero(target)
    parts, filled, empty = np.empty(len(sizes), int), np.zeros(len(target)), used
    order = rng.permutation(len(sizes))
    for position, group in enumerate(order):
        allowed = empty if len(order) - position <= len(empty) else used
        part = allowed[np.argmax(target[allowed] - filled[allowed])]
        parts[group] = part
        filled[part] += sizes[group]
        if len(empty):
            empty = used[filled[used] == 0]
    return parts


def _with_split(manifest, parts):
    result = manifest.assign(split=parts.map(dict(enumerate(SPLITS))))
    check_disjoint(result)
    for label, rows in result.groupby("label"):  # one whose patients have more slices of another class
        if not {"train", "test"} <= set(rows.split):
            raise ValueError(f"Class {label!r} shares its patients with other classes, or has too few, and cannot be "
                             "split.")
    return result


def _name(path):
    return Path(path).with_suffix("").as_posix()


def _note_unknown_patients(manifest):
    unknown = int((manifest.patient == "").sum())
    return [f"{unknown} of {len(manifest)} slices name no patient: one may be in two parts unnoticed."
            ] if unknown else []


if __name__ == "__main__":
    name = sys.argv[3]
    write_atomically(_SHIPPED / f"{name}.csv", ship(*sys.argv[1:3]).to_csv(index=False, lineterminator="\n"))
