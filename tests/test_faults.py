"""Kill -9 at random moments, thirty in all: it goes on, and ends as if nothing had happened. Four notebooks at a time,
twenty times: every run ends, with the same figures.

    .venv/bin/python -m pytest -m faults -s                          # hours on 2 cores
    .venv/bin/python -m pytest -m faults -k "not jobs" -s            # kills; FAULTS_SEED=1 for other moments
    .venv/bin/python -m pytest -m faults -k jobs -n 2                # the twenty, two at a time: eight notebooks
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from test_workflow import REPORT, RUNS, checkout, command, copied  # noqa: F401  a fixture
from toy_runs import assert_same_run, script

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]
TRAININGS, WORKFLOWS, PARALLEL, JOBS = 20, 10, 20, 4
CLASH = "Address already in use"


@pytest.fixture(scope="module")
def moments():
    return random.Random(int(os.environ.get("FAULTS_SEED", 0)))


def start(arguments, folder):
    return subprocess.Popen(arguments, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def ended(process, seconds):
    """Whether it ended by itself within so many seconds, as it should; else it is killed."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors[-4000:]
    return True


def epochs_in(run):
    state = run.with_name(run.name + ".partial") / "state.json"
    return len(json.loads(state.read_text())["history"]) if state.is_file() else 0


def test_trainings(repository, tmp_path, moments):
    """ResNet-50, whose checkpoints take as long to write as an epoch. A moment is drawn for every start, from shortly
    before the first epoch ends to the end of a whole training."""
    whole = tmp_path / "whole"
    begin, process = time.monotonic(), start(script(whole, "resnet50", epochs=8), repository)
    while not epochs_in(whole) and process.poll() is None:
        time.sleep(0.05)
    first = time.monotonic() - begin
    assert ended(process, 1800)
    last, kills, runs_made, after = time.monotonic() - begin, 0, 0, []
    while kills < TRAININGS:
        run, before, begin = tmp_path / f"run-{runs_made}", kills, time.monotonic()
        runs_made += 1
        while not ended(start(script(run, "resnet50", epochs=8), repository),
                        moments.uniform(0.8 * first, last) if kills < TRAININGS else 1800):
            kills += 1
            after.append(epochs_in(run))
            print(f"kill {kills}: run {runs_made}, {after[-1]} epochs done", flush=True)
            assert not run.exists() or (run / "run.json").is_file()
        if kills == before:  # the machine may have become faster
            first, last = first * (time.monotonic() - begin) / last, time.monotonic() - begin
        assert_same_run(whole, run)
    print(f"{kills} kills over {runs_made} trainings, all of which ended like the undisturbed one")


def tables(checkout):  # noqa: F811
    """Every table of a smoke run that holds no time, and the weights of its networks, by their paths."""
    found = {}
    for path in sorted((checkout / RUNS).rglob("*.csv")):
        name = path.relative_to(checkout / RUNS).as_posix()
        if not name.startswith("speed"):
            table = pd.read_csv(path)
            found[name] = table.drop(columns=[column for column in table if column.startswith("seconds")])
    for path in sorted((checkout / RUNS).glob("*/seed-0/model.keras")):
        import keras

        import covidlib.models  # noqa: F401  the layers that saved models name

        weights = keras.models.load_model(path, compile=False).get_weights()
        name = path.relative_to(checkout / RUNS).as_posix()
        found[name] = pd.DataFrame([np.sum(array.astype(float)) for array in weights])
    return found


def assert_same_tables(found, wanted):
    assert found and found.keys() == wanted.keys()
    for name in wanted:
        pd.testing.assert_frame_equal(found[name], wanted[name], check_exact=True, obj=name)


def put_away(checkout, folder):  # noqa: F811
    folder.mkdir()
    for name in ("runs", "reports", "data"):
        (checkout / name).rename(folder / name)


def test_workflows(checkout, tmp_path, moments):  # noqa: F811
    begin = time.monotonic()
    assert ended(start(command(checkout), checkout), 1800)
    whole, wanted = time.monotonic() - begin, tables(checkout)
    put_away(checkout, tmp_path / "undisturbed")
    kills = 0
    while kills < WORKFLOWS:
        process = start(command(checkout), checkout)
        if ended(process, moments.uniform(0.05, 0.3) * whole):  # so far it got between the kills
            assert_same_tables(tables(checkout), wanted)
            put_away(checkout, tmp_path / f"after-{kills}")
            continue
        kills += 1
        print(f"kill {kills}: {sum(1 for path in (checkout / RUNS).rglob('*') if path.is_file())} files", flush=True)
    done = subprocess.run(command(checkout), cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (checkout / REPORT / "index.html").is_file()
    assert_same_tables(tables(checkout), wanted)


@pytest.fixture(scope="module")
def first(tmp_path_factory, worker_id):
    """A file for the tables of the first of the parallel runs, which all of pytest's workers see."""
    folder = tmp_path_factory.getbasetemp()
    return (folder if worker_id == "master" else folder.parent) / "first.pickle"


@pytest.mark.parametrize("run", range(PARALLEL), ids="run{:02}".format)
def test_jobs(repository, tmp_path, first, run):
    folder = copied(repository, tmp_path / "checkout")
    done = subprocess.run(command(folder, "--jobs", str(JOBS)), cwd=folder, capture_output=True, text=True)
    logs = [path for kind in ("*.log", "*.ipynb") for path in folder.rglob(kind)]
    said = [done.stdout, done.stderr, *(path.read_text() for path in logs)]
    assert done.returncode == 0, done.stderr[-4000:]
    assert {path.suffix for path in logs} == {".log", ".ipynb"} and not [text for text in said if CLASH in text]
    found = tables(folder)
    with FileLock(first.with_suffix(".lock")):
        if not first.exists():
            pd.to_pickle(found, first)
    assert_same_tables(found, pd.read_pickle(first))
    shutil.rmtree(folder)
