"""The measurements behind the claims ledger: each reads artifacts or models and returns a Finding.

`holds` says whether the paper's statement was found here: True, False, or why that stays open. What cannot be measured
raises `Missing` with the reason. The first line of a docstring is the ledger's column "check".
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from covidlib.audit import shortcuts
from covidlib.datasets.splits import FOLDS
from covidlib.evaluation import comparison, complexity, metrics, statistics
from covidlib.preprocessing import augmentation
from covidlib.report.figures import PAPER, timed
from covidlib.training import runs
from covidlib.utils import provenance

COUNTS = {"covid": 1350, "viral": 300, "normal": 1350}  # section 3.2
CORRECT = {"covid": 1298, "viral": 1221, "normal": 184}  # Figure 6, as printed
RECALLS = {"covid": 1298 / 1350, "viral": 184 / 300, "normal": 1221 / 1350}  # viral and normal swapped back
STAGES = {"conv2_block3_out": 4, "conv3_block4_out": 8, "conv4_block6_out": 16, "conv5_block3_out": 32}
BLOCKS = {"attention_conv3": "conv3_block4", "attention_conv4": "conv4_block6", "attention_conv5": "conv5_block3"}
EPOCHS, WINDOW = 35, 5  # after which the loss is said to be stable (section 3.2); epochs whose mean is compared


INCONCLUSIVE = "inconclusive"  # the interval holds zero and what the paper says
NOT_COMPARABLE = "not comparable"  # other images, split, classes or machine, or nothing stated to compare with


class Missing(Exception):
    """What a check needs is not there; the message says what and how to get it."""


class Finding(NamedTuple):
    holds: bool | str
    measured: str
    interval: tuple[float, float] | None = None


class Evidence:
    """What a folder of runs holds: `split`, the runs on the test part, and `folds`, those of cross-validation."""

    def __init__(self, runs_dir):
        self.folder = Path(runs_dir)
        path = self.folder / "dataset.json"
        self.dataset = runs.read_json(path)["name"] if path.is_file() else None
        self.split, self.folds = (self._find(folds) for folds in (False, True))

    def _find(self, folds):
        try:
            return runs.find_runs(self.folder, folds)
        except FileNotFoundError:
            return []

    def tested(self, *variants) -> list:
        """The runs of all folds, which test every slice, where each of `variants` has all; else those of the split."""
        whole = all({run.fold for run in self.folds if run.variant == name} >= set(range(FOLDS)) for name in variants)
        return self.folds if whole else self.split or self.folds

    def of(self, variant, among=None) -> list:
        found = [run for run in among or self.tested(variant) if run.variant == variant]
        if not found:
            raise Missing(f"no finished run of {variant}: notebook 03_training with variant={variant}")
        return found

    def correct(self, variant, label=None, among=None) -> pd.DataFrame:
        """Test slices: `correct` (share of the seeds that are right) and `patient`, by path and slice."""
        found = self.of(variant, among)
        table = comparison.average_correct([run.predictions[run.predictions["split"] == "test"] for run in found],
                                           found[0].classes, [run.seed for run in found])
        table = table[table["label"] == label] if label else table
        if table.empty:
            raise Missing(f"no test slices of class {label}" if label else "no test slices")
        return table

    def best_shortcut(self, variant):
        """shortcuts.best_shortcut on what a variant was tested on; None for phantoms and without an audit."""
        path = self.folder / "audit" / "shortcuts.csv"
        if self.dataset == "phantom" or not path.is_file():
            return None
        run = self.of(variant)[0]
        protocol = shortcuts.OFFICIAL if run.fold < 0 else shortcuts.CROSS_VALIDATION
        return shortcuts.best_shortcut(pd.read_csv(path), protocol, run.parameters)

    def speed(self, variant, device, harness="predict loop") -> pd.Series:
        path = self.folder / "speed" / "speed.csv"
        if not path.is_file():
            raise Missing("no speed/speed.csv: notebook 06_speed")
        rows = timed(pd.read_csv(path), variant, device, harness)
        if rows.empty:
            raise Missing(f"{variant} was not timed on a {device.upper()}: notebook 06_speed where one is")
        return rows.iloc[0]


@cache
def model(variant, image_size=64):
    from covidlib.models import build_classifier

    return build_classifier(variant, tuple(COUNTS), image_size, precision="float32")


@cache
def cost(variant):
    return complexity.count(model(variant, 224))


def _require_patients(evidence, table, text) -> None:
    units = len(np.unique(statistics.fill_unknown(table["patient"])))
    if evidence.dataset != "phantom" and units < metrics.FEWEST:
        raise Missing(f"{text}, but the test part has only {units} independent patients or slices; a verdict needs "
                      f"{metrics.FEWEST}")


def accuracy(evidence, variant, label=None):
    """Share of test slices classified correctly, beside the best shortcut; on other images than the paper's."""
    table = evidence.correct(variant, label)
    low, high = statistics.proportion_interval(table["correct"], table["patient"])
    seeds = len({run.seed for run in evidence.of(variant)})
    text = f"{table['correct'].mean():.3f} of {len(table)} test slices, {seeds} seed{'s'[:seeds > 1]}"
    _require_patients(evidence, table, text)
    if not label and (best := evidence.best_shortcut(variant)):
        text += f"; the best shortcut, {best[0]}, reaches {best[1]:.3f}"
        text += ", so that it is no evidence that disease is recognised" * bool(low <= best[1])
    return Finding(NOT_COMPARABLE, text, (low, high))


