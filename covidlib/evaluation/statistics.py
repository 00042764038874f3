"""Intervals and tests for slices that come in patients. Intervals are at 95 %; `patients` are "" where unknown."""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binomtest, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

RESAMPLES, LEVEL = 2000, 0.95
_NOTHING = 1e-12  # a variance that is rounding


def wilson(successes, n):
    """Wilson score interval of a proportion of independent trials: (low, high), NaN for n=0.

    ValueError unless 0 <= successes <= n. Source: https://doi.org/10.1080/01621459.1927.10502953
    """
    if not n:
        return np.nan, np.nan
    interval = binomtest(successes, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mean(totals):
    """Mean of the rows, from (resamples, 2) totals of value and one: a statistic for `cluster_bootstrap`."""
    return totals[:, 0] / totals[:, 1]


def mean_over_seeds(totals):
    """Mean of the columns, one for each seed, which are resampled, too: a statistic for `cluster_bootstrap`."""
    seeds = totals.shape[1] - 1
    drawn = np.random.default_rng(seeds).multinomial(seeds, np.full(seeds, 1 / seeds), size=len(totals))
    return (totals[:, :-1] * drawn).sum(axis=1) / (seeds * totals[:, -1])


def resampled(values, clusters, statistic=mean, seed=0):
    """`statistic` of RESAMPLES bootstrap samples of whole clusters (patients), never of single rows.

    values: (n,) or (n, k), one row per slice; clusters: (n,) labels, two or more different ones. `statistic` maps the
    column totals of each resample, (RESAMPLES, k + 1) with the number of rows as last column, to (RESAMPLES,); NaN
    where it is undefined. Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    values = np.asarray(values, dtype=float)
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if len(codes) != len(values):
        raise ValueError(f"values and clusters must be equally long. "
                         f"Received: {len(values)} values, {len(codes)} clusters")
    k = len(names)
    weights = np.random.default_rng([seed, k]).multinomial(k, np.full(k, 1 / k), size=RESAMPLES)
    columns = [*values.reshape(len(values), -1).T, np.ones(len(values))]
    sums = np.stack([np.bincount(codes, column, k) for column in columns], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(statistic(weights @ sums)).round(12)  # ties are ties on every processor


def percentile_interval(results):
    """(low, high) of bootstrap results; undefined ones are left out, NaN if all are."""
    if not np.isfinite(results).any():
        return np.nan, np.nan
    low, high = np.nanpercentile(results, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def cluster_bootstrap(values, clusters, statistic=mean, seed=0):
    """Percentile interval of `resampled`; NaN for fewer than two clusters."""
    if len(np.unique(np.asarray(clusters))) < 2:
        return np.nan, np.nan
    return percentile_interval(resampled(values, clusters, statistic, seed))


def paired_difference(correct, reference, patients, seed=0):
    """Two networks on the same slices: dict difference, low, high, p_bootstrap, p_mcnemar.

    correct, reference: (n,) or, with a column for each seed, (n, S), 1 where the network is right (or the share of its
    seeds that is); patients: (n,). The interval and `p_bootstrap` (two-sided, twice the smaller share of resamples on
    one side of zero, one added to both counts) resample patients and seeds; NaN for fewer than two patients.
    `p_mcnemar` is exact and takes slices as independent; NaN for several seeds. Source of the latter:
    https://doi.org/10.1007/BF02295996
    """
    correct, reference = np.asarray(correct, float), np.asarray(reference, float)
    gain, clusters = correct - reference, fill_unknown(patients)
    low = high = p = np.nan
    if len(set(clusters)) > 1:
        results = resampled(gain, clusters, mean_over_seeds, seed)
        low, high = percentile_interval(results)
        p = min(1.0, 2 * (min((results <= 0).sum(), (results >= 0).sum()) + 1) / (len(results) + 1))
    whole = np.isin([correct, reference], (0, 1)).all()
    whole = whole and gain.size == len(gain)
    table = [[0, (gain > 0).sum()], [(gain < 0).sum(), 0]]  # the agreeing slices do not count
    return {"difference": float(gain.mean()), "low": low, "high": high, "p_bootstrap": float(p),
            "p_mcnemar": float(mcnemar(table, exact=True).pvalue) if whole else np.nan}


def holm(p_values):
    """p-values (k,) adjusted for k comparisons (Holm 1979, https://www.jstor.org/stable/4615733); NaN stays."""
    adjusted = np.asarray(p_values, float).copy()
    known = np.isfinite(adjusted)
    if known.any():
        adjusted[known] = multipletests(adjusted[known], method="holm")[1]
    return adjusted


def delong(truth, scores, clusters=None):
    """Areas under ROC curves, (k,), and their covariance, (k, k).

    truth: bool (n,); scores: (n,) or (n, k), of k networks on the same slices. Without `clusters` after DeLong et al.
    1988 (https://doi.org/10.2307/2531595); with clusters (n,), patients, after Obuchowski 1997
    (https://doi.org/10.2307/2533958), which is the same where every cluster is one slice. The covariance is NaN
    where one outcome has a single cluster. ValueError unless both outcomes occur.
    """
    truth, scores = np.asarray(truth, bool), np.asarray(scores, float).reshape(len(truth), -1)
    if truth.all() or not truth.any():
        raise ValueError(f"an ROC curve needs both outcomes. Received: {truth.sum()} positive of {len(truth)}")
    positive, negative = scores[truth], scores[~truth]
    wins = (positive[:, None] > negative[None]) + 0.5 * (positive[:, None] == negative[None])  # (M, N, k)
    areas = wins.mean(axis=(0, 1))
    names, codes = np.unique(np.arange(len(truth)) if clusters is None else clusters, return_inverse=True)
    sums, counts, sizes = np.zeros((2, len(names), len(areas))), [], []
    for outcome, (part, means) in enumerate(((truth, wins.mean(axis=1)), (~truth, wins.mean(axis=0)))):
        np.add.at(sums[outcome], codes[part], means - areas)
        counts.append(part.sum())
        sizes.append(len(np.unique(codes[part])))  # each outcome's own clusters give its degrees of freedom
    if min(sizes) < 2:
        return areas, np.full((len(areas), len(areas)), np.nan)
    own = [part.T @ part * size / (size - 1) / count**2
           for part, size, count in zip(sums, sizes, counts, strict=True)]
    cross = sums[0].T @ sums[1] * len(names) / (len(names) - 1) / (counts[0] * counts[1])
    return areas, own[0] + own[1] + cross + cross.T


def _areas(truth, scores, patients, folds):
    """Areas (k,) and covariance (k, k), by patient; with `folds` (n,) the mean over folds, each with its own curve."""
    truth, clusters = np.asarray(truth, bool), fill_unknown(patients)
    folds = np.zeros(len(truth)) if folds is None else np.asarray(folds)
    parts = [delong(truth[own], scores[own], clusters[own]) for own in (folds == fold for fold in np.unique(folds))]
    areas, covariances = zip(*parts, strict=True)
    return np.mean(areas, axis=0), np.sum(covariances, axis=0) / len(parts) ** 2  # patients do not cross folds


def auc_interval(truth, scores, patients, folds=None):
    """(area, low, high), clustered by patient; of several networks, scores (n, k), their mean area.

    folds: (n,) which of several trainings answered a slice: scores of different trainings are not compared. On the
    logit scale, so that it stays inside 0 to 1; NaN for a perfect or utterly wrong order, or one patient in a class.
    """
    areas, covariance = _areas(truth, np.asarray(scores), patients, folds)
    area, deviation = areas.mean(), np.sqrt(max(covariance.mean(), 0))
    if not (0 < area < 1 and np.isfinite(deviation)):
        return float(area), np.nan, np.nan
    half = norm.ppf(0.975) * deviation / (area * (1 - area))
    return float(area), float(expit(logit(area) - half)), float(expit(logit(area) + half))


def auc_difference(truth, scores, reference, patients, folds=None):
    """dict difference, low, high, p: mean area of `scores` (n, k) minus that of `reference` (n, m), same slices.

    Clustered by patient, folds as in `auc_interval`; p is two-sided. NaN for one patient in a class.
    """
    scores, reference = (np.asarray(part, float).reshape(len(truth), -1) for part in (scores, reference))
    areas, covariance = _areas(truth, np.hstack([scores, reference]), patients, folds)
    k, m = scores.shape[1], reference.shape[1]
    contrast = np.r_[np.full(k, 1 / k), np.full(m, -1 / m)]
    gap, variance = float(contrast @ areas), float(contrast @ covariance @ contrast)
    if not variance > _NOTHING:
        return {"difference": gap, "low": np.nan, "high": np.nan, "p": np.nan}
    half = norm.ppf(0.975) * np.sqrt(variance)
    return {"difference": gap, "low": gap - half, "high": gap + half,
            "p": float(2 * norm.sf(abs(gap) / np.sqrt(variance)))}


def proportion_interval(correct, patients, seed=0):
    """Interval of the mean of `correct` (n,), 0 to 1 each, given the patient of each slice (n,).

    Slices of one patient are not independent: patients are resampled where they are known, a slice without
    a patient ("") being a cluster of its own. No patient known: Wilson over the slices. Where resampling
    could only return the point itself, as when all slices are right: Wilson over the patients.
    """
    correct = np.asarray(correct, dtype=float)
    if not any(map(str, patients)):
        return wilson(round(correct.sum()), correct.size)
    clusters = fill_unknown(patients)
    low, high = cluster_bootstrap(correct, clusters, seed=seed)
    if low < high:
        return low, high
    n = len(np.unique(clusters))
    return wilson(round(correct.mean() * n), n)


def fill_unknown(patients):
    """`patients` (n,) as text, with every "" replaced by a name of its own."""
    return np.array([str(p) or f"slice without patient {i}" for i, p in enumerate(patients)])


def two_proportion_z(p1, n1, p2, n2, design_effect=1.0):
    """z of the difference p1 - p2 of two proportions with pooled variance.

    `design_effect`: variance inflation of correlated slices (Kish, Survey Sampling, 1965).
    """
    z, _ = proportions_ztest([p1 * n1, p2 * n2], [n1, n2])
    return float(z / np.sqrt(design_effect))
