"""Data sets as manifests: one row per slice, paths relative to the set's own folder."""

import hashlib
import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib.files import sha256, write_atomically

COLUMNS = ["path", "label", "patient", "source", "split", "slice_index"]
SPLITS = ("train", "val", "test")
PHANTOM_SLICES = (27, 6, 27)
_NAMES = ("phantom", "folder", "ucsd-covid-ct", "sarscov2-ct", "covid-ct-md")


@dataclass(frozen=True)
class Source:
    """A data set: `manifest` (see COLUMNS), class names in order, folder, name, sentences for a report.

    `official_split` tells a split that the set brought along from one that splits.assign made.
    """

    manifest: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    name: str
    notes: list[str] = field(default_factory=list)
    official_split: bool = False


def load(dataset, data_root=None, slices_per_class=None, seed=0):
    """Manifest of a data set as a Source.

    `slices_per_class` (whole numbers in class order, one for all classes alike, None for the whole set) says how many
    phantoms to draw; of a real set it keeps at most as many slices, spread over as many patients as it can, chosen by
    `seed`. `slice_index` is the slice within a volume; for files of one slice it only tells their order. ValueError
    for an unknown set or bad counts, FileNotFoundError where the folder is not such a set.
    """
    if dataset not in _NAMES:
        raise ValueError(f"dataset must be one of {', '.join(_NAMES)}. Received: dataset={dataset!r}")
    module = importlib.import_module(f"covidlib.datasets.{dataset.replace('-', '_')}")
    if dataset == "phantom":
        here = Path.cwd()
        project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").exists()), here)
        root = Path(data_root or project / "data" / "phantom")
        classes, notes = ("covid", "viral", "normal"), []
        manifest = module.generate(root, _check_counts(slices_per_class or PHANTOM_SLICES, classes), seed)
    else:
        root = _check_root(dataset, data_root)
        manifest, classes, notes = module.load(root)
    manifest = _complete(manifest, dataset)
    if slices_per_class is not None and dataset != "phantom":
        bounds = dict(zip(classes, _check_counts(slices_per_class, classes), strict=True))
        bounded = _subset(manifest, bounds, seed)
        if len(bounded) < len(manifest):
            notes = [*notes, f"A subset of {len(bounded)} of the set's {len(manifest)} slices is used."]
        manifest = bounded
    official = bool((manifest.split != "").any())
    return Source(manifest, tuple(classes), root, dataset, list(notes), official)


def save(source, output_dir):
    """Write `manifest.csv` (with the sha256 of every file) and `dataset.json` to `output_dir`.

    Each file appears complete or not at all. `root` in dataset.json is relative to `output_dir`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for path in source.manifest.path.unique():
        file = inside(source.root, path)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is listed in the manifest and does not exist. Check data_root.")
        hashes[path] = sha256(file)
    manifest = source.manifest.assign(sha256=source.manifest.path.map(hashes))
    text = manifest.to_csv(index=False, lineterminator="\n")
    write_atomically(folder / "manifest.csv", text)
    counts = {
        split: {name: int((rows.label == name).sum()) for name in source.classes}
        for split, rows in manifest.groupby("split", sort=False)
    }
    description = {
        "name": source.name,
        "classes": list(source.classes),
        "notes": list(source.notes),
        "official_split": source.official_split,
        "root": _relative(source.root, folder),
        "slices": len(manifest),
        "patients": int(manifest.patient[manifest.patient != ""].nunique()),
        "counts": counts,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_atomically(folder / "dataset.json", json.dumps(description, indent=2) + "\n")


def open_saved(output_dir, data_root=None):
    """Source written by `save`; `data_root` says where the images are if they moved since."""
    folder = Path(output_dir)
    for name in ("manifest.csv", "dataset.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist: run notebook 00_data first with "
                                    f"output_dir={str(folder)!r}.")
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if sha256(folder / "manifest.csv") != description["manifest_sha256"]:
        raise ValueError(f"{folder / 'manifest.csv'} does not fit dataset.json: run notebook 00_data again.")
    root = Path(data_root) if data_root else Path(os.path.normpath(folder / description["root"]))
    if not root.is_dir():
        raise FileNotFoundError(f"The images of {description['name']} are not in {root}. "
                                "Give their folder as data_root.")
    return Source(read_manifest(folder / "manifest.csv"), tuple(description["classes"]), root, description["name"],
                  description["notes"], description["official_split"])


def read_manifest(path):
    """A manifest CSV; texts stay texts ("007" or "NA" may be a patient), absent columns are filled."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    missing = {"path", "label"} - set(table.columns)
    if missing or not len(table):
        raise ValueError(f"{path} needs columns path,label (and may have patient,split,slice_index) and at least one "
                         f"row. Received: columns={list(table.columns)}, rows={len(table)}")
    return _complete(table, "")


