"""Figures of a set of predictions (§3.2, Figure 6): per-class figures and intervals as well as the accuracy.

Predictions are a DataFrame with one row per slice: `label`, `patient` ("" where unknown) and `p_<class>` for
every class, as in `predictions.csv`. Pass the rows of one split. A figure without the slices to define it
is NaN. Figures over slices weigh patients by their slices; intervals are at 95 %.
"""

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from covidlib.evaluation import calibration, statistics

AS_MEASURED, MECHANICS, TOO_FEW = "as measured", "mechanics only", "too few patients"
FEWEST = 30  # independent units (patients, or slices where unknown) below which no accuracy is assessed


def metrics(predictions, classes, seed=0):
    """Figures of one split, plain data ready for JSON.

    Keys: `n`, `patients` (0 where unknown), `accuracy`, `accuracy_interval` [low, high],
    `balanced_accuracy`, `balanced_accuracy_interval`, `macro_f1`, `auc` (one-vs-rest, mean over the classes
    for which it is defined), `brier`, `ece` (see calibration), and `per_class`: name -> `n`, `sensitivity`,
    `sensitivity_interval`, `specificity`, `ppv`, `auc`. The predicted class is the most probable one. Intervals:
    patient-clustered bootstrap, Wilson where no patient is known (`statistics.proportion_interval`).
    """
    truth, predicted, scores = decide(predictions, classes)
    patients = patient_names(predictions)
    per_class = {name: _one_class(truth, predicted, scores[:, k], k, patients, seed) for k, name in enumerate(classes)}
    return {
        "n": len(truth),
        "patients": len(set(patients) - {""}),
        "accuracy": _share(truth == predicted),
        "accuracy_interval": list(statistics.proportion_interval(truth == predicted, patients, seed)),
        "balanced_accuracy": _nanmean([figures["sensitivity"] for figures in per_class.values()]),
        "balanced_accuracy_interval": _balanced_interval(truth, predicted, patients, seed),
        "macro_f1": _macro_f1(truth, predicted, len(classes)),
        "auc": _nanmean([figures["auc"] for figures in per_class.values()]),
        "brier": calibration.brier(truth, scores) if len(truth) else np.nan,
        "ece": calibration.expected_error(truth, scores) if len(truth) else np.nan,
        "per_class": per_class,
    }


def evidence_level(dataset, predictions):
    """How figures of `predictions` on `dataset` may be read: AS_MEASURED, MECHANICS (phantoms) or TOO_FEW patients."""
    if dataset == "phantom":
        return MECHANICS
    units = statistics.fill_unknown(patient_names(predictions))
    return AS_MEASURED if len(set(units)) >= FEWEST else TOO_FEW


def confusion(predictions, classes):
    """Counts of slices: rows the true class, columns the predicted one, both in the order of `classes`."""
    truth, predicted, _ = decide(predictions, classes)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (truth, predicted), 1)  # scikit-learn refuses no slices
    return pd.DataFrame(counts, pd.Index(classes, name="true"), pd.Index(classes, name="predicted"))


def roc(predictions, classes):
    """One-vs-rest ROC curves, long: class, fpr, tpr, threshold; a class without a curve is left out."""
    return _curves(predictions, classes, ("fpr", "tpr", "threshold"), sk.roc_curve)


def precision_recall(predictions, classes):
    """One-vs-rest precision and recall, long: class, recall, precision, threshold; else as `roc`.

    The last point of a class, recall 0 and precision 1, has no threshold.
    """
    def curve(truth, scores):
        precision, recall, threshold = sk.precision_recall_curve(truth, scores)
        return recall, precision, np.append(threshold, np.nan)

    return _curves(predictions, classes, ("recall", "precision", "threshold"), curve)


def _curves(predictions, classes, columns, curve):
    truth, _, scores = decide(predictions, classes)
    parts = [pd.DataFrame({"class": name} | dict(zip(columns, curve(truth == k, scores[:, k]), strict=True)))
             for k, name in enumerate(classes) if len(set(truth == k)) == 2]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["class", *columns])


def ppv_at(sensitivity, specificity, prevalence):
    """Positive predictive value at a prevalence (Bayes); NaN without positive answers."""
    right, wrong = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    return right / (right + wrong) if right + wrong > 0 else np.nan


def correct(predictions, classes):
    """bool (n,): whether the most probable class of each slice is the true one."""
    truth, predicted, _ = decide(predictions, classes)
    return truth == predicted


def decide(predictions, classes):
    """True class (n,), most probable class (n,), probabilities (n, C)."""
    columns = [f"p_{name}" for name in classes]
    missing = [column for column in ["label", *columns] if column not in predictions]
    if missing:
        raise ValueError(f"predictions lack columns {missing}. Received: columns={list(predictions.columns)}")
    truth = pd.Index(classes).get_indexer(predictions["label"])
    if (truth < 0).any():
        strange = sorted(set(predictions["label"]) - set(classes))
        raise ValueError(f"labels must be among classes={list(classes)}. Received: {strange}")
    scores = predictions[columns].to_numpy(dtype=float)
    return truth, scores.argmax(axis=1), scores


def patient_names(predictions):
    """Patient of every row as text (n,), "" where unknown."""
    if "patient" not in predictions:
        return np.full(len(predictions), "")
    return predictions["patient"].fillna("").astype(str).to_numpy()


def _one_class(truth, predicted, score, k, patients, seed):
    is_class, called = truth == k, predicted == k
    return {
        "n": int(is_class.sum()),
        "sensitivity": _share(called[is_class]),
        "sensitivity_interval": list(statistics.proportion_interval(called[is_class], patients[is_class], seed)),
        "specificity": _share(~called[~is_class]),
        "ppv": _share(is_class[called]),
        "auc": float(sk.roc_auc_score(is_class, score)) if len(set(is_class)) == 2 else np.nan,
    }


def _share(flags):
    return float(flags.mean()) if len(flags) else np.nan


def _nanmean(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _macro_f1(truth, predicted, classes):
    if not len(truth):
        return np.nan
    return float(sk.f1_score(truth, predicted, labels=np.arange(classes), average="macro", zero_division=np.nan))


def _balanced_interval(truth, predicted, patients, seed):
    """Interval of the mean sensitivity of the classes present; NaN where no resample can differ."""
    members = truth[:, None] == np.unique(truth)  # (n, classes present)
    right = members & (truth == predicted)[:, None]

    def mean_sensitivity(totals):
        hits, counts = np.split(totals[:, :-1], 2, axis=1)
        return np.mean(hits / counts, axis=1)

    low, high = statistics.cluster_bootstrap(np.hstack([right, members]), statistics.fill_unknown(patients),
                                             mean_sensitivity, seed)
    return [low, high] if low < high else [np.nan, np.nan]
