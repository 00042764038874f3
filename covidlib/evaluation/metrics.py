"""What a set of predictions is worth (§3.2, Figure 6): per-class figures and intervals beside the accuracy.

Predictions are a DataFrame with one row per slice: `label`, `patient` ("" where unknown) and `p_<class>` for
every class, as in `predictions.csv`. Pass the rows of one split. A figure without the slices to define it
is NaN. Figures over slices weigh patients by their slices; intervals are at 95 %.
"""

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from covidlib.evaluation import calibration, statistics

AS_MEASURED, MECHANICS, TOO_FEW = "as measured", "mechanics only", "too few patients"
FEWEST = 30  # independent units (patients, or slices where unknown) below which no accuracy is judged


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
    sensitivities = [figures["sensitivity"] for figures in per_class.values()]
    return {
        "n": len(truth),
        "patients": len(set(patients) - {""}),
        "accuracy": float(sk.accuracy_score(truth, predicted)) if len(truth) else np.nan,
        "accuracy_interval": list(statistics.proportion_interval(truth == predicted, patients, seed)),
        "balanced_accuracy": _nanmean(sensitivities),
        "balanced_accuracy_interval": _balanced_interval(truth, predicted, len(classes), patients, seed),
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
    units = len(np.unique(statistics.fill_unknown(patient_names(predictions))))
    return AS_MEASURED if units >= FEWEST else TOO_FEW


def confusion(predictions, classes):
    """Counts of slices: rows the true class, columns the predicted one, both in the order of `classes`."""
    truth, predicted, _ = decide(predictions, classes)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (truth, predicted), 1)
    return pd.DataFrame(counts, pd.Index(classes, name="true"), pd.Index(classes, name="predicted"))


def roc(predictions, classes):
    """One-vs-rest ROC curves, long: class, fpr, tpr, threshold; a class without a curve is left out."""
    return _curves(predictions, classes, ("fpr", "tpr", "threshold"), sk.roc_curve)


def precision_recall(predictions, classes):
    """One-vs-rest precision and recall, long: class, recall, precision, threshold; as `roc` else.

    The last point of a class, recall 0 and precision 1, has no threshold.
    """
    def curve(truth, scores):
        precision, recall, threshold = sk.precision_recall_curve(truth, scores)
        return recall, precision, np.append(threshold, np.nan)

    return _curves(predictions, classes, ("recall", "precision", "threshold"), curve)


def _curves(predictions, classes, columns, curve):
    truth, _, scores = decide(predictions, classes)
    parts = [pd.DataFrame(columns=["class", *columns])]
    for k, name in enumerate(classes):
        if _both(truth == k):
            found = curve(truth == k, scores[:, k])
            parts.append(pd.DataFrame({"class": name} | dict(zip(columns, found, strict=True))))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def ppv_at(sensitivity, specificity, prevalence):
    """Share of positive answers that are right where `prevalence` of the patients are ill (Bayes); NaN if none is."""
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
    codes = {name: k for k, name in enumerate(classes)}
    strange = sorted(set(predictions["label"]) - set(codes))
    if strange:
        raise ValueError(f"labels must be among classes={list(classes)}. Received: {strange}")
    truth = np.array([codes[label] for label in predictions["label"]], dtype=int)
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
        "auc": float(sk.roc_auc_score(is_class, score)) if _both(is_class) else np.nan,
    }


def _both(is_class):
    return is_class.any() and not is_class.all()


def _share(flags):
    return float(flags.mean()) if len(flags) else np.nan


def _nanmean(values):
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _macro_f1(truth, predicted, classes):
    if not len(truth):
        return np.nan
    scores = sk.f1_score(truth, predicted, labels=np.arange(classes), average=None, zero_division=np.nan)
    return _nanmean(scores)


def _balanced_interval(truth, predicted, classes, patients, seed):
    """Clusters are patients, or slices where no patient is known; NaN where no resample can differ."""

    def mean_sensitivity(totals):
        with np.errstate(invalid="ignore"):
            return np.mean(totals[:, :classes] / totals[:, classes : 2 * classes], axis=1)

    present = [k for k in range(classes) if (truth == k).any()]
    classes = len(present)
    if not classes:
        return [np.nan, np.nan]
    members = truth[:, None] == np.array(present)
    values = np.hstack([members & (truth == predicted)[:, None], members])
    clusters = statistics.fill_unknown(patients)
    low, high = statistics.cluster_bootstrap(values, clusters, mean_sensitivity, seed=seed)
    return [low, high] if low < high else [np.nan, np.nan]
