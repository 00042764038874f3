"""The plan of the replication, its decisions and its workers; what it trains is training's."""

import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from test_training import tiny, toy

from covidlib import datasets, replication, runs, session

BUNDLES, HOME = "bundles", "home"


def test_the_plan_is_the_protocols():
    jobs = replication.plan()
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    assert all(set(job.needs) <= set(names[:place]) for place, job in enumerate(jobs)), "needed jobs come first"
    found = pd.DataFrame([{"fold": -1, "profile": replication.PROFILE} | job.arguments
                          for job in jobs if job.function is replication.train])
    counts = found.groupby(["dataset", "profile", found["fold"] >= 0])["seed"].count()
    assert counts["ucsd-covid-ct", "study-gpu", False] == 9 * 5
    assert counts["ucsd-covid-ct", "study-gpu", True] == 2 * 5 * 3
    assert counts["ucsd-covid-ct", "study-gpu-none", False] == 2 * 5
    assert counts["sarscov2-ct", "study-gpu", False] == counts["phantom", "study-gpu", False] == 2 * 3
    assert sum(job.function is replication.pilot for job in jobs) == 5 * len(replication.LEVERS)


def pilots(**gains):
    return pd.DataFrame([
        {"lever": lever, "seed": seed, "val_accuracy_last_5": 0.6 + gains.get(lever.replace("-", "_"), 0)}
        for lever in replication.LEVERS for seed in replication.PILOT_SEEDS])


def test_a_lever_meets_the_test_part_only_for_two_points():
    assert replication.decide(pilots(start_unlabelled=0.019)) == []
    jobs = replication.decide(pilots(start_unlabelled=0.021, three_times_longer=0.03))
    assert [job.arguments["profile"] for job in jobs] == ["study-gpu-three-times-longer"] * 10
    assert {(job.arguments["variant"], job.arguments["seed"]) for job in jobs} == {
        (variant, seed) for variant in ("resnet50", "improved") for seed in range(5)}
    assert {job.arguments["epochs"] for job in jobs} == {105}
    assert {job.arguments["epochs"] for job in replication.decide(pilots(start_unlabelled=0.021))} == {35}


def touch(bundles, home, name):
    (home / name).write_text(bundles)


def fail(bundles, home):
    raise ValueError("no such thing")


def test_workers_do_what_is_ready_and_go_on_after_a_failure(tmp_path, capsys):
    jobs = [replication.Job("second", touch, {"name": "second"}, ("first",)),
            replication.Job("first", touch, {"name": "first"}), replication.Job("broken", fail, {}),
            replication.Job("never", touch, {"name": "never"}, ("broken",))]
    assert replication.work(jobs, BUNDLES, tmp_path, 2, 60) == ["broken"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    told = capsys.readouterr().out
    assert "broken failed: ValueError: no such thing" in told and "2 done, 1 failed, 1 not begun" in told


def note(bundles, home, kind, seed):
    begun = time.monotonic()
    time.sleep(0.3)
    (home / f"{kind}-{seed}").write_text(f"{begun} {time.monotonic()}")


def test_the_first_of_a_kind_runs_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(replication, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    jobs = [replication.Job(f"{kind} {seed}", note, {"kind": kind, "seed": seed}) for kind in "ab" for seed in range(3)]
    assert replication.work(jobs, BUNDLES, tmp_path, 4, 60) == []
    for kind in "ab":
        times = [tuple(map(float, (tmp_path / f"{kind}-{seed}").read_text().split())) for seed in range(3)]
        (_, first_end), *others = sorted(times)
        assert all(begun > first_end for begun, _ in others)


def test_nothing_begins_when_time_is_over(tmp_path, capsys):
    assert replication.work([replication.Job("late", touch, {"name": "late"})], BUNDLES, tmp_path, 1, 0) == []
    assert not any(tmp_path.iterdir()) and "1 not begun" in capsys.readouterr().out


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Bundles of the toy set under the names of the three sets, in slices of its size."""
    source, images = toy()
    source = datasets.Source(source.manifest.assign(sha256="0"), source.classes, tmp_path, "toy")
    for dataset in replication.SPLITS:
        datasets.save(source, tmp_path / "runs" / dataset / "study")
    monkeypatch.setattr(replication.intake, "load_images", lambda *_: images)
    replication.pack(tmp_path / "runs", tmp_path / BUNDLES)
    monkeypatch.setattr(replication.pilots, "CHOSEN", replication.pilots.CHOSEN | {"image_size": 32, "weights": "none"})
    monkeypatch.setattr(session, "build_classifier", tiny)
    return tmp_path / BUNDLES


def test_bundles_hold_what_is_trained_on(packed):
    source, images = replication.unpack(packed, "phantom")
    wanted, pictures = toy()
    assert (images == pictures).all() and source.classes == wanted.classes
    assert source.manifest["label"].tolist() == wanted.manifest["label"].tolist()


def test_runs_and_pilots_are_those_of_the_study(packed, tmp_path, monkeypatch):
    replication.train(packed, tmp_path / HOME, "phantom", "resnet50", 2, weights="none", epochs=2)
    run = runs.read_run(tmp_path / HOME / "phantom" / "study-gpu" / "resnet50" / "seed-2")
    assert run.parameters["learning_rate"] == 1e-4 and len(run.history) == 2 and run.seed == 2
    row = replication.pilot(packed, tmp_path / HOME, "three-times-longer", 100)
    assert row["lever"] == "three-times-longer" and row["epochs"] == 45 and row["val_slices"] == 6
    monkeypatch.setitem(replication.LEVERS, "larger", {"image_size": 40})
    assert replication.pilot(packed, tmp_path / HOME, "larger", 101)["image_size"] == 40
    pilot = runs.read_run(next((tmp_path / HOME / "pilots-gpu").glob("*/seed-100")))
    assert set(pilot.predictions["split"]) == {"val"}, "the test part is not predicted"
