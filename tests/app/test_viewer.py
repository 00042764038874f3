"""The scan page without a browser: what its widgets hold after files, choices and clicks."""

import io
import subprocess
import sys
import tempfile
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import every_process
from PIL import Image

from covidlib.app import App, networks, panel, series, widgets
from covidlib.app.viewer import Viewer
from covidlib.predict import predict

CLASSES = ("covid", "viral", "normal")


@pytest.fixture
def page(checkout):
    page = Viewer(checkout / "runs", checkout / "data" / "phantom")
    page._loading.join(60)
    assert len(page.networks) == 2, page.message.value
    yield page
    page.files.close()


@pytest.fixture
def dicom(checkout):
    return sorted((checkout / "data" / "phantom").rglob("*.dcm"))[0]


@pytest.fixture
def cancelled():
    event = threading.Event()
    event.set()
    return event


def pictures(page):
    assert page._painter.wait()
    return [np.asarray(Image.open(io.BytesIO(one.picture.png)).convert("RGB")) for one in page.panels]


def colour(picture):
    return np.ptp(picture.astype(int), axis=2)


def send(page, kind, content=None, **message):
    page.files._on_message(None, {"kind": kind, **message}, [] if content is None else [content])


def upload(page, files):
    """As files.js does: announced, sent in parts, ended. Returns the kinds of the replies."""
    replies = []
    page.files.send = lambda message, buffers=None: replies.append(message["kind"])
    send(page, "start", files=[{"name": name, "size": len(content)} for name, content in files])
    for number, (_, content) in enumerate(files):
        for start in range(0, len(content), 1000):
            send(page, "part", content[start : start + 1000], file=number)
    send(page, "end")
    if page._reading:
        page._reading.join(60)
    page._painter.wait()
    return replies


def as_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def grey_slices(count):
    return [(f"{n:02}.png", as_png(np.full((40, 40), 20 * n, np.uint8))) for n in range(count)]


def classify(page):
    page.classify.click()
    page._job.join(120)


def test_both_networks_classify_a_phantom(page):
    page.gallery.value = page.gallery.options[1][1]
    assert all(one.std() > 10 for one in pictures(page)) and page.message.value == page.paint_message.value == ""
    for one, name in zip(page.panels, ("resnet50", "improved"), strict=True):
        assert name in one.prediction.value and all(f">{label}</th>" in one.prediction.value for label in CLASSES)
        assert "drawn, not scanned" in one.prediction.value and "slice 1 of" in one.picture.alt


def test_a_window_changes_the_picture_and_not_the_prediction(page, dicom):
    page.open(dicom)
    before, prediction = pictures(page), page.panels[0].prediction.value
    page.window.value = "bone"
    assert (page.centre.value, page.width.value) == (400, 1800)
    assert not np.array_equal(pictures(page)[0], before[0]) and page.panels[0].prediction.value == prediction


def test_maps_lie_over_the_slice_and_attention_follows_the_selected_point(page, dicom):
    page.open(dicom)
    plain = pictures(page)
    page.overlay.value = "all levels"
    heat = pictures(page)
    assert not np.array_equal(heat[0], plain[0]) and colour(heat[1]).max() > 30
    page.opacity.value = 0
    assert colour(pictures(page)[1])[1:-1, 1:-1].mean() < 3  # grey, except for the outline
    page.opacity.value, page.overlay.value = 1, "attention_conv3"
    page.panels[1].picture.place = [0.3, 0.3]
    first = pictures(page)[1]
    assert page.panels[0].picture.place == [0.3, 0.3] and page.panels[1].picture.clickable
    page.panels[0].picture.place = [0.7, 0.7]
    assert not np.array_equal(pictures(page)[1], first)
    assert "no attention in this network" in page.panels[0].prediction.value
    page.panels[0].picture.place = [0.0, 0.0]
    assert page._painter.wait() and "outside the network&#39;s input" in page.panels[1].prediction.value


def test_heat_lies_where_the_network_sees_it():
    image, lung = np.zeros((100, 200), np.uint8), np.zeros((100, 200), bool)
    lung[20:80, 100:180] = True
    image[lung] = 40
    heat = np.zeros((96, 96), np.float32)
    heat[48, 48] = 1
    shown = panel.blend(panel.readers.fit_square(image, panel.SIDE), panel.square_box(image, "lungs", lung), heat, 1.0)
    row, column = np.unravel_index(shown[20:-20, 20:-20, 0].astype(int).argmax(), (472, 472))
    scale = panel.SIDE / 200
    assert abs(row + 20 - (50 + 50) * scale) < 8 and abs(column + 20 - 140 * scale) < 8


