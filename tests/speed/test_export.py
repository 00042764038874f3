import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import NARROW
from PIL import Image

from covidlib import models, preprocessing
from covidlib.speed import export

CLASSES = ("covid", "viral", "normal")


def trained_like(variant, size, precision="float32"):
    """Weights under which every block counts and answers differ: random statistics, no module left at identity."""
    model = models.build_classifier(variant, CLASSES, size, precision=precision)
    rng = np.random.default_rng(1)
    spread = {"moving_mean": (-0.2, 0.2), "moving_variance": (0.5, 1.5), "gamma": (0.5, 1.5), "beta": (-0.2, 0.2)}
    for variable in model.variables:
        if variable.name in spread:
            variable.assign(rng.uniform(*spread[variable.name], variable.shape))
    logits = keras.Model(model.inputs, model.get_layer("logits").output)
    answers = np.asarray(logits.predict_on_batch(pictures(size, 16).astype("float32")))
    kernel, bias = model.get_layer("logits").get_weights()
    scale = 1 / answers.std()
    model.get_layer("logits").set_weights([kernel * scale, bias - answers.mean(0) * scale])
    return model


def pictures(size, count, seed=0):
    """uint8 (count, size, size, 1): coarse patterns of different brightness."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8) // rng.integers(1, 4, (count, 1, 1), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size))) for one in coarse])[..., None]


def keras_answers(model, images):
    return np.asarray(model.predict_on_batch(images.astype("float32")))


def exported(model, folder):
    return export.load(export.write(model, folder, CLASSES, onnx=False))


@pytest.fixture(scope="module")
def improved(narrowed, tmp_path_factory):
    """(narrow model, exported folder) with all files."""
    with narrowed():
        model = trained_like("improved", 48)
    folder = tmp_path_factory.mktemp("export") / "improved"
    return model, export.write(model, folder, CLASSES, calibration=pictures(48, 32, seed=2)[..., 0])


@pytest.mark.parametrize("runtime", export.RUNTIMES)
@pytest.mark.parametrize("batch", [1, 4, None])
def test_both_runtimes_answer_as_keras_does(improved, runtime, batch):
    model, folder = improved
    images = pictures(48, 7)
    expected = keras_answers(model, images)
    assert np.ptp(expected, axis=0).min() > 0.2  # or agreement would say nothing
    network = export.load(folder, runtime=runtime, batch=batch)
    found = network(images)
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-3
    assert np.array_equal(network(images[..., 0]), found)
    assert (network.classes, network.image_size, network.precision, network.runtime) == (
        CLASSES, 48, "float32", runtime)


@pytest.mark.parametrize("variant, size, whole", [
    ("resnet50", 49, False), ("improved_faithful", 33, False), ("improved_global_context", 65, False),
    ("improved", 32, True), ("mobilenet_v2", 32, True)])
def test_variants_sizes_and_families(narrowed, tmp_path, variant, size, whole):
    with contextlib.nullcontext() if whole else narrowed():
        model, images = trained_like(variant, size), pictures(size, 3)
    network = exported(model, tmp_path / "x")
    assert np.abs(network(images) - keras_answers(model, images)).max() < 1e-3
    assert network.name == variant and network.input_shape == (1, size, size, 1)


def test_a_loaded_bfloat16_model_is_exported_in_float32(narrow, tmp_path):
    model, reference = (trained_like("improved", 48, precision) for precision in ("mixed_bfloat16", "float32"))
    reference.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    images = pictures(48, 8)
    assert np.abs(exported(loaded, tmp_path / "x")(images) - keras_answers(reference, images)).max() < 1e-3
    assert {layer.compute_dtype for layer in loaded.layers} == {"float32", "bfloat16"}  # as it was


def test_lower_precisions_stay_near(improved):
    model, folder = improved
    images = pictures(48, 32, seed=3)
    expected = keras_answers(model, images)
    for precision, worst, mean in (("bfloat16", 0.05, 0.01), ("int8", 0.3, 0.05)):
        difference = np.abs(export.load(folder, precision)(images) - expected)
        assert difference.max() < worst and difference.mean() < mean, precision


@pytest.mark.parametrize("runtime", export.RUNTIMES)
def test_anything_but_grey_values_of_the_right_size_is_refused(improved, runtime):
    network = export.load(improved[1], runtime=runtime)
    images = pictures(48, 2)
    for wrong in (images / np.float32(255), images.astype("int32"), images[:, :32], images[0, ..., 0], images[:0],
                  np.repeat(images, 3, axis=3), images[..., None]):
        with pytest.raises(ValueError, match="Received: "):
            network(wrong)


def test_the_record_names_the_origin(improved, tmp_path, monkeypatch):
    from covidlib.training.loop import weights_sha256

    model, folder = improved
    assert {path.name for path in folder.iterdir()} == export.FILES
    record = json.loads((folder / "model.json").read_text())
    assert record["classes"] == list(CLASSES) and record["image_size"] == 48 and record["variant"] == "improved"
    assert record["weights_sha256"] == weights_sha256(model) and record["calibration"]["slices"] == 32
    assert {"openvino", "nncf", "onnx", "keras"} <= set(record["packages"]) and str(tmp_path) not in str(record)
    monkeypatch.setattr(preprocessing, "code_sha256", lambda: "another")
    with pytest.warns(UserWarning, match="another version"):
        export.load(folder)


@pytest.mark.parametrize("options, message", [
    ({"precision": "float16"}, "precision must be"), ({"runtime": "tensorrt"}, "runtime must be"),
    ({"precision": "int8", "runtime": "onnxruntime"}, "float32 only"), ({"threads": 0}, "threads must be"),
    ({"batch": 0}, "batch must be")])
def test_impossible_options_are_refused(improved, options, message):
    with pytest.raises(ValueError, match=message):
        export.load(improved[1], **options)


def test_absent_files_are_named(narrow, tmp_path):
    with pytest.raises(FileNotFoundError, match="model.json"):
        export.load(tmp_path)
    folder = export.write(trained_like("resnet50", 32), tmp_path / "x", CLASSES, onnx=False)
    assert {path.name for path in folder.iterdir()} == {"model.xml", "model.bin", "model.json"}
    with pytest.raises(FileNotFoundError, match="calibration"):
        export.load(folder, "int8")
    with pytest.raises(FileNotFoundError, match="model.onnx"):
        export.load(folder, runtime="onnxruntime")


@pytest.mark.parametrize("calibration", [
    pictures(48, 40)[..., 0] / np.float32(255), pictures(40, 40)[..., 0], pictures(48, 31)[..., 0], pictures(48, 40),
    np.zeros((40, 48, 48), np.uint8)])
def test_wrong_calibration_is_refused(improved, tmp_path, calibration):
    with pytest.raises(ValueError, match="calibration must be"):
        export.write(improved[0], tmp_path / "x", CLASSES, calibration=calibration)
    assert not list(tmp_path.iterdir())


def test_wrong_classes_and_a_folder_of_something_else_are_refused(improved, tmp_path):
    model = improved[0]
    for classes in (("a", "b"), ("a", "b", "b")):
        with pytest.raises(ValueError, match="classes must be"):
            export.write(model, tmp_path / "x", classes)
    (tmp_path / "model.keras").write_text("precious")
    with pytest.raises(ValueError, match="earlier export"):
        export.write(model, tmp_path, CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("where", ["_quantised", "_record"])
def test_a_failure_leaves_what_was_there(improved, tmp_path, monkeypatch, where):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "model.json").write_text("an earlier export")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(export, where, fail)
    calibration = pictures(48, 32)[..., 0] if where == "_quantised" else None
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="no space"):
            export.write(improved[0], target, CLASSES, calibration=calibration, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert [path.read_text() for path in folder.iterdir()] == ["an earlier export"]


def test_an_earlier_export_is_replaced(narrow, tmp_path):
    (tmp_path / "model_int8.xml").write_text("of other weights")
    model, images = trained_like("improved", 48), pictures(48, 3)
    assert np.abs(exported(model, tmp_path)(images) - keras_answers(model, images)).max() < 1e-3
    assert not (tmp_path / "model_int8.xml").exists()


def test_a_failed_swap_puts_the_earlier_export_back(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.json").write_text("{}")
    with pytest.raises(FileNotFoundError), export.replacing(tmp_path / "x") as ready:
        ready.rmdir()
    assert (tmp_path / "x" / "model.json").read_text() == "{}" and len(list(tmp_path.iterdir())) == 1


OFFLINE = """
import sys, time
import numpy as np
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from covidlib import models
from covidlib.models import resnet
from covidlib.speed import export
resnet.STAGES = {stages}
model = models.build_classifier("improved", ("a", "b"), 32, precision="float32")
slices = np.random.default_rng(0).integers(0, 256, (32, 32, 32), dtype=np.uint8)
export.write(model, sys.argv[1], ("a", "b"), calibration=slices, onnx=False)
time.sleep(1)  # for threads that send
print(calls)
"""


def test_nothing_is_reported_to_anybody(repository, tmp_path):
    """In a process of its own, for under pytest NNCF never reports; HOME is where a reporter keeps its identity."""
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", OFFLINE.format(stages=NARROW), tmp_path / "x"], env=environment,
                            cwd=repository, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert answer.stdout.strip() == "[]" and not (tmp_path / "intel").exists()


def test_importing_costs_nothing(repository):
    code = "import sys, covidlib.speed.export as _; print({*sys.modules} & {'openvino', 'nncf', 'tensorflow', 'keras'})"
    answer = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
