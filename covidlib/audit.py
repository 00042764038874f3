"""What would mislead: the same picture under two labels or on both sides of a split, and shortcuts.

Two slices count as near-duplicates when their perceptual hashes (64 bit, discrete cosine transform,
https://www.phash.org/docs/pubs/thesis_zauner.pdf) differ in at most MAX_DISTANCE bits and their 64x64
thumbnails correlate by at least MIN_CORRELATION. Crops, mirrored copies and redrawn figures go unseen.
A shortcut is anything but anatomy that predicts the label, such as the kind of file.
"""

from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from covidlib import ct
from covidlib.datasets import patient_or_file
from covidlib.files import write_atomically
from covidlib.statistics import wilson

MAX_DISTANCE = 10
MIN_CORRELATION = 0.95
_BLOCK = 1024
_SHORTCUTS = ["baseline", "protocol", "accuracy", "low", "high", "auc"]


@dataclass(frozen=True)
class Audit:
    """Tables `conflicts`, `duplicates`, `shortcuts`, and `warnings`: sentences ready for a report."""

    conflicts: pd.DataFrame
    duplicates: pd.DataFrame
    shortcuts: pd.DataFrame
    warnings: list[str]


def audit(source):
    """Audit of a datasets.Source; decodes every slice once.

    conflicts: near-duplicates under two labels. duplicates: all near-duplicates, those across a split first.
    shortcuts: accuracy with its 95 % Wilson interval and AUC (one against the rest, averaged over classes).
    """
    manifest = source.manifest.reset_index(drop=True)
    images = [ct.read_slice(source.root / row.path, row.slice_index) for row in manifest.itertuples()]
    pairs = near_duplicates(images)
    a, b = (manifest.loc[pairs[end]].reset_index(drop=True) for end in "ab")
    table = pd.DataFrame({
        "path_a": a.path, "label_a": a.label, "split_a": a.split,
        "path_b": b.path, "label_b": b.label, "split_b": b.split, "distance": pairs.distance,
    })
    conflicts = table[table.label_a != table.label_b].drop(columns=["split_a", "split_b"])
    table["same"] = table.split_a == table.split_b
    duplicates = table.sort_values(["same", "distance"], kind="stable")
    duplicates = duplicates[["path_a", "split_a", "path_b", "split_b", "distance"]]
    shortcuts, notes = _shortcuts(source, manifest, images)
    warnings = _warn_of_pairs(conflicts, duplicates) + _warn_of_shortcuts(shortcuts) + notes
    return Audit(conflicts.reset_index(drop=True), duplicates.reset_index(drop=True), shortcuts, warnings)


def write(result, folder):
    """Write conflicts.csv, duplicates.csv and shortcuts.csv, each complete or not at all."""
    for name in ("conflicts", "duplicates", "shortcuts"):
        text = getattr(result, name).to_csv(index=False, lineterminator="\n")
        write_atomically(Path(folder, f"{name}.csv"), text)


def near_duplicates(images):
    """Pairs a < b of near-identical uint8 (H, W) images: DataFrame a, b, distance (bits), correlation."""
    hashes = np.array([np.packbits(imagehash.phash(Image.fromarray(image)).hash) for image in images])
    hashes = hashes.reshape(len(images), 8).view(np.uint64)[:, 0]
    thumbnails = np.array([_thumbnail(image) for image in images], np.float32).reshape(len(images), -1)
    found = []
    for start in range(0, len(images), _BLOCK):
        distances = np.bitwise_count(hashes[start : start + _BLOCK, None] ^ hashes[None, start:])
        a, b = np.nonzero(np.triu(distances <= MAX_DISTANCE, 1))
        correlation = np.einsum("ij,ij->i", thumbnails[start + a], thumbnails[start + b])
        kept = correlation >= MIN_CORRELATION
        columns = {"a": start + a, "b": start + b, "distance": distances[a, b], "correlation": correlation}
        found.append(pd.DataFrame(columns)[kept])
    return pd.concat(found, ignore_index=True)


def group_near_duplicates(images):
    """int (N,): images linked by near-duplicates, directly or over others, share a number."""
    pairs = near_duplicates(images)
    links = coo_array((np.ones(len(pairs)), (pairs.a, pairs.b)), shape=(len(images), len(images)))
    return connected_components(links, directed=False)[1]


