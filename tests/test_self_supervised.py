"""Barlow Twins: the loss against NumPy, both views of one slice in one batch, and weights that every variant takes."""

import numpy as np
import pandas as pd
import pytest

from covidlib import augmentation, pretraining, self_supervised
from covidlib.models import build_classifier


def test_the_loss_is_the_distance_of_the_correlations_from_identity():
    first, second = np.random.default_rng(1).normal(size=(2, 40, 3)).astype("float32")
    second = second + 2 * first
    correlation = np.corrcoef(first, second, rowvar=False)[:3, 3:]
    own = np.diag(correlation)
    wanted = ((1 - own) ** 2).sum() + 5e-3 * ((correlation**2).sum() - (own**2).sum())
    assert np.isclose(float(self_supervised.redundancy(None, np.concatenate([first, second]))), wanted, rtol=1e-4)


def test_equal_views_without_redundancy_cost_nothing():
    features = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 4)))[0]
    features = np.linalg.qr(features - features.mean(0))[0].astype("float32")
    assert float(self_supervised.redundancy(None, np.concatenate([features, features]))) < 1e-3


def test_a_batch_holds_two_different_views_of_each_slice():
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32), dtype=np.uint8)
    batches = self_supervised.TwoViews(images, epoch=3)
    views, labels = batches[0]
    chosen = batches.parts[0]
    first = chosen[0]
    assert len(batches) == 2 and views.shape == (70, 32, 32, 1) and len(labels) == 70
    for place, seed in ((0, pretraining.SEED), (len(chosen), pretraining.SEED + 1)):
        own = augmentation.Augmenter(self_supervised.VIEWS, seed)(images[first].astype("float32"), 3, int(first))
        assert np.array_equal(views[place, ..., 0], own)
    assert not np.allclose(views[0], views[len(chosen)])


@pytest.mark.slow
def test_weights_are_made_once_and_start_every_variant(tmp_path, narrow):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)
    target = tmp_path / "unlabelled.weights.h5"
    assert self_supervised.make(images, target, None, epochs=2, precision="float32") == target
    history = pd.read_csv(target.with_suffix(".csv"))
    assert list(history.epoch) == [1, 2] and np.isfinite(history.loss).all()
    stamp = target.stat().st_mtime_ns
    self_supervised.make(images, target, None, epochs=2, precision="float32")
    assert target.stat().st_mtime_ns == stamp and not list(tmp_path.glob("*.partial*"))
    kernels = [build_classifier(variant, ("covid", "non_covid"), 32, weights=str(target), precision="float32")
               .get_layer("conv4_block1_3_conv").get_weights()[0] for variant in ("resnet50", "improved")]
    fresh = build_classifier("resnet50", ("covid", "non_covid"), 32, precision="float32", seed=pretraining.SEED)
    assert np.array_equal(*kernels)
    assert not np.array_equal(kernels[0], fresh.get_layer("conv4_block1_3_conv").get_weights()[0])
