"""The scan page without a browser: what its widgets hold after files, choices and clicks."""

import io
import subprocess
import sys
import tempfile
import threading
import zipfile

import numpy as np
import pydicom
import pytest
from conftest import every_process
from PIL import Image

from covidlib.app import App, networks, viewer, widgets
from covidlib.app.viewer import ALONE, Viewer
from covidlib.app.work import Job
from covidlib.predict import predict

CLASSES = ("covid", "viral", "normal")


@pytest.fixture
def page(checkout):
    page = Viewer(checkout / "runs", checkout / "data" / "phantom")
    page._loading.wait(60)
    assert len(page.asked) == 2, page.message.value
    yield page
    page.files.close()


@pytest.fixture
def dicom(checkout):
    return sorted((checkout / "data" / "phantom").rglob("*.dcm"))[0]


def pictures(page):
    assert page._painter.wait()
    return [np.asarray(Image.open(io.BytesIO(panel.picture.png)).convert("RGB")) for panel in page.panels]


def upload(page, files):
    """As files.js does: announced, sent in parts, ended."""
    said = []
    page.files.send = lambda message, buffers=None: said.append(message["kind"])
    page.files._on_message(None, {"kind": "start", "files": [{"name": name, "size": len(content)}
                                                              for name, content in files]}, [])
    for number, (_, content) in enumerate(files):
        for start in range(0, len(content), 1000):
            page.files._on_message(None, {"kind": "part", "file": number}, [content[start : start + 1000]])
    page.files._on_message(None, {"kind": "end"}, [])
    if page._reading:
        page._reading.wait(60)
    page._painter.wait()
    return said


def as_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_both_networks_answer_a_phantom_beside_each_other(page):
    page.gallery.value = page.gallery.options[1][1]
    assert all(one.std() > 10 for one in pictures(page))
    for panel, name in zip(page.panels, ("resnet50", "improved"), strict=True):
        assert name in panel.answer.value and all(f">{label}</th>" in panel.answer.value for label in CLASSES)
        assert "drawn, not scanned" in panel.answer.value and "slice 1 of" in panel.picture.alt
    assert page.message.value == ""


def test_a_window_changes_the_picture_and_not_the_answer(page, dicom):
    page.open(dicom)
    before, answer = pictures(page), page.panels[0].answer.value
    page.window.value = "bone"
    assert (page.centre.value, page.width.value) == (400, 1800)
    assert not np.array_equal(pictures(page)[0], before[0]) and page.panels[0].answer.value == answer


def test_maps_lie_over_the_slice_and_attention_follows_the_place(page, dicom):
    page.open(dicom)
    plain = pictures(page)
    page.overlay.value = "all levels"
    heat = pictures(page)
    assert not np.array_equal(heat[0], plain[0]) and np.ptp(heat[1].astype(int), axis=2).max() > 30
    page.opacity.value = 0
    assert np.ptp(pictures(page)[1].astype(int), axis=2)[1:-1, 1:-1].mean() < 3  # grey, but for the rim of the square
    page.opacity.value, page.overlay.value = 1, "attention_conv3"
    page.panels[1].picture.place = [0.3, 0.3]
    first = pictures(page)[1]
    assert page.panels[0].picture.place == [0.3, 0.3] and page.panels[1].picture.clickable
    page.panels[0].picture.place = [0.7, 0.7]
    assert not np.array_equal(pictures(page)[1], first)
    assert "no attention in this network" in page.panels[0].answer.value


def test_heat_lies_where_the_network_sees_it():
    image, lung = np.zeros((100, 200), np.uint8), np.zeros((100, 200), bool)
    lung[20:80, 100:180] = True
    image[lung] = 40
    seen = viewer.Seen(image)
    seen.square = viewer.harmonise.square(image, lung)
    heat = np.zeros((96, 96), np.float32)
    heat[48, 48] = 1
    shown = viewer._blend(image, seen.square, heat, 1.0)
    row, column = np.unravel_index(shown[20:-20, 20:-20, 0].astype(int).argmax(), (472, 472))
    scale = viewer.SIDE / 200
    assert abs(row + 20 - (50 + 50) * scale) < 8 and abs(column + 20 - 140 * scale) < 8