def difference(evidence, variant, against, stated=0):
    """Paired difference of accuracies, same slices and seeds: its 95 % interval against zero and the paper's figure."""
    found = evidence.tested(variant, against)
    seeds = set.intersection(*({run.seed for run in found if run.variant == name} for name in (variant, against)))
    among = [run for run in found if run.seed in seeds] or found
    own, base = (evidence.correct(name, among=among) for name in (variant, against))
    own, paired = comparison.paired_difference(own, base)
    if paired is None:
        raise Missing(f"{variant} and {against} were tested on different slices")
    slices = "slices, each tested in one of the folds" if found is evidence.folds else "test slices"
    text = (f"{paired['difference']:+.3f} ({variant} - {against}, {len(own)} {slices}, "
            f"{len(seeds)} seed{'s'[:len(seeds) > 1]}; p = {paired['p_bootstrap']:.2g})")
    _require_patients(evidence, own, text)
    low, high, stated = paired["low"], paired["high"], float(stated)
    above = high >= stated if stated else high > 0
    return Finding(INCONCLUSIVE if low <= 0 and above else bool(above), text, (low, high))


def plateau(evidence):
    """Validation loss of all runs, last 5 epochs and the 5 before; the learning rate ends there, too."""
    histories = [run.history.set_index("epoch")["val_loss"].dropna() for run in evidence.of("improved")]
    if any(len(losses) < EPOCHS for losses in histories):
        raise Missing(f"a run has {min(map(len, histories))} epochs with a validation loss, the claim is about "
                      f"{EPOCHS}: make reproduce PROFILE=paper")
    losses = pd.concat(histories, axis=1).mean(axis=1)
    lowest = ", ".join(str(own.idxmin()) for own in histories)
    return Finding(INCONCLUSIVE, f"mean loss {losses[-WINDOW:].mean():.3f} in the last {WINDOW} epochs, "
                   f"{losses[-2 * WINDOW:-WINDOW].mean():.3f} in the {WINDOW} before ({len(histories)} runs); lowest "
                   f"at epoch {lowest} of {len(losses)}; the learning rate ends near zero there, which would settle "
                   "any loss, so the claim of 35 is left open")


def training_time(evidence):
    """Median seconds per epoch of improved and resnet50."""
    own, base = (np.median(np.concatenate([run.history["seconds"] for run in evidence.of(variant)]))
                 for variant in ("improved", "resnet50"))
    return Finding(NOT_COMPARABLE, f"{own:.1f} s per epoch against {base:.1f} s, on a machine that may have done other "
                   "work; the paper gives no time to compare with")


def fps(evidence, variant, device):
    """Images per second, batch 1, predict loop, on another machine than the paper's."""
    row = evidence.speed(variant, device)
    return Finding(NOT_COMPARABLE, f"{row['median_fps']:.2f} images/s here ({row['device']}, predict loop, batch 1); "
                   "another machine, input size and harness not given", (float(row["q1"]), float(row["q3"])))


def faster(evidence, device):
    """Speed of improved over resnet50, batch 1, predict loop; holds if the quartiles lie apart in its favour."""
    own, base = (evidence.speed(variant, device) for variant in ("improved", "resnet50"))
    text = ""
    if device == "cpu":
        try:
            alone, other = (evidence.speed(variant, device, "exported") for variant in ("improved", "resnet50"))
            text = f"exported, {alone['precision']}: {alone['median_fps'] / other['median_fps']:.2f} times resnet50; "
        except Missing:
            pass
    text += (f"predict loop, {own['precision']}: {own['median_fps'] / base['median_fps']:.2f} times resnet50, "
             f"quartiles of {own['n']} rounds")
    return Finding(bool(own["q1"] > base["q3"]), text,
                   (float(own["q1"] / base["q3"]), float(own["q3"] / base["q1"])))


