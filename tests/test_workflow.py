"""The smoke profile through Snakemake, without network, HOME or UTF-8: killed, gone on with, repeated, changed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pydicom
import pytest
from conftest import every_process

from covidlib import datasets
from covidlib.report.claims import VERDICTS

REPORT, RUNS = "reports/phantom/smoke", "runs/phantom/smoke"


def copied(repository, folder):
    """Another checkout to run the workflow in."""
    for part in ("workflow", "notebooks"):
        shutil.copytree(repository / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(repository / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def checkout(repository, tmp_path_factory):
    return copied(repository, tmp_path_factory.mktemp("checkout"))


def command(checkout, *options):
    return [sys.executable, str(checkout / "workflow/reproduce.py"), "--profile", "smoke", *options]


def offline(checkout, **more):
    """The environment in which every process is kept to this machine, and trains narrow networks."""
    return every_process(OFFLINE_LOG=str(checkout / "asked-for.txt"), **more)


def bare(checkout):
    """The same without a HOME, and with a locale that knows no letters but ASCII's."""
    environment = offline(checkout, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    return {name: value for name, value in environment.items() if name != "HOME"}


def reproduce(checkout, *options):
    return subprocess.run(command(checkout, *options), capture_output=True, text=True, cwd=checkout, env=bare(checkout))


def times(checkout):
    folder = checkout / RUNS
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_killed_in_training_it_goes_on_and_ends_whole(checkout):
    process = subprocess.Popen(command(checkout), cwd=checkout, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=bare(checkout))
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
    assert {claim["verdict"] for claim in claims} <= set(VERDICTS)
    assert not [claim["id"] for claim in claims if claim["dataset"] == "phantom" and claim["verdict"] == "reproduced"]
    figures = {path.stem for path in (report / "figures").iterdir()}
    assert all(any(name.startswith(f"figure{n}") for name in figures) for n in range(1, 7)), figures
    assert {path.suffix for path in (report / "figures").iterdir()} == {".png", ".svg", ".pdf", ".csv"}
    assert {"table1.csv", "table2.csv"} <= {path.name for path in (report / "tables").iterdir()}
    assert "notebooks/03_training.improved.seed-0.html" in page and (report / "claims.md").is_file()
    assert sum(path.stat().st_size for path in report.rglob("*") if path.suffix != ".ipynb") < 10e6


@pytest.mark.slow
def test_a_second_run_does_nothing(checkout):
    before = times(checkout)
    assert reproduce(checkout).returncode == 0
    assert times(checkout) == before


@pytest.mark.slow
def test_a_changed_parameter_reruns_what_depends_on_it(checkout):
    profile = checkout / "workflow/profiles/smoke.yaml"
    profile.write_text(profile.read_text().replace("speed_repeats: 3", "speed_repeats: 4"))
    plan = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--cores", "2", "--dry-run",
         "--configfile", "workflow/profiles/smoke.yaml", ".snakemake/given.json"],
        capture_output=True, text=True, cwd=checkout)
    assert plan.returncode == 0, plan.stderr[-4000:]
    assert set(re.findall(r"^(\w+) +\d+$", plan.stdout, re.MULTILINE)) == {"speed", "report", "all", "total"}


@pytest.mark.slow
def test_nothing_is_asked_of_a_network(checkout):
    """Nothing before; and the guard is at work: this asks for a name that nobody has."""
    asked = checkout / "asked-for.txt"
    assert not asked.exists(), asked.read_text()
    code = "import urllib.request; urllib.request.urlopen('http://nowhere.invalid')"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline(checkout))
    assert "offline: nowhere.invalid" in refused.stderr and asked.read_text() == "nowhere.invalid\n"
    asked.unlink()


TAGS = {"PatientName": "Zebedee^Quux", "PatientID": "MRN-48151623", "PatientBirthDate": "19371117",
        "AccessionNumber": "ACC-7788990", "InstitutionName": "Xanadu Infirmary", "ReferringPhysicianName": "Wug^Blick",
        "StudyID": "STU-55443322", "PatientAddress": "7 Foobar Mews", "StudyInstanceUID": "1.2.826.0.1.77665544.1",
        "SeriesInstanceUID": "1.2.826.0.1.77665544.2", "SOPInstanceUID": "1.2.826.0.1.77665544.3"}


def contents(path):
    """The bytes of a file, and of what it holds where it is a zip archive (.keras, .npz)."""
    yield path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from map(archive.read, archive.namelist())


