"""Figures of the study (see study.py), in the look of figures.py."""

import numpy as np
import pandas as pd
import seaborn as sns

from covidlib import shortcuts, study
from covidlib.figures import PAPER, new

NAMES = {study.SPLIT: "test part", study.FOLDS: "all folds"}


def draw(tables, found):
    """name -> Figure of everything there is something to draw of; tables: study.tables, found: study.find."""
    summary = tables["summary"]
    drawn = {"accuracy": accuracy(summary, tables["baselines"])}
    if len(tables["differences"]):
        drawn["differences"] = differences(tables["differences"])
    drawn["reliability"] = reliability(tables["reliability"], summary)
    drawn["curves"] = curves(found)
    return drawn


def _where(row):
    tested = NAMES.get(row["protocol"], f"tested on {row['tested_on']}")
    start = row["profile"].removeprefix("study").strip("-")
    return f"{row['dataset']}, {tested}{f', start {start}' if start else ''}"


def accuracy(summary, baselines):
    """Accuracy of every network with its 95 % interval, a panel for each test, beside baselines and the paper."""
    groups = [part for _, part in summary.groupby([summary.apply(_where, axis=1)], sort=False)]
    figure, axes = new(11, sum(0.9 + 0.28 * (len(part) + 3) for part in groups), len(groups),
                       height_ratios=[len(part) + 3 for part in groups])
    for axis, part in zip(axes, groups, strict=True):
        first = part.iloc[0]
        rows = [(row["variant"], row["accuracy"], row["low"], row["high"], "black") for row in part.to_dict("records")]
        rows += _baseline_rows(first, baselines)
        for place, (_, value, low, high, color) in enumerate(rows):
            if np.isfinite([low, high]).all():
                axis.plot([low, high], [place, place], color=color, linewidth=2)
            axis.plot(value, place, "o", color=color, markersize=6)
        axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        axis.set_yticklabels([name for name, *_ in rows], fontsize=9)
        for value, style in ((PAPER["accuracy"]["improved"], "--"), (PAPER["accuracy"]["resnet50"], ":")):
            axis.axvline(value, color="grey", linestyle=style, linewidth=1)
        axis.set_title(f"{_where(first)}: {_best(part)} (n = {first['slices']} slices)", fontsize=10)
    axes[-1].set_xlabel("accuracy, fraction correct, 95 % interval over patients; "
                        "grey lines: the paper's .87 and .901; orange: no anatomy seen")
    return figure


def _best(part):
    best = part.loc[part["accuracy"].idxmax()]
    return f"{best['variant']} highest at {best['accuracy']:.3f}" if len(part) > 1 else f"{best['accuracy']:.3f}"


def _baseline_rows(first, baselines):
    protocol = shortcuts.OFFICIAL if first["protocol"] == study.SPLIT else shortcuts.CROSS_VALIDATION
    own = baselines[(baselines.dataset == first["tested_on"]) & (baselines.profile == first["profile"])]
    own = own[own.protocol == (protocol if (own.protocol == protocol).any() else shortcuts.CROSS_VALIDATION)]
    own = own[own.baseline.isin(["majority class", "file facts"])
              | (own.baseline.eq("lungs blacked out") & own.seen.eq(shortcuts.HARMONISED))]
    orange = sns.color_palette("colorblind")[1]
    return [(f"{row.baseline}", row.accuracy, row.low, row.high, orange) for row in own.itertuples()]


def differences(table):
    """Accuracy less that of the baseline, in points, paired, with 95 % intervals."""
    rows = table.to_dict("records")
    figure, (axis,) = new(10, 1.2 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        told = row["low"] > 0 or row["high"] < 0
        color = sns.color_palette("colorblind")[0 if told else 7]
        axis.plot([100 * row["low"], 100 * row["high"]], [place, place], color=color, linewidth=2)
        axis.plot(100 * row["difference"], place, "o", color=color)
    axis.axvline(0, color="black", linewidth=1)
    axis.axvline(3.1, color="grey", linestyle="--", linewidth=1)
    axis.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)),
             xlabel=f"points of accuracy more than {table['against'].iloc[0]}; dashed: the paper's +3.1")
    axis.set_yticklabels([f"{row['variant']} · {_where(row)} ({row['slices']})" for row in rows], fontsize=9)
    clear = sum(row["low"] > 0 for row in rows)
    axis.set_title(f"{clear} of {len(rows)} differences lie above zero")
    return figure


def reliability(table, summary):
    """Confidence against accuracy of the two main networks on the first set, before and after scaling."""
    first = summary.iloc[0]
    part = table[(table.dataset == first.dataset) & (table.protocol == first.protocol)
                 & (table.profile == first.profile) & table.variant.isin([study.BASELINE, "improved"])]
    figure, axes = new(9, 4.2, 1, 2)
    for axis, kind in zip(axes, ("as trained", "scaled"), strict=True):
        for color, (variant, bins) in zip(sns.color_palette("colorblind"), part[part.probabilities == kind].groupby(
                "variant", sort=False), strict=False):
            bins = bins[bins.n > 0]
            axis.plot(bins.confidence, bins.accuracy, "o-", color=color, label=f"{variant}, n = {bins.n.sum()}")
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
        axis.set(xlim=(0.45, 1.02), ylim=(0, 1.02), xlabel="confidence (highest probability)",
                 ylabel="accuracy, fraction correct", title=kind)
        if len(part):
            axis.legend(fontsize=8)
    own = summary[(summary.dataset == first.dataset) & (summary.protocol == first.protocol)
                  & (summary.profile == first.profile) & (summary.variant == "improved")]
    told = f": improved's error {own.ece.iloc[0]:.3f}, {own.ece_scaled.iloc[0]:.3f} after scaling" if len(own) else ""
    figure.suptitle(f"{_where(first)}{told}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def curves(found):
    """Figure 4 over all runs of the two main networks on the first set: mean and range of the validation loss."""
    dataset = found[0].path.parts[-4]
    datasets = [run.path.parts[-4] for run in found]
    dataset = "ucsd-covid-ct" if "ucsd-covid-ct" in datasets else dataset
    figure, axes = new(11, 4, 1, 2)
    lowest = []
    for color, variant in zip(sns.color_palette("colorblind"), (study.BASELINE, "improved"), strict=False):
        own = [run.history.set_index("epoch") for run in found
               if run.variant == variant and run.path.parts[-4:-2] == (dataset, "study")]
        if not own:
            continue
        lowest += [history["val_loss"].idxmin() for history in own if history["val_loss"].notna().any()]
        for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
            for name, style in ((quantity, "-"), (f"val_{quantity}", "--")):
                table = pd.concat([history[name] for history in own], axis=1)
                axis.plot(table.index, table.mean(axis=1), style, color=color,
                          label=f"{variant} {name}, {len(own)} runs")
                axis.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.12)
    for axis, unit in zip(axes, ("accuracy (fraction correct)", "loss (cross-entropy, nats)"), strict=True):
        axis.set(xlabel="epoch", ylabel=unit)
        axis.legend(fontsize=8)
    where = f"{min(lowest)} to {max(lowest)}, median {int(np.median(lowest))}" if lowest else "unknown"
    axes[0].set_title(f"{dataset}: validation loss lowest at epoch {where}")
    return figure
