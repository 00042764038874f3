import json

import numpy as np
import pandas as pd
import pytest

from covidlib.training import runs
from study import publish, results

CLASSES = ("covid", "non_covid")
MACHINE = {"cpu": "a processor", "os": "Linux 6", "python": "3.12.1", "backend": "jax", "jax": "0.9"}


def predictions(rng, skill, patients, split="test", sure=2):
    """Two slices a patient; the network gives the true class `skill` more logit on average, times `sure`."""
    names = [f"p{n:03d}" for n in patients for _ in (0, 1)]
    truth = np.array([n % 2 for n in patients for _ in (0, 1)])
    logit = rng.normal(size=len(truth)) + skill * np.where(truth == 0, 1, -1)
    score = 1 / (1 + np.exp(-sure * logit))
    return pd.DataFrame({"path": [f"{name}/{k}.png" for k, name in enumerate(names)], "slice_index": 0,
                         "patient": names, "split": split, "label": [CLASSES[k] for k in truth], "p_covid": score,
                         "p_non_covid": 1 - score})


def write_run(home, dataset, variant, seed, fold, skill, test, profile="study"):
    rng = np.random.default_rng([seed, fold + 1, sum(variant.encode())])
    folder = home / "runs" / dataset / profile / variant / runs.folder_name(seed, fold)
    folder.mkdir(parents=True)
    table = pd.concat([predictions(rng, skill, range(1000, 1060), split="val"), predictions(rng, skill, test)])
    table.to_csv(folder / "predictions.csv", index=False)
    epochs = np.arange(1, 36)
    pd.DataFrame({"epoch": epochs, "loss": 1 / epochs, "accuracy": 0.9, "val_loss": 0.5 + abs(epochs - 20) / 100,
                  "val_accuracy": 0.8, "seconds": 1.0}).to_csv(folder / "history.csv", index=False)
    content = {"parameters": {"variant": variant, "seed": seed, "weights": "phantom", "image_size": 96, "epochs": 35},
               "classes": list(CLASSES), "wall_seconds": 9.0, "metrics": {"test": {"accuracy": 5.0}},
               "provenance": {"parameters": {"weights": "phantom"}, "machine": MACHINE,
                              "manifest_sha256": "x"}}
    runs.write_json(folder / "run.json", content)
    return folder


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """Two networks in five folds, and the better one with two seeds on a split; as a folder of runs."""
    home = tmp_path_factory.mktemp("study")
    for fold in range(5):
        for variant, skill in (("resnet50", 0.5), ("improved", 1.5)):
            write_run(home, "ucsd-covid-ct", variant, 0, fold, skill, range(40 * fold, 40 * fold + 40))
    for seed in (0, 1):
        for variant, skill in (("resnet50", 0.5), ("improved", 0.5), ("resnet50_fpn", 1.5)):
            folder = write_run(home, "ucsd-covid-ct", variant, seed, -1, skill, range(100))
    predictions(np.random.default_rng(0), 2.0, range(30)).drop(columns="split").to_csv(
        folder / "across-sarscov2-ct.csv", index=False)
    (home / "runs/ucsd-covid-ct/study/dataset.json").write_text(json.dumps(
        {"name": "ucsd-covid-ct", "classes": CLASSES, "slices": 400, "patients": 200, "official_split": True,
         "counts": {}, "manifest_sha256": "x", "root": "../secret", "notes": ["a note"]}))
    audit = home / "runs/ucsd-covid-ct/study/audit"
    audit.mkdir()
    pd.DataFrame({"baseline": ["majority class", "file facts", "outside the lungs"],
                  "seen": ["files", "files", "cropped to the lungs"], "protocol": "official test split",
                  "accuracy": [0.5, 0.9, 0.5], "low": 0.4, "high": 0.95, "auc": 0.5}).to_csv(
        audit / "shortcuts.csv", index=False)
    return home


