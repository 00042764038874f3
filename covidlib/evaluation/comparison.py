"""Variants side by side (§3.3, Table 2): mean and spread over seeds, and the difference to the baseline."""

import numpy as np
import pandas as pd

from covidlib.evaluation import metrics, statistics

BASELINE = "resnet50"
MEASURES = ("accuracy", "balanced_accuracy", "macro_f1", "auc")


def table(runs, split="test", baseline=BASELINE, seed=0):
    """One row per variant from `runs` (list of runs.Run), the baseline first.

    Columns: variant, seeds; <measure>_mean and <measure>_sd over seeds (sd NaN for one seed) for accuracy,
    balanced_accuracy, macro_f1 and auc; accuracy_low and accuracy_high: 95 % interval over patients; difference,
    difference_low and difference_high: accuracy minus the baseline's with a paired 95 % interval; p_bootstrap, and
    p_holm, adjusted for the variants compared; parameters (of the network), seconds (mean of the training).

    The interval resamples patients, or slices where no patient is known, and averages over the seeds at
    hand: it tells how the difference varies with the patients, not with further seeds. NaN without the
    baseline. Raises ValueError if runs were predicted on different slices.
    """
    if not runs:
        raise ValueError("there are no runs to compare: run notebook 03_training first. Received: runs=[]")
    names = sorted({run.parameters["variant"] for run in runs}, key=lambda name: (name != baseline, name))
    groups = {name: [run for run in runs if run.parameters["variant"] == name] for name in names}
    rates = {name: _hit_rate(group, split) for name, group in groups.items()}
    slices = [rate.index for rate in rates.values()]
    if any(not index.equals(slices[0]) for index in slices):
        raise ValueError(f"the runs were predicted on different {split} slices. Received: {', '.join(names)}")
    rows = []
    for name, group in groups.items():
        row = {"variant": name, "seeds": len(group), "n": len(rates[name])}
        for measure in MEASURES:
            values = np.array([run.metrics[split][measure] for run in group])
            row[f"{measure}_mean"] = values.mean()
            row[f"{measure}_sd"] = values.std(ddof=1) if len(values) > 1 else np.nan
        patients = rates[name].index.get_level_values("patient")
        row["accuracy_low"], row["accuracy_high"] = statistics.proportion_interval(rates[name], patients, seed)
        row |= _difference(rates[name], rates.get(baseline), seed)
        row["parameters"] = group[0].content["model"]["parameters"]
        row["seconds"] = np.mean([run.content["wall_seconds"] for run in group])
        rows.append(row)
    made = pd.DataFrame(rows)
    made.insert(made.columns.get_loc("p_bootstrap") + 1, "p_holm", statistics.holm(made["p_bootstrap"]))
    return made


def _hit_rate(runs, split):
    """Share of the runs that are right about each slice, indexed by (path, slice_index, patient)."""
    rates = []
    for run in runs:
        rows = run.predictions[run.predictions["split"] == split]
        index = pd.MultiIndex.from_frame(rows[["path", "slice_index", "patient"]])
        rates.append(pd.Series(metrics.correct(rows, run.classes), index, dtype=float).sort_index())
    if any(not rate.index.equals(rates[0].index) for rate in rates):
        raise ValueError(f"the seeds of {runs[0].parameters['variant']} were predicted on different slices")
    return sum(rates) / len(rates)


def _difference(rate, reference, seed):
    names = {name: f"difference_{name}" for name in ("low", "high")}
    names |= {name: name for name in ("difference", "p_bootstrap")}
    if reference is None or rate.equals(reference):
        nothing = np.nan if reference is None else 0.0
        return dict.fromkeys(names.values(), nothing) | {"p_bootstrap": np.nan}
    paired = statistics.paired_difference(rate, reference, rate.index.get_level_values("patient"), seed)
    return {column: paired[name] for name, column in names.items()}
