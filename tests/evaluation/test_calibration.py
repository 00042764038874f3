import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from covidlib.evaluation import calibration


def test_the_temperature_is_found_and_corrects_the_calibration():
    """True classes drawn from probabilities, and the same probabilities made too sure by 2.5."""
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([1, 1, 1], 20_000)
    truth = (rng.random((20_000, 1)) > honest.cumsum(axis=1)).sum(axis=1)
    sure = calibration.scale(honest, 1 / 2.5)
    temperature = calibration.fit_temperature(truth, sure)
    assert temperature == pytest.approx(2.5, rel=0.05)
    assert calibration.fit_temperature(truth, honest) == pytest.approx(1, rel=0.05)
    scaled = calibration.scale(sure, temperature)
    assert (scaled.argmax(axis=1) == sure.argmax(axis=1)).all() and scaled.sum(axis=1) == pytest.approx(1)
    assert calibration.expected_error(truth, sure) > 0.1 > 0.02 > calibration.expected_error(truth, scaled)
    assert calibration.brier(truth, scaled) < calibration.brier(truth, sure)


def test_expected_error_and_brier_of_a_handful_by_hand():
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    # at .9 two of three are right, at .7 one of one
    assert calibration.expected_error(truth, probabilities) == pytest.approx(0.75 * abs(0.9 - 2 / 3) + 0.25 * 0.3)
    assert calibration.brier(truth, probabilities) == pytest.approx((0.02 + 0.02 + 1.62 + 0.18) / 4)
    assert calibration.brier(truth, probabilities) == pytest.approx(
        brier_score_loss(truth, probabilities, scale_by_half=False), abs=1e-12)
    bins = calibration.reliability(truth, probabilities)
    assert bins.n.sum() == 4 and (bins.n > 0).sum() == 2 and bins.accuracy.isna().sum() == 13


def test_certainty_lies_in_the_last_bin_and_zero_is_no_trouble():
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibration.reliability(np.array([0, 0]), sure).n.iloc[-1] == 2
    assert calibration.fit_temperature(np.array([0, 0]), sure) == pytest.approx(20, rel=0.01)
    with pytest.raises(ValueError, match="0 slices"):
        calibration.fit_temperature(np.array([], int), np.zeros((0, 2)))


def test_a_temperature_at_its_bound_is_told():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    sure = np.eye(2)[truth] * 0.1 + 0.45
    wrong = np.eye(2)[1 - truth] * 0.98 + 0.01
    told = [calibration.describe(calibration.fit_temperature(truth, scores)) for scores in (sure, wrong)]
    assert told == [f"temperature {bound}, at the bound of what is tried" for bound in ("0.05", "20.00")]
    assert calibration.describe(1.3) == "temperature 1.30"
