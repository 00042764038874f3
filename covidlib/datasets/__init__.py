"""Data sets as manifests: one row per slice, paths relative to the set's own folder."""

import hashlib
import importlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import phantom
from covidlib.readers import ReadError
from covidlib.utils.files import sha256, sha256_once, write_atomically
from covidlib.utils.text import first_few

COLUMNS = ["path", "label", "patient", "source", "split", "slice_index"]
SPLITS = ("train", "val", "test")
PHANTOM_SLICES = (27, 6, 27)
NAMES = ("phantom", "folder", "ucsd-covid-ct", "sarscov2-ct", "sarscov2-ct-multiclass", "covidx-ct", "covid-ct-md",
         "covid-ctset", "web-three-class", "composition")
_SHOWN = 200


@dataclass(frozen=True)
class Source:
    """A data set: `manifest` (see COLUMNS), class names in order, folder, name, sentences for a report.

    `official_split`: whether the set brought its split along. `problems`: ReadErrors of files that were left out.
    """

    manifest: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    name: str
    notes: list[str] = field(default_factory=list)
    official_split: bool = False
    problems: list[ReadError] = field(default_factory=list)

    def __post_init__(self):
        absent = [name for name in self.classes if not (self.manifest.label == name).any()]
        if absent:
            raise DataError(self.problems, f"No usable slice of {' and '.join(absent)} is left in {self.root}. ")


class DataError(ValueError):
    """All files of a data set that cannot be used: in `problems`, the first _SHOWN also in the message."""

    def __init__(self, problems, before=""):
        self.problems = list(problems)
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if len(self.problems) > _SHOWN:
            lines.append(f"... and {len(self.problems) - _SHOWN} more")
        super().__init__(f"{before}{len(self.problems)} files cannot be used:\n" + "\n".join(lines)
                         + "\nCorrect or remove them, or give on_error='skip' to go on without them.")


def load(dataset, data_root=None, slices_per_class=None, seed=0, on_error="raise"):
    """Manifest of a data set as a Source.

    slices_per_class: whole numbers in class order, one for all classes, None for the whole set: how many phantoms to
    draw, or at most how many slices of a real set to keep, spread over patients and chosen by `seed`. `slice_index` is
    the slice within a volume; for files of one slice it gives their order. ValueError for an unknown set or bad
    counts, FileNotFoundError where the folder is not such a set. Files that cannot be used raise one DataError, or with
    on_error="skip" are left out and kept in `problems`. Only some slices of volumes are decoded, to find the lungs.
    """
    if dataset not in NAMES:
        raise ValueError(f"dataset must be one of {', '.join(NAMES)}. Received: dataset={dataset!r}")
    check_on_error(on_error)
    if dataset == "phantom":
        here = Path.cwd()
        project = next((folder for folder in (here, *here.parents) if (folder / "pyproject.toml").exists()), here)
        root = Path(data_root or project / "data" / "phantom")
        classes, notes, problems = ("covid", "viral", "normal"), [], []
        manifest = phantom.generate(root, _check_counts(slices_per_class or PHANTOM_SLICES, classes), seed)
    else:
        if data_root is None:
            raise ValueError(f"data_root must name the folder of {dataset}, which is not part of this project. "
                             "Received: data_root=None")
        root = Path(data_root)
        if not root.is_dir():
            raise FileNotFoundError(f"data_root={str(data_root)!r} is no folder. Give the folder of {dataset}.")
        module = importlib.import_module(f"covidlib.datasets.{dataset.replace('-', '_')}")
        manifest, classes, notes, problems = module.load(root)
    if problems and on_error == "raise":
        raise DataError(problems)
    # a checksum that the set brings along says what the file was, not what it is
    manifest = _complete(manifest, dataset).drop(columns="sha256", errors="ignore")
    official = bool((manifest.split != "").any())
    source = Source(manifest, tuple(classes), root, dataset, list(notes), official, list(problems))
    return source if slices_per_class is None or dataset == "phantom" else subset(source, slices_per_class, seed)


