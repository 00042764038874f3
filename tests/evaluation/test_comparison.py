from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from covidlib.evaluation import comparison, metrics
from covidlib.training.runs import Run

CLASSES = ("covid", "non_covid")


def made_up(variant, seed, right, patients=None):
    """A run whose slice n is classified rightly where right[n]."""
    n = len(right)
    labels = np.array(CLASSES)[np.arange(n) % 2]
    hit = np.where(right, 0.9, 0.1)
    covid = np.where(labels == "covid", hit, 1 - hit)
    predictions = pd.DataFrame({
        "path": [f"{k}.png" for k in range(n)], "slice_index": 0,
        "patient": patients if patients is not None else [f"p{k // 3}" for k in range(n)],
        "split": "test", "label": labels, "p_covid": covid, "p_non_covid": 1 - covid,
    })
    content = {
        "parameters": {"variant": variant, "seed": seed}, "classes": list(CLASSES),
        "metrics": {"test": metrics.metrics(predictions, CLASSES)},
        "model": {"parameters": 7}, "wall_seconds": 2.0 + seed}
    return Run(Path(variant, f"seed-{seed}"), content, pd.DataFrame(), predictions)


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    base = [rng.random(300) < 0.7 for _ in range(2)]
    return [*(made_up("improved", k, right | (rng.random(300) < 0.5)) for k, right in enumerate(base)),
            *(made_up("resnet50", k, right) for k, right in enumerate(base))]


def test_mean_and_spread_over_seeds(runs):
    found = comparison.table(runs).set_index("variant")
    assert list(found.index) == ["resnet50", "improved"]
    values = [run.metrics["test"]["accuracy"] for run in runs[2:]]
    assert found.loc["resnet50", "accuracy_mean"] == pytest.approx(np.mean(values))
    assert found.loc["resnet50", "accuracy_sd"] == pytest.approx(np.std(values, ddof=1))
    assert found.loc["improved", ["seeds", "parameters", "seconds"]].tolist() == [2, 7, 2.5]


def test_the_difference_is_paired(runs):
    found = comparison.table(runs).set_index("variant")
    assert found.loc["resnet50", ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    improved = found.loc["improved"]
    gain = improved["accuracy_mean"] - found.loc["resnet50", "accuracy_mean"]
    assert improved["difference"] == pytest.approx(gain) and gain > 0.1
    assert 0 < improved["difference_low"] < gain < improved["difference_high"]
    single = comparison.table([runs[0], runs[2]]).loc[1]
    unpaired = np.hypot(*(np.diff(run.metrics["test"]["accuracy_interval"])[0] for run in (runs[0], runs[2])))
    assert single["difference_high"] - single["difference_low"] < 0.9 * unpaired


def test_rows_are_matched_by_slice_and_not_by_position(runs):
    shuffled = [Run(run.path, run.content, run.history, run.predictions.sample(frac=1, random_state=k))
                for k, run in enumerate(runs)]
    pd.testing.assert_frame_equal(comparison.table(shuffled), comparison.table(runs))


def test_one_seed_no_patients_and_no_baseline():
    right = np.arange(40) % 4 > 0
    improved, base = made_up("improved", 0, right, ""), made_up("resnet50", 0, np.arange(40) % 4 > 1, "")
    one = comparison.table([improved])
    assert np.isnan(one.loc[0, ["accuracy_sd", "difference", "difference_low"]].astype(float)).all()
    both = comparison.table([improved, base])
    assert both.loc[1, "difference"] == 0.25 and both.loc[1, "difference_low"] > 0


def test_runs_on_different_slices_are_not_compared(runs):
    other = made_up("resnet50_fpn", 0, np.ones(299, bool))
    with pytest.raises(ValueError, match="different test slices"):
        comparison.table([*runs, other])
    with pytest.raises(ValueError, match="seeds of resnet50 were predicted on different slices"):
        comparison.table([*runs, made_up("resnet50", 5, np.ones(299, bool))])
    with pytest.raises(ValueError, match="03_training"):
        comparison.table([])
