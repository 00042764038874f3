"""COVIDx CT 2A, 2B, 3A and 3B (Gunraj et al. 2020-2022, https://github.com/haydengunraj/COVIDNet-CT).

Read through the authors' label files `<train|val|test>_COVIDx_CT-<version>.txt` (file, class and a box per line; the
box is not used). A B version has a training file of its own and shares A's val and test files. Class 1 is pneumonia
other than COVID-19, viral and bacterial alike: `cap`, never viral. `source` is the collection a slice came from.
"""

import re

import pandas as pd

from covidlib.datasets import SPLITS, crossing, listing
from covidlib.datasets.tables import read_csv
from covidlib.readers import ReadError

_CLASSES = {"0": "normal", "1": "cap", "2": "covid"}
_ORDER = ("covid", "cap", "normal")
_FILE = re.compile(r"(train|val|test)_COVIDx[-_]CT[-_]v?(\d[AB]?)\.txt")
_KNOWN_NAMES = re.compile(r"(?:^|_|-)((?:N?CP|Normal)_\d+|volume-covid19-A-\d+|HUST-Patient\d+|study_\d+|patient\d+"
                          r"|(?:cap|normal|P)\d{3})(?=[-_])")


def load(root):
    """(manifest, classes, notes, problems) of a folder with label files, `<version>_images` and metadata.csv."""
    lists, images = _layout(root)
    rows, problems = [], []
    for split, file in lists.items():
        rows += _rows(file, split, images, problems)
    table = pd.DataFrame(rows, columns=["path", "label", "split"])
    found = listing.find(root, images)
    left_out = listing.unlisted(table, found)
    table, more = listing.settle(root, table, found, "the label files")
    listing.require_images(root, table, _ORDER, "covidx-ct")
    manifest, notes = _add_patients(root, table)
    if left_out:
        notes.append(f"{left_out} images are in no label file and were left out.")
    count, shown = crossing(manifest)
    if count:
        notes.append(f"{count} patients lie in more than one part of the official split: {shown}.")
    return manifest, _ORDER, notes, problems + more


def _layout(root):
    """(split -> label file, name of the folder of images)."""
    files = {match.groups(): file for file in sorted(root.iterdir()) if (match := _FILE.fullmatch(file.name))}
    versions = [version for split, version in files if split == "train"]
    if len(versions) != 1:
        raise FileNotFoundError(f"{root} is not a covidx-ct folder: it should hold train_COVIDx_CT-3A.txt, or that of "
                                f"another version, and only one. Received: versions={versions}")
    version = versions[0]
    base = version.replace("B", "A")
    lists = {split: files.get((split, version)) or files.get((split, base)) for split in SPLITS}
    absent = [split for split, file in lists.items() if file is None]
    if absent:
        raise FileNotFoundError(f"{root} holds no {' and no '.join(absent)} label file of COVIDx CT-{base}.")
    candidates = list(dict.fromkeys([f"{version}_images", f"{base}_images", "images"]))
    images = next((name for name in candidates if (root / name).is_dir()), None)
    if images is None:
        raise FileNotFoundError(f"{root} holds no folder of images. It should be called {' or '.join(candidates)}.")
    return lists, images


def _rows(file, split, images, problems):
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields = line.rsplit(maxsplit=5)
        if len(fields) == 6 and fields[1] in _CLASSES:
            yield f"{images}/{fields[0]}", _CLASSES[fields[1]], split
        elif line.strip():
            what = f"line {number} is not 'file class xmin ymin xmax ymax' with class 0, 1 or 2: {line[:80]!r}"
            problems.append(ReadError(file, what, "Download the label file again"))


def _add_patients(root, table):
    stem = table.path.str.rsplit("/", n=1).str[-1].str.rsplit(".", n=1).str[0]
    series = stem.str.replace(r"[-_](?:IM)?\d+$", "", regex=True)
    known, notes = _metadata(root), []
    ids = {name: _patient(name, known.index) for name in series.unique()}
    patient = series.map(ids)
    guessed = patient == ""
    if guessed.any():
        names = {name: _from_name(name) for name in series[guessed].unique()}
        patient = patient.where(~guessed, series.map(names))
        notes.append(f"{int(guessed.sum())} slices have no patient in metadata.csv: theirs is read from the file name.")
    sources = known.source.to_dict()
    manifest = table.assign(
        patient=patient, series=series, source=[sources.get(name) or "covidx-ct" for name in patient],
        slice_index=pd.to_numeric(stem.str.extract(r"(\d+)$")[0]).fillna(0).astype(int))
    if "slice selection" in known:
        automatic = manifest.patient.map(known["slice selection"]).str.lower() == "automatic"
        parts = manifest.split[automatic].value_counts()
        notes += [f"{count} of the {split} slices were chosen by an earlier COVID-Net CT network, not by a reader."
                  for split, count in parts.items()]
    return manifest, notes


def _metadata(root):
    if not (root / "metadata.csv").is_file():
        return pd.DataFrame(columns=["source"])
    table = read_csv(root / "metadata.csv")
    table = table.rename(columns=lambda name: name.strip().lower()).rename(columns={"patient id": "patient"})
    if not {"patient", "source"} <= set(table.columns):
        raise ValueError(f"{root / 'metadata.csv'} needs columns patient id,source. Received: {list(table.columns)}")
    return table.drop_duplicates("patient").set_index("patient")


def _patient(series, known):
    """The longest part of a series' name that is a patient in metadata.csv; "" for none."""
    words = re.split(r"([-_])", series)
    for length in range(len(words), 0, -2):
        for start in range(0, len(words) - length + 1, 2):
            name = "".join(words[start : start + length])
            if name in known:
                return name
    return ""


def _from_name(series):
    match = _KNOWN_NAMES.search(f"{series}_")
    return match[1] if match else series
