"""The pilots never see a test slice, and their table is made from their runs."""

import re

import numpy as np
import pandas as pd
import pytest
from test_training import tiny, toy

from covidlib import datasets, intake, pilots, session, training


@pytest.fixture
def opened(monkeypatch):
    """(source, images) without a test part, as open_ucsd gives them."""
    monkeypatch.setattr(session, "build_classifier", tiny)
    source, images = toy()
    kept = np.flatnonzero(source.manifest["split"] != "test")
    source.manifest = source.manifest.iloc[kept].reset_index(drop=True)
    return source, images[kept]


def pilot(**changes):
    return {"image_size": 32, "batch_size": 8, "weights": "none", **changes}


def test_a_row_tells_recipe_and_validation_figures(opened, tmp_path):
    row = pilots.run(pilot(learning_rate=0.03, augmentation="none"), *opened, "none", tmp_path, epochs=20)
    assert row["learning_rate"] == 0.03 and row["val_slices"] == 6 and row["epochs"] == 20
    assert row["val_accuracy"] == row["flips_val_accuracy"] == 1.0  # brightness is the same after a flip
    assert row["val_auc"] == 1.0 and row["train_accuracy"] > 0.8
    folder = tmp_path / "resnet50_0.03_none_none_image_size-32_batch_size-8" / "seed-100"
    history = training.read_run(folder).history
    assert np.isclose(row["val_accuracy_last_5"], history["val_accuracy"].tail(5).mean())


def test_flips_are_averaged(opened, tmp_path):
    source, images = opened
    pilots.run(pilot(), source, images, "none", tmp_path, epochs=1)
    run = training.read_run(next(tmp_path.glob("*/seed-100")))
    own = images[source.manifest["split"] == "val"]
    mean = pilots.flipped(run, own)
    again = pilots.flipped(run, own[:, ::-1, ::-1])
    columns = [f"p_{name}" for name in run.classes]
    assert np.allclose(mean[columns], again[columns], atol=1e-5)
    assert not np.allclose(mean[columns], run.predictions[columns], atol=1e-5)


def test_the_test_part_is_taken_away(tmp_path, monkeypatch):
    source, images = toy()
    monkeypatch.setattr(datasets, "open_saved", lambda *_: datasets.Source(
        source.manifest, source.classes, tmp_path, "toy"))
    monkeypatch.setattr(intake, "load_images", lambda *_: images)
    own, pictures = pilots.open_ucsd(tmp_path, 32)
    assert set(own.manifest["split"]) == {"train", "val"} and len(pictures) == len(own.manifest) == 24
    assert np.array_equal(pictures, images[source.manifest["split"] != "test"])


def test_the_published_table_is_that_of_the_pilots():
    """In their order, without gaps; PROTOCOL.md says how many of the last were not run."""
    table = pd.read_csv(pilots.HOME)
    names = list(pilots.CHOSEN)
    wanted = pd.DataFrame([pilots.CHOSEN | pilot for pilot in pilots.PILOTS])[names]
    pd.testing.assert_frame_equal(table[names], wanted[: len(table)], check_dtype=False)
    protocol = pilots.HOME.with_name("PROTOCOL.md").read_text().replace("\n", " ")
    told = re.search(r"Of the further levers (\d) are not run", protocol)
    assert int(told[1] if told else 0) == len(wanted) - len(table)


def test_a_missing_study_is_an_error(tmp_path, capsys):
    assert pilots.main(["--study", str(tmp_path)]) == 2
    assert "run notebook 00_data first" in capsys.readouterr().err
