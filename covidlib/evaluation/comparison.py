"""Variants side by side (§3.3, Table 2): mean and spread over seeds, and the paired difference to the baseline."""

import numpy as np
import pandas as pd

from covidlib.evaluation import metrics, statistics

BASELINE = "resnet50"
MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
SLICE = ["path", "slice_index"]


def average_correct(tables, classes, seeds=None):
    """DataFrame by path and slice: correct (share of the predictions that are right), patient, label, predictions.

    tables: predictions of several trainings (seeds, folds), see `metrics`; seeds: that of each, for a column
    "seed <k>" of `correct` for every seed that predicted all slices.
    """
    parts = [table.assign(correct=metrics.correct(table, classes).astype(float)) for table in tables]
    found = pd.concat(parts).groupby(SLICE).agg(correct=("correct", "mean"), patient=("patient", "first"),
                                                label=("label", "first"), predictions=("correct", "size"))
    if seeds is None:
        return found
    own = pd.concat([part.assign(seed=f"seed {seed}") for part, seed in zip(parts, seeds, strict=True)])
    return found.join(own.pivot_table("correct", SLICE, "seed").dropna(axis="columns"))


def paired_difference(own, reference, seed=0):
    """`own` on the slices that two `average_correct` tables share, and `statistics.paired_difference` there or None.

    It is over the seeds that both have; over the means where there is none.
    """
    shared = own.index.intersection(reference.index).sort_values()
    own, reference = own.loc[shared], reference.loc[shared]
    if own.empty:
        return own, None
    columns = [name for name in own if name.startswith("seed ") and name in reference] or ["correct"]
    return own, statistics.paired_difference(own[columns], reference[columns], own["patient"], seed)


def table(runs, split="test", seed=0):
    """One row per variant from `runs` (list of runs.Run), the baseline first.

    Columns: variant, seeds, n; <measure>_mean and <measure>_sd over seeds (sd NaN for one seed) for accuracy,
    balanced_accuracy, macro_f1 and auc; accuracy_low and accuracy_high: 95 % interval over patients; difference,
    difference_low and difference_high: accuracy minus the baseline's with a paired 95 % interval; p_bootstrap, and
    p_holm, adjusted for the variants compared; parameters (of the network), seconds (mean of the training).

    Intervals resample patients, or slices where no patient is known; those of a difference the seeds, too, those of an
    accuracy average over them. NaN without the baseline. ValueError if runs were
    predicted on different slices.
    """
    if not runs:
        raise ValueError("there are no runs to compare: run notebook 03_training first. Received: runs=[]")
    names = sorted({run.parameters["variant"] for run in runs}, key=lambda name: (name != BASELINE, name))
    groups = {name: [run for run in runs if run.parameters["variant"] == name] for name in names}
    slices = {name: average_correct([run.predictions[run.predictions["split"] == split] for run in group],
                                    group[0].classes, [run.seed for run in group]) for name, group in groups.items()}
    for name, own in slices.items():
        if (own["predictions"] != len(groups[name])).any():
            raise ValueError(f"the seeds of {name} were predicted on different slices")
        if not own.index.equals(slices[names[0]].index):
            raise ValueError(f"the runs were predicted on different {split} slices. Received: {', '.join(names)}")
    rows = []
    for name, own in slices.items():
        measured = pd.DataFrame([run.metrics[split] for run in groups[name]])
        row = {"variant": name, "seeds": len(measured), "n": len(own)}
        for measure in MEASURES:
            values = measured[measure]
            row |= {f"{measure}_mean": values.mean(skipna=False), f"{measure}_sd": values.std(skipna=False)}
        row["accuracy_low"], row["accuracy_high"] = statistics.proportion_interval(own["correct"], own["patient"], seed)
        row |= _difference(own, slices.get(BASELINE), seed)
        row["parameters"] = groups[name][0].content["model"]["parameters"]
        row["seconds"] = np.mean([run.content["wall_seconds"] for run in groups[name]])
        rows.append(row)
    found = pd.DataFrame(rows)
    found.insert(found.columns.get_loc("p_bootstrap") + 1, "p_holm", statistics.holm(found["p_bootstrap"]))
    return found


def _difference(own, reference, seed):
    names = {"low": "difference_low", "high": "difference_high", "difference": "difference"}
    if reference is None:
        found = dict.fromkeys(names, np.nan) | {"p_bootstrap": np.nan}
    elif own["correct"].equals(reference["correct"]):
        found = dict.fromkeys(names, 0.0) | {"p_bootstrap": np.nan}
    else:
        _, found = paired_difference(own, reference, seed)
    return {column: found[name] for name, column in names.items()} | {"p_bootstrap": found["p_bootstrap"]}
