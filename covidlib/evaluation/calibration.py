"""How far the probabilities can be believed, and one number that mends them (Guo et al. 2017).

Source: https://proceedings.mlr.press/v70/guo17a.html. Probabilities are (n, C), `truth` the true class of each row.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

BINS = 15
_LEAST = 1e-7  # of a probability: float32 tells no smaller ones apart, and published ones have seven digits
_RANGE = (np.log(0.05), np.log(20.0))


def scale(probabilities, temperature):
    """Probabilities of the same order with the logits divided by `temperature`: above 1 softens them."""
    logits = np.log(np.maximum(probabilities, _LEAST)) / temperature
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def fit_temperature(truth, probabilities):
    """The temperature, 0.05 to 20, under which the cross-entropy is least: fit on validation slices, use on test.

    ValueError without slices.
    """
    if not len(truth):
        raise ValueError("a temperature needs validation slices. Received: 0 slices")

    def loss(log_temperature):
        chosen = scale(probabilities, np.exp(log_temperature))[np.arange(len(truth)), truth]
        return -np.log(np.maximum(chosen, _LEAST)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=_RANGE, method="bounded", options={"xatol": 1e-6}).x))


def reliability(truth, probabilities, bins=BINS):
    """Bins of equal width of the highest probability: DataFrame low, high, n, confidence, accuracy (NaN if empty)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, bins) / counts for values in (confidence, right)]
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": counts, "confidence": means[0],
                         "accuracy": means[1]})


def expected_error(truth, probabilities):
    """Expected calibration error: mean gap between confidence and accuracy, weighted by the bins' slices."""
    table = reliability(truth, probabilities)
    return float((table.n * (table.confidence - table.accuracy).abs()).sum() / table.n.sum())


def brier(truth, probabilities):
    """Mean squared distance to the one-hot truth, summed over classes: 0 (sure and right) to 2 (sure and wrong)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1).mean())