@pytest.fixture(scope="module")
def tables(runs_folder):
    return results.tables(runs_folder)


@pytest.fixture(scope="module")
def published(runs_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    assert publish.main(["--runs", str(runs_folder / "runs"), "--folder", str(folder)]) == 0
    return folder


def slices(summary):
    return summary[summary.unit == "slice"].set_index(["protocol", "variant"])


def test_folds_are_pooled_and_seeds_are_averaged(runs_folder, tables):
    table = slices(tables["summary"])
    folds = table.loc[("folds", "improved")]
    assert folds.n == 400 and folds.patients == 200 and folds.folds == 5
    assert folds.seeds == 1 and np.isnan(folds.accuracy_sd)
    pooled = pd.concat([run.predictions[run.predictions.split == "test"] for run in results.find(runs_folder)
                        if run.fold >= 0 and run.variant == "improved"])
    assert folds.accuracy == pytest.approx(((pooled.p_covid > 0.5) == (pooled.label == "covid")).mean())
    assert folds.low < folds.accuracy < folds.high and folds.auc_low < folds.auc < folds.auc_high
    assert table.loc[("split", "resnet50")].seeds == 2 and table.loc[("split", "resnet50")].accuracy_sd > 0
    assert table.loc[("across", "resnet50_fpn")].tested_on == "sarscov2-ct"


def test_a_better_network_differs_from_the_baseline_and_an_equal_one_does_not(tables):
    table = tables["differences"].set_index(["protocol", "variant"])
    better = table.loc[("folds", "improved")]
    assert better.low > 0 and max(better.p_bootstrap, better.p_mcnemar, better.p_delong) < 0.001
    equal = table.loc[("split", "improved")]
    assert equal.low < 0 < equal.high and np.isnan(equal.p_mcnemar) and equal.comparisons == 2
    other = table.loc[("split", "resnet50_fpn")]
    assert other.p_holm == pytest.approx(min(1, 2 * other.p_bootstrap))


def test_curves_are_means_over_trainings(tables):
    table, whole = tables["curves"], slices(tables["summary"])
    for (protocol, variant), part in table.groupby(["protocol", "variant"]):
        assert len(part) == 101 and part.sensitivity.is_monotonic_increasing and part.sensitivity.iloc[-1] == 1
        if protocol == "folds":
            area = np.trapezoid(part.sensitivity, part.place)
            assert area == pytest.approx(whole.loc[(protocol, variant)].auc, abs=0.01)
    better, worse = (whole.loc[("folds", name)].average_precision for name in ("improved", "resnet50"))
    assert 0.5 < worse < better < 1
    at_all = table[table.place == 1].precision
    assert at_all.between(0.3, 0.7).all()  # the share of the positive slices


def test_there_is_a_row_for_slices_and_one_for_patients(tables):
    table = tables["summary"].set_index(["protocol", "variant", "unit"])
    whole, each = table.loc[("folds", "improved", "patient")], table.loc[("folds", "improved", "slice")]
    assert whole.n == 200 and each.n == 400
    assert whole.accuracy > each.accuracy  # the mean of two slices is surer
    rows = tables["per_class"]
    assert set(rows.unit) == {"slice", "patient"} and len(rows) == 2 * len(table)
    rows = rows[rows["class"] == "covid"]
    assert (rows.ppv_at_10_percent <= rows.ppv_test).all() and (rows.ppv_at_10_percent < rows.ppv_test).any()
    assert rows.sensitivity.between(rows.sensitivity_low, rows.sensitivity_high).all()


def test_pictures_under_two_labels_are_left_out_of_the_last_column(runs_folder):
    groups = results.group_runs(results.find(runs_folder))
    group = next(group for group in groups if group.protocol == "split" and group.variant == "resnet50")
    table = group.tables[0]
    wrong = set(table.index.get_level_values("path")[(table.p_covid > 0.5) != (table.label == "covid")])
    without = results.summary([group], {"ucsd-covid-ct": wrong}).iloc[0]
    assert without.accuracy_without_conflicts > without.accuracy
    assert results.summary([group]).iloc[0].accuracy_without_conflicts == pytest.approx(without.accuracy)


def test_scaling_is_fitted_on_validation_slices_alone(tmp_path):
    """Four times too sure on the validation slices and right on the test's: scaling does as the first say."""
    rng = np.random.default_rng(0)
    folder = write_run(tmp_path, "ucsd-covid-ct", "resnet50", 0, -1, 1.0, range(100))
    sure, honest = predictions(rng, 1.0, range(1000, 1400), "val", 8), predictions(rng, 1.0, range(400), sure=2)
    pd.concat([sure, honest]).to_csv(folder / "predictions.csv", index=False)
    (run,) = results.find(tmp_path)
    assert run.temperature == pytest.approx(4, rel=0.2)
    row = results.summary(results.group_runs([run])).iloc[0]
    assert row.ece < 0.06 < row.ece_scaled


def test_a_target_below_a_shortcut_is_reached_and_not_met(tables):
    name = "resnet50 from random weights or phantoms, accuracy"
    summary = tables["summary"].assign(accuracy=0.8, low=0.75, high=0.85)
    for bar, met in ((0.9, False), (0.7, True)):
        row = results.targets(summary, tables["baselines"].assign(accuracy=bar)).set_index("target").loc[name]
        assert row.above == bar and row.reached and row.met == met
    row = results.targets(summary.assign(accuracy=0.6), tables["baselines"]).set_index("target").loc[name]
    assert not row.reached and not row.met


def test_finished_and_missing_runs_are_counted(tables):
    assert len(tables["runs"]) == 16
    assert tables["runs"].fold.notna().sum() == 10 and set(tables["runs"].weights) == {"phantom"}
    table = tables["missing"].set_index(["dataset", "variant", "protocol"])
    assert table.loc[("ucsd-covid-ct", "improved", "folds")].to_list() == [5, 5]
    assert table.loc[("ucsd-covid-ct", "resnet50", "split")].to_list() == [5, 2]
    assert table.loc[("sarscov2-ct", "improved", "split")].to_list() == [1, 0]


def test_half_of_the_folds_is_called_half(tmp_path):
    for fold in (0, 1):
        write_run(tmp_path, "ucsd-covid-ct", "resnet50", 0, fold, 0.5, range(40 * fold, 40 * fold + 40))
    write_run(tmp_path, "ucsd-covid-ct", "improved", 0, 1, 1.5, range(40, 80))
    groups = results.group_runs(results.find(tmp_path))
    table = slices(results.summary(groups))
    assert [results.tested(row) for row in table.reset_index().itertuples()] == ["2 of 5 folds", "1 of 5 folds"]
    (row,) = results.differences(groups).itertuples()
    assert row.n == 80 and row.folds == 1  # the fold that both have
    assert results.differences([group for group in groups if group.variant == "improved"]).empty


def test_seeds_of_unlike_folds_and_networks_of_unlike_folds_are_no_crash(tmp_path):
    write_run(tmp_path, "ucsd-covid-ct", "resnet50", 0, 0, 0.5, range(40))
    write_run(tmp_path, "ucsd-covid-ct", "improved", 0, 1, 1.5, range(40, 80))
    assert results.differences(results.group_runs(results.find(tmp_path))).empty
    for fold in (0, 1):
        write_run(tmp_path, "ucsd-covid-ct", "resnet50", 1, fold, 0.5, range(40 * fold, 40 * fold + 40))
    row = slices(results.summary(results.group_runs(results.find(tmp_path)))).loc[("folds", "resnet50")]
    assert row.n == 80 and row.seeds == 2


def test_six_patients_have_counts_only(tmp_path):
    for variant in ("resnet50", "improved"):
        write_run(tmp_path, "covid-ct-md", variant, 0, -1, 1.0, range(6))
    write_run(tmp_path, "phantom", "resnet50", 0, -1, 1.0, range(6))
    groups = results.group_runs(results.find(tmp_path))
    table = results.summary(groups).set_index(["dataset", "variant", "unit"])
    row = table.loc[("covid-ct-md", "improved", "slice")]
    assert row.evidence_level == "too few patients" and row.n == 12 and np.isnan(row.accuracy)
    assert table.loc[("phantom", "resnet50", "slice")].evidence_level == "mechanics only"
    assert results.differences(groups).empty and set(results.per_class(groups).dataset) == {"phantom"}
    assert results.every_run(results.find(tmp_path)).set_index("dataset").accuracy["covid-ct-md"].isna().all()


def test_runs_of_another_recipe_are_not_compared(tmp_path):
    write_run(tmp_path, "ucsd-covid-ct", "resnet50", 0, -1, 1.0, range(40))
    folder = write_run(tmp_path, "ucsd-covid-ct", "improved", 0, -1, 1.0, range(40))
    record = json.loads((folder / "run.json").read_text())
    record["parameters"]["epochs"] = 70
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="Received: epochs="):
        results.group_runs(results.find(tmp_path))


