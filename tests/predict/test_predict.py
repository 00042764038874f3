import json
import pickle
import shutil
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib import models, readers
from covidlib.predict import predict
from covidlib.speed import export

CLASSES = ("covid", "viral", "normal")
COLUMNS = [f"p_{name}" for name in CLASSES]


def write_names(folder):
    (folder / "run.json").write_text(json.dumps({"classes": CLASSES, "parameters": {"preparation": "lungs"}}))


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    models.build_classifier("mobilenet_v2", CLASSES, 32, precision="float32").save(folder / "model.keras")
    write_names(folder)
    return folder / "model.keras"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("somebody") / "scans"
    for patient, count in (("one", 3), ("two & <b>", 1)):
        (root / patient).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(root / patient / f"{index}.png")
    (root / "one" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (root / "notes.txt").write_text("no picture")
    return root


def test_readable_slices_are_classified_the_rest_listed_and_patients_averaged(model_path, scans, tmp_path):
    table = predict.predict(model_path, scans, tmp_path / "out", batch_size=2)
    assert list(table) == ["path", "patient", "slice_index", "predicted", *COLUMNS, "lung", "quality_warnings"]
    assert list(table["path"]) == ["one/0.png", "one/1.png", "one/2.png", "two & <b>/0.png"]
    probabilities = table[COLUMNS].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert [CLASSES[i] for i in probabilities.argmax(axis=1)] == list(table["predicted"])
    errors = pd.read_csv(tmp_path / "out" / "errors.csv")
    assert set(errors["path"]) == {"one/broken.png", "notes.txt"} and errors["error"].str.len().min() > 10
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 4
    patients = pd.read_csv(tmp_path / "out" / "patients.csv").set_index("patient")
    assert patients.loc["one", "slices"] == 3
    assert patients.loc["one", "p_covid"] == pytest.approx(table[table["patient"] == "one"]["p_covid"].mean(), abs=1e-6)
    sheet = (tmp_path / "out" / "sheet.html").read_text()
    assert predict.NOTICE in sheet and "two &amp; &lt;b&gt;" in sheet and "<b>" not in sheet
    assert "http" not in sheet and sheet.count("data:image/png;base64,") == 2 and "one/broken.png" in sheet


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "scans" / "one").mkdir(parents=True)
    for name in ("elsewhere.png", "scans/one/0.png"):
        Image.new("L", (40, 50)).save(tmp_path / name)
    (tmp_path / "scans" / "one" / "out.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "scans" / "one" / "within.png").symlink_to(tmp_path / "scans" / "one" / "0.png")
    slices, errors = predict.find_slices(tmp_path / "scans")
    assert set(slices["path"]) == {"one/0.png", "one/within.png"}
    assert errors.set_index("path").loc["one/out.png", "error"].startswith("is a link that leads out of the folder")
    (tmp_path / "given.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(predict.find_slices(tmp_path / "given.png")[0]) == 1  # a link that is given itself is followed


def test_probabilities_and_warnings_are_those_of_the_run(model_path, scans, tmp_path):
    plain = predict.predict(model_path, scans, tmp_path / "plain")
    run = tmp_path / "phantom" / "toy" / "mobilenet_v2" / "seed-0"
    run.mkdir(parents=True)
    (run / "model.keras").write_bytes(model_path.read_bytes())
    (run / "history.csv").write_text("epoch,loss\n1,1.0\n")
    (run / "run.json").write_text(json.dumps({"classes": CLASSES, "model": {"weights_sha256": "0"},
                                              "parameters": {"image_size": 32, "dataset": "phantom",
                                                             "preparation": "lungs"}}))
    certain = pd.DataFrame([[f"{k}.png", f"p{k}", "val", name, *np.where(np.arange(3) == (k + (k > 6)) % 3, 0.9, 0.05)]
                            for k, name in enumerate(CLASSES * 4)],
                           columns=["path", "patient", "split", "label", *COLUMNS])  # 0.9 each, half of them wrong
    certain.to_csv(run / "predictions.csv", index=False)
    facts = predict.model_facts(run / "model.keras")
    assert facts.temperature > 1.5 and facts.typical is None and facts.synthetic
    table = predict.predict(run / "model.keras", scans, tmp_path / "out")
    scaled = predict.calibration.scale(plain[COLUMNS].to_numpy(), facts.temperature)
    assert np.allclose(table[COLUMNS], scaled, atol=1e-5)
    sheet = (tmp_path / "out" / "sheet.html").read_text()
    assert "Its slices were drawn, not scanned" in sheet and f"temperature {facts.temperature:.2f}" in sheet
    marked = Image.new("RGB", (100, 100), (90, 90, 90))
    marked.paste((250, 0, 0), (10, 10, 20, 20))
    marked.save(tmp_path / "marked.png")
    table = predict.predict(run / "model.keras", tmp_path / "marked.png", tmp_path / "out")
    assert table.loc[0, "quality_warnings"].startswith("1% of its pixels are coloured")


def test_slices_without_lung_are_left_out_where_there_are_others():
    rows = [["a/1.png", "a", 0, 0.9, 0.1, True, ""], ["a/2.png", "a", 1, 0.1, 0.9, False, "no lungs are in view."],
            ["b/1.png", "b", 0, 0.2, 0.8, False, "no lungs are in view."]]
    table = pd.DataFrame(rows, columns=["path", "patient", "slice_index", "p_covid", "p_normal", "lung",
                                        "quality_warnings"])
    patients = predict.by_patient(table, ("covid", "normal")).set_index("patient")
    assert list(patients.loc["a", ["slices", "used", "slices_with_warnings", "predicted"]]) == [2, 1, 1, "covid"]
    assert patients.loc["a", "p_covid"] == 0.9 and patients.loc["a", "suspicious"] == "a/1.png, slice 1"
    assert list(patients.loc["b", ["slices", "used", "predicted"]]) == [1, 1, "normal"]


def test_what_is_suspicious_does_not_hang_on_the_order_of_the_classes():
    scores = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    assert predict.suspicion(scores, ("normal", "covid")).argmax() == 1
    assert predict.suspicion(scores, ("covid", "normal")).argmax() == 0
    assert predict.suspicion(scores, ("healthy", "pneumonia")).argmax() == 0  # the mean predicts healthy
    assert predict.suspicion(1 - scores, ("healthy", "pneumonia")).argmax() == 0


def test_loose_volumes_are_patients_of_their_own(tmp_path, shared_data):
    volumes = sorted((shared_data / "fixtures/nifti").rglob("*.nii*"))
    for file in volumes:
        shutil.copy(file, tmp_path)
    slices, _ = predict.find_slices(tmp_path)
    assert set(slices["patient"]) == {file.name for file in volumes} and len(volumes) > 1
    assert set(predict.find_slices(tmp_path / volumes[0].name)[0]["patient"]) == {"."}


def test_an_earlier_run_says_what_to_do(model_path, scans, tmp_path):
    (tmp_path / "model.keras").write_bytes(model_path.read_bytes())
    (tmp_path / "run.json").write_text(json.dumps({"classes": CLASSES, "parameters": {"image_size": 32}}))
    with pytest.raises(ValueError, match="did not say how slices are prepared: train the network again"):
        predict.predict(tmp_path / "model.keras", scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_prediction_is_the_models_own_exported_or_not(model_path, scans, tmp_path):
    single = predict.predict(model_path, scans / "one" / "0.png", tmp_path / "out")
    model, classes = predict.load(model_path)
    image = readers.fit_square(readers.read_slice(scans / "one" / "0.png"), 32)
    expected = model.predict(image[None, ..., None].astype("float32"), verbose=0)[0]
    assert np.allclose(single[COLUMNS].to_numpy()[0], expected, atol=1e-5)
    folder = export.write(model, tmp_path / "exported", classes, onnx=False)
    assert predict.load(folder)[1] == classes
    tables = [predict.predict(path, scans, tmp_path / "out", batch_size=3) for path in (model_path, folder)]
    assert np.allclose(tables[0][COLUMNS], tables[1][COLUMNS], atol=1e-3)
    assert predict.weights_file(folder).is_file() and predict.weights_file(model_path) == model_path


def test_missing_model_input_class_names_and_slices(model_path, scans, tmp_path):
    with pytest.raises(FileNotFoundError, match="model.json"):
        predict.predict(tmp_path, scans, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="notebook 03_training"):
        predict.predict(tmp_path / "model.keras", scans, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="input_path="):
        predict.predict(model_path, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "model.keras").write_bytes(model_path.read_bytes())
    with pytest.raises(FileNotFoundError, match="run.json"):
        predict.predict(tmp_path / "model.keras", scans, tmp_path / "out")
    with pytest.raises(ValueError, match="no readable slice among 1 files"):
        predict.predict(model_path, scans / "notes.txt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lambda", "function", "class"])
def test_a_model_that_holds_code_is_refused_and_not_run(tmp_path, kind):
    target, path, inputs = tmp_path / "pwned", tmp_path / "model.keras", keras.Input((32, 32, 1))
    write_names(tmp_path)
    if kind == "lambda":
        touch = keras.layers.Lambda(eval(f"lambda x: (open({str(target)!r}, 'w').close(), x)[1]"))
        keras.Model(inputs, touch(inputs)).save(path)
        target.unlink()
    else:
        keras.Model(inputs, keras.layers.Activation("relu")(inputs)).save(tmp_path / "plain.keras")
        code = {"function": {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
                "class": {"module": "subprocess", "class_name": "Popen", "registered_name": None,
                          "config": {"args": ["touch", str(target)]}}}[kind]
        with zipfile.ZipFile(tmp_path / "plain.keras") as plain, zipfile.ZipFile(path, "w") as changed:
            contents = {name: plain.read(name) for name in plain.namelist()}
            contents["config.json"] = contents["config.json"].replace(b'"relu"', json.dumps(code).encode())
            assert json.dumps(code).encode() in contents["config.json"]
            for name, content in contents.items():
                changed.writestr(name, content)
    with pytest.raises(ValueError, match="was refused.*Received: model_path="):
        predict.load(path)
    assert not target.exists()


@pytest.mark.parametrize("name, content", [
    ("model.keras", b"\x89HDF\r\n\x1a\n" + bytes(100)), ("model.keras", pickle.dumps({"classes": CLASSES})),
    ("model.keras", None), ("model.h5", None)], ids=["h5", "pickle", "cut", "h5 and zip"])
def test_only_whole_keras_files_are_opened(model_path, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content or model_path.read_bytes()[:-2000])
    if name == "model.h5":
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("config.json", "{}")
        assert zipfile.is_zipfile(path) and keras.models.load_model(path, compile=False)
    write_names(tmp_path)
    with pytest.raises(ValueError, match="is no .keras file"):
        predict.load(path)
