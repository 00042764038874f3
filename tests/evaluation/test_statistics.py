import time

import numpy as np
import pytest
from scipy.stats import norm

from covidlib.evaluation import statistics


def test_wilson_agrees_with_the_formula():
    n, p, z = 3000, 2703 / 3000, 1.959963985
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert statistics.wilson(2703, 3000) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert statistics.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-3)
    assert statistics.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-3)
    assert np.isnan(statistics.wilson(0, 0)).all()
    with pytest.raises(ValueError, match="4.*3"):
        statistics.wilson(4, 3)


def test_cluster_bootstrap_of_independent_rows_matches_the_normal_interval():
    values = np.random.default_rng(1).random(900) < 0.8
    low, high = statistics.cluster_bootstrap(values, np.arange(900))
    half = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 900)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < values.mean() < high


def test_cluster_bootstrap_widens_with_the_design_effect():
    truth = np.random.default_rng(2).random(100) < 0.7
    values, patients = np.repeat(truth, 9), np.repeat(np.arange(100), 9)
    rows = np.diff(statistics.cluster_bootstrap(values, np.arange(900)))[0]
    clusters = np.diff(statistics.cluster_bootstrap(values, patients))[0]
    assert clusters == pytest.approx(3 * rows, rel=0.2)


def test_cluster_bootstrap_takes_a_statistic_of_the_totals_and_is_seeded():
    values, clusters = np.random.default_rng(3).random((60, 2)), np.arange(60) % 20
    first, again, other = (statistics.cluster_bootstrap(values, clusters, lambda totals: totals[:, 0] / totals[:, 1],
                                                        seed) for seed in (5, 5, 6))
    assert first == again != other
    assert first[0] < values[:, 0].sum() / values[:, 1].sum() < first[1]


def test_cluster_bootstrap_without_two_clusters_has_no_interval():
    assert np.isnan(statistics.cluster_bootstrap([1, 0, 1], ["a", "a", "a"])).all()
    with pytest.raises(ValueError, match="3 values, 2 clusters"):
        statistics.cluster_bootstrap([1, 0, 1], ["a", "b"])


def test_proportion_interval_chooses_by_what_is_known():
    correct = np.array([True, True, False, True])
    assert statistics.proportion_interval(correct, [""] * 4) == statistics.wilson(3, 4)
    assert statistics.proportion_interval([True] * 4, ["a", "a", "b", ""]) == statistics.wilson(3, 3)
    assert statistics.proportion_interval([False] * 4, ["a", "a", "b", ""]) == statistics.wilson(0, 3)
    halves = [True, False, True, False]
    assert statistics.proportion_interval(halves, ["a", "a", "b", "b"]) == statistics.wilson(1, 2)
    assert statistics.proportion_interval([True], ["a"]) == statistics.wilson(1, 1)
    low, high = statistics.proportion_interval(correct, ["a", "b", "c", "d"])
    assert 0 <= low < 0.75 < high <= 1
    assert np.isnan(statistics.proportion_interval([], [])).all()
    for n in range(2, 60):  # some of their means of fifths differ in the last bit
        patients = np.r_[np.arange(n), np.arange(0, n, 3)]
        interval = statistics.proportion_interval(np.full(len(patients), 0.2), patients)
        assert interval == statistics.wilson(round(n / 5), n)


def test_the_gain_of_the_paper_is_significant_only_if_its_slices_are_independent():
    paper = 0.901, 3000, 0.870, 3000
    assert statistics.two_proportion_z(*paper) == pytest.approx(3.8, abs=0.05)
    assert statistics.two_proportion_z(*paper, design_effect=4) == pytest.approx(1.9, abs=0.05)