def test_a_whole_series_is_classified_and_saved(page, checkout):
    page.open(sorted((checkout / "data" / "phantom" / "tiny" / "covid").iterdir())[0])
    classify(page)
    assert page.message.value == "" and "Mean over" in page.patient.value
    assert len(page.series) == len(page.scan) and page.series["suspicion"].is_monotonic_decreasing
    assert list(page.series)[:4] == ["slice", "name", "predicted", "suspicion"]
    assert np.allclose(page.series["suspicion"], 1 - page.series["p_normal"])
    assert {"p_covid", "p_covid (resnet50)"} <= set(page.series)
    page.suspicious.value = page.suspicious.options[-1][1]
    assert page.position.value == page.series["slice"].iloc[len(page.suspicious.options) - 1]
    saved = []
    page.files.save = lambda *file: saved.append(file)
    page.save_table.click()
    page.save_pictures.click()
    assert saved[0][1].decode().startswith(f"# {predict.NOTICE}\nslice,name,") and len(saved) == 3
    assert saved[1][1].startswith(b"\x89PNG") and "resnet50" in saved[1][0]
    page._on_network(None)  # other networks: no result of the previous ones stays
    page._loading.join(60)
    assert page.series is None and page.patient.value == "" and len(page.networks) == 2


def test_the_most_suspicious_slices_come_first():
    slices = pd.DataFrame({"slice": [3, 7, 9], "name": ["c", "g", "i"], "lung": [True, True, False]})
    scores = {"a": np.array([[0.1, 0.9], [0.8, 0.2], [0.5, 0.5]]), "b": np.eye(3)[:, :2]}
    pair = [SimpleNamespace(variant=variant, classes=("covid", "normal")) for variant in "ba"]
    table, means, used = series.summarise(slices, scores, pair)
    assert table["slice"].tolist() == [7, 9, 3] and table["name"].tolist() == ["g", "i", "c"]
    assert table["predicted"].tolist() == ["covid", "covid", "normal"]
    assert np.allclose(table["suspicion"], table["p_covid"]) and table["p_covid (b)"].tolist() == [0, 0, 1]
    assert used == 2 and np.allclose(means["a"], [0.45, 0.55])


def test_a_series_can_be_cancelled(page, dicom):
    page.open(dicom)
    page._start(lambda job: (job.cancelled.set(), page._classify(job)))
    page._job.join(60)
    assert "Cancelled" in page.status.value and page.series is None


def test_uploads_become_scans_and_are_deleted_with_the_page(page, dicom):
    replies = upload(page, [("slice.dcm", dicom.read_bytes())])
    assert replies.count("more") >= 2 and page.scan.title == "slice.dcm" and page.message.value == ""
    folder = page.scan.slices[0][0].parent
    assert folder.name.startswith(widgets.PREFIX)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(3):
            archive.write(dicom, f"series/{n}.dcm")
    upload(page, [("a.zip", buffer.getvalue())])
    assert "series/0.dcm" in page.scan.title and not folder.exists()
    page.files.close()
    assert not page.scan.slices[0][0].exists()


def test_names_and_tags_are_text(page, dicom, tmp_path):
    found = pydicom.dcmread(dicom)
    found.SeriesDescription = '<img src=x onerror="alert(1)">'
    found.save_as(tmp_path / "a.dcm")
    upload(page, [("<script>x</script>.dcm", (tmp_path / "a.dcm").read_bytes())])
    shown = [page.facts.value, page.message.value, *(one.prediction.value for one in page.panels)]
    assert "&lt;img src=x" in page.facts.value
    assert not any("<script" in text or "<img" in text for text in shown)


@pytest.mark.parametrize("content, message", [
    (b"\x89PNG\r\n\x1a\nnothing more", "broken.png"), (b"", "is empty"), (b"some text", "is not PNG")])
def test_a_file_that_cannot_be_read_is_a_message_and_the_scan_stays(page, dicom, content, message):
    page.open(dicom)
    before = page.scan
    upload(page, [("broken.png", content)])
    assert 'role="alert"' in page.message.value and message in page.message.value
    assert page.scan is before and not page.status.value


def test_refused_uploads_leave_the_scan_as_it_was(page, monkeypatch):
    upload(page, grey_slices(12))
    folder = page.scan.slices[0][0].parent
    upload(page, [("broken.png", b"nothing")])
    monkeypatch.setattr(widgets.scans, "MAX_BYTES", 2000)
    assert upload(page, [("large.png", bytes(5000))])[0] == "stop"  # before it is sent
    assert "at most" in page.message.value and page.files._coming is None
    send(page, "start", files=[{"name": "a", "size": 10}])
    send(page, "part", bytes(5000), file=0)  # while it comes
    assert "larger than was announced" in page.message.value and page.files._coming is None
    send(page, "cancel")
    assert "cancelled" in page.message.value
    assert folder.is_dir() and len(page.scan) == 12
    page.position.value = 12
    assert page._painter.wait() and page.panels[0].index == 11