def test_publishing_copies_what_is_small_and_names_no_folder(published):
    kept = published / "runs/ucsd-covid-ct/study"
    assert {path.name for path in (kept / "improved/seed-0-fold-3").iterdir()} == {
        "predictions.csv", "history.csv", "run.json"}
    assert "secret" not in (kept / "dataset.json").read_text()
    record = runs.read_run(kept / "improved/seed-0")
    assert "metrics" not in record.content and record.metrics["test"]["accuracy"] < 1
    for name in ("accuracy", "differences", "reliability", "curves"):
        assert (published / f"figures/{name}.png").stat().st_size > 5000
    rows = json.loads((published / "claims.json").read_text())
    gain = next(row for row in rows if row["id"] == "gain")
    assert gain["verdict"] == "reproduced" and "folds" in gain["measured"]
    page = (published / "README.md").read_text()
    assert "5 of 5 folds" in page and "## What the protocol plans" in page


def test_published_again_from_the_copies_alone_it_is_the_same_to_the_byte(published):
    first = {path: path.read_bytes() for path in (published / "tables").iterdir()}
    results.write(published)
    assert first == {path: path.read_bytes() for path in (published / "tables").iterdir()} and len(first) == 10


def test_seven_digits_are_kept_of_what_is_sure(published, runs_folder):
    name = "runs/ucsd-covid-ct/study/improved/seed-0/predictions.csv"
    own, copied = (runs.read_predictions(folder / name) for folder in (runs_folder, published))
    assert copied.p_covid.to_numpy() == pytest.approx(own.p_covid.to_numpy(), rel=1e-6)


def test_a_page_without_its_marks_is_left_alone(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before <!-- study -->old<!-- end --> after")
    publish.put(page, "study", "new")
    assert page.read_text() == "before <!-- study -->\nnew\n<!-- end --> after"
    with pytest.raises(ValueError, match="must hold the lines <!-- performance -->"):
        publish.put(page, "performance", "new")


def test_without_runs_it_says_what_to_do(tmp_path, capsys):
    assert publish.main(["--runs", "none", "--folder", str(tmp_path)]) == 2
    assert "make reproduce PROFILE=study" in capsys.readouterr().err
    assert not (tmp_path / "tables").exists()


def test_the_published_tables_are_what_the_published_predictions_give(repository, tmp_path):
    """Anyone gets the same statistics from the committed predictions, to the last published digit."""
    home = repository / "reports" / "published"
    if not list(home.glob("runs/*/*/*/seed-*/predictions.csv")):
        pytest.skip("no study is published yet")
    for name, table in results.tables(home).items():
        assert results.as_published(table) == (home / "tables" / f"{name}.csv").read_text(), name
