import json

import numpy as np
import pandas as pd
import pytest

from covidlib.evaluation import metrics
from covidlib.report import checks, claims
from covidlib.report.checks import Evidence, Finding, Missing

CLASSES = ["covid", "viral", "normal"]
MACHINE = {"cpu": "a processor", "os": "Linux 6", "python": "3.12.1", "backend": "jax", "jax": "0.9"}


def write_run(folder, variant, share, dataset, epochs=2, patients=60, seed=0, classes=CLASSES):
    """A finished run whose test predictions are right for `share` of two slices per patient."""
    run = folder / variant / f"seed-{seed}"
    run.mkdir(parents=True)
    rng = np.random.default_rng(0)
    n = 2 * patients
    labels = [classes[(i // 2) % len(classes)] for i in range(n)]
    right = rng.random(n) < share
    scores = {
        f"p_{name}": [0.8 if (name == label) == ok else 0.1 for label, ok in zip(labels, right, strict=True)]
        for name in classes
    }
    predictions = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(n)],
            "slice_index": 0,
            "split": "test",
            "patient": [f"p{i // 2}" for i in range(n)],
            "label": labels,
            **scores,
        }
    )
    predictions.to_csv(run / "predictions.csv", index=False)
    history = pd.DataFrame({"epoch": range(1, epochs + 1)}).assign(
        loss=0.5, accuracy=0.8, val_loss=0.6, val_accuracy=0.7, seconds=2.0
    )
    history.to_csv(run / "history.csv", index=False)
    content = {
        "parameters": {"dataset": dataset, "variant": variant, "seed": seed, "epochs": epochs},
        "classes": classes,
        "metrics": {"test": metrics.metrics(predictions, classes)},
        "model": {"parameters": 1},
        "wall_seconds": 1.0,
        "provenance": {"machine": MACHINE},
    }
    (run / "run.json").write_text(json.dumps(content))


def write_speed(folder, fps):
    (folder / "speed").mkdir()
    pd.DataFrame(
        [
            {
                "variant": variant,
                "harness": harness,
                "precision": "float32",
                "batch": 1,
                "threads": 2,
                "device": "cpu:0",
                "n": 5,
                "median_fps": factor * value,
                "q1": 0.9 * factor * value,
                "q3": 1.1 * factor * value,
            }
            for variant, value in fps.items()
            for harness, factor in {"predict loop": 1, "exported": 10 + (variant == "improved")}.items()
        ]
    ).to_csv(folder / "speed" / "speed.csv", index=False)


