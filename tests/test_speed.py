import itertools

import keras
import numpy as np
import pytest
from PIL import Image

from covidlib import intake, speed


def small(units=2, size=8):
    return keras.Sequential([keras.Input((size, size, 1)), keras.layers.Flatten(), keras.layers.Dense(units)])


@pytest.fixture(scope="module")
def models():
    return {"plain": small(), "wide": small(3)}


@pytest.fixture
def files(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((10, 12), 40 * index, "uint8")).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.glob("*.png"))


def test_one_row_per_variant_harness_and_batch(models, files):
    table = speed.measure(models, batch_sizes=(1, 4), repeats=3, paths=files)
    assert list(table.columns) == speed.COLUMNS
    assert set(zip(table["variant"], table["harness"], table["batch"], strict=True)) == set(
        itertools.product(models, speed.HARNESSES, (1, 4)))
    assert (table["n"] == 3).all()
    assert ((table["q1"] <= table["median_fps"]) & (table["median_fps"] <= table["q3"])).all()
    assert (table["q1"] > 0).all()


def test_decoding_is_left_out_without_files(models):
    table = speed.measure(models, batch_sizes=(1,), repeats=1)
    assert set(table["harness"]) == set(speed.HARNESSES[:2])


def test_speed_comes_from_the_clock(models):
    ticks = itertools.count(0.0, 0.5)
    table = speed.measure(models, batch_sizes=(1, 8), repeats=2, calls=3, clock=lambda: next(ticks))
    assert (table["median_fps"] == 3 * table["batch"] / 0.5).all()


def test_variants_take_turns_in_changing_order(models, monkeypatch):
    log = []
    keys = [(name, "compiled call", 1) for name in "abc"]
    monkeypatch.setattr(speed, "_tasks", lambda *_: {key: lambda k=key: log.append(k[0]) for key in keys})
    speed.measure(models, repeats=8, calls=1, warmup=1)
    assert log[:3] == ["a", "b", "c"]
    rounds = [tuple(log[i:i + 3]) for i in range(3, len(log), 3)]
    assert len(rounds) == 8
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1


def test_compiled_call_equals_predict(models):
    batch = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype("float32")
    expected = models["plain"].predict(batch, verbose=0)
    np.testing.assert_allclose(speed.compiled(models["plain"])(batch), expected, rtol=1e-5, atol=1e-5)


def test_decode_gives_what_the_classifier_takes(files):
    batch = speed.decode(files, 8)
    assert batch.shape == (3, 8, 8, 1) and batch.dtype == np.float32
    assert np.array_equal(batch[1, ..., 0], intake.see(files[1], 0, 8))


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"calls": 0}, {"batch_sizes": (1, 0)}])
def test_senseless_settings_are_refused(models, wrong):
    with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}=0"):
        speed.measure(models, **wrong)


def test_peak_memory_is_not_that_of_the_process_that_asks():
    ballast = np.ones(2**28)  # 2 GiB
    memory = speed.peak_memory("resnet50", 32)
    assert 50 < memory["framework_mib"] < memory["peak_mib"] < ballast.nbytes / 2**20


def test_peak_memory_names_an_unknown_variant():
    with pytest.raises(RuntimeError, match="no_such_variant"):
        speed.peak_memory("no_such_variant", 32)
