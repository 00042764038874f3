"""The app as people use it: Voila, a real kernel, Chromium. Skipped where Chromium is not installed (.ci/run does)."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path

import psutil
import pydicom
import pytest
import requests
from PIL import Image

from covidlib import readers
from covidlib.app import widgets
from covidlib.predict import predict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SLOW = "[anywidget] Failed to initialize model."  # said after 2 s, on a busy machine; the widget comes all the same


@contextlib.contextmanager
def serving(checkout, *options):
    """(port, file of what it prints) of the app, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(checkout / f"app-{port}.log", "w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "covidlib.app.serve", "--port", str(port), "--root",
                                   str(checkout), *options], stdout=log, stderr=log, start_new_session=True)
        for _ in range(120):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield port, Path(log.name)
        children = psutil.Process(server.pid).children(recursive=True)
        os.killpg(server.pid, signal.SIGINT)
        psutil.wait_procs([psutil.Process(server.pid)], timeout=20)
        for process in children:
            if process.is_running():
                process.kill()


@pytest.fixture(scope="module")
def address(checkout, chromium):
    with serving(checkout) as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(chromium, address):
    """A page of the app that is ready; afterwards nothing was loaded from elsewhere and no error was logged."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    errors, elsewhere = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:"))
            else elsewhere.append(request.url))
    page.goto(address)
    page.get_by_label("Networks").wait_for(timeout=60_000)
    yield page
    page.close()
    assert not elsewhere
    assert not [text for text in errors if "favicon" not in text and text != SLOW]


@pytest.fixture(scope="module")
def dicom(checkout):
    return sorted((checkout / "data" / "phantom").rglob("*.dcm"))[0]


def upload(page, path):
    page.set_input_files("input[type=file]", path)


def predictions(page, title):
    """Wait until both networks classify a slice of the scan with this title; their names."""
    page.wait_for_function("title => [...document.querySelectorAll('.covidlib-pictures img')].filter("
                           "image => image.alt.includes(title) && image.naturalWidth).length == 2", arg=title)
    page.wait_for_function("() => document.querySelectorAll('.covidlib-pictures h3').length == 2")
    return page.locator(".covidlib-pictures h3").all_inner_texts()


def test_a_phantom_is_classified_and_explained(page):
    page.get_by_label("Phantom").select_option(index=1)
    assert predictions(page, "slice 1 of") == ["resnet50", "improved"]
    assert predict.NOTICE in page.inner_text(".covidlib-notice")
    page.get_by_label("Overlay").select_option("Grad-CAM, all levels")
    page.get_by_text("evidence for").first.wait_for()
    page.get_by_label("Overlay").select_option("attention of conv4, at the selected point")
    picture = page.locator(".covidlib-clickable img").last
    picture.click(position={"x": 100, "y": 150})
    mark = page.locator(".covidlib-pictures .covidlib-mark").last
    before = mark.get_attribute("style")
    page.locator(".covidlib-clickable").last.press("ArrowRight")
    page.wait_for_function("before => [...document.querySelectorAll('.covidlib-pictures .covidlib-mark')].at(-1)"
                           ".getAttribute('style') != before", arg=before)


def test_a_series_in_an_archive_is_classified_and_saved(page, dicom, tmp_path):
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in sorted(dicom.parent.iterdir()):
            archive.write(file, file.name)
    upload(page, tmp_path / "series.zip")
    predictions(page, "series (unpacked)/")
    page.get_by_role("button", name="Classify all slices").click()
    page.get_by_text("Mean over").wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the table (CSV)").click()
    text = Path(saved.value.path()).read_text()
    assert text.startswith(f"# {predict.NOTICE}\nslice,") and len(text.splitlines()) > 2
    page.get_by_label("Slices").select_option(index=0)


def test_pictures_broken_and_large_files_and_hostile_tags(page, dicom, tmp_path):
    Image.fromarray(readers.read_slice(dicom)).save(tmp_path / "slice.png")
    upload(page, tmp_path / "slice.png")
    predictions(page, "slice.png")
    assert page.get_by_label("Window").is_disabled()
    (tmp_path / "broken.dcm").write_bytes(dicom.read_bytes()[:900])
    with open(tmp_path / "large.nii", "wb") as file:
        file.truncate(widgets.scans.MAX_BYTES + 1)
    for name, message in (("broken.dcm", "broken.dcm"), ("large.nii", "at most")):
        upload(page, tmp_path / name)
        page.get_by_role("alert").filter(has_text=message).wait_for()
        predictions(page, "slice.png")  # the scan stays
        assert page.locator("input[type=file]").is_enabled()
    found = pydicom.dcmread(dicom)
    found.SeriesDescription = "<img src=x onerror=\"document.title='caught'\">"
    found.save_as(tmp_path / "hostile.dcm")
    upload(page, tmp_path / "hostile.dcm")
    predictions(page, "hostile.dcm")
    page.get_by_text("<img src=x").wait_for()
    assert page.title() != "caught"


def test_two_pages_do_not_see_each_others_scans(page, chromium, address, dicom, tmp_path):
    shutil.copy(dicom, tmp_path / "mine.dcm")
    upload(page, tmp_path / "mine.dcm")
    predictions(page, "mine.dcm")
    other = chromium.new_page()
    other.goto(address)
    other.get_by_label("Networks").wait_for(timeout=60_000)
    assert "mine.dcm" not in other.content() and other.locator(".covidlib-picture img:visible").count() == 0
    owners = {folder.name.rsplit("-", 1)[0]
              for folder in Path(tempfile.gettempdir()).glob(f"{widgets.PREFIX}*") if list(folder.glob("mine.dcm"))}
    assert len(owners) == 1
    other.close()


def test_augmentation_and_results(page):
    page.get_by_role("button", name="Augmentation").click()
    page.get_by_role("img", name="12 augmented slices").wait_for()
    page.get_by_label("Flip up, down").check()
    page.get_by_role("img", name="the slice after vertical flip").wait_for()
    page.get_by_role("button", name="Results").click()
    page.get_by_text("95 % intervals over patients").wait_for(timeout=60_000)
    assert page.locator(".js-plotly-plot").count() == 5
    page.get_by_label("Cell").select_option(index=1)
    page.get_by_text(re.compile(r"\d+ slices, highest")).wait_for()
    click_on_the_matrix(page, 0.85, 0.15)
    page.wait_for_function("() => [...document.querySelectorAll('select')].some(one => one.selectedOptions[0] && "
                           "/true.covid,.predicted.normal/.test(one.selectedOptions[0].text))")


def click_on_the_matrix(page, right, down):
    """Click so far into the confusion matrix, as parts of its width and height."""
    matrix = page.locator(".js-plotly-plot").nth(1)
    for _ in range(60):  # plotly answers a click with what it hovers over, which a busy page is late to draw
        matrix.scroll_into_view_if_needed()
        box = matrix.locator(".nsewdrag").first.bounding_box()
        for step in (right - 0.05, right):
            page.mouse.move(box["x"] + step * box["width"], box["y"] + down * box["height"])
            page.wait_for_timeout(300)
        if matrix.locator(".hovertext").count():
            break
    page.mouse.down()
    page.mouse.up()


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page_and_everything_has_a_name(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.get_by_label("Phantom").select_option(index=1)
    predictions(page, "slice 1 of")
    right = page.evaluate("Math.max(...[...document.querySelectorAll('.covidlib-app *')]"
                          ".filter(one => one.offsetParent).map(one => one.getBoundingClientRect().right))")
    assert right <= width
    nameless = page.evaluate("[...document.querySelectorAll('.covidlib-app input, .covidlib-app select')].filter("
                             "one => one.offsetParent && !one.labels.length && !one.ariaLabel).length")
    assert nameless == 0
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('input, select, button, [tabindex]')")


def test_it_listens_on_this_machine_alone(address):
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    assert {one.laddr.ip for one in psutil.net_connections("tcp")
            if one.status == "LISTEN" and one.laddr.port == port} == {"127.0.0.1"}


def test_opened_wider_it_asks_for_its_token(checkout, chromium):
    with serving(checkout, "--ip", "0.0.0.0") as (port, log):
        token = re.search(r"http://\S+:\d+/\?token=(\S{32}) ", log.read_text())[1]
        address = f"http://127.0.0.1:{port}"
        for path in ("/", f"/?token={token[:-1]}", "/api/kernels"):
            assert requests.get(address + path, allow_redirects=False).headers["Location"].startswith("/login?")
        assert requests.get(f"{address}/voila/files/app.ipynb").status_code == 403
        channel = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                   "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}
        assert requests.get(f"{address}/api/kernels/{uuid.uuid4()}/channels", headers=channel).status_code == 403
        page = chromium.new_page()
        page.goto(f"{address}/?token={token}")
        page.get_by_label("Networks").wait_for(timeout=60_000)
        page.close()
