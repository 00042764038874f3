import time

import numpy as np
import pytest

from covidlib import statistics


def test_wilson_agrees_with_the_formula():
    n, p, z = 3000, 2703 / 3000, 1.959963985
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert statistics.wilson(2703, 3000) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize("successes, low, high", [(0, 0.0, 0.2775), (10, 0.7225, 1.0)])
def test_wilson_at_the_ends(successes, low, high):
    assert statistics.wilson(successes, 10) == pytest.approx((low, high), abs=1e-3)


def test_wilson_refuses_impossible_counts_and_has_no_interval_for_nothing():
    assert np.isnan(statistics.wilson(0, 0)).all()
    with pytest.raises(ValueError, match="successes=4, n=3"):
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
    values = np.random.default_rng(3).random((60, 2))
    clusters = np.arange(60) % 20

    def ratio(totals):
        return totals[:, 0] / totals[:, 1]

    first = statistics.cluster_bootstrap(values, clusters, ratio, seed=5)
    assert first == statistics.cluster_bootstrap(values, clusters, ratio, seed=5)
    assert first != statistics.cluster_bootstrap(values, clusters, ratio, seed=6)
    assert first[0] < values[:, 0].sum() / values[:, 1].sum() < first[1]


def test_cluster_bootstrap_without_two_clusters_has_no_interval():
    assert np.isnan(statistics.cluster_bootstrap([1, 0, 1], ["a", "a", "a"])).all()
    with pytest.raises(ValueError, match="3 values, 2 clusters"):
        statistics.cluster_bootstrap([1, 0, 1], ["a", "b"])


def test_cluster_bootstrap_takes_seconds_at_the_size_of_the_paper():
    start = time.perf_counter()
    statistics.cluster_bootstrap(np.ones(3000), np.arange(3000))
    assert time.perf_counter() - start < 5


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


def test_the_gain_of_the_paper_is_significant_only_if_its_slices_are_independent():
    paper = 0.901, 3000, 0.870, 3000
    assert statistics.two_proportion_z(*paper) == pytest.approx(3.8, abs=0.05)
    assert statistics.two_proportion_z(*paper, design_effect=4) == pytest.approx(1.9, abs=0.05)


def test_two_proportion_z_refuses_what_makes_no_sense():
    assert np.isnan(statistics.two_proportion_z(1.0, 5, 1.0, 5))
    with pytest.raises(ValueError, match="n1=0"):
        statistics.two_proportion_z(0.5, 0, 0.5, 10)
    with pytest.raises(ValueError, match="design_effect=0.5"):
        statistics.two_proportion_z(0.5, 10, 0.5, 10, design_effect=0.5)
