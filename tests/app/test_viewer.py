import io
import json

import numpy as np
import pytest
from PIL import Image

from covidlib import models
from covidlib.app import Viewer
from covidlib.datasets import phantom

CLASSES = ("covid", "viral", "normal")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewer")
    models.build_classifier("mobilenet_v2", CLASSES, 32, precision="float32").save(folder / "model.keras")
    (folder / "run.json").write_text(json.dumps({"classes": CLASSES}))
    phantom.generate(folder / "phantoms", (3, 3, 3), seed=0)
    return folder


@pytest.fixture
def viewer(files):
    dicom = sorted((files / "phantoms").rglob("*.dcm"))[0]
    return Viewer({"a run": files / "model.keras"}, {"a phantom": dicom})


def shown(viewer):
    return np.asarray(Image.open(io.BytesIO(viewer.picture.value)))


def test_an_example_is_shown_and_answered(viewer):
    viewer.example.value = "a phantom"
    assert shown(viewer).std() > 10
    assert all(name in viewer.answer.value for name in CLASSES) and "a run" in viewer.answer.value


def test_the_window_changes_the_picture_and_not_the_answer(viewer):
    viewer.example.value = "a phantom"
    picture, answer = shown(viewer), viewer.answer.value
    viewer.window.value = "bone (400, 1800)"
    assert not np.array_equal(shown(viewer), picture) and viewer.answer.value == answer


def upload(viewer, name, content):
    viewer.upload.value = [{"name": name, "content": memoryview(content), "type": "", "size": len(content),
                            "last_modified": __import__("datetime").datetime.now()}]


def test_an_upload_is_shown_with_its_name_escaped(viewer):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(buffer, "png")
    upload(viewer, "<script>x</script>.png", buffer.getvalue())
    assert viewer.window.disabled and "&lt;script&gt;" in viewer.answer.value and "<script>" not in viewer.answer.value


def test_a_broken_upload_is_a_message_and_keeps_what_was_there(viewer):
    viewer.example.value = "a phantom"
    before = viewer.picture.value
    upload(viewer, "broken.png", b"\x89PNG\r\n\x1a\nnothing more")
    assert 'role="alert"' in viewer.message.value and viewer.picture.value == before


def test_without_a_trained_network_it_shows_and_says_so(files):
    viewer = Viewer({}, {})
    viewer.open(sorted((files / "phantoms").rglob("*.dcm"))[0])
    assert "03_training" not in viewer.answer.value and viewer.answer.value == "" and shown(viewer).std() > 10
