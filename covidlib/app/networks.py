"""The trained networks of the app: two of each data set, and a first pair where there is none."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from covidlib.datasets import natural
from covidlib.predict import explained
from covidlib.training import runs
from covidlib.utils import provenance

PAIR = ("resnet50", "improved")  # shown in this order where a set has both
SLICES, EPOCHS, IMAGE_SIZE = [270, 60, 270], 12, 96  # of the first pair: phantoms, as in profile quick


def find(home):
    """"<dataset> / <profile>" -> run directories of up to two networks, the lowest seed of each, below runs/ `home`."""
    found = {}
    for model in sorted(Path(home).glob("*/*/*/seed-*/model.keras"), key=natural):
        dataset, profile, variant, seed = model.parts[-5:-1]
        if (model.parent / "run.json").is_file() and "fold" not in seed and variant.startswith(PAIR):
            found.setdefault(f"{dataset} / {profile}", {}).setdefault(variant, model.parent)
    return {name: [variants[one] for one in sorted(variants, key=_order)[:2]] for name, variants in found.items()}


def _order(variant):
    return PAIR.index(variant) if variant in PAIR else len(PAIR), variant


def load(run_dir):
    """The Answerer of a run, exported in a process of its own where necessary. ValueError where that fails."""
    if not explained.is_made(run_dir):
        done = subprocess.run([sys.executable, "-m", "covidlib.predict.explained", str(run_dir)], capture_output=True,
                              text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise ValueError(f"{run_dir} could not be exported: {lines[-1]}")
    return explained.Answerer(explained.folder(run_dir))


def train_first(home, data_root, cancelled, progress):
    """Train the two networks on phantoms, drawn into `data_root`, below `home`/phantom/app; whether it was done.

    cancelled: Event, which stops it within a second; progress: called with (share, sentence). The next call continues
    after the last finished epoch. RuntimeError with the last lines where a notebook fails.
    """
    target = Path(home, "phantom", "app").absolute()
    common = {"output_dir": target, "data_root": Path(data_root).absolute(), "image_size": IMAGE_SIZE}
    steps = [("drawing phantoms", "00_data", common | {"slices_per_class": SLICES, "dataset": "phantom"}, 2, target)]
    steps += [(f"training {name}", "03_training", common | {"variant": name, "epochs": EPOCHS}, EPOCHS,
               target / name / "seed-0") for name in reversed(PAIR)]
    total, done = sum(weight for *_, weight, _ in steps), 0
    for title, notebook, parameters, weight, folder in steps:
        if not (folder / "run.json").is_file() and not _run(
                notebook, parameters, cancelled, title,
                lambda done=done, folder=folder, title=title: progress((done + _epochs(folder)) / total, title)):
            return False
        done += weight
    return True


def _run(notebook, parameters, cancelled, title, on_wait):
    """Run a notebook in a process, on_wait() twice a second; whether it was not cancelled."""
    pairs = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    with tempfile.TemporaryDirectory(prefix="covidlib-first-") as place:
        log = Path(place, "log")
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "covidlib.utils.notebook", f"notebooks/{notebook}.ipynb",
                 str(Path(place, f"{notebook}.ipynb")), *pairs], stdout=file, stderr=file, cwd=provenance.ROOT)
        while process.poll() is None:
            if cancelled.is_set():
                process.send_signal(signal.SIGINT)  # so that it ends its kernel, too
                process.wait()
                return False
            on_wait()
            time.sleep(0.5)
        if process.returncode:
            raise RuntimeError(f"{title} failed: " + " ".join(log.read_text(encoding="utf-8").split("\n")[-4:]))
    return True


def _epochs(folder):
    """Finished epochs of a training."""
    if (folder / "run.json").is_file():
        return EPOCHS
    try:
        return len(runs.read_json(folder.with_name(f"{folder.name}.partial") / "state.json")["history"])
    except (OSError, ValueError):
        return 0