def make_runs(folder, dataset, **options):
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": dataset}))
    for variant, share in {"resnet50": 0.6, "improved": 0.95, "resnet50_fpn": 0.6}.items():
        write_run(folder, variant, share, dataset, **options)
    write_speed(folder, {"resnet50": 8.0, "improved": 6.0})
    return folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return claims.check(
        make_runs(tmp_path_factory.mktemp("runs") / "phantom" / "quick", "phantom", epochs=35)
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return claims.check(
        make_runs(tmp_path_factory.mktemp("runs") / "ucsd-covid-ct" / "quick", "ucsd-covid-ct")
    )


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return claims.check(tmp_path_factory.mktemp("empty"))


def by_id(rows):
    return {row["id"]: row for row in rows}


def test_ledger_is_whole_and_well_formed(phantom):
    assert len(phantom) >= 40 and len(by_id(phantom)) == len(phantom)
    keys = [
        "id",
        "section",
        "statement",
        "paper_value",
        "check",
        "measured",
        "interval",
        "dataset",
        "command",
        "verdict",
    ]
    for row in phantom:
        assert list(row) == keys
        assert row["verdict"] in claims.VERDICTS
        assert all(row[key] for key in ("statement", "paper_value", "check", "measured", "command"))
        assert "{" not in row["command"]
    sections = {row["section"] for row in phantom}
    assert sections == {
        "abstract",
        "§2.1",
        "§2.2",
        "§2.3",
        "§2.4",
        "§3.1",
        "§3.2",
        "§3.3",
        "§4",
        "references",
    }


def test_nothing_measured_on_phantoms_is_reproduced(phantom):
    on_images = [row for row in phantom if row["dataset"] is not None]
    assert len(on_images) >= 10
    assert {row["verdict"] for row in on_images} <= {"mechanics only", "not testable here"}
    assert by_id(phantom)["accuracy"]["verdict"] == "mechanics only"
    assert by_id(phantom)["plateau"]["verdict"] == "mechanics only"


@pytest.mark.parametrize("holds", [True, False, None])
@pytest.mark.parametrize("dataset", ["phantom", None])
def test_no_finding_on_phantoms_can_be_reproduced(holds, dataset):
    for claim in claims.CLAIMS:
        if claim.images:
            assert claims.verdict(claim, Finding(holds, ""), dataset) == "mechanics only"


def test_claims_without_images_name_no_dataset(phantom):
    flags = {claim.id: claim.images for claim in claims.CLAIMS}
    assert all((row["dataset"] is not None) == flags[row["id"]] for row in phantom)


def test_real_images_are_judged_by_the_interval(real):
    rows = by_id(real)
    assert rows["accuracy"]["dataset"] == "ucsd-covid-ct"
    assert rows["accuracy"]["verdict"] == "reproduced"
    assert rows["baseline"]["verdict"] == "not reproduced"
    low, high = rows["baseline"]["interval"]
    assert low < float(rows["baseline"]["measured"].split()[0]) < high < 0.87
    assert rows["gain"]["verdict"] == "reproduced" and rows["gain-pyramid"]["verdict"] == "not reproduced"
    assert rows["accuracy"]["command"] == "make reproduce PROFILE=quick DATASET=ucsd-covid-ct DATA_ROOT=<its folder>"


def test_measured_follows_the_artifacts(phantom, tmp_path):
    write_run(tmp_path, "improved", 0.5, "phantom")
    weaker = by_id(claims.check(tmp_path, "accuracy"))["accuracy"]
    assert float(weaker["measured"].split()[0]) < float(by_id(phantom)["accuracy"]["measured"].split()[0])


def test_few_patients_support_no_verdict(tmp_path):
    folder = make_runs(tmp_path / "covid-ct-md" / "quick", "covid-ct-md", patients=6)
    row = claims.check(folder, "accuracy")[0]
    assert row["verdict"] == "not testable here" and "6 independent patients" in row["measured"]


def test_one_patient_gives_a_wide_interval_not_none(tmp_path):
    folder = make_runs(tmp_path / "phantom" / "smoke", "phantom", patients=3)
    row = claims.check(folder, "recall-viral")[0]
    assert row["interval"][1] - row["interval"][0] > 0.5 and row["verdict"] == "mechanics only"


def test_other_classes_leave_recalls_open(tmp_path):
    folder = make_runs(tmp_path / "ucsd-covid-ct" / "quick", "ucsd-covid-ct", classes=["covid", "non_covid"])
    row = claims.check(folder, "recall-viral")[0]
    assert row["verdict"] == "not testable here" and row["measured"] == "no test slices of class viral"


def test_without_artifacts_the_reason_is_given(nothing):
    rows = by_id(nothing)
    assert (
        rows["accuracy"]["verdict"] == "not testable here" and "03_training" in rows["accuracy"]["measured"]
    )
    assert "06_speed" in rows["faster-cpu"]["measured"]
    assert {row["verdict"] for row in nothing if row["dataset"]} <= {"not testable here"}


def test_short_runs_say_nothing_about_35_epochs(real):
    assert by_id(real)["plateau"]["verdict"] == "not testable here"
    assert "2 epochs" in by_id(real)["plateau"]["measured"]


def test_speed_rows(phantom):
    rows = by_id(phantom)
    assert rows["environment"]["measured"] == "Linux 6, Python 3.12.1, jax 0.9, a processor"
    assert rows["faster-cpu"]["verdict"] == "not reproduced"
    assert rows["training-speed"]["verdict"] in ("not testable here", "mechanics only")
    assert rows["faster-cpu"]["measured"] == (
        "exported, float32: 0.82 times resnet50; predict loop, float32: 0.75 times resnet50, quartiles of 5 rounds")
    assert rows["fps-improved-cpu"]["verdict"] == "not testable here"
    assert rows["fps-improved-cpu"]["measured"].startswith("6.00 images/s")
    assert rows["faster-gpu"]["verdict"] == "not testable here" and "GPU" in rows["faster-gpu"]["measured"]


@pytest.mark.parametrize(
    ("id", "verdict", "part"),
    [
        ("slices", "reproduced", "= 3000"),
        ("detected", "inconsistent in the paper", "= 2703"),
        ("overall", "reproduced", "90.1%"),
        ("viral-exceeds", "inconsistent in the paper", "1221 correct of 300"),
        ("balanced", "not reproduced", "82.6%"),
        ("gain-unit", "inconsistent in the paper", "3.1 points are 3.6 %"),
        ("gain-chance", "not testable here", "z = 3.8 if the slices were independent, 1.9"),
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
    ],
)
def test_claims_that_need_no_images(nothing, id, verdict, part):
    row = by_id(nothing)[id]
    assert row["verdict"] == verdict and part in row["measured"] and row["dataset"] is None


def test_structural_checks_can_fail(monkeypatch):
    plain = checks.model("resnet50_fpn")
    moved = {"conv2_block3_out": 8, **{name: part for name, part in list(checks.STAGES.items())[1:]}}
    monkeypatch.setattr(checks, "STAGES", moved)
    assert not checks.stages(Evidence(".")).holds
    monkeypatch.setattr(checks, "model", lambda variant: plain)
    with pytest.raises(ValueError):
        checks.attention_keeps_size(Evidence("."))


def test_missing_names_what_to_do(tmp_path):
    with pytest.raises(Missing, match="03_training"):
        Evidence(tmp_path).of("improved")


def test_written_files_and_terminal_table(phantom, tmp_path, capsys):
    claims.write(phantom, tmp_path)
    assert json.loads((tmp_path / "claims.json").read_text()) == phantom
    text = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(phantom) + 4
    assert claims.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "mechanics only" in printed and str(tmp_path / "index.html") in printed
    assert max(map(len, claims.table(phantom, 120).splitlines())) <= 120


def test_command_line_measures_one_row(capsys):
    assert claims.main(["--check", "detected"]) == 0
    assert "2703" in capsys.readouterr().out


def test_command_line_errors_name_the_mend(tmp_path, capsys):
    assert claims.main([str(tmp_path)]) == 2
    assert "make reproduce" in capsys.readouterr().err
    assert claims.main(["--check", "nonsense"]) == 2
    assert "attention-size" in capsys.readouterr().err


def test_a_difference_is_told_over_the_folds_where_there_are_any(tmp_path):
    """The split's 60 patients say nothing, the folds' 300 do: what tests more slices is what counts."""
    folder = make_runs(tmp_path / "ucsd-covid-ct" / "study", "ucsd-covid-ct", classes=["covid", "non_covid"])
    alone = claims.check(folder, "gain")[0]
    for variant, share in (("resnet50", 0.6), ("improved", 0.8)):
        for fold in range(5):
            write_run(tmp_path / "one", variant, share, "ucsd-covid-ct", classes=["covid", "non_covid"])
            run = tmp_path / "one" / variant / "seed-0"
            table = pd.read_csv(run / "predictions.csv")
            for column in ("path", "patient"):
                table[column] = f"fold {fold} " + table[column]
            table.to_csv(run / "predictions.csv", index=False)
            run.rename(folder / variant / f"seed-0-fold-{fold}")
    pooled = claims.check(folder, "gain")[0]
    assert "120 test slices" in alone["measured"]
    assert "600 slices, each tested in one of the folds" in pooled["measured"]
    assert pooled["interval"][0] > 0 and pooled["verdict"] == "reproduced"
    assert np.diff(pooled["interval"]) < np.diff(alone["interval"])
    assert "1 seed" in claims.check(folder, "accuracy")[0]["measured"]


def test_an_accuracy_that_needs_no_anatomy_is_not_reproduced(tmp_path):
    runs_dir = make_runs(tmp_path / "runs", "folder")
    own = checks.accuracy(Evidence(runs_dir), "improved", 0.1)
    assert own.holds
    (runs_dir / "audit").mkdir()
    table = pd.DataFrame([["outside the lungs", "harmonised", "grouped cross-validation", own.interval[0] - 0.01],
                          ["file facts", "files", "grouped cross-validation", 0.2],
                          ["sharpness", "harmonised", "grouped cross-validation", 0.99]],
                         columns=["baseline", "seen", "protocol", "accuracy"])
    table.to_csv(runs_dir / "audit" / "shortcuts.csv", index=False)
    assert checks.accuracy(Evidence(runs_dir), "improved", 0.1).holds
    table.assign(accuracy=own.interval[0] + 0.01).to_csv(runs_dir / "audit" / "shortcuts.csv", index=False)
    with pytest.raises(Missing, match="no evidence that disease is seen"):
        checks.accuracy(Evidence(runs_dir), "improved", 0.1)
    assert not checks.accuracy(Evidence(runs_dir), "improved", 1.1).holds