def test_a_series_is_asked_as_a_whole(page, checkout):
    folder = sorted((checkout / "data" / "phantom" / "tiny" / "covid").iterdir())[0]
    page.open(folder)
    page._start(page._ask_series)
    page._job.wait(120)
    assert page.message.value == "" and "Mean over" in page.patient.value
    assert len(page.series) == len(page.scan) and page.series["suspicion"].is_monotonic_decreasing
    assert {"p_covid", "p_covid (resnet50)"} <= set(page.series)
    page.suspicious.value = page.suspicious.options[-1][1]
    assert page.position.value == page.series["slice"].iloc[len(page.suspicious.options) - 1]
    saved = []
    page.files.save = lambda *file: saved.append(file)
    page._on_save_table(None)
    page._on_save_picture(None)
    assert saved[0][1].decode().startswith(f"# {predict.NOTICE}\nslice,name,") and len(saved) == 3
    assert saved[1][1].startswith(b"\x89PNG") and "resnet50" in saved[1][0]


def test_a_series_can_be_cancelled(page, dicom):
    page.open(dicom)
    cancelled = Job(lambda job: None, print)
    cancelled.cancel()
    page._ask_series(cancelled)
    assert "Cancelled" in page.status.value and page.series is None


def test_uploads_become_scans_and_go_with_the_page(page, dicom):
    said = upload(page, [("slice.dcm", dicom.read_bytes())])
    assert said.count("more") >= 2 and page.scan.title == "slice.dcm" and page.message.value == ""
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
    shown = [page.facts.value, page.message.value, *(panel.answer.value for panel in page.panels)]
    assert "&lt;img src=x" in page.facts.value
    assert not any("<script" in text or "<img" in text for text in shown)


@pytest.mark.parametrize("content, told", [
    (b"\x89PNG\r\n\x1a\nnothing more", "broken.png"), (b"", "is empty"), (b"some text", "is not PNG")])
def test_a_file_that_cannot_be_read_is_a_message_and_loses_nothing(page, dicom, content, told):
    page.open(dicom)
    before = page.scan
    upload(page, [("broken.png", content)])
    assert 'role="alert"' in page.message.value and told in page.message.value
    assert page.scan is before and not page.status.value


def test_what_is_too_large_is_refused_before_it_is_sent_and_while_it_comes(page, monkeypatch):
    monkeypatch.setattr(widgets.scans, "MAX_BYTES", 2000)
    said = upload(page, [("a.png", bytes(5000))])
    assert said[0] == "stop" and "at most" in page.message.value and page.files._coming is None
    page.files._on_message(None, {"kind": "start", "files": [{"name": "a", "size": 10}]}, [])
    page.files._on_message(None, {"kind": "part", "file": 0}, [bytes(5000)])
    assert "more came than was announced" in page.message.value and page.files._coming is None
    page.files._on_message(None, {"kind": "cancel"}, [])
    assert "cancelled" in page.message.value


def test_what_is_refused_leaves_the_scan_as_it_was(page, dicom, tmp_path, monkeypatch):
    upload(page, [(f"{n}.png", as_png(np.full((40, 40), 20 * n, np.uint8))) for n in range(12)])
    folder = page.scan.slices[0][0].parent
    upload(page, [("broken.png", b"nothing")])
    monkeypatch.setattr(widgets.scans, "MAX_BYTES", 10)
    upload(page, [("large.png", bytes(50))])
    assert folder.is_dir() and len(page.scan) == 12
    page.position.value = 12
    assert page._painter.wait() and page.panels[0].index == 11
    assert len(list(folder.parent.glob(f"{folder.name[: len(widgets.PREFIX) + 3]}*"))) >= 1 and not page.files._coming


