import json

import numpy as np
import pandas as pd
import pytest

from covidlib.audit import shortcuts
from covidlib.evaluation import metrics
from covidlib.report import checks, claims
from covidlib.report.checks import Evidence, Finding, Missing
from covidlib.report.figures import PAPER

CLASSES = ["covid", "viral", "normal"]
MACHINE = {"cpu": "a processor", "os": "Linux 6", "python": "3.12.1", "backend": "jax", "jax": "0.9"}


def write_run(folder, variant, share, dataset, epochs=2, patients=60, seed=0, classes=CLASSES):
    """A finished run whose test predictions are right for `share` of two slices per patient."""
    run = folder / variant / f"seed-{seed}"
    run.mkdir(parents=True)
    slices = np.arange(2 * patients)
    labels = [classes[i // 2 % len(classes)] for i in slices]
    right = np.random.default_rng(0).random(len(slices)) < share
    scores = {f"p_{name}": [0.8 if (name == label) == ok else 0.1 for label, ok in zip(labels, right, strict=True)]
              for name in classes}
    predictions = pd.DataFrame({"path": [f"{i}.png" for i in slices], "slice_index": 0, "split": "test",
                                "patient": [f"p{i // 2}" for i in slices], "label": labels, **scores})
    predictions.to_csv(run / "predictions.csv", index=False)
    pd.DataFrame({"epoch": range(1, epochs + 1), "loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7,
                  "seconds": 2.0}).to_csv(run / "history.csv", index=False)
    (run / "run.json").write_text(json.dumps({
        "parameters": {"dataset": dataset, "variant": variant, "seed": seed, "epochs": epochs}, "classes": classes,
        "metrics": {"test": metrics.metrics(predictions, classes)}, "model": {"parameters": 1}, "wall_seconds": 1.0,
        "provenance": {"machine": MACHINE}}))


def make_runs(folder, dataset, **options):
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": dataset}))
    for variant, share in {"resnet50": 0.6, "improved": 0.95, "resnet50_fpn": 0.6}.items():
        write_run(folder, variant, share, dataset, **options)
    (folder / "speed").mkdir()
    rows = [[variant, harness, "float32", 1, 2, "cpu:0", 5, fps, 0.9 * fps, 1.1 * fps] for variant, harness, fps in (
        ("resnet50", "predict loop", 8.0), ("resnet50", "exported", 80.0), ("improved", "predict loop", 6.0),
        ("improved", "exported", 66.0))]
    pd.DataFrame(rows, columns=["variant", "harness", "precision", "batch", "threads", "device", "n", "median_fps",
                                "q1", "q3"]).to_csv(folder / "speed" / "speed.csv", index=False)
    return folder


def by_id(rows):
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return claims.check(make_runs(tmp_path_factory.mktemp("runs") / "phantom" / "quick", "phantom", epochs=35))[0]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = make_runs(tmp_path_factory.mktemp("runs") / "ucsd-covid-ct" / "quick", "ucsd-covid-ct")
    return by_id(claims.check(folder)[0])


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """(rows by id, what is missing by id) of an empty folder."""
    rows, missing = claims.check(tmp_path_factory.mktemp("empty"))
    return by_id(rows), missing


def one(folder, id):
    (row,), _ = claims.check(folder, id)
    return row


def test_ledger_is_whole_and_well_formed(phantom):
    assert len(phantom) >= 40 and len(by_id(phantom)) == len(phantom)
    known = {claim.id: claim for claim in claims.CLAIMS}
    for row in phantom:
        claim = known[row["id"]]
        assert list(row) == ["id", "section", "statement", "paper_value", "check", "measured", "interval", "dataset",
                             "command", "verdict"]
        assert row["verdict"] in claims.VERDICTS and claim.otherwise in ("", *claims.VERDICTS)
        assert all(row[key] for key in ("statement", "paper_value", "check", "measured", "command"))
        assert bool(claim.check) != bool(claim.reading)
        assert (row["dataset"] is not None) == claims.needs_images(claim)
    assert {row["section"] for row in phantom} == {
        "abstract", "§2.1", "§2.2", "§2.3", "§2.4", "§3.1", "§3.2", "§3.3", "§4", "references"}


def test_the_ledger_repeats_the_papers_values():
    stated = {claim.check: claim.paper_value for claim in claims.CLAIMS}
    assert all(stated[f"fps {variant} {device}"] == str(value) for (variant, device), value in PAPER["fps"].items())
    assert all(float(stated[f"accuracy {variant}"]) == value for variant, value in PAPER["accuracy"].items())
    assert all(stated[f"accuracy improved {name}"] == f"{value:.3f}" for name, value in checks.RECALLS.items())
    assert {f"class_sum 3000 {' '.join(map(str, checks.COUNTS.values()))}",
            f"class_sum 2903 {' '.join(map(str, checks.CORRECT.values()))}"} <= set(stated)


def test_nothing_measured_on_phantoms_is_reproduced(phantom):
    on_images = [row for row in phantom if row["dataset"] is not None]
    assert len(on_images) >= 8
    assert {row["verdict"] for row in on_images} == {"mechanics only"}
    assert by_id(phantom)["accuracy"]["verdict"] == by_id(phantom)["plateau"]["verdict"] == "mechanics only"
    for claim in filter(claims.needs_images, claims.CLAIMS):
        for holds in (True, False, checks.INCONCLUSIVE):
            for dataset in ("phantom", None):
                assert claims.verdict(claim, Finding(holds, ""), dataset) == "mechanics only"


def test_real_images_are_judged_by_the_interval(real):
    assert real["accuracy"]["dataset"] == "ucsd-covid-ct"
    assert real["accuracy"]["verdict"] == real["baseline"]["verdict"] == "not comparable"
    low, high = real["baseline"]["interval"]
    assert low < float(real["baseline"]["measured"].split()[0]) < high < 0.87
    assert real["gain"]["verdict"] == "reproduced" and real["gain-pyramid"]["verdict"] == "not reproduced"
    assert real["accuracy"]["command"] == "make reproduce PROFILE=quick DATASET=ucsd-covid-ct DATA_ROOT=<its folder>"


def test_measured_follows_the_artifacts(phantom, tmp_path):
    write_run(tmp_path, "improved", 0.5, "phantom")
    weaker = one(tmp_path, "accuracy")
    assert float(weaker["measured"].split()[0]) < float(by_id(phantom)["accuracy"]["measured"].split()[0])


def test_few_patients_support_no_verdict(tmp_path):
    folder = make_runs(tmp_path / "covid-ct-md" / "quick", "covid-ct-md", patients=6)
    rows, missing = claims.check(folder, "accuracy")
    assert not rows and "6 independent patients" in missing["accuracy"]


def test_one_patient_gives_a_wide_interval_not_none(tmp_path):
    folder = make_runs(tmp_path / "phantom" / "smoke", "phantom", patients=3)
    row = one(folder, "recall-viral")
    assert row["interval"][1] - row["interval"][0] > 0.5 and row["verdict"] == "mechanics only"


def test_other_classes_leave_recalls_open(tmp_path):
    folder = make_runs(tmp_path / "ucsd-covid-ct" / "quick", "ucsd-covid-ct", classes=["covid", "non_covid"])
    assert claims.check(folder, "recall-viral") == ([], {"recall-viral": "no test slices of class viral"})


def test_without_artifacts_the_reason_is_given(nothing, tmp_path):
    rows, missing = nothing
    assert "03_training" in missing["accuracy"] and "06_speed" in missing["faster-cpu"]
    assert {claim.id for claim in claims.CLAIMS if claims.needs_images(claim)} <= missing.keys()
    assert not rows.keys() & missing.keys() and len(rows) + len(missing) == len(claims.CLAIMS)
    with pytest.raises(Missing, match="03_training"):
        Evidence(tmp_path).of("improved")


def test_short_runs_say_nothing_about_35_epochs(tmp_path):
    _, missing = claims.check(make_runs(tmp_path / "ucsd-covid-ct" / "quick", "ucsd-covid-ct"), "plateau")
    assert "2 epochs" in missing["plateau"]


def test_speed_rows(phantom):
    rows = by_id(phantom)
    assert rows["environment"]["measured"] == "Linux 6, Python 3.12.1, jax 0.9, a processor"
    assert rows["faster-cpu"]["verdict"] == "not reproduced"
    assert rows["training-speed"]["verdict"] == "mechanics only"
    assert rows["faster-cpu"]["measured"] == (
        "exported, float32: 0.82 times resnet50; predict loop, float32: 0.75 times resnet50, quartiles of 5 rounds")
    assert rows["fps-improved-cpu"]["verdict"] == "not comparable"
    assert rows["fps-improved-cpu"]["measured"].startswith("6.00 images/s")
    assert "faster-gpu" not in rows


@pytest.mark.parametrize("id, verdict, part", [
    ("slices", "reproduced", "= 3000"),
    ("detected", "inconsistent in the paper", "= 2703"),
    ("overall", "reproduced", "90.1%"),
    ("viral-exceeds", "inconsistent in the paper", "1221 correct of 300"),
    ("balanced", "not reproduced", "82.6%"),
    ("gain-unit", "inconsistent in the paper", "3.1 points are 3.6 %"),
    ("gain-chance", "inconclusive", "z = 3.8 if the slices were independent, 1.9"),
    ("faster-with-more", "inconsistent in the paper", "1.62 times the speed"),
    ("time-complexity", "not reproduced", "times the MACs"),
    ("space-complexity", "not reproduced", "times the parameters"),
    ("lightweight", "not reproduced", "MobileNetV2"),
    ("hue-saturation", "not reproduced", "0 of 2"),
    ("brightness-contrast", "reproduced", "2 of 2"),
    ("geometric", "reproduced", "6 of 6"),
    ("stages", "reproduced", "conv5_block3_out 2 x 2"),
    ("pyramid", "reproduced", "4 of 4 stages"),
    ("attention-size", "reproduced", "8x8x512 to 8x8x512"),
    ("attention-place", "reproduced", "attention_conv5 in conv5_block3"),
    ("attention-reach", "reproduced", "3 of 3"),
    ("parameters-kept", "reproduced", "parameters are added"),
    ("softmax", "reproduced", "64 rows"),
    ("cross-entropy", "reproduced", "64 rows"),
    ("overlap", "inconsistent in the paper", "none is left to train on"),
    ("source", "not comparable", "no source"),
])
def test_claims_that_need_no_images(nothing, id, verdict, part):
    row = nothing[0][id]
    assert row["verdict"] == verdict and part in row["measured"] and row["dataset"] is None


def test_structural_checks_can_fail(monkeypatch):
    plain = checks.model("resnet50_fpn")
    monkeypatch.setattr(checks, "STAGES", checks.STAGES | {"conv2_block3_out": 8})
    assert not checks.stages(None).holds
    monkeypatch.setattr(checks, "model", lambda variant: plain)
    with pytest.raises(ValueError):
        checks.attention_keeps_size(None)


def test_written_files_and_terminal_table(phantom, tmp_path, capsys):
    claims.write(phantom, {"faster-gpu": "no GPU"}, tmp_path)
    assert json.loads((tmp_path / "claims.json").read_text()) == phantom
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(phantom) + 8 and text.endswith("- faster-gpu: no GPU\n")
    assert claims.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mechanics only" in printed and str(tmp_path / "index.html") in printed
    assert max(map(len, claims.table(phantom, 120).splitlines())) <= 120


def test_command_line(tmp_path, capsys):
    assert claims.main(["--check", "detected"]) == 0 and "2703" in capsys.readouterr().out
    assert claims.main([str(tmp_path)]) == 2 and "make reproduce" in capsys.readouterr().err
    assert claims.main(["--check", "nonsense"]) == 2 and "attention-size" in capsys.readouterr().err


def test_a_difference_is_reported_over_the_folds_where_there_are_any(tmp_path):
    """The folds' 300 patients decide, not the split's 60: what tests more slices counts."""
    folder = make_runs(tmp_path / "ucsd-covid-ct" / "study", "ucsd-covid-ct", classes=["covid", "non_covid"])
    alone = one(folder, "gain")
    for variant, share in (("resnet50", 0.6), ("improved", 0.8)):
        for fold in range(5):
            write_run(tmp_path / "one", variant, share, "ucsd-covid-ct", classes=["covid", "non_covid"])
            run = tmp_path / "one" / variant / "seed-0"
            table = pd.read_csv(run / "predictions.csv")
            table[["path", "patient"]] = f"fold {fold} " + table[["path", "patient"]]
            table.to_csv(run / "predictions.csv", index=False)
            run.rename(folder / variant / f"seed-0-fold-{fold}")
    pooled = one(folder, "gain")
    assert "120 test slices" in alone["measured"]
    assert "600 slices, each tested in one of the folds" in pooled["measured"]
    assert pooled["interval"][0] > 0 and pooled["verdict"] == "reproduced"
    assert np.diff(pooled["interval"]) < np.diff(alone["interval"])
    assert "1 seed" in one(folder, "accuracy")["measured"]


def test_an_accuracy_stands_beside_the_best_shortcut_that_the_network_could_have_seen(tmp_path):
    runs_dir = make_runs(tmp_path / "runs", "folder")
    own = checks.accuracy(Evidence(runs_dir), "improved")
    (runs_dir / "audit").mkdir()
    for margin in (-0.01, 0.01):
        rows = [["lungs blacked out", "lungs", own.interval[0] + margin],
                ["file facts", shortcuts.FILES, 0.99], ["sharpness", "whole", 0.99]]
        pd.DataFrame(rows, columns=["baseline", "seen", "accuracy"]).assign(
            protocol=shortcuts.CROSS_VALIDATION).to_csv(runs_dir / "audit" / "shortcuts.csv", index=False)
        text = checks.accuracy(Evidence(runs_dir), "improved").measured
        assert f"lungs blacked out, reaches {own.interval[0] + margin:.3f}" in text
        assert ("no evidence that disease is recognised" in text) is (margin > 0)


@pytest.mark.parametrize("low, high, stated, verdict", [
    (-0.01, 0.05, 0.031, "inconclusive"), (0.01, 0.05, 0.031, "reproduced"), (-0.01, 0.02, 0.031, "not reproduced"),
    (0.01, 0.02, 0.031, "not reproduced"), (0.04, 0.05, 0.031, "reproduced"), (-0.03, -0.01, 0, "not reproduced"),
    (-0.01, 0.01, 0, "inconclusive"), (0.01, 0.02, 0, "reproduced")])
def test_a_difference_is_held_against_zero_and_the_papers_figure(monkeypatch, tmp_path, low, high, stated, verdict):
    runs_dir = make_runs(tmp_path / "ucsd-covid-ct" / "quick", "ucsd-covid-ct")
    paired = checks.comparison.paired_difference
    monkeypatch.setattr(checks.comparison, "paired_difference", lambda *tables: (
        paired(*tables)[0], {"difference": (low + high) / 2, "low": low, "high": high, "p_bootstrap": 0.5}))
    finding = checks.difference(Evidence(runs_dir), "improved", "resnet50", stated)
    claim = next(claim for claim in claims.CLAIMS if claim.id == "gain")
    assert claims.verdict(claim, finding, "ucsd-covid-ct") == verdict