def macs_ratio(evidence):
    """Multiply-accumulates at 224 px of improved over resnet50; holds if fewer."""
    own, base = cost("improved").macs, cost("resnet50").macs
    return Finding(own < base, f"{own / base:.2f} times the MACs ({own / 1e9:.2f} G against {base / 1e9:.2f} G)")


def parameter_ratio(evidence):
    """Parameters of improved over resnet50; holds if fewer."""
    own, base = cost("improved").parameters, cost("resnet50").parameters
    return Finding(own < base,
                   f"{own / base:.3f} times the parameters ({own / 1e6:.2f} M against {base / 1e6:.2f} M)")


def lightweight(evidence):
    """Parameters and MACs over those of MobileNetV2, a lightweight network; holds if at most twice as many."""
    own, light = cost("improved"), cost("mobilenet_v2")
    parameters, macs = own.parameters / light.parameters, own.macs / light.macs
    return Finding(max(parameters, macs) <= 2,
                   f"{parameters:.1f} times the parameters and {macs:.1f} times the MACs of MobileNetV2")


def faster_than_cost(evidence):
    """The paper's speed ratio and the ratio of work; holds if the work shrinks as the speed grows."""
    speed = PAPER["fps"]["improved", "cpu"] / PAPER["fps"]["resnet50", "cpu"]
    work = cost("improved").macs / cost("resnet50").macs
    return Finding(work <= 1 / speed, f"{speed:.2f} times the speed for {work:.2f} times the work")


