"""Intervals and tests for proportions measured on slices that come in patients."""

import numpy as np
from scipy import stats

RESAMPLES = 2000


def wilson(successes, n, confidence=0.95):
    """Wilson score interval of a proportion of independent trials.

    Returns (low, high), or (nan, nan) for n=0. Raises ValueError unless 0 <= successes <= n.
    Source: https://doi.org/10.1080/01621459.1927.10502953
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n. Received: successes={successes}, n={n}")
    if n == 0:
        return np.nan, np.nan
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean(totals):
    """Mean of the rows, from (resamples, 2) totals of value and one: a statistic for `cluster_bootstrap`."""
    return totals[:, 0] / totals[:, 1]


def cluster_bootstrap(values, clusters, statistic=mean, seed=0, resamples=RESAMPLES, confidence=0.95):
    """Percentile bootstrap interval that resamples whole clusters (patients), never single rows.

    values: (n,) or (n, k), one row per slice; clusters: (n,) labels. `statistic` maps the column totals of
    each resample, (resamples, k + 1) with the number of rows as last column, to (resamples,).
    Returns (low, high); (nan, nan) for fewer than two clusters. Resamples in which the statistic is undefined
    are left out. Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    values = np.asarray(values, dtype=float)
    values = values.reshape(len(values), -1)
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(codes) != len(values):
        raise ValueError(
            f"values and clusters must be equally long. Received: {len(values)} values, {len(codes)} clusters"
        )
    if len(names) < 2:
        return np.nan, np.nan
    columns = [*values.T, np.ones(len(values))]
    sums = np.stack([np.bincount(codes, column, len(names)) for column in columns], axis=1)
    rng = np.random.default_rng([seed, len(names)])
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        results = np.asarray(statistic(weights @ sums))
    if not np.isfinite(results).any():
        return np.nan, np.nan
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(results, [tail, 100 - tail])
    return float(low), float(high)


def proportion_interval(correct, patients, seed=0):
    """95 % interval of the mean of `correct` (n,), 0 to 1 each, given the patient of each slice (n,).

    Slices of one patient are not independent: patients are resampled where they are known, a slice without
    a patient ("") being a cluster of its own. No patient known: Wilson over the slices. Where resampling
    could only return the point itself, as when all slices are right: Wilson over the patients.
    """
    correct = np.asarray(correct, dtype=float)
    if not patients_known(patients):
        return wilson(round(correct.sum()), correct.size)
    clusters = fill_unknown(patients)
    low, high = cluster_bootstrap(correct, clusters, seed=seed)
    if low < high:
        return low, high
    n = len(np.unique(clusters))
    return wilson(round(correct.mean() * n), n)


def patients_known(patients):
    """Whether at least one entry of `patients` (n,) names a patient."""
    return any(str(patient) for patient in patients)


def fill_unknown(patients):
    """`patients` (n,) as text, with every "" replaced by a name of its own."""
    return np.array([str(p) or f"slice without patient {i}" for i, p in enumerate(patients)])


def two_proportion_z(p1, n1, p2, n2, design_effect=1.0):
    """z of the difference p1 - p2 of two proportions with pooled variance.

    `design_effect` divides the counts: the variance inflation of correlated slices (Kish, Survey Sampling,
    1965). Raises ValueError for counts below 1 or a design effect below 1. NaN if the pooled share is 0 or 1.
    """
    if min(n1, n2) < 1 or design_effect < 1:
        raise ValueError(
            "n1, n2 and design_effect must be at least 1. "
            f"Received: n1={n1}, n2={n2}, design_effect={design_effect}"
        )
    pooled = (p1 * n1 + p2 * n2) / (n1 + n2)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n2) * design_effect
    return float((p1 - p2) / np.sqrt(variance)) if variance > 0 else np.nan
