"""The exported network answers and explains as the trained one does."""

import json
import shutil

import keras
import numpy as np
import pytest

from covidlib.evaluation import explain
from covidlib.models import attention_map
from covidlib.predict import explained
from covidlib.training import runs


@pytest.fixture(scope="module")
def slices():
    return np.random.default_rng(3).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def run_dir(checkout, variant):
    return checkout / "runs" / "phantom" / "tiny" / variant / "seed-0"


def asked(checkout, variant):
    return explained.Answerer(explained.folder(run_dir(checkout, variant)))


@pytest.mark.parametrize("variant", ["resnet50", "improved"])
def test_probabilities_and_maps_are_those_of_the_trained_network(checkout, slices, variant):
    network = asked(checkout, variant)
    model = keras.models.load_model(run_dir(checkout, variant) / "model.keras", compile=False)
    expected = model.predict(slices[..., None].astype("float32"), verbose=0)
    maps = explain.class_maps(model, slices, expected.argmax(axis=1))
    assert network.levels == tuple(explain.levels(model)) and network.classes == ("covid", "viral", "normal")
    for n, image in enumerate(slices):
        answer, k = network(image), int(expected[n].argmax())
        assert np.allclose(answer.scores, expected[n], atol=1e-4)
        for level in network.levels:
            assert np.allclose(answer.maps[level][..., k], maps[level][n], atol=1e-4)
        size = maps[explain.ALL].shape[1]
        assert np.allclose(answer.heat(explain.ALL, k, size), maps[explain.ALL][n], atol=1e-4)
    series = network.probabilities(np.concatenate([slices] * 7))  # more than one batch, the last not full
    assert np.allclose(series, network.calibrated(np.concatenate([expected] * 7)), atol=1e-4)
    assert np.allclose(series.sum(axis=1), 1, atol=1e-5)


def test_attention_is_that_of_the_place_asked_for(checkout, slices):
    network = asked(checkout, "improved")
    model = keras.models.load_model(run_dir(checkout, "improved") / "model.keras", compile=False)
    answer = network(slices[0])
    for block in network.blocks:
        rows, columns = block["queries"]
        expected = attention_map(model, slices[0], block["name"], (rows - 1, 0))
        found = answer.related(block["name"], (0.999, 0.0), expected.shape[0])
        assert np.allclose(found, expected, atol=1e-4)
    assert asked(checkout, "resnet50").blocks == []


def test_it_is_made_once_and_again_when_the_weights_change(checkout, tmp_path, monkeypatch):
    own = tmp_path / "runs" / "phantom" / "tiny" / "resnet50" / "seed-0"
    shutil.copytree(run_dir(checkout, "resnet50"), own)
    assert not explained.is_made(own)
    shutil.copytree(explained.folder(run_dir(checkout, "resnet50")), explained.folder(own))
    assert explained.is_made(own)
    with monkeypatch.context() as patch:
        patch.setattr(explained, "_write", lambda *_: pytest.fail("it was there"))
        assert explained.make(own) == explained.folder(own)
    record = runs.read_json(own / "run.json")
    record["model"]["weights_sha256"] = "another"
    runs.write_json(own / "run.json", record)
    assert not explained.is_made(own)


def test_facts_of_a_network(checkout):
    network = asked(checkout, "improved")
    assert network.synthetic and network.dataset == "phantom" and network.epochs == 1 and network.start == "none"
    assert network.test["n"] > 0 and set(network.typical) == {"brightness", "contrast", "detail", "filled"}
    assert all(low < high for low, high in network.typical.values())


def test_mistakes_are_named_and_leave_nothing(checkout, tmp_path, capsys):
    assert explained.main([str(tmp_path / "nothing")]) == 2
    assert "run notebook 03_training first" in capsys.readouterr().err
    own = tmp_path / "runs" / "phantom" / "tiny" / "mobilenet_v2" / "seed-0"
    shutil.copytree(run_dir(checkout, "resnet50"), own)
    record = json.loads((own / "run.json").read_text())
    record["parameters"]["variant"] = "mobilenet_v2"
    (own / "run.json").write_text(json.dumps(record))
    assert explained.main([str(own)]) == 2
    assert "choose a network on ResNet-50" in capsys.readouterr().err
    assert not [path for path in explained.folder(own).parent.iterdir() if path.suffix != ".lock"]