def subset(source, slices_per_class, seed=0):
    """`source` with at most so many slices of each class (see `load`), and a note that says so."""
    bounds = dict(zip(source.classes, _check_counts(slices_per_class, source.classes), strict=True))
    manifest = _subset(source.manifest, bounds, seed)
    if len(manifest) == len(source.manifest):
        return source
    note = f"A subset of {len(manifest)} of the set's {len(source.manifest)} slices is used."
    return replace(source, manifest=manifest, notes=[*source.notes, note])


def without(source, problems, rows):
    """`source` without the `rows` (positions) that `problems` (ReadErrors) are about."""
    kept = source.manifest.drop(source.manifest.index[sorted(rows)]).reset_index(drop=True)
    return replace(source, manifest=kept, problems=[*source.problems, *problems])


def problem_table(source):
    """DataFrame path (relative to the set's folder), reason, hint of the files that were left out."""
    rows = []
    for problem in source.problems:
        path = Path(problem.path)
        shown = path.relative_to(source.root).as_posix() if path.is_relative_to(source.root) else path.name
        rows.append([shown, problem.reason, problem.hint])
    return pd.DataFrame(rows, columns=["path", "reason", "hint"])


def check_on_error(on_error):
    """ValueError unless it is "raise" or "skip"."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip'. Received: on_error={on_error!r}")


def save(source, output_dir):
    """Write `manifest.csv` (with the sha256 of every file) and `dataset.json` to `output_dir`.

    Each file appears complete or not at all. `root` in dataset.json is relative to `output_dir`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = source.manifest
    if "sha256" not in manifest:
        manifest = manifest.assign(sha256=[_sha256(source.root, path) for path in manifest.path])
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
        "left_out": problem_table(source).to_dict("records"),
        "root": _relative(source.root, folder),
        "slices": len(manifest),
        "patients": int(manifest.patient[manifest.patient != ""].nunique()),
        "counts": counts,
        "manifest_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    write_atomically(folder / "dataset.json", json.dumps(description, indent=2) + "\n")


def _sha256(root, path):
    file = inside(root, path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is listed in the manifest and does not exist. Check data_root.")
    return sha256_once(file)


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
    problems = [ReadError(root / path, reason, hint) for path, reason, hint in
                (row.values() for row in description["left_out"])]
    return Source(read_manifest(folder / "manifest.csv"), tuple(description["classes"]), root, description["name"],
                  description["notes"], description["official_split"], problems)


def read_manifest(path):
    """A manifest that `save` wrote; texts stay texts ("007" or "NA" may be a patient), absent columns are filled."""
    return _complete(pd.read_csv(path, dtype=str, keep_default_na=False), "")


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
    """Series: the patient of every slice, of unknown patients its scan or else its file; such slices stay together."""
    return manifest.patient.where(manifest.patient != "", scan_or_file(manifest))


def scan_or_file(manifest):
    """Series: the DICOM series of every slice, its file where there is none."""
    if "series" not in manifest:
        return manifest.path
    series = manifest.series.fillna("")
    return series.where(series != "", manifest.path)


def crossing(manifest):
    """(number of patients, or files of unknown ones, in more than one part of the split, the first five in words)."""
    key = patient_or_file(manifest)
    parts = manifest.split.groupby(key).nunique()
    found = manifest.split.groupby(key[key.isin(parts.index[parts > 1])]).unique()
    return len(found), first_few((f"{key} in {' and '.join(sorted(names))}" for key, names in found.items()), 5)


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
    numbers = pd.to_numeric(table.slice_index.replace("", 0), errors="coerce")
    odd = ~(numbers.abs() < 2**31) | (numbers % 1 != 0)
    if odd.any():
        first = odd.idxmax()
        raise ValueError("slice_index must be a whole number in every row. Received: "
                         f"slice_index={table.slice_index[first]!r} in row {first + 1}, {table.path[first]}")
    table["slice_index"] = numbers.astype(int)
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


def _relative(root, folder):
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:  # another drive on Windows
        return Path(root).resolve().as_posix()
