"""The trainings of the study, in the order of reports/published/PROTOCOL.md; what was interrupted goes on.

    python -m study.experiments DATA_ROOT             # folder with ucsd-covid-ct, sarscov2-ct-256, web-three-class
    python -m study.experiments DATA_ROOT --list      # what is done and what is not

A run lies in runs/<dataset>/<preparation>-<weights>[-<share>]/<variant>/seed-<k>[-fold-<i>]/, the audit of a set in
runs/<dataset>/audit/. Recipes are compared in runs/<dataset>/recipe-<name>/ without the test part.
"""

import argparse
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from covidlib import datasets
from covidlib.audit import leaks, shortcuts
from covidlib.datasets import decode, splits
from covidlib.training import train
from covidlib.training.runs import folder_name
from covidlib.utils import provenance

FOLDERS = {"ucsd-covid-ct": "ucsd-covid-ct", "sarscov2-ct": "sarscov2-ct-256", "web-three-class": "web-three-class"}
SPLITS = {"ucsd-covid-ct": "ucsd-covid-ct", "sarscov2-ct": "sarscov2-ct-256", "web-three-class": "own"}
SLICES = {"web-three-class": [1252, 300, 1100]}  # 300 of another disease, as in the paper
PAIR = ("resnet50", "improved")
ABLATIONS = ("resnet50_fpn", "resnet50_attention", "improved_before", "improved_after", "improved_global_context")
IMAGE_SIZE, BATCH, EPOCHS, PAPER_EPOCHS = 128, 16, 12, 35
RECIPES = {  # compared on training and validation slices of UCSD, by resnet50 alone; each differs from the first
    "frozen-3": {"frozen_stages": 3},
    "plain": {"frozen_stages": 0},
    "moving": {"frozen_stages": 0, "frozen_statistics": False},
    "one-rate": {"frozen_stages": 0, "backbone_rate": 1.0, "learning_rate": 2e-4},
}


@dataclass(frozen=True)
class Job:
    """One training. share: of the training slices' groups; options: of TrainingConfig; recipe: its name, in a pilot."""

    dataset: str
    preparation: str
    weights: str
    variant: str
    seed: int
    epochs: int
    fold: int = -1
    share: float = 1.0
    recipe: str = ""
    options: dict = field(default_factory=dict, compare=False)

    @property
    def run_dir(self):
        home = f"{self.preparation}-{self.weights}" + f"-{self.share:.0%}".replace("%", "") * (self.share < 1)
        home = f"recipe-{self.recipe}" if self.recipe else home
        return provenance.ROOT / "runs" / self.dataset / home / self.variant / folder_name(self.seed, self.fold)

    @property
    def done(self):
        return (self.run_dir / "run.json").is_file()


def plan():
    """Every Job, in the order in which they run."""
    jobs = [Job("ucsd-covid-ct", "whole", options.get("weights", "ct"), "resnet50", 100 + seed, EPOCHS, recipe=name,
                options=options) for seed in range(3) for name, options in RECIPES.items()]
    web = [Job("web-three-class", "whole", "ct", name, seed, PAPER_EPOCHS) for seed in (0, 1) for name in PAIR]
    jobs += web + [Job("web-three-class", "lungs", "ct", name, 0, PAPER_EPOCHS) for name in PAIR]
    ucsd = "ucsd-covid-ct"
    jobs += [Job(ucsd, preparation, "ct", name, seed, EPOCHS)
             for preparation in ("whole", "lungs") for seed in range(5) for name in PAIR]
    jobs += [Job(ucsd, "whole", "ct", name, seed, EPOCHS, fold) for seed in (0, 1) for fold in range(splits.FOLDS)
             for name in PAIR]
    jobs += [Job(ucsd, preparation, weights, name, seed, PAPER_EPOCHS) for weights in ("none", "phantom")
             for preparation in ("whole", "lungs") for seed in (0, 1) for name in PAIR]
    jobs += [Job(ucsd, "whole", "ct", name, seed, EPOCHS) for seed in range(3) for name in ABLATIONS]
    jobs += [Job("sarscov2-ct", "whole", "ct", name, seed, EPOCHS) for seed in (0, 1) for name in PAIR]
    return jobs + [Job(ucsd, "whole", "ct", name, seed, EPOCHS, share=share) for seed in (0, 1)
                   for share in (0.25, 0.5, 0.75) for name in PAIR]


@lru_cache(maxsize=1)
def decoded(dataset, preparation, image_size, data_root):
    """(Source, images uint8 (N, S, S)) of a set, which is audited where that was not done."""
    home = provenance.ROOT / "runs" / dataset
    source = datasets.load(dataset, Path(data_root) / FOLDERS[dataset], SLICES.get(dataset), seed=0)
    if (home / "audit" / "shortcuts.csv").is_file():
        source = datasets.replace(source, manifest=source.manifest.assign(
            sha256=[datasets.sha256_once(Path(source.root) / path) for path in source.manifest.path]))
    else:
        source, found = decode.decode_dataset(source, image_size, preparation, home / "cache", shortcuts.features)
        leaks.write(leaks.audit(splits.choose(source, SPLITS[dataset])[0], found), home / "audit")
    return source, np.array(decode.load_images(source, image_size, preparation, home / "cache"))


def run(job, data_root):
    """Train one, and leave its run directory."""
    source, images = decoded(job.dataset, job.preparation, IMAGE_SIZE, data_root)
    source, _ = splits.choose(source, SPLITS[job.dataset], job.fold)
    kept = _kept(source.manifest, job)
    source, images = datasets.replace(source, manifest=source.manifest[kept].reset_index(drop=True)), images[kept]
    datasets.save(source, job.run_dir.parents[1])
    options = {"weights": job.weights, "augmentation": "mild", **job.options}
    config = train.TrainingConfig(variant=job.variant, image_size=IMAGE_SIZE, preparation=job.preparation,
                                  seed=job.seed, epochs=job.epochs, batch_size=BATCH, **options)
    train.train(source, images, job.run_dir, config)


def _kept(manifest, job):
    """bool: the rows that are used; without the test part in a pilot, and with a share of the training groups."""
    kept = np.array(manifest.split != "test") if job.recipe else np.ones(len(manifest), bool)
    training = manifest[manifest.split == "train"]
    groups = datasets.patient_or_file(training)
    order = np.random.default_rng(job.seed).permutation(groups.unique())
    used = set(order[:round(job.share * len(order))])
    kept[training.index[~groups.isin(used)]] = False
    return kept


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m study.experiments", description=__doc__.split("\n")[0])
    parser.add_argument("data_root", help=f"folder that holds {', '.join(FOLDERS.values())}")
    parser.add_argument("--list", action="store_true", help="say what is done, train nothing")
    given = parser.parse_args(arguments)
    jobs = plan()
    for number, job in enumerate(jobs, start=1):
        print(f"{number:3d} of {len(jobs)} {'done' if job.done else '    '} {job.run_dir.relative_to(provenance.ROOT)}",
              flush=True)
        if not job.done and not given.list:
            run(job, given.data_root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