def inside(root, relative):
    """root/relative; ValueError where that leads out of root (absolute, .., or a link)."""
    target = Path(root) / relative
    if Path(relative).is_absolute() or not target.resolve().is_relative_to(Path(root).resolve()):
        raise ValueError(f"Paths must stay inside data_root={root}. Received: path={str(relative)!r}")
    return target


def require_folders(root, names, dataset):
    """FileNotFoundError naming what the set should look like where a part of it is missing."""
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise FileNotFoundError(f"{root} is not a {dataset} folder: {', '.join(missing)} missing. "
                                f"It should hold {', '.join(names)}.")


def patient_or_file(manifest):
    """Series of what must stay together: a patient's slices, or a file's where the patient is unknown."""
    return manifest.patient.where(manifest.patient != "", manifest.path)


def natural(path):
    """Sort key by which slice2 comes before slice10."""
    digits = "".join(c if c.isdigit() else " " for c in str(path)).split()
    words = "".join(" " if c.isdigit() else c for c in str(path)).split()
    return words, [int(d) for d in digits], str(path)


def _complete(table, dataset):
    table = table.reset_index(drop=True)
    for column in COLUMNS:
        if column not in table:
            table[column] = 0 if column == "slice_index" else dataset if column == "source" else ""
    try:
        table["slice_index"] = table.slice_index.replace("", 0).astype(int)
    except ValueError as error:
        raise ValueError(f"slice_index must be a whole number in every row ({error}).") from error
    texts = [column for column in COLUMNS if column != "slice_index"]
    table[texts] = table[texts].fillna("").astype(str)
    wrong = set(table.split) - {"", *SPLITS}
    if wrong:
        raise ValueError(f"split must be train, val, test or empty. Received: split={sorted(wrong)[0]!r}")
    unlabelled = table[table.label == ""]
    if len(unlabelled):
        raise ValueError(f"Every slice needs a label. Received: label='' for {unlabelled.path.iloc[0]}")
    twice = table[table.duplicated(["path", "slice_index"])]
    if len(twice):
        raise ValueError(f"Every slice may be listed once. Received twice: {twice.path.iloc[0]}")
    return table[COLUMNS + [column for column in table if column not in COLUMNS]]


def _subset(manifest, bounds, seed):
    """At most `bounds[label]` rows per class: each patient in turn gives one slice, splits in proportion."""
    rng = np.random.default_rng([seed])
    shuffled = manifest.iloc[rng.permutation(len(manifest))]
    turn = shuffled.groupby(["label", "split", patient_or_file(shuffled)]).cumcount()
    shuffled = shuffled.assign(turn=turn).sort_values("turn", kind="stable")
    part = shuffled.groupby(["label", "split"])
    share = part.cumcount() / part.turn.transform("size")
    shuffled = shuffled.assign(turn=share).sort_values("turn", kind="stable")
    kept = [rows.index[: bounds[label]] for label, rows in shuffled.groupby("label")]
    return manifest.loc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def _check_counts(counts, classes):
    values = list(counts) if isinstance(counts, (list, tuple)) else [counts]
    values = values * len(classes) if len(values) == 1 else values
    whole = all(isinstance(value, (int, np.integer)) and value >= 1 for value in values)
    if len(values) != len(classes) or not whole:
        raise ValueError(f"slices_per_class must be {len(classes)} whole numbers of at least 1, for "
                         f"{', '.join(classes)}, or one. Received: slices_per_class={counts}")
    return tuple(int(value) for value in values)


def _check_root(dataset, data_root):
    if data_root is None:
        raise ValueError(f"data_root must name the folder of {dataset}, which is not part of this project. "
                         "Received: data_root=None")
    if not Path(data_root).is_dir():
        raise FileNotFoundError(f"data_root={str(data_root)!r} is no folder. Give the folder of {dataset}.")
    return Path(data_root)


def _relative(root, folder):
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return Path(root).resolve().as_posix()