def _thumbnail(image):
    image = Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR)
    small = np.asarray(image, float).ravel()
    small -= small.mean()
    return small / max(np.linalg.norm(small), 1e-9)


def _shortcuts(source, manifest, images):
    facts = pd.DataFrame([_facts(source.root / path) for path in manifest.path])
    facts["height"], facts["width"] = zip(*(image.shape for image in images), strict=True)
    histograms = np.array([np.bincount(image.ravel() >> 4, minlength=16) / image.size for image in images])
    numbers = pd.get_dummies(facts, columns=["extension", "container", "mode"]).to_numpy(float)
    extension = pd.get_dummies(facts.extension).to_numpy(float)
    forest = RandomForestClassifier(200, random_state=0)
    baselines = {
        "majority class": (extension, DummyClassifier()),
        "file extension": (extension, DecisionTreeClassifier(random_state=0)),
        "file facts": (numbers, forest),
        "grey histogram": (histograms, forest),
    }
    protocol, folds = _protocol(source, manifest)
    if not folds:
        note = "Shortcuts were not measured: that needs two patients in every class."
        return pd.DataFrame(columns=_SHORTCUTS), [note]
    labels = manifest.label.to_numpy()
    rows = [[name, protocol, *_score(*baseline, labels, folds)] for name, baseline in baselines.items()]
    return pd.DataFrame(rows, columns=_SHORTCUTS), []


def _facts(path):
    container, mode, size = ct.sniff(path), "", path.stat().st_size
    if container in ("png", "jpeg", "tiff"):
        with Image.open(path) as image:
            mode = image.mode
    return {"extension": path.suffix.lower(), "container": container, "mode": mode, "bytes": size}


def _protocol(source, manifest):
    """(name, list of (train rows, test rows)); no folds where a class has but one patient."""
    if source.official_split:
        is_test = manifest.split == "test"  # nothing is tuned: the validation part is learned from too
        parts = [np.flatnonzero(~is_test), np.flatnonzero(is_test)]
        return "official test split", [parts] if min(map(len, parts)) else []
    groups = patient_or_file(manifest)
    count = min(5, groups.groupby(manifest.label).nunique().min())
    if count < 2:
        return "", []
    folds = StratifiedGroupKFold(int(count), shuffle=True, random_state=0)
    return f"grouped {count}-fold cross-validation", list(folds.split(groups, manifest.label, groups))


def _score(features, model, labels, folds):
    """(accuracy, low, high over the test rows of all folds, mean of the folds' AUC)."""
    hits, tested, areas = 0, 0, []
    for train, test in folds:
        model.fit(features[train], labels[train])
        scores, truth = model.predict_proba(features[test]), labels[test]
        hits += int((model.classes_[scores.argmax(1)] == truth).sum())
        tested += len(truth)
        for score, name in zip(scores.T, model.classes_, strict=True):
            if 0 < (truth == name).sum() < len(truth):
                areas.append(roc_auc_score(truth == name, score))
    return hits / tested, *wilson(hits, tested), float(np.mean(areas)) if areas else np.nan


def _warn_of_pairs(conflicts, duplicates):
    warnings = []
    if len(conflicts):
        warnings.append(f"{len(conflicts)} pairs show the same picture under two labels: {_list(conflicts, 'label')}.")
    across = duplicates[duplicates.split_a != duplicates.split_b]
    if len(across):
        warnings.append(f"{len(across)} near-identical pairs lie in two parts of the split: {_list(across, 'split')}.")
    inside = len(duplicates) - len(across)
    if inside:
        warnings.append(f"{inside} near-identical pairs lie in one and the same part.")
    return warnings


def _list(pairs, column):
    shown = [
        f"{row.path_a} ({row[f'{column}_a']}) and {row.path_b} ({row[f'{column}_b']})"
        for _, row in pairs.head(3).iterrows()
    ]
    return "; ".join(shown) + ("; ..." if len(pairs) > 3 else "")


def _warn_of_shortcuts(shortcuts):
    floor = shortcuts.accuracy[shortcuts.baseline == "majority class"].max()
    return [
        f"A classifier that sees only the {row.baseline} reaches {row.accuracy:.1%} accuracy ({row.low:.1%} "
        f"to {row.high:.1%}, AUC {row.auc:.2f}; {row.protocol}), always guessing the most frequent class "
        f"{floor:.1%}: read every accuracy on this set beside that."
        for row in shortcuts[shortcuts.low > floor].itertuples()
    ]