# albumin, total protein, K-G score, outcome of 43 patients: DeLong et al. 1988, https://doi.org/10.2307/2531595
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1"""
OVARIAN = np.array(OVARIAN.split(), float).reshape(-1, 4)


def test_delong_gives_the_published_areas_errors_and_test():
    """Published: example "Comparing ROC curves" of SAS/STAT's LOGISTIC procedure."""
    scores = OVARIAN[:, :3] * [1, 1, -1]
    areas, covariance = statistics.delong(OVARIAN[:, 3] == 1, scores)
    assert areas[1:] == pytest.approx([0.6478, 0.7258], abs=5e-5)
    assert np.sqrt(np.diag(covariance))[1:] == pytest.approx([0.1000, 0.1028], abs=5e-5)
    contrast = np.array([[1, 0, -1], [0, 1, -1]])
    gaps = contrast @ areas
    assert gaps @ np.linalg.solve(contrast @ covariance @ contrast.T, gaps) == pytest.approx(2.5340, abs=5e-5)


def test_delong_is_the_formula_of_the_paper_and_differs_with_clusters():
    truth, scores = OVARIAN[:, 3] == 1, OVARIAN[:, 0]
    wins = np.sign(scores[truth][:, None] - scores[~truth][None]) / 2 + 0.5
    components = wins.mean(axis=1).var(ddof=1) / truth.sum() + wins.mean(axis=0).var(ddof=1) / (~truth).sum()
    names = np.random.default_rng(0).permutation(43).astype(str)
    assert statistics.delong(truth, scores, names)[1][0, 0] == pytest.approx(components)
    assert statistics.delong(truth, scores, np.arange(43) // 4)[1][0, 0] != pytest.approx(components)


def test_a_single_patient_gives_no_interval_and_no_p():
    rng = np.random.default_rng(0)
    found = statistics.paired_difference([1, 1, 0, 1], [0, 1, 0, 1], ["a"] * 4)
    assert found["difference"] == 0.25 and np.isnan([found["low"], found["high"], found["p_bootstrap"]]).all()
    truth = np.repeat([True, False, False], 10)
    patients, scores = np.repeat(["a", "b", "c"], 10), rng.normal(size=(30, 2))
    area, low, high = statistics.auc_interval(truth, scores[:, 0], patients)
    assert 0 < area < 1 and np.isnan([low, high]).all()
    assert np.isnan(statistics.auc_difference(truth, *scores.T, patients)["p"])


def test_scores_of_different_folds_are_not_compared():
    """Two trainings that order their own slices well, on scales that have nothing in common."""
    rng = np.random.default_rng(1)
    truth, fold = np.arange(400) % 2 == 0, np.repeat([0, 1], 200)
    scores = truth + rng.normal(0, 0.7, 400) + 10 * fold
    patients = np.arange(400).astype(str)
    pooled = statistics.auc_interval(truth, scores, patients)
    apart = statistics.auc_interval(truth, scores, patients, fold)
    each = [statistics.auc_interval(truth[fold == k], scores[fold == k], patients[fold == k])[0] for k in (0, 1)]
    assert apart[0] == pytest.approx(np.mean(each)) and apart[0] > pooled[0] + 0.05
    assert apart[2] - apart[1] < 0.12
    assert statistics.auc_difference(truth, scores, scores, patients, fold)["difference"] == 0


def test_delong_of_copied_slices_has_the_error_of_the_patients():
    rng = np.random.default_rng(3)
    truth = rng.random(80) < 0.5
    scores = rng.normal(size=80) + truth
    once = statistics.delong(truth, scores)[1][0, 0]
    copied = statistics.delong(np.repeat(truth, 5), np.repeat(scores, 5), np.repeat(np.arange(80), 5))[1][0, 0]
    assert copied == pytest.approx(once)
    with pytest.raises(ValueError, match="80 positive of 80"):
        statistics.delong(np.ones(80), scores)


@pytest.mark.slow
def test_intervals_of_accuracies_and_differences_cover_the_truth_as_often_as_they_say():
    accuracies, gaps, rng = [], [], np.random.default_rng(0)
    for trial in range(500):
        # 120 patients with one to six slices each, whose chance of being right is the patient's own, .7 on average
        codes = np.repeat(np.arange(120), rng.integers(1, 7, 120))
        chance = rng.beta(7, 3, 120)[codes]
        one, other = (rng.random(len(chance)) < p for p in (chance, 0.9 * chance))
        low, high = statistics.proportion_interval(one, codes, seed=trial)
        accuracies.append(low <= 0.7 <= high)
        found = statistics.paired_difference(one, other, codes, seed=trial)
        gaps.append(found["low"] <= 0.07 <= found["high"])
    assert 0.93 <= np.mean(accuracies) <= 0.97 and 0.93 <= np.mean(gaps) <= 0.97


@pytest.mark.slow
def test_intervals_of_areas_and_of_their_difference_cover_the_truth_as_often_as_they_say():
    areas, gaps, rng = [], [], np.random.default_rng(1)
    for _ in range(600):
        sizes = rng.integers(1, 6, 120)
        truth, own = np.repeat(rng.random(120) < 0.5, sizes), np.repeat(rng.normal(size=120), sizes)
        scores = [truth * shift + own + rng.normal(size=len(truth)) for shift in (1.5, 1.0)]
        known = [norm.cdf(shift / 2) for shift in (1.5, 1.0)]
        patients = np.repeat(np.arange(120), sizes)
        _, low, high = statistics.auc_interval(truth, scores[0], patients)
        areas.append(low <= known[0] <= high)
        found = statistics.auc_difference(truth, *scores, patients)
        gaps.append(found["low"] <= known[0] - known[1] <= found["high"])
    assert 0.93 <= np.mean(areas) <= 0.97 and 0.93 <= np.mean(gaps) <= 0.97


@pytest.mark.slow
def test_p_values_are_small_as_often_as_chance_allows():
    rng, bootstrap, exact = np.random.default_rng(2), [], []
    for trial in range(300):
        one, other = rng.random((2, 200)) < 0.7
        found = statistics.paired_difference(one, other, [""] * 200, seed=trial)
        bootstrap.append(found["p_bootstrap"])
        exact.append(found["p_mcnemar"])
    assert 0.03 <= np.mean(np.array(bootstrap) < 0.05) <= 0.07
    assert np.mean(np.array(exact) < 0.05) <= 0.06


def test_mcnemar_counts_only_where_the_networks_disagree():
    one = np.r_[np.ones(50), np.ones(10), np.zeros(2)]
    other = np.r_[np.ones(50), np.zeros(10), np.ones(2)]
    found = statistics.paired_difference(one, other, [""] * 62)
    assert found["p_mcnemar"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found["difference"] == pytest.approx(8 / 62) and found["low"] > 0
    assert np.isnan(statistics.paired_difference(one / 2, other, [""] * 62)["p_mcnemar"])


def test_holm_multiplies_the_smallest_by_the_number_of_comparisons():
    assert statistics.holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx([0.03, 0.06, np.nan, 0.06], nan_ok=True)
    assert len(statistics.holm([])) == 0


def test_two_thousand_resamples_of_many_slices_take_seconds():
    rng = np.random.default_rng(4)
    patients, begin = rng.integers(0, 1000, 20_000).astype(str), time.perf_counter()
    statistics.paired_difference(*(rng.random((2, 20_000)) < 0.7), patients)
    assert time.perf_counter() - begin < 10


def test_the_spread_of_the_seeds_is_in_the_interval_of_a_difference():
    rng = np.random.default_rng(0)
    patients = np.arange(400) // 2
    reference = (rng.random((400, 4)) < 0.7).astype(float)
    for spread, least, most in ((0.0, 0.0, 0.15), (0.2, 0.2, 0.5)):  # seeds that agree, and that lie far apart
        shift = np.array([-1.5, -0.5, 0.5, 1.5]) * spread
        own = (rng.random((400, 4)) < np.clip(0.7 + shift, 0, 1)).astype(float)
        found = statistics.paired_difference(own, reference, patients)
        averaged = statistics.paired_difference(own.mean(axis=1), reference.mean(axis=1), patients)
        assert found["difference"] == averaged["difference"]
        assert least <= found["high"] - found["low"] <= most
        assert found["high"] - found["low"] > averaged["high"] - averaged["low"]


def test_one_seed_is_what_no_seeds_are():
    rng = np.random.default_rng(0)
    own, reference, patients = rng.integers(0, 2, 60), rng.integers(0, 2, 60), np.arange(60) // 3
    assert statistics.paired_difference(own[:, None], reference[:, None], patients) == statistics.paired_difference(
        own, reference, patients)
