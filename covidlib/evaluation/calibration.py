"""Calibration of probabilities, and temperature scaling (Guo et al. 2017, https://proceedings.mlr.press/v70/guo17a.html).

Probabilities are (n, C), `truth` (n,) the true class of each row.
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax

BINS = 15
_LEAST = 1e-7  # of a probability: float32 resolves no smaller ones, and published ones have seven digits
_RANGE = (np.log(0.05), np.log(20.0))


def scale(probabilities, temperature):
    """Probabilities of the same order with the logits divided by `temperature`: above 1 softens them."""
    return softmax(np.log(np.maximum(probabilities, _LEAST)) / temperature, axis=1)


def fit_temperature(truth, probabilities):
    """The temperature, 0.05 to 20, with the least cross-entropy: fit on validation slices, use on test slices.

    ValueError without slices.
    """
    if not len(truth):
        raise ValueError("a temperature needs validation slices. Received: 0 slices")

    def loss(log_temperature):
        chosen = scale(probabilities, np.exp(log_temperature))[np.arange(len(truth)), truth]
        return -np.log(np.maximum(chosen, _LEAST)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=_RANGE, method="bounded", options={"xatol": 1e-6}).x))


def describe(temperature):
    """"temperature 1.32", and whether it is at a bound of what is tried: then the fit failed, and says so."""
    at_bound = np.abs(np.log(temperature) - _RANGE).min() < 0.01
    return f"temperature {temperature:.2f}" + ", at the bound of what is tried" * bool(at_bound)


def reliability(truth, probabilities):
    """Bins of equal width of the highest probability: DataFrame low, high, n, confidence, accuracy (NaN if empty)."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, BINS - 1)
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "n": np.bincount(bins, minlength=BINS)})
    sums = {"confidence": np.bincount(bins, confidence, BINS), "accuracy": np.bincount(bins, right, BINS)}
    return table.assign(**{name: values / table["n"] for name, values in sums.items()})


def expected_error(truth, probabilities):
    """Expected calibration error: mean gap between confidence and accuracy, weighted by the bins' slices."""
    table = reliability(truth, probabilities)
    return float((table.n * (table.confidence - table.accuracy).abs()).sum() / table.n.sum())


def brier(truth, probabilities):
    """Mean squared distance to the one-hot truth, summed over classes: 0 (sure and right) to 2 (sure and wrong)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1).mean())
