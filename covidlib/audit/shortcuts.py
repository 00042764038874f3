"""Shortcuts: how well the label is predicted from anything but disease, in both preparations of the slices.

A network can be no better evidence than the best of these that it may have used (DeGrave et al. 2021,
https://doi.org/10.1038/s42256-021-00338-7). Each baseline is a random forest on one kind of evidence. What the files
are like is a fact about a set: a network, which gets pixels, does not see it.
"""

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from covidlib.datasets import patient_or_file
from covidlib.evaluation.statistics import proportion_interval
from covidlib.preprocessing import crop

COLUMNS = ["baseline", "seen", "protocol", "accuracy", "low", "high", "auc"]
CROSS_VALIDATION, OFFICIAL = "grouped cross-validation", "official test split"
FILES = "files"  # in column `seen`; the other values are crop.PREPARATIONS
_FORMER = {"as read": "whole", "cropped to the lungs": "lungs"}  # in tables of earlier versions
_SIDE, _RING, _BANDS = 32, 3, 12
_ALONE = 200  # slices that are learned from before other processes would have started


def visible(measured, parameters):
    """The rows of the audit's table that a run with these parameters could have used, and the majority class."""
    preparation = parameters.get("preparation", "lungs")  # all that earlier versions had
    seen = measured["seen"].replace(_FORMER) == preparation
    return measured[seen | (measured["baseline"] == "majority class")]


def best_shortcut(measured, protocol, parameters):
    """(baseline, accuracy) of the best one that is `visible`; None where none was measured.

    measured: the audit's table, of which rows of `protocol` count, or of cross-validation where there are none.
    """
    rows = measured[measured["protocol"] == protocol]
    rows = rows if len(rows) else measured[measured["protocol"] == CROSS_VALIDATION]
    rows = visible(rows, parameters)
    if rows.empty:
        return None
    best = rows.loc[rows["accuracy"].idxmax()]
    return best["baseline"], float(best["accuracy"])


def features(picture, body, lung, size):
    """Features of a slice for the baselines, "<preparation>/<name>" -> float32 (k,).

    picture, body, lung: the slice as read and its masks, (H, W); size: of the prepared slices.
    """
    found = {}
    for preparation in crop.PREPARATIONS:
        image, image_lung = crop.prepare(picture, size, preparation, lung)
        shown = crop.prepare_mask(body, size, preparation, lung) if preparation == "whole" else image > 0
        found |= {f"{preparation}/{name}": np.asarray(values, np.float32)
                  for name, values in _view(image, shown, image_lung).items()}
    return found


def _view(image, body, lung):
    outside = _small(np.uint8(~body) * 255) > 127
    ring = np.ones((_SIDE, _SIDE), bool)
    ring[_RING:-_RING, _RING:-_RING] = False
    blacked = _small(np.where(ndimage.binary_dilation(lung, iterations=2), 0, image))
    return {
        "border and background": np.where(outside | ring, blacked, 0).ravel(),
        "lungs blacked out": blacked.ravel(),  # the outlines of lungs and heart remain
        "grey histogram": np.bincount(image.ravel() >> 4, minlength=16) / image.size,
        "sharpness": _spectrum(image),
        "aspect": [np.ptp(np.flatnonzero((image > 8).any(axis))) if image.max() > 8 else 0 for axis in (0, 1)],
    }


def _small(image):
    return np.asarray(Image.fromarray(np.uint8(image)).resize((_SIDE, _SIDE), Image.Resampling.BOX))


def _spectrum(image):
    """log power in rings of spatial frequency: resolution, resampling and compression show here."""
    window = np.hanning(len(image))[:, None] * np.hanning(len(image))
    power = np.abs(np.fft.fftshift(np.fft.fft2(image * window))) ** 2
    axis = np.fft.fftshift(np.fft.fftfreq(len(image)))
    radius = np.hypot(axis[:, None], axis)
    ring = np.minimum((radius * 2 * _BANDS).astype(int), _BANDS - 1)
    total = np.bincount(ring.ravel(), power.ravel(), _BANDS) / np.maximum(np.bincount(ring.ravel(), None, _BANDS), 1)
    return np.log(total + 1)


def measure(source, decoded):
    """DataFrame COLUMNS: accuracy of every baseline with its 95 % interval, and AUC (one against the rest, mean).

    Cross-validation by patient (five folds at most), and on a split that the set brings along its test part, learned
    from all others: nothing is tuned. Intervals resample patients. No rows where a class has but one patient.
    """
    manifest = source.manifest.iloc[decoded.sampled].reset_index(drop=True)
    facts = decoded.facts.iloc[decoded.sampled]
    labels, patients = manifest.label.to_numpy(), manifest.patient.to_numpy()
    named, calls = [], []
    for protocol, folds in _protocols(source, manifest):
        for name, seen, values, model in _baselines(manifest, facts, decoded.features):
            named.append([name, seen, protocol])
            calls.append(joblib.delayed(_score)(values, model, labels, patients, folds))
    scores = joblib.Parallel(-1 if len(manifest) > _ALONE else 1)(calls)
    return pd.DataFrame([[*names, *score] for names, score in zip(named, scores, strict=True)], columns=COLUMNS)


def _baselines(manifest, facts, features):
    """(name, what it is given, values (N, k), model)."""
    forest = RandomForestClassifier(200, random_state=0)
    kinds = pd.get_dummies(facts[["extension", "container", "mode"]]).to_numpy(float)
    sizes = facts[["bytes", "height", "width"]].to_numpy(float)
    yield "majority class", FILES, kinds, DummyClassifier()
    extension = pd.get_dummies(facts.extension).to_numpy(float)
    yield "file extension", FILES, extension, DecisionTreeClassifier(random_state=0)
    yield "file facts", FILES, np.hstack([kinds, sizes]), forest
    if manifest.source.nunique() > 1:
        yield "set of origin", FILES, pd.get_dummies(manifest.source).to_numpy(float), forest
    for key, values in features.items():
        view, name = key.split("/")
        yield name, view, values, forest


def _protocols(source, manifest):
    """(name, list of (train rows, test rows))."""
    groups = patient_or_file(manifest)
    count = min(5, groups.groupby(manifest.label).nunique().min())
    if count >= 2:
        folds = StratifiedGroupKFold(int(count), shuffle=True, random_state=0)
        yield CROSS_VALIDATION, list(folds.split(groups, manifest.label, groups))
    if source.official_split:
        is_test = (manifest.split == "test").to_numpy()
        parts = [np.flatnonzero(~is_test), np.flatnonzero(is_test)]
        if all(manifest.label.iloc[part].nunique() == len(source.classes) for part in parts):
            yield OFFICIAL, [parts]


def _score(values, model, labels, patients, folds):
    """(accuracy, low, high over the test rows of all folds, mean of the folds' AUC)."""
    hits, tested, areas = [], [], []
    for train, test in folds:
        model.fit(values[train], labels[train])
        scores, truth = model.predict_proba(values[test]), labels[test]
        hits.append(model.classes_[scores.argmax(1)] == truth)
        tested.append(test)
        for score, name in zip(scores.T, model.classes_, strict=True):
            if 0 < (truth == name).sum() < len(truth):
                areas.append(roc_auc_score(truth == name, score))
    hits = np.concatenate(hits)
    interval = proportion_interval(hits, patients[np.concatenate(tested)])
    return hits.mean(), *interval, float(np.mean(areas)) if areas else np.nan
