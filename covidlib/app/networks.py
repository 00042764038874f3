"""The trained networks that can be asked, two of a set beside each other, and a first pair where there is none."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from covidlib.predict import explained
from covidlib.training import runs
from covidlib.utils import provenance

BESIDE = ("resnet50", "improved")  # shown in this order where a set has both
SLICES, EPOCHS, IMAGE_SIZE = [270, 60, 270], 12, 96  # of the first pair: phantoms, as in profile quick
STEPS = 2 + EPOCHS * len(BESIDE)


def find(home):
    """"<dataset> / <profile>" -> run directories of up to two networks, the lowest seed of each, below runs/ `home`."""
    found = {}
    paths = [path.parent for path in Path(home).glob("*/*/*/seed-*/model.keras") if (path.parent / "run.json").is_file()
             and path.parent.name.removeprefix("seed-").isdigit()]
    for run_dir in sorted(paths, key=lambda path: (path.parts[:-1], int(path.name.removeprefix("seed-")))):
        dataset, profile, variant = run_dir.parts[-4:-1]
        if variant.startswith(BESIDE):  # the others are not on ResNet-50, and explain.py tells no maps of them
            found.setdefault(f"{dataset} / {profile}", {}).setdefault(variant, run_dir)
    return {name: _pair(variants) for name, variants in found.items()}


def _pair(variants):
    ordered = sorted(variants, key=lambda name: (BESIDE.index(name) if name in BESIDE else len(BESIDE), name))
    return [variants[name] for name in ordered[: len(BESIDE)]]


def load(run_dir):
    """The Answerer of a run, exported in a process of its own where that is not done. ValueError where that fails."""
    if not explained.is_made(run_dir):
        made = subprocess.run([sys.executable, "-m", "covidlib.predict.explained", str(run_dir)], capture_output=True,
                              text=True)
        if made.returncode:
            lines = made.stderr.strip().splitlines() or ["no reason given"]
            raise ValueError(f"{run_dir} could not be made ready: {lines[-1]}")
    return explained.Answerer(explained.folder(run_dir))


def make_first(home, data_root, job, progress):
    """Train the two networks on phantoms, drawn into `data_root`, below `home`/phantom/app; whether it was done.

    job: work.Job, whose cancelling stops it within a second; progress: called with (share, sentence). Started again it
    goes on after the last finished epoch. RuntimeError with the last lines where a notebook fails.
    """
    target = Path(home, "phantom", "app").absolute()
    common = {"output_dir": target, "data_root": Path(data_root).absolute(), "image_size": IMAGE_SIZE}
    done = 0
    with tempfile.TemporaryDirectory(prefix="covidlib-first-") as place:
        steps = [("00_data", common | {"slices_per_class": SLICES, "dataset": "phantom"}, 2, target)]
        steps += [("03_training", common | {"variant": name, "epochs": EPOCHS}, EPOCHS, target / name / "seed-0")
                  for name in reversed(BESIDE)]
        for notebook, parameters, weight, folder in steps:
            if notebook == "03_training" and (folder / "run.json").is_file():
                done += weight
                continue
            what = "drawing phantoms" if notebook == "00_data" else f"training {parameters['variant']}"
            log = Path(place, "log")
            with open(log, "w", encoding="utf-8") as file:
                process = subprocess.Popen(_command(notebook, parameters, place), stdout=file, stderr=file,
                                           cwd=provenance.ROOT)
                while (code := _poll(process)) is None:
                    if job.cancelled:
                        process.send_signal(signal.SIGINT)  # so that it takes its kernel along
                        process.wait()
                        return False
                    progress((done + _epochs(folder)) / STEPS, what)
            if code:
                raise RuntimeError(f"{what} failed: " + " ".join(log.read_text(encoding="utf-8").split("\n")[-4:]))
            done += weight
    return True


def _command(notebook, parameters, place):
    pairs = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    return [sys.executable, "-m", "covidlib.utils.notebook", f"notebooks/{notebook}.ipynb",
            str(Path(place, f"{notebook}.ipynb")), *pairs]


def _poll(process):
    try:
        return process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def _epochs(folder):
    if (folder / "run.json").is_file():
        return EPOCHS
    state = folder.with_name(folder.name + ".partial") / "state.json"
    try:
        return len(runs.read_json(state)["history"])
    except (OSError, ValueError):
        return 0