def stages(evidence):
    """The four named stages exist and are 1/4, 1/8, 1/16 and 1/32 of the input."""
    shapes = {name: model("improved").get_layer(name).output.shape[1:3] for name in STAGES}
    sizes = ", ".join(f"{name} {height} x {width}" for name, (height, width) in shapes.items())
    return Finding(all(shapes[name] == (64 // part, 64 // part) for name, part in STAGES.items()),
                   f"{sizes} for an input of 64 px")


def _before(built, name) -> set[str]:
    """Names of the layers that the output of the layer `name` depends on, itself included."""
    from keras import Model

    return {layer.name for layer in Model(built.inputs, built.get_layer(name).output).layers}


def pyramid(evidence):
    """Every pyramid level has the size of its stage and the same width, and depends on all coarser stages."""
    built = model("improved")
    outputs = [built.get_layer(f"fpn_p{number}_output").output for number in (2, 3, 4, 5)]
    same_size = all(output.shape[1:3] == built.get_layer(stage).output.shape[1:3]
                    for output, stage in zip(outputs, STAGES, strict=True))
    widths = {output.shape[-1] for output in outputs}
    reach = len(_before(built, "fpn_p2_output") & set(STAGES))
    return Finding(same_size and len(widths) == 1 and reach == len(STAGES),
                   f"{len(outputs)} levels of {'/'.join(map(str, widths))} channels; the finest depends on "
                   f"{reach} of {len(STAGES)} stages")


def attention_keeps_size(evidence):
    """Shape that enters each attention block and shape that leaves it."""
    blocks = [model("improved").get_layer(name) for name in BLOCKS]
    pairs = [(block.input[0].shape[1:], block.output.shape[1:]) for block in blocks]
    return Finding(all(a == b for a, b in pairs),
                   "; ".join(f"{'x'.join(map(str, a))} to {'x'.join(map(str, b))}" for a, b in pairs))


def attention_place(evidence):
    """The attention stands between the last convolution of the named block and its output."""
    built = model("improved")
    inside = [f"{name} in {block}" for name, block in BLOCKS.items()
              if name in _before(built, f"{block}_out") and f"{block}_3_conv" in _before(built, name)]
    return Finding(len(inside) == len(BLOCKS), ", ".join(inside) or "none")


def attention_is_global(evidence):
    """Every position of the block is related to keys that cover the whole map."""
    built = model("improved")
    found = []
    for name in BLOCKS:
        queries, keys = built.get_layer(f"{name}_weights").output.shape[1:]
        height, width = built.get_layer(name).output.shape[1:3]
        rows, columns = built.get_layer(f"{name}_key").output.shape[1:3]
        found.append(queries == height * width and keys == rows * columns
                     and 2 * rows >= height and 2 * columns >= width)
    return Finding(all(found), f"{sum(found)} of {len(BLOCKS)} blocks weigh the whole map for each position")


def backbone_unchanged(evidence):
    """Weights of resnet50 that are in improved under the same name and shape (its classifier left out)."""
    base, own = ({weight.path: tuple(weight.shape) for layer in model(variant).layers
                  if layer.name.startswith("conv") for weight in layer.weights} for variant in ("resnet50", "improved"))
    same = sum(own.get(path) == shape for path, shape in base.items())
    added = model("improved").count_params() - model("resnet50").count_params()
    return Finding(same == len(base), f"{same} of {len(base)} backbone weights keep name and shape; "
                   f"{added / 1e6:.2f} M parameters are added")


def softmax(evidence):
    """Equation (2) written out in NumPy against Keras on random numbers."""
    import keras

    logits = np.random.default_rng(0).normal(0, 3, (64, 3)).astype("float32")
    written = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gap = np.abs(written - keras.ops.convert_to_numpy(keras.ops.softmax(logits))).max()
    return Finding(bool(gap < 1e-6), f"largest difference {gap:.0e} over {len(logits)} rows")


def cross_entropy(evidence):
    """Equation (1) written out in NumPy against Keras on random numbers."""
    import keras

    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 64).astype("float32")
    y = np.eye(3, dtype="float32")[rng.integers(0, 3, 64)]
    gap = abs(-np.mean(np.sum(y * np.log(p), axis=1)) - float(keras.losses.CategoricalCrossentropy()(y, p)))
    return Finding(bool(gap < 1e-5), f"difference {gap:.0e} over {len(p)} rows")


def operations_change(evidence, *names):
    """Operations of §2.1 applied to a grey slice stored as RGB; holds if each changes it."""
    rows, columns = np.mgrid[:32, :32]
    grey = np.repeat((6 * columns + rows).astype("uint8")[..., None], 3, axis=-1)
    ends = {name: True if name.endswith("_flip") else augmentation.PAPER[name][1] for name in names}
    changing = [name for name, value in ends.items()  # 1: rounding on the way through HSV
                if np.abs(augmentation.apply(name, grey, value).astype(int) - grey).max() > 1]
    return Finding(len(changing) == len(names), f"{len(changing)} of {len(names)} change a grey slice")


def class_sum(evidence, stated, *counts):
    """Sum over the three classes."""
    total = sum(map(int, counts))
    return Finding(total == int(stated), f"{' + '.join(counts)} = {total}")


def overall(evidence):
    """Correct counts over all slices."""
    correct, total = sum(CORRECT.values()), sum(COUNTS.values())
    return Finding(round(correct / total, 3) == 0.901, f"{correct} / {total} = {correct / total:.1%}")


def more_than_all(evidence):
    """Correct counts against the number of slices of their class."""
    too_many = [f"{name}: {n} correct of {COUNTS[name]}" for name, n in CORRECT.items() if n > COUNTS[name]]
    return Finding(not too_many, "; ".join(too_many) or "none exceeds its class")


def balanced(evidence):
    """Recalls with viral and normal swapped; holds if their mean is within 1 point of 90.1 %."""
    mean = np.mean(list(RECALLS.values()))
    parts = ", ".join(f"{name} {share:.1%}" for name, share in RECALLS.items())
    return Finding(bool(abs(mean - 0.901) < 0.01), f"balanced accuracy {mean:.1%} ({parts})")


def gain(evidence):
    """Difference of the two accuracies, in points and relative."""
    own, base = PAPER["accuracy"]["improved"], PAPER["accuracy"]["resnet50"]
    relative = 100 * (own / base - 1)
    return Finding(round(relative, 1) == 3.1, f"{100 * (own - base):.1f} points are {relative:.1f} %")


def significance(evidence):
    """z of 90.1 % against 87 % on 3000 slices, independent and with a design effect of 4."""
    own, base = PAPER["accuracy"]["improved"], PAPER["accuracy"]["resnet50"]
    alone, clustered = (statistics.two_proportion_z(own, 3000, base, 3000, effect) for effect in (1, 4))
    return Finding(INCONCLUSIVE, f"z = {alone:.1f} if the slices were independent, {clustered:.1f} with a design "
                   "effect of 4 (several slices per patient); the patients are not given")


def iterations(evidence):
    """Slices in 35 iterations of a batch of 32 against the number collected."""
    drawn, total = 35 * 32, sum(COUNTS.values())
    return Finding(drawn >= total,
                   f"35 iterations of a batch of 32 take {drawn} of {total} slices, 35 epochs {35 * total}")


def machine(evidence):
    """Table 1's rows of the machine that trained `improved`; of this one where there is no run."""
    try:
        here = evidence.of("improved")[0].provenance["machine"]
    except Missing:
        here = provenance.machine()
    return Finding(NOT_COMPARABLE, f"{here['os']}, Python {here['python']}, {here['backend']} "
                   f"{here.get(here['backend'], '')}, {here['cpu']}")
