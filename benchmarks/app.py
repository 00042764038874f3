"""How long one waits for the app: its first paint, an answered slice, a whole scan of 300 slices of 512 px.

    python -m benchmarks.app        # three minutes on 2 cores; needs Chromium; writes app_targets_<device>.csv

`resnet50` and `improved` answer together, at 96 and at 224 px, after an epoch on a few phantoms: what they say does not
matter. A slice is answered when the widgets show its picture, both networks' probabilities and Grad-CAM; a scan when
they show its table, from DICOM files that were not read before. The first paint is the time from asking for the address
to the first control, with a kernel that waits for the next page.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom

from benchmarks import tables
from covidlib import datasets
from covidlib.app.viewer import Viewer
from covidlib.datasets import decode, splits
from covidlib.evaluation import explain
from covidlib.predict import explained
from covidlib.speed import timing
from covidlib.training.train import TrainingConfig, train

SIZES, SLICES, SIDE, PAINTS, ASKED = (96, 224), 300, 512, 5, 60
REPOSITORY = Path(__file__).parents[1]


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for size in SIZES:
            train_both(root, size)
        series = draw(root)
        targets = []
        for size in SIZES:
            one, whole = answered(root / "runs" / str(size), series)
            targets += [(f"a slice of {SIDE} px answered by two networks of {size} px, s", "<= 0.3", one),
                        (f"{SLICES} slices of {SIDE} px, the same, s", "<= 30", whole)]
        targets.append(("first paint, s", "<= 5", first_paint(root)))
    tables.write_targets(targets, "app")


def train_both(root, size):
    """An epoch of both networks in root/runs/<size>/phantom/app, and their exports."""
    home, phantoms = root / "runs" / str(size) / "phantom" / "app", root / "data" / "phantom" / "app"
    source = datasets.load("phantom", phantoms, [12, 9, 12], seed=0)
    source = datasets.replace(source, manifest=splits.assign(source.manifest, 0)[0])
    datasets.save(source, home)
    images = np.array(decode.load_images(source, size, "whole", home / "cache"))
    for variant in ("resnet50", "improved"):
        config = TrainingConfig(variant=variant, image_size=size, epochs=1, batch_size=16, seed=0, deterministic=False)
        train(source, images, home / variant / "seed-0", config, progress=False)
        explained.make(home / variant / "seed-0")


def draw(root):
    """Folder of one DICOM series: a patient's phantom slices again and again, with noise of their own."""
    patient = min((root / "data" / "phantom").rglob("*.dcm")).parent
    files = sorted(patient.glob("*.dcm"))
    folder, rng, series = root / "series", np.random.default_rng(0), pydicom.uid.generate_uid()
    folder.mkdir()
    for n in range(SLICES):
        slice_ = pydicom.dcmread(files[n % len(files)])
        factor = SIDE // slice_.Rows
        pixels = slice_.pixel_array.repeat(factor, 0).repeat(factor, 1).astype(float) + rng.normal(0, 20, (SIDE, SIDE))
        slice_.PixelData = pixels.clip(0, 4000).astype(slice_.pixel_array.dtype).tobytes()
        slice_.Rows = slice_.Columns = SIDE
        slice_.SeriesInstanceUID, slice_.SOPInstanceUID = series, pydicom.uid.generate_uid()
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        slice_.InstanceNumber, slice_.ImagePositionPatient = n + 1, [0, 0, float(n)]
        slice_.save_as(folder / f"{n:03d}.dcm", enforce_file_format=True)
    return folder


def answered(home, series):
    """((median, quartiles) of ASKED slices, seconds for the whole scan)."""
    page = Viewer(home, series)
    page._loading.join(300)
    page.open(series)
    if len(page.networks) != 2 or len(page.scan) != SLICES:
        raise RuntimeError(f"the page is not ready: {page.message.value}")
    page.overlay.value = explain.ALL
    page._painter.wait()
    seconds = []
    for n in range(1, ASKED + 1):
        start = time.perf_counter()
        page.position.value = n
        page._painter.wait()
        seconds.append(time.perf_counter() - start)
    page.scan.forget()
    start = time.perf_counter()
    page.classify.click()
    page._job.join(600)
    whole = time.perf_counter() - start
    if page.series is None or len(page.series) != SLICES:
        raise RuntimeError(f"the scan was not answered: {page.message.value}")
    page.files.close()
    return timing.quartiles(np.array(seconds[5:])), whole


def first_paint(root):
    """(median, quartiles) over PAINTS pages, one at a time, the next kernel warm."""
    from playwright.sync_api import sync_playwright

    (root / "reports" / "published" / "runs").mkdir(parents=True)
    (root / "notebooks").mkdir()
    shutil.copy(REPOSITORY / "notebooks" / "app.ipynb", root / "notebooks")
    shutil.move(root / "runs" / str(SIZES[0]) / "phantom", root / "runs" / "phantom")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "covidlib.app.serve", "--port", str(port), "--root", str(root)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = []
    try:
        with sync_playwright() as start, start.chromium.launch(executable_path=shutil.which("chromium"),
                                                               args=["--no-sandbox"]) as browser:
            for _ in range(PAINTS):
                time.sleep(20)  # until the next kernel waits
                page, begin = browser.new_page(), time.perf_counter()
                page.goto(f"http://127.0.0.1:{port}/")
                page.get_by_label("Networks").wait_for(timeout=60_000)
                seconds.append(time.perf_counter() - begin)
                page.close()
    finally:
        server.terminate()
        server.wait(30)
    return timing.quartiles(np.array(seconds))


if __name__ == "__main__":
    main()