def test_a_slice_that_cannot_be_read_shows_nothing_rather_than_another(page):
    upload(page, grey_slices(12))
    page.scan.slices[2][0].write_bytes(b"damaged meanwhile")
    page.position.value = 3
    assert page._painter.wait() and page.panels[0].picture.png == b"" and page.panels[0].prediction.value == ""
    assert "02.png" in page.paint_message.value and widgets.PREFIX not in page.paint_message.value
    page.position.value = 4
    assert page._painter.wait() and page.panels[0].index == 3 and page.paint_message.value == ""


def test_one_task_at_a_time(page):
    running = threading.Event()
    page._start(lambda job: running.wait(20))
    page._start(lambda job: pytest.fail("two at once"))
    assert "Another task is running" in page.message.value
    running.set()
    page._job.join(20)


def test_uploaded_names_lead_nowhere_and_are_distinct():
    names = widgets._distinct(["../../a.png", "C:\\x\\a.png", "..", "", "é" * 200 + ".png"])
    assert len(set(widgets._distinct(["2-a.png", "a.png", "a.png"]))) == 3
    assert len(set(names)) == 5 and not any("/" in name or "\\" in name for name in names)
    assert all(0 < len(name.encode()) < 200 and name not in (".", "..") for name in names)


def test_a_marked_picture_gets_a_warning_and_a_photograph_is_refused(page):
    marked = np.full((64, 64, 3), 90, np.uint8)
    marked[5:11, 5:11] = (200, 40, 40)
    upload(page, [("marked.png", as_png(marked))])
    assert page.message.value == "" and page.window.disabled
    assert "Quality warnings" in page.panels[0].prediction.value and "coloured" in page.panels[0].prediction.value
    marked[..., 0] = np.arange(64)[:, None] * 4
    upload(page, [("photo.png", as_png(marked))])
    assert "photo.png: is a coloured picture" in page.message.value and widgets.PREFIX not in page.message.value


def test_without_a_network_nothing_is_predicted_and_training_is_offered(checkout, tmp_path, dicom):
    page = Viewer(tmp_path / "runs", checkout / "data" / "phantom")
    page.open(dicom)
    assert page._painter.wait() and page.panels[0].picture.png and page.panels[0].prediction.value == ""
    assert page.panels[1].index is None and page.panels[1].view.layout.display == "none"
    assert page.first.layout.display == "" and "No trained network yet" in page.status.value
    classify(page)
    assert "There is no trained network" in page.message.value


@pytest.mark.slow
def test_a_first_pair_is_trained_with_progress_and_can_be_cancelled(tmp_path, monkeypatch, cancelled):
    for name, value in every_process().items():
        monkeypatch.setenv(name, value)
    for name, value in {"SLICES": [9, 6, 9], "EPOCHS": 1, "IMAGE_SIZE": 32}.items():
        monkeypatch.setattr(networks, name, value)
    progress, home = [], tmp_path / "runs"
    assert not networks.train_first(home, tmp_path / "data", cancelled, lambda *_: None)
    assert networks.train_first(home, tmp_path / "data", threading.Event(), lambda *args: progress.append(args))
    assert [share for share, _ in progress] == sorted(share for share, _ in progress)
    assert {text for _, text in progress} == {"drawing phantoms", "training improved", "training resnet50"}
    assert [path.parent.name for path in networks.find(home)["phantom / app"]] == ["resnet50", "improved"]


def test_every_page_of_the_app_bears_the_notice(checkout):
    app = App(checkout / "runs", checkout / "data" / "phantom", checkout / "reports" / "published")
    assert predict.NOTICE in app.view.children[1].value
    app.page.value = "Augmentation"
    assert [name for name, page in app.pages.items() if page.view.layout.display != "none"] == ["Augmentation"]
    app.viewer._loading.join(60)
    assert app.viewer.overlay.value == panel.NO_OVERLAY


def test_folders_of_killed_kernels_are_removed_at_the_next_start_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = ("import pathlib, tempfile, time; from covidlib.utils import files; from covidlib.app import widgets;"
            f"folder = tempfile.mkdtemp(prefix=files.owned(widgets.PREFIX), dir={str(tmp_path)!r});"
            "pathlib.Path(folder, 'scan.dcm').touch(); print('ready', flush=True); time.sleep(600)")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    (tmp_path / "of-somebody-else").mkdir()
    widgets.sweep()
    assert len(list(tmp_path.glob("*/scan.dcm"))) == 1
    process.kill()
    process.communicate()
    widgets.sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["of-somebody-else"]
