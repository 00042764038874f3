"""The profiles of workflow/cluster, and the smoke sweep through a SLURM of one node (`pytest -m slurm`)."""

import contextlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import pandas as pd
import pytest
import yaml

RUNS = "runs/phantom/smoke"
CONFIG = ["--config", "profile=smoke", "dataset=phantom", "data_root=", "on_error=raise"]


def checkout(repository, folder):
    """Another checkout to run the workflow in."""
    for part in ("workflow", "notebooks"):
        shutil.copytree(repository / part, folder / part, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(repository / "pyproject.toml", folder)
    return folder


def snakemake(folder, *options, program=("-m", "snakemake")):
    return subprocess.run(
        [sys.executable, *program, "--snakefile", "workflow/Snakefile", "--configfile", "workflow/profiles/smoke.yaml",
         *options, *CONFIG], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["slurm", "kubernetes"])
def profile(request, repository):
    return yaml.safe_load((repository / "workflow/cluster" / request.param / "config.yaml").read_text())


def test_every_rule_is_provided_for(profile, repository):
    rules = set(re.findall(r"^rule (\w+):", (repository / "workflow/Snakefile").read_text(), re.MULTILINE))
    assert set(profile["set-resources"]) | set(profile["set-threads"]) <= rules
    assert profile["retries"] >= 1 and profile["jobs"] > 1
    assert {"runtime", "mem_mb"} <= set(profile["default-resources"])
    wanted = {"slurm": {"gres": "gpu:1"}, "kubernetes": {"gpu": 1, "gpu_manufacturer": "nvidia"}}[profile["executor"]]
    learning = ("train", "train_fold", "pretrain")
    assert all(wanted.items() <= profile["set-resources"][rule].items() for rule in learning)
    assert not [rule for rule, asked in profile["set-resources"].items()
                if rule not in learning and {"gpu", "gres"} & set(asked)]


def test_snakemake_takes_the_profile(profile, repository, tmp_path):
    executor = profile["executor"]
    pytest.importorskip(f"snakemake_executor_plugin_{executor}", reason="the extra `cluster` is not installed")
    folder = checkout(repository, tmp_path / "checkout")
    plan = snakemake(folder, "--dry-run", "--workflow-profile", f"workflow/cluster/{executor}")
    assert plan.returncode == 0, plan.stderr[-2000:]
    train = re.findall(r"rule train:.*?resources: (.*?)\n", plan.stdout + plan.stderr, re.DOTALL)
    assert len(train) == 2 and all("runtime=240" in asked and "mem_mb=16000" in asked for asked in train)
    assert all(("gres=gpu:1" if executor == "slurm" else "gpu=1") in asked for asked in train)


def test_a_wrong_name_and_a_missing_executor_are_errors_that_say_what_there_is(repository, monkeypatch, capsys):
    main = runpy.run_path(repository / "workflow/reproduce.py")["main"]
    for name, error in (("lsf", r"invalid choice: 'lsf' \(choose from '?kubernetes'?, '?slurm'?\)"),
                        ("slurm", r"cluster slurm needs its executor: .*\[cluster\]")):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--cluster", name])
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(SystemExit):
            main()
        assert re.search(error, capsys.readouterr().err)


@pytest.fixture(scope="module")
def pods(repository, tmp_path_factory):
    """What the Kubernetes executor submits in the smoke sweep, whose first training is reported as failed."""
    pytest.importorskip("snakemake_executor_plugin_kubernetes", reason="the extra `cluster` is not installed")
    folder = checkout(repository, tmp_path_factory.mktemp("kubernetes") / "checkout")
    sweep = snakemake(folder, "--workflow-profile", "workflow/cluster/kubernetes",
                      program=(repository / "tests/without_kubernetes.py",))
    assert sweep.returncode == 0, sweep.stderr[-4000:]
    return json.loads((folder / "jobs.json").read_text())


def test_kubernetes_gets_the_whole_sweep_and_a_failed_training_again(pods):
    rules = sorted(pod["rule"] for pod in pods)
    assert rules == ["augmentation", "baselines", "data", "evaluation", "model", "predict", "report", "speed",
                     "train", "train", "train"]
    attempts = [re.search(r"'train:(\S+)'.*--attempt (\d)", argument(pod)).groups() for pod in pods
                if pod["rule"] == "train"]
    assert sorted(attempt for _, attempt in attempts) == ["1", "1", "2"] and len(dict(attempts)) == 2


def test_the_jobs_fit_the_models_of_kubernetes_and_its_rule_for_gpus(pods):
    import kubernetes

    for pod in pods:
        body = {key: value for key, value in pod.items() if key != "rule"}
        client = kubernetes.client.ApiClient()
        job = client.deserialize(mock.Mock(data=json.dumps(body)), "V1Job")
        assert client.sanitize_for_serialization(job) == body  # a field that the models do not know would be lost
        spec = job.spec.template.spec
        container, = spec.containers
        asked, limits = container.resources.requests, container.resources.limits
        assert all(kubernetes.utils.parse_quantity(limits[name]) >= kubernetes.utils.parse_quantity(asked[name]) > 0
                   for name in asked)
        assert ("nvidia.com/gpu" in limits) == (pod["rule"] == "train")
        assert limits.get("nvidia.com/gpu") == asked.get("nvidia.com/gpu")  # or the API server refuses it
        assert {mount.name for mount in container.volume_mounts} == {volume.name for volume in spec.volumes}
        assert "/covidlib" in {mount.mount_path for mount in container.volume_mounts}
        assert job.spec.backoff_limit == 0 and spec.restart_policy == "Never"  # Snakemake tries again, not Kubernetes


@pytest.mark.parametrize("limit, code", [("5s", 7), ("0.2s", 124)])
def test_a_job_of_kubernetes_has_a_time_limit(pods, tmp_path, limit, code):
    (tmp_path / "python").write_text("#!/bin/sh\n[ \"$1 $2\" = '-m snakemake' ] && sleep 1 && exit 7\n")
    (tmp_path / "python").chmod(0o755)
    command = argument(pods[0]).replace("cd /covidlib", f"cd {tmp_path}").replace("timeout 240m", f"timeout {limit}")
    done = subprocess.run(["/bin/sh", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == code


def argument(pod):
    container, = pod["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["/bin/sh"] and container["args"][0] == "-c"
    return container["args"][1]


@pytest.fixture(scope="session")
def single_node(repository):
    """A SLURM on this machine, for as long as the tests run."""
    def script(action):
        return subprocess.run([repository / "workflow/cluster/single_node.sh", action], capture_output=True, text=True)

    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra `cluster` is not installed")
    if shutil.which("slurmctld") is None and (installed := script("install")).returncode:
        pytest.skip(f"SLURM cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    started = script("start")
    if started.returncode:
        pytest.skip(f"SLURM does not start: {started.stderr.strip().splitlines()[-1]}")
    yield
    stopped = script("stop")
    assert stopped.returncode == 0, stopped.stderr


@pytest.mark.slurm
@pytest.mark.timeout(3600)
def test_the_smoke_sweep_through_slurm_survives_a_killed_job_and_equals_a_local_run(single_node, repository, tmp_path):
    here, there = (checkout(repository, tmp_path / name) for name in ("local", "slurm"))
    started = time.monotonic()
    local = snakemake(here, "--cores", "2", f"{RUNS}/comparison/comparison.csv")
    assert local.returncode == 0, local.stderr[-4000:]
    print(f"local, as far as the comparison: {time.monotonic() - started:.0f} s")

    profile = there / "workflow/cluster/slurm/config.yaml"
    asked = yaml.safe_load(profile.read_text())
    asked["set-threads"] = dict.fromkeys(asked["set-threads"], 1)  # as many as the local run's notebooks have
    asked["default-resources"]["mem_mb"] = asked["set-resources"]["train"]["mem_mb"] = 4000
    asked["set-resources"]["evaluation"]["mem_mb"] = 4000
    asked["slurm-init-seconds-before-status-checks"] = 5
    profile.write_text(yaml.safe_dump(asked))
    started = time.monotonic()
    with open(there / "log", "w") as log:
        sweep = subprocess.Popen([sys.executable, "workflow/reproduce.py", "--profile", "smoke", "--cluster", "slurm"],
                                 cwd=there, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while not (states := list((there / RUNS).glob("*/seed-0.partial/state.json"))):
            assert sweep.poll() is None and time.monotonic() < started + 1200, (there / "log").read_text()[-4000:]
            time.sleep(0.1)
        variant = states[0].parent.parent.name
        job = next(number for number, comment in jobs() if comment.startswith(f"rule_train_wildcards_{variant}"))
        done = json.loads(states[0].read_text())["history"]
        subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
        assert not (there / RUNS / variant / "seed-0/run.json").exists(), "the training ended before it was killed"
        print(f"{variant}, job {job}, killed after {len(done)} epochs and {time.monotonic() - started:.0f} s")
        sweep.wait(2400)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ended well, and all that it started with it
            os.killpg(sweep.pid, signal.SIGKILL)
    said = (there / "log").read_text()
    assert sweep.returncode == 0, said[-4000:]
    print(f"through SLURM, whole: {time.monotonic() - started:.0f} s")
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout
    assert "JobState=COMPLETED" not in shown and "JobState=RUNNING" not in shown, shown
    assert (there / "reports/phantom/smoke/index.html").is_file()

    resumed = pd.read_csv(there / RUNS / variant / "seed-0/history.csv")
    assert list(resumed["seconds"][:len(done)]) == [row["seconds"] for row in done], "it began anew"
    for name in ("resnet50", "improved"):
        one, other = here / RUNS / name / "seed-0", there / RUNS / name / "seed-0"
        histories = [pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (one, other)]
        pd.testing.assert_frame_equal(*histories, check_exact=True)
        assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
        weights = [json.loads((run / "run.json").read_text())["model"]["weights_sha256"] for run in (one, other)]
        assert weights[0] == weights[1]
    tables = [pd.read_csv(folder / RUNS / "comparison/comparison.csv") for folder in (here, there)]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables), check_exact=True)


def jobs():
    """(number, comment) of SLURM's jobs."""
    listed = subprocess.run(["squeue", "--noheader", "--format=%i %k"], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