@pytest.mark.slow
def test_scans_with_names_to_hide_in_folders_whose_names_are_commands(checkout, tmp_path):
    """From the review of the data to predictions: no tag in any output, and nothing that a name says is carried out."""
    root = tmp_path / """it's "two" $(touch pwned) `touch pwned`; touch pwned & {x} \n %s ü"""
    drawn = datasets.load("phantom", tmp_path / "drawn", [12, 9, 12], seed=3)
    for number, row in enumerate(drawn.manifest.itertuples()):
        slice_ = pydicom.dcmread(tmp_path / "drawn" / row.path)
        for name, value in TAGS.items():
            setattr(slice_, name, value)
        slice_.PatientID += f"-{number % 4}{row.label}"
        slice_.SeriesInstanceUID += f".{number}"
        slice_.SOPInstanceUID += f".{number}"
        folder = root / f"{row.label} $(touch pwned)"
        folder.mkdir(parents=True, exist_ok=True)
        slice_.save_as(folder / f"{number} `touch pwned`.dcm")
    given = {"profile": "smoke", "dataset": "folder", "data_root": str(root), "on_error": "raise"}
    (tmp_path / "given.json").write_text(json.dumps(given))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--cores", "2", "--configfile",
         "workflow/profiles/smoke.yaml", str(tmp_path / "given.json"), "--",
         "runs/folder/smoke/predict/predictions.csv"],
        capture_output=True, text=True, cwd=checkout, env=offline(checkout))
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [path for place in ("runs/folder", "reports/folder", ".snakemake")
               for path in (checkout / place).rglob("*") if path.is_file()]
    assert {"manifest.csv", "predictions.csv", "sheet.html", "08_predict.ipynb"} <= {path.name for path in outputs}
    told = [(path.name, value) for path in outputs for content in contents(path) for value in TAGS.values()
            if value.encode() in content]
    assert not told and not [value for value in TAGS.values() if value in done.stdout + done.stderr]
    assert not list(checkout.rglob("pwned")) + list(tmp_path.glob("pwned"))
    assert not (checkout / "asked-for.txt").exists()


@pytest.mark.slow
def test_a_folder_may_be_called_as_a_number_is(checkout):
    (checkout / "12").mkdir()
    missing = reproduce(checkout, "--dataset", "ucsd-covid-ct", "--data-root", "12", "--jobs", "1")
    assert "12 is not a ucsd-covid-ct folder" in missing.stdout + missing.stderr


def test_make_hands_on_what_it_was_given(repository):
    given = """it's "two" $(shell touch pwned) `touch pwned`"""
    shown = subprocess.run(["make", "--dry-run", "reproduce", f"DATA_ROOT={given}"], capture_output=True, text=True,
                           cwd=repository)
    assert given in shlex.split(shown.stdout.replace("\\\n", "")) and not (repository / "pwned").exists()


def test_wrong_choices_are_named(checkout):
    assert "invalid choice: 'fast'" in reproduce(checkout, "--profile", "fast").stderr
    assert "invalid choice: 'x; y'" in reproduce(checkout, "--dataset", "x; y").stderr
    assert "DATA_ROOT=" in reproduce(checkout, "--dataset", "ucsd-covid-ct").stderr
    assert "DATA_ROOT=nowhere" in reproduce(checkout, "--dataset", "folder", "--data-root", "nowhere").stderr


@pytest.mark.slow
def test_the_work_is_done_once_at_a_time(checkout):
    from filelock import FileLock

    (checkout / ".snakemake").mkdir(exist_ok=True)
    with FileLock(checkout / ".snakemake" / "reproduce.lock"):
        assert "is at work in this checkout" in reproduce(checkout).stderr


@pytest.mark.parametrize("closed, named", [(".", ".snakemake"), (".snakemake", ".snakemake"), ("runs", RUNS),
                                           ("reports", REPORT)])
def test_a_checkout_that_cannot_be_written_is_told(repository, tmp_path, bound, closed, named):
    folder = copied(repository, tmp_path / "checkout")
    (folder / closed).mkdir(exist_ok=True)
    (folder / closed).chmod(0o555)
    done = subprocess.run([*bound, *command(folder)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == (
        "make reproduce writes to this checkout, and nothing can be written to this folder (Permission denied): give "
        f"yourself the right to, or take another one. Received: folder={folder / named}\n")


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
