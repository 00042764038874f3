"""The smoke profile through Snakemake: killed, gone on with, repeated, and changed in one parameter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

REPORT, RUNS = "reports/phantom/smoke", "runs/phantom/smoke"


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("workflow", "notebooks"):
        shutil.copytree(repository / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(repository / "pyproject.toml", folder)
    return folder


def command(checkout, *options):
    return [sys.executable, str(checkout / "workflow/reproduce.py"), "--profile", "smoke", *options]


def reproduce(checkout, *options):
    return subprocess.run(command(checkout, *options), capture_output=True, text=True, cwd=checkout)


def times(checkout):
    folder = checkout / RUNS
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_killed_in_training_it_goes_on_and_ends_whole(checkout):
    process = subprocess.Popen(command(checkout), cwd=checkout, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((checkout / RUNS).glob("*/seed-0.partial/state.json")):
        assert process.poll() is None and time.monotonic() < deadline, "training did not begin"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (checkout / REPORT / "index.html").exists()
    done = reproduce(checkout)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "verdict" in done.stdout and f"{REPORT}/index.html" in done.stdout


@pytest.mark.slow
def test_the_report_is_whole(checkout):
    report = checkout / REPORT
    page = (report / "index.html").read_text()
    claims = json.loads((report / "claims.json").read_text())
    assert len(claims) >= 20
    assert {claim["verdict"] for claim in claims} <= {"reproduced", "not reproduced", "inconsistent in the paper",
                                                      "not testable here", "mechanics only"}
    assert not [claim["id"] for claim in claims if claim["dataset"] == "phantom" and claim["verdict"] == "reproduced"]
    figures = {path.stem for path in (report / "figures").iterdir()}
    assert all(any(name.startswith(f"figure{n}") for name in figures) for n in range(1, 7)), figures
    assert {path.suffix for path in (report / "figures").iterdir()} == {".png", ".svg", ".pdf", ".csv"}
    assert {"table1.csv", "table2.csv"} <= {path.name for path in (report / "tables").iterdir()}
    assert "notebooks/03_training.improved.seed-0.html" in page and (report / "claims.md").is_file()
    assert sum(path.stat().st_size for path in report.rglob("*") if path.suffix != ".ipynb") < 20e6


@pytest.mark.slow
def test_a_second_run_does_nothing(checkout):
    before = times(checkout)
    assert reproduce(checkout).returncode == 0
    assert times(checkout) == before


@pytest.mark.slow
def test_a_changed_parameter_reruns_what_depends_on_it(checkout):
    before = times(checkout)
    profile = checkout / "workflow/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("speed_repeats: 3", "speed_repeats: 4"))
    done = reproduce(checkout)
    assert done.returncode == 0, done.stderr[-4000:]
    changed = {path for path, when in times(checkout).items() if before.get(path) != when}
    assert "speed/speed.csv" in changed and all(path.startswith("speed/") for path in changed), changed


def test_wrong_choices_are_named(checkout):
    assert "invalid choice: 'fast'" in reproduce(checkout, "--profile", "fast").stderr
    assert "DATA_ROOT=" in reproduce(checkout, "--dataset", "ucsd-covid-ct").stderr
    assert "DATA_ROOT=nowhere" in reproduce(checkout, "--dataset", "folder", "--data-root", "nowhere").stderr


@pytest.mark.slow
def test_the_work_is_done_once_at_a_time(checkout):
    from filelock import FileLock

    (checkout / ".snakemake").mkdir(exist_ok=True)
    with FileLock(checkout / ".snakemake" / "reproduce.lock"):
        assert "is at work in this checkout" in reproduce(checkout).stderr


def test_every_profile_has_the_same_keys(repository):
    import yaml

    files = (repository / "workflow/profiles").glob("*.yaml")
    profiles = {path.stem: yaml.safe_load(path.read_text()) for path in files}
    assert set(profiles) == {"smoke", "quick", "study", "paper"}
    assert len({frozenset(set(profile) - {"datasets"}) for profile in profiles.values()}) == 1
    assert all(set(more) <= set(profiles["study"]) for more in profiles["study"]["datasets"].values())
    assert profiles["paper"]["epochs"] == 35 and profiles["paper"]["phantoms_per_class"] == [1350, 300, 1350]


def test_the_study_plans_every_run_of_its_protocol(checkout, repository):
    """Nine networks x five seeds, two networks x five folds, and the start that they share, where it is missing."""
    plan = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--configfile",
         "workflow/profiles/study.yaml", "--cores", "2", "--dry-run", "--config", "profile=study",
         "dataset=ucsd-covid-ct", "data_root=somewhere", "on_error=raise"],
        capture_output=True, text=True, cwd=checkout)
    assert plan.returncode == 0, plan.stderr[-2000:]
    jobs = dict(line.split()[:2] for line in plan.stdout.splitlines() if line.startswith("train"))
    assert jobs == {"train": "45", "train_fold": "10"}
    calls = plan.stdout + plan.stderr
    assert "seed-0-fold-4" in calls and "/mobilenet_v2/seed-4/" in calls
