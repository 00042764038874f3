"""The plan of the second study's trainings, and what each of them is given."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from covidlib import datasets
from study import experiments
from study.experiments import Job


def test_every_run_has_a_place_of_its_own_and_the_papers_experiment_follows_the_recipes():
    jobs = experiments.plan()
    places = [job.run_dir.relative_to(experiments.provenance.ROOT / "runs").as_posix() for job in jobs]
    assert len(set(places)) == len(places)
    assert {"ucsd-covid-ct/whole-ct/improved/seed-3", "ucsd-covid-ct/whole-ct/resnet50/seed-1-fold-4",
            "ucsd-covid-ct/lungs-phantom/improved/seed-0", "ucsd-covid-ct/whole-ct-25/resnet50/seed-0",
            "web-three-class/whole-ct/improved/seed-1", "sarscov2-ct/whole-ct/improved/seed-1"} <= set(places)
    datasets_in_order = list(dict.fromkeys(job.dataset for job in jobs if not job.recipe))
    assert datasets_in_order == ["web-three-class", "ucsd-covid-ct", "sarscov2-ct"]
    assert all(job.recipe for job in jobs[:places.index("web-three-class/whole-ct/resnet50/seed-0")])
    assert {job.variant for job in jobs if job.recipe} == {"resnet50"}  # no choice favours the other


@pytest.fixture
def manifest():
    splits = np.repeat(["train", "val", "test"], [60, 12, 18])
    rows = [(f"{n}.png", "covid" if n % 2 else "non_covid", f"p{n // 3}", split) for n, split in enumerate(splits)]
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


def job(**more):
    return Job(**{"dataset": "ucsd-covid-ct", "preparation": "whole", "weights": "ct", "variant": "resnet50", "seed": 0,
                  "epochs": 2} | more)


def test_a_pilot_gets_no_test_slice_and_a_share_whole_patients(manifest):
    everything, pilot = experiments._kept(manifest, job()), experiments._kept(manifest, job(recipe="plain"))
    assert everything.all() and (manifest[pilot].split != "test").all() and pilot.sum() == 72
    shared = manifest[experiments._kept(manifest, job(share=0.25))]
    assert (shared.split == "train").sum() == 15 and (shared.split != "train").sum() == 30
    assert shared[shared.split == "train"].groupby("patient").size().eq(3).all()


def test_a_run_gets_the_slices_and_the_recipe_of_its_job(manifest, tmp_path, monkeypatch):
    manifest = manifest.assign(source="x", slice_index=0, sha256="0")
    source = datasets.Source(manifest, ("covid", "non_covid"), tmp_path, "x")
    images, given = np.arange(90, dtype=np.uint8)[:, None, None], SimpleNamespace()
    monkeypatch.setattr(experiments.provenance, "ROOT", tmp_path)
    monkeypatch.setattr(experiments, "decoded", lambda *_: (source, images))
    monkeypatch.setattr(experiments, "SPLITS", {"ucsd-covid-ct": "own"})
    monkeypatch.setattr(experiments.train, "train", lambda *arguments: vars(given).update(arguments=arguments))
    experiments.run(job(recipe="moving", options={"frozen_statistics": False}), tmp_path)
    (tmp_path / "runs/ucsd-covid-ct/recipe-moving/manifest.csv").read_text()
    own, pictures, run_dir, config = given.arguments
    assert len(own.manifest) == len(pictures) == 72 and run_dir.name == "seed-0"
    assert config.weights == "ct" and config.augmentation == "mild" and not config.frozen_statistics
    assert (config.backbone_rate, config.image_size) == (0.1, experiments.IMAGE_SIZE)