def test_a_slice_that_cannot_be_read_shows_nothing_rather_than_another(page):
    upload(page, [(f"{n:02}.png", as_png(np.full((40, 40), 20 * n, np.uint8))) for n in range(12)])
    page.scan.slices[2][0].write_bytes(b"damaged meanwhile")
    page.position.value = 3
    assert page._painter.wait() and page.panels[0].picture.png == b"" and page.panels[0].answer.value == ""
    assert "02.png" in page.message.value and widgets.PREFIX not in page.message.value
    page.position.value = 4
    assert page._painter.wait() and page.panels[0].index == 3 and page.message.value == ""


def test_another_pair_of_networks_forgets_what_the_first_said(page, dicom):
    page.open(dicom)
    page._start(page._ask_series)
    page._job.wait(60)
    assert page.series is not None
    page._on_network(None)
    page._loading.wait(60)
    assert page.series is None and page.patient.value == "" and len(page.asked) == 2


def test_one_piece_of_work_at_a_time(page):
    running = threading.Event()
    page._start(lambda job: running.wait(20))
    page._start(lambda job: pytest.fail("two at once"))
    assert "still at work" in page.message.value
    running.set()
    page._job.wait(20)


def test_file_names_lead_nowhere_and_are_distinct():
    names = widgets._distinct(["../../a.png", "C:\\x\\a.png", "..", "", "é" * 200 + ".png"])
    assert len(set(widgets._distinct(["2-a.png", "a.png", "a.png"]))) == 3
    assert len(set(names)) == 5 and not any("/" in name or "\\" in name for name in names)
    assert all(0 < len(name.encode()) < 200 and name not in (".", "..") for name in names)


def test_a_picture_unlike_the_training_data_is_doubted_and_a_photograph_refused(page):
    marked = np.full((64, 64, 3), 90, np.uint8)
    marked[5:11, 5:11] = (200, 40, 40)
    upload(page, [("marked.png", as_png(marked))])
    assert page.message.value == "" and page.window.disabled
    assert "Unlike its training data" in page.panels[0].answer.value and "coloured" in page.panels[0].answer.value
    marked[..., 0] = np.arange(64)[:, None] * 4
    upload(page, [("photo.png", as_png(marked))])
    assert "photo.png: is a coloured picture" in page.message.value and widgets.PREFIX not in page.message.value


def test_without_a_network_nothing_is_answered_and_one_is_offered(checkout, tmp_path, dicom):
    page = Viewer(tmp_path / "runs", checkout / "data" / "phantom")
    page.open(dicom)
    assert page._painter.wait() and page.panels[0].picture.png and page.panels[0].answer.value == ""
    assert page.panels[1].index is None and page.panels[1].view.layout.display == "none"
    assert page.first.layout.display == "" and "No trained network yet" in page.status.value
    page._start(page._ask_series)
    page._job.wait(30)
    assert "There is no network to ask" in page.message.value


@pytest.mark.slow
def test_a_first_pair_is_made_with_progress_and_can_be_cancelled(tmp_path, monkeypatch):
    for name, value in every_process().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(networks, "SLICES", [9, 6, 9])
    monkeypatch.setattr(networks, "EPOCHS", 1)
    monkeypatch.setattr(networks, "IMAGE_SIZE", 32)
    told = []
    cancelled = Job(lambda job: None, print)
    cancelled.cancel()
    assert not networks.make_first(tmp_path / "runs", tmp_path / "data", cancelled, lambda *_: None)
    job = Job(lambda job: None, print)
    assert networks.make_first(tmp_path / "runs", tmp_path / "data", job, lambda *args: told.append(args))
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert {what for _, what in told} == {"drawing phantoms", "training improved", "training resnet50"}
    assert [path.parent.name for path in networks.find(tmp_path / "runs")["phantom / app"]] == ["resnet50", "improved"]


def test_the_app_says_what_it_is_on_every_page(checkout):
    app = App(checkout / "runs", checkout / "data" / "phantom", checkout / "reports" / "published")
    assert predict.NOTICE in app.view.children[1].value
    app.page.value = "Augmentation"
    shown = [name for name, page in app.pages.items() if page.view.layout.display != "none"]
    assert shown == ["Augmentation"] and app.viewer.overlay.value == ALONE


def test_what_a_killed_kernel_left_is_removed_at_the_next_start_and_nothing_else(tmp_path, monkeypatch):
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
