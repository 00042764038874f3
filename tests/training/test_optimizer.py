import keras
import numpy as np
import pytest

from covidlib.training.optimizer import AdamW


def trained(kind, **options):
    """(weights, optimizer variables) after five steps of a small network."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(3, "softmax")])
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 8, warmup_target=0.05, warmup_steps=2)
    optimizer = kind(schedule, weight_decay=0.3, **options)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "categorical_crossentropy")
    rng = np.random.default_rng(0)
    for _ in range(5):
        model.train_on_batch(rng.normal(size=(8, 6)), np.eye(3)[rng.integers(0, 3, 8)])
    return [np.asarray(value) for value in (*model.get_weights(), *optimizer.variables)]


@pytest.mark.parametrize("options", [{}, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}, {"amsgrad": True}])
def test_the_kernel_gives_keras_numbers(options):
    for own, wanted in zip(trained(AdamW, **options), trained(keras.optimizers.AdamW, **options), strict=True):
        np.testing.assert_allclose(own, wanted, rtol=2e-5, atol=2e-6)


def test_the_kernel_is_what_runs(monkeypatch):
    def refuse(*_):
        raise AssertionError("Keras's own update ran")

    monkeypatch.setattr(keras.optimizers.AdamW, "update_step", refuse)
    trained(AdamW)
    with pytest.raises(AssertionError):
        trained(AdamW, amsgrad=True)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=["kernel", "Keras's own"])
def test_variables_with_a_factor_learn_at_another_rate(options):
    keras.utils.set_random_seed(0)
    moved = {}
    for factor in (1.0, 0.1):
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
        before = model.get_weights()[0]
        optimizer = AdamW(0.01, weight_decay=0.0, **options)
        optimizer.factors = {model.layers[0].kernel.path: factor}
        model.compile(optimizer, "categorical_crossentropy")
        model.train_on_batch(np.ones((8, 6)), np.eye(3)[[0] * 8])
        moved[factor] = np.abs(model.get_weights()[0] - before).mean()
    assert moved[0.1] == pytest.approx(0.1 * moved[1.0], rel=1e-3)
