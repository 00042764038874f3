"""The study once more, on a GPU and another backend: reports/published/PROTOCOL.md, "Replication".

    python -m covidlib.replication pack runs bundles                  # what trainings read: slices of 96 px, splits
    export KERAS_BACKEND=jax JAX_COMPILATION_CACHE_DIR=/tmp/jax XLA_PYTHON_CLIENT_PREALLOCATE=false
    python -m covidlib.replication train bundles runs --workers 14 --minutes 60

A training of this study leaves most of a GPU idle, so that many run beside each other, each worker in a process of its
own; no notebook and no image file is needed. Jobs run in the order of the plan. What is not finished in time is left
out, and begun again by the same call. Runs lie in runs/<dataset>/study-gpu; `python -m covidlib.publish` takes them.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import datasets, harmonise, intake, pilots, runs, splits
from covidlib.files import write_atomically

PROFILE, EPOCHS, SIZE = "study-gpu", 35, pilots.CHOSEN["image_size"]
UCSD, OTHER, PHANTOM = "ucsd-covid-ct", pilots.OTHER_SET, "phantom"
SPLITS = {UCSD: "ucsd-covid-ct", OTHER: "sarscov2-ct-256", PHANTOM: "own"}
BOTH = ("resnet50", "improved")
PARTS = ("resnet50_fpn", "resnet50_attention", "improved_before", "improved_after", "improved_global_context")
OTHERS = ("mobilenet_v2", "densenet169")  # which phantom weights do not fit
SEEDS, FOLD_SEEDS, PILOT_SEEDS = range(5), range(3), range(100, 105)
LEVERS = {  # against pilots.CHOSEN, which comes first
    "chosen": {},
    "start-sarscov2-ct": {"weights": pilots.OTHER_SET},
    "start-unlabelled": {"weights": pilots.UNLABELLED},
    "inputs-160": {"image_size": 160},
    "rate-3e-5": {"learning_rate": 3e-5},
    "three-times-longer": {"epochs": 3 * pilots.EPOCHS},
    "longer-at-3e-5": {"learning_rate": 3e-5, "epochs": 3 * pilots.EPOCHS},
}
STARTS = {"start-sarscov2-ct": f"{OTHER}/resnet50/0", "start-unlabelled": "unlabelled"}  # the job that makes it
SELDOM = 20  # seconds between two states of a training
GAIN = 0.02  # of validation accuracy, for a lever to meet the test part


@dataclass(frozen=True)
class Job:
    """`function(bundles, runs, **arguments)` in a worker, once the jobs named in `needs` are done."""

    name: str
    function: object
    arguments: dict
    needs: tuple = field(default=())

    @property
    def kind(self):
        """What jobs of other seeds and folds share: the program that a backend compiles."""
        own = {name: value for name, value in self.arguments.items() if name not in ("seed", "fold")}
        return self.function, *sorted(own.items()), self.arguments.get("fold", -1) >= 0


def pack(source, target):
    """Copy from runs/ what `train` needs of the sets' notebooks 00: manifest, splits and decoded slices."""
    for dataset in SPLITS:
        folder = Path(source, dataset, "study")
        opened, place = datasets.open_saved(folder), Path(target, dataset)
        images = intake.load_images(opened, SIZE, folder / "cache")
        place.mkdir(parents=True, exist_ok=True)
        for name in ("manifest.csv", "dataset.json"):
            shutil.copyfile(folder / name, place / name)
        write_atomically(place / "images.npz", lambda file, kept=images: np.savez_compressed(file, images=kept))


def unpack(bundles, dataset, fold=-1, size=SIZE):
    """(datasets.Source with its split or that of a fold, images uint8 (N, size, size))."""
    place = Path(bundles, dataset)
    source = datasets.open_saved(place, place)
    if fold >= 0:
        source, _ = splits.choose(source, SPLITS[dataset], fold)
    with np.load(place / "images.npz") as arrays:
        images = arrays["images"]
    return source, images if size == SIZE else np.stack([harmonise.resize(image, size) for image in images])


def pretrain(bundles, home):
    from covidlib import pretraining

    pretraining.make(SIZE)


def learn_unlabelled(bundles, home):
    """Barlow Twins on the training slices of both real sets."""
    from covidlib import self_supervised

    parts = [images[(source.manifest["split"] == "train").to_numpy()]
             for source, images in (unpack(bundles, dataset) for dataset in (UCSD, OTHER))]
    self_supervised.make(np.concatenate(parts), _unlabelled(home), start="phantom")


def _unlabelled(home):
    return Path(home, "pilots", f"{pilots.UNLABELLED}-{SIZE}.weights.h5")


def _start(recipe, home):
    """What `training.train` takes as weights; those of SIZE fit every size, see `pilots.start`."""
    from covidlib import pretraining

    weights, size = recipe["weights"], recipe["image_size"]
    if weights == "phantom" and size != SIZE:
        return str(pretraining.path(SIZE))
    return {pilots.OTHER_SET: str(Path(home, OTHER, PROFILE, "resnet50", "seed-0", "model.keras")),
            pilots.UNLABELLED: str(_unlabelled(home))}.get(weights, weights)


def train(bundles, home, dataset, variant, seed, fold=-1, profile=PROFILE, epochs=EPOCHS, **changed):
    from covidlib import training

    recipe = pilots.CHOSEN | changed
    source, images = unpack(bundles, dataset, fold, recipe["image_size"])
    folder = Path(home, dataset, profile, variant, runs.folder_name(seed, fold))
    training.train(source, images, folder, variant, epochs=epochs, seed=seed, deterministic=False, progress=False,
                   checkpoint_every=SELDOM, **recipe | {"weights": _start(recipe, home)})


