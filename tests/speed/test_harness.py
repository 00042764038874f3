import itertools

import keras
import numpy as np
import pytest
from PIL import Image

from covidlib.datasets import decode
from covidlib.speed import export, harness, memory
from covidlib.utils import provenance


def case(variant="a", how=harness.LOOP, batch=1):
    return harness.Case(variant, how, "float32", 8, batch, 2, "cpu:0")


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])


@pytest.fixture
def files(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((10, 12), 40 * index, "uint8")).save(tmp_path / f"{index}.png")
    return sorted(tmp_path.glob("*.png"))


def test_keras_cases_are_harnesses_by_batches_and_one_with_decoding(model, files):
    cases = harness.keras_cases("plain", model, "float32", (1, 4), files)
    assert {(c.harness, c.batch) for c in cases} == {*itertools.product((harness.LOOP, harness.COMPILED), (1, 4)),
                                                     (harness.COMPILED + harness.DECODE, 1)}
    assert {(c.variant, c.precision, c.image_size, c.threads, c.device) for c in cases} == {
        ("plain", "float32", 8, provenance.threads(), "cpu:0")}
    assert len(harness.keras_cases("plain", model, "float32")) == 2
    table = harness.table(harness.measure(cases, repeats=2, least=0.001))
    assert list(table.columns) == harness.COLUMNS and (table["n"] == 2).all() and (table["q1"] > 0).all()
    assert ((table["q1"] <= table["median_fps"]) & (table["median_fps"] <= table["q3"])).all()


def test_decoding_prepares_the_files_in_turn(files):
    seen = []
    call = harness._decoding(lambda batch: seen.append(batch.copy()), files, 8)
    for _ in range(4):
        call()
    assert all(batch.shape == (1, 8, 8, 1) and batch.dtype == np.uint8 for batch in seen)
    assert np.array_equal(seen[1][0, ..., 0], decode.preprocess_slice(files[1], 0, 8, "whole"))
    assert np.array_equal(seen[3], seen[0])


def test_exported_cases_vary_batch_threads_and_precision(files, monkeypatch):
    class Network:
        name, image_size, input_shape = "small", 8, (1, 8, 8, 1)

        def __call__(self, images):
            assert images.dtype == np.uint8

    loads = []
    monkeypatch.setattr(export, "load", lambda folder, precision, **rest: loads.append((precision, rest)) or Network())
    monkeypatch.setattr(provenance, "threads", lambda: 4)
    cases = harness.exported_cases("folder", ("float32", "int8"), (1, 16), files)
    assert {(c.harness, c.batch, c.threads) for c in cases if c.precision == "int8"} == {
        ("exported", 1, 4), ("exported", 16, 4), ("exported", 1, 2), ("exported", 1, 1), ("exported + decode", 1, 4)}
    assert len(loads) == 8 and loads[0] == ("float32", {"threads": 4, "batch": 1})
    for call in cases.values():
        call()


def test_speed_comes_from_the_clock_and_short_calls_are_repeated():
    now, log = [0.0], {"short": 0, "long": 0}

    def call(name, seconds):
        log[name] += 1
        now[0] += seconds

    cases = {case("short"): lambda: call("short", 0.01), case("long", batch=4): lambda: call("long", 0.5)}
    table = harness.table(harness.measure(cases, repeats=3, least=0.1, clock=lambda: now[0])).set_index("variant")
    assert table["median_fps"].round(6).to_dict() == {"short": 100, "long": 8}
    assert log == {"short": 2 + 3 * 10, "long": 2 + 3 * 1} or log["short"] == 2 + 3 * 11  # rounding of 0.1 / 0.01


def test_a_ratio_is_taken_where_both_were_timed():
    seconds = {case("a"): np.array([1.0, 10.0]), case("b"): np.array([2.0, 20.0]), case("b", batch=2): np.ones(2)}
    table = harness.ratios(seconds, "a", "b")
    assert len(table) == 1 and table.loc[0, ["harness", "ratio", "q1", "q3"]].tolist() == [harness.LOOP, 2, 2, 2]


def test_a_benchmarking_error_is_shown_with_the_honest_ratio():
    seconds = {case("a", harness.COMPILED): np.full(3, 1.0), case("b", harness.COMPILED): np.full(3, 0.8),
               case("b"): np.full(3, 2.0)}
    cases = {"loop": (case("a", harness.COMPILED), case("b"), case("b", harness.COMPILED))}
    row = harness.mistakes(seconds, cases).loc[0]
    assert (row["apparent"], row["honest"], row["honest_q3"]) == (2.0, 0.8, 0.8)
    assert (row["in_front"], row["beside"]) == ("harness compiled call", "harness predict loop")


def test_a_first_call_weighs_less_with_more_frames():
    table = harness.fading(np.array([[9.0, 1.0, 1.0, 1.0]] * 2), np.ones(2))
    assert table["frames"].tolist() == [1, 2, 3, 4] and table["ratio"].tolist() == [9, 5, 11 / 3, 3]


def test_the_first_call_traces_anew():
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x)
            return x

    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, Counting()(inputs))
    model.predict(np.zeros((1, 8, 8, 1)), verbose=0)
    before = len(traces)
    seconds = harness.first_calls(model, 3)
    assert seconds.shape == (3,) and (seconds > 0).all() and len(traces) == before + 1


def test_compiled_call_equals_predict(model):
    batch = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 1)).astype("float32")
    expected = model.predict(batch, verbose=0)
    np.testing.assert_allclose(harness.compiled(model)(batch), expected, rtol=1e-5, atol=1e-5)


def test_peak_memory_is_not_that_of_the_process_that_asks():
    ballast = np.ones(2**28)  # 2 GiB
    found = memory.peaks([("keras", "resnet50", 32, "float32"), ("keras", "resnet50", 32, "mixed_bfloat16")])
    assert all(50 < each["framework_mib"] < each["peak_mib"] < ballast.nbytes / 2**20 for each in found)


def test_memory_that_cannot_be_measured_says_why():
    for request, message in ((("keras", "no_such_variant", 32, "float32"), "no_such_variant"),
                             (("exported", "nowhere", "int8"), "model.json")):
        with pytest.raises(RuntimeError, match=message):
            memory.peaks([request])