def across(bundles, home, own, other):
    from covidlib import across

    source, images = unpack(bundles, other)
    for variant in BOTH:
        run = runs.read_run(Path(home, own, PROFILE, variant, "seed-0"))
        text = across.predict(run, source, images).to_csv(index=False, lineterminator="\n")
        write_atomically(run.path / f"across-{other}.csv", text)


def pilot(bundles, home, lever, seed):
    own = LEVERS[lever]
    recipe = pilots.CHOSEN | own
    source, images = pilots.without_test(*unpack(bundles, UCSD, size=recipe["image_size"]))
    row = pilots.run(own, source, images, _start(recipe, home),
                     Path(home, "pilots-gpu"), seed=seed, checkpoint_every=SELDOM, progress=False)
    return {"lever": lever, **row}


def plan():
    """The protocol's jobs in their order, without those that pilots decide on."""
    def training(dataset, variant, seed, needs=("pretrain",), **more):
        name = "/".join(str(part) for part in (dataset, variant, seed, *more.values()))
        return Job(name, train, {"dataset": dataset, "variant": variant, "seed": seed, **more}, needs)

    def alone(dataset, variant, seed, **more):
        return training(dataset, variant, seed, (), weights="none", **more)

    return [
        Job("pretrain", pretrain, {}),
        *(alone(PHANTOM, variant, seed) for seed in range(3) for variant in BOTH),
        *(alone(UCSD, variant, seed, profile=f"{PROFILE}-none") for seed in SEEDS for variant in BOTH),
        *(alone(UCSD, variant, seed) for seed in SEEDS for variant in OTHERS),
        training(OTHER, "resnet50", 0), training(OTHER, "improved", 0),
        Job("unlabelled", learn_unlabelled, {}, ("pretrain",)),
        *(training(UCSD, variant, seed) for seed in SEEDS for variant in BOTH),
        *(Job(f"pilot {lever} {seed}", pilot, {"lever": lever, "seed": seed}, (STARTS.get(lever, "pretrain"),))
          for lever in LEVERS for seed in PILOT_SEEDS),
        *(training(UCSD, variant, 0, fold=fold) for fold in range(splits.FOLDS) for variant in BOTH),
        *(training(UCSD, variant, seed) for seed in SEEDS for variant in PARTS),
        *(Job(f"{own} on {other}", across, {"own": own, "other": other},
              tuple(f"{own}/{variant}/0" for variant in BOTH)) for own, other in ((UCSD, OTHER), (OTHER, UCSD))),
        *(training(UCSD, variant, seed, fold=fold)
          for seed in FOLD_SEEDS[1:] for fold in range(splits.FOLDS) for variant in BOTH),
        *(training(OTHER, variant, seed) for seed in FOLD_SEEDS[1:] for variant in BOTH),
    ]


def decide(table):
    """The jobs of the best lever, if it beats the chosen recipe's mean by GAIN. table: a row of `pilot` for each."""
    means = table.groupby("lever")["val_accuracy_last_5"].mean()
    best = means.drop("chosen").idxmax()
    if means[best] < means["chosen"] + GAIN:
        return []
    own = dict(LEVERS[best])
    own["epochs"] = EPOCHS * own.get("epochs", pilots.EPOCHS) // pilots.EPOCHS
    return [Job(f"{best}/{variant}/{seed}", train, {"dataset": UCSD, "variant": variant, "seed": seed,
                                                    "profile": f"{PROFILE}-{best}", **own})
            for seed in SEEDS for variant in BOTH]


def work(jobs, bundles, home, workers, seconds):
    """Do the jobs, as many beside each other as there are workers; returns the names of those that failed.

    None begins after `seconds`. The first of a kind runs alone: the others find what it compiled. The pilots' table is
    written as it grows, and what they decide comes next.
    """
    end, waiting, failed, rows = time.monotonic() + seconds, list(jobs), [], []
    done, compiled = set(), set()
    wanted = sum(job.function is pilot for job in jobs)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        running = {}
        while running or waiting:
            ready = [job for job in waiting if done.issuperset(job.needs)] if time.monotonic() < end else []
            for job in ready:
                early = job.kind not in compiled and any(job.kind == other.kind for other in running.values())
                if len(running) < workers and not early:
                    waiting.remove(job)
                    running[pool.submit(_timed, job, bundles, home)] = job
            if not running:
                break
            for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                compiled.add(job.kind)
                try:
                    result, took = future.result()
                except Exception as error:
                    failed.append(job.name)
                    print(f"{job.name} failed: {type(error).__name__}: {error}", flush=True)
                    continue
                done.add(job.name)
                print(f"{time.monotonic() - end + seconds:6.0f} s: {job.name}, {took:.1f} s", flush=True)
                if job.function is pilot:
                    rows.append(result)
                    table = pd.DataFrame(rows).sort_values(["lever", "seed"])
                    write_atomically(Path(home, "pilots-gpu.csv"), table.to_csv(
                        index=False, lineterminator="\n", float_format=pilots.DIGITS))
                    waiting = (decide(table) if len(rows) == wanted else []) + waiting
    print(f"{len(done)} done, {len(failed)} failed, {len(waiting)} not begun", flush=True)
    return failed


def _timed(job, bundles, home):
    start = time.perf_counter()
    return job.function(bundles, home, **job.arguments), time.perf_counter() - start


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m covidlib.replication", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("pack", "train"))
    parser.add_argument("source", help="runs/ to pack, or the folder of bundles to train from")
    parser.add_argument("target", help="folder of bundles to write, or runs/ to train into")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args(arguments)
    if options.what == "pack":
        pack(options.source, options.target)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return bool(work(plan(), options.source, options.target, options.workers, 60 * options.minutes))


if __name__ == "__main__":
    sys.exit(main())
