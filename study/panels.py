"""Figures of the study, in the style of covidlib.report.figures. Every function returns a Figure."""

import numpy as np
import pandas as pd
import seaborn as sns

from covidlib.audit import shortcuts
from covidlib.evaluation import metrics
from covidlib.report.figures import PAPER, draw_reliability, new
from study import results

UCSD = "ucsd-covid-ct"
GAIN = 100 * (PAPER["accuracy"]["improved"] - PAPER["accuracy"]["resnet50"])


def draw(tables, found):
    """name -> Figure, without those that nothing is there for; tables: results.tables, found: results.find."""
    summary = tables["summary"]
    slices = summary[(summary.unit == "slice") & (summary.evidence_level != metrics.TOO_FEW)]
    drawn = {"accuracy": accuracy(slices, tables["baselines"])}
    if len(tables["differences"]):
        drawn["differences"] = differences(tables["differences"])
    if (points := _main(tables["curves"])) is not None:
        drawn["discrimination"] = discrimination(points)
    if (bins := _main(tables["reliability"])) is not None:
        drawn["reliability"] = reliability(bins)
    drawn["curves"] = curves(found)
    return drawn


def _where(row):
    kinds = row.profile.split("-")[1:]
    own = [", on a GPU" if kind == "gpu" else f", start: {kind}" for kind in kinds]
    note = f" ({row.evidence_level})" if row.evidence_level == metrics.MECHANICS else ""
    trained = f"trained on {row.dataset}" if row.protocol == results.ACROSS else row.dataset
    return f"{trained}{note}, {results.tested(row)}{''.join(own)}"


def accuracy(summary, baselines):
    """Accuracy of every network with its 95 % interval, a panel for each test, baselines and the paper's values."""
    groups = [part for _, part in summary.groupby([_where(row) for row in summary.itertuples()], sort=False)]
    figure, axes = new(11, sum(0.9 + 0.28 * (len(part) + 3) for part in groups), len(groups),
                       height_ratios=[len(part) + 3 for part in groups])
    for axis, part in zip(axes, groups, strict=True):
        first = next(part.itertuples())
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
        best = part.loc[part["accuracy"].idxmax()]
        name = f"{best['variant']} highest at " if len(part) > 1 else ""
        axis.set_title(f"{_where(first)}: {name}{best['accuracy']:.3f} (n = {first.n} slices)", fontsize=10)
    axes[-1].set_xlabel("accuracy, fraction correct, 95 % interval over patients; "
                        "grey lines: the paper's {resnet50} and {improved}; orange: without anatomy".format(
                            **PAPER["accuracy"]))
    return figure


def _baseline_rows(first, baselines):
    own = baselines[(baselines.dataset == first.tested_on) & (baselines.profile == results.PROFILE)]
    rows = own[own.protocol == shortcuts.OFFICIAL]
    if first.protocol != results.SPLIT or rows.empty:
        rows = own[own.protocol == shortcuts.CROSS_VALIDATION]
    rows = rows[rows.baseline.isin(["majority class", "file facts"])
                | (rows.baseline.eq("outside the lungs") & rows.seen.eq("cropped to the lungs"))]
    orange = sns.color_palette("colorblind")[1]
    return [(row.baseline, row.accuracy, row.low, row.high, orange) for row in rows.itertuples()]


def differences(table):
    """Accuracy less that of the baseline, in points, paired, with 95 % intervals."""
    rows = list(table.itertuples())
    figure, (axis,) = new(10, 1.2 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        color = sns.color_palette("colorblind")[0 if row.low > 0 or row.high < 0 else 7]
        axis.plot([100 * row.low, 100 * row.high], [place, place], color=color, linewidth=2)
        axis.plot(100 * row.difference, place, "o", color=color)
    axis.axvline(0, color="black", linewidth=1)
    axis.axvline(GAIN, color="grey", linestyle="--", linewidth=1)
    axis.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)),
             xlabel=f"points of accuracy more than {rows[0].against}; dashed: the paper's +{GAIN:.1f}")
    axis.set_yticklabels([f"{row.variant} · {_where(row)} (n = {row.n})" for row in rows], fontsize=9)
    real = [row for row in rows if row.evidence_level == metrics.AS_MEASURED]
    above, below = sum(row.low > 0 for row in real), sum(row.high < 0 for row in real)
    axis.set_title(f"Of {len(real)} differences on real slices {above} lie above zero, {below} below")
    return figure


def _main(table):
    """Rows of the two main networks: UCSD's folds, else its split, else the first set's; or None."""
    if table.empty:
        return None
    table = table[table.variant.isin([results.BASELINE, "improved"]) & (table.profile == results.PROFILE)]
    folds, split = (table[table.protocol == protocol] for protocol in (results.FOLDS, results.SPLIT))
    for part in (folds[folds.dataset == UCSD], split[split.dataset == UCSD], split):
        if len(part):
            return part[part.dataset == part.dataset.iloc[0]]
    return None


def discrimination(table):
    """ROC, and precision over recall, of the two main networks. table: rows of results.curves."""
    figure, (left, right) = new(10, 4.6, 1, 2)
    areas = {}
    for color, (variant, part) in zip(sns.color_palette("colorblind"), table.groupby("variant", sort=False),
                                      strict=False):
        areas[variant] = np.trapezoid(part["sensitivity"], part["place"])
        left.plot(part["place"], part["sensitivity"], color=color, label=f"{variant}, area {areas[variant]:.3f}")
        right.plot(part["place"], part["precision"], color=color, label=variant)
    first = next(table.itertuples())
    left.plot([0, 1], [0, 1], ":", color="grey", label="chance")
    right.axhline(table["precision"].iloc[-1], linestyle=":", color="grey", label="chance")
    left.set(xlabel="false positive rate (1 - specificity)", ylabel="sensitivity", title=f"n = {first.n} slices")
    right.set(xlabel="sensitivity (recall)", ylabel="precision (positive predictive value)", ylim=(0, 1.02),
              title="Precision falls to the share of COVID-19 slices")
    for axis in (left, right):
        axis.legend(fontsize=8, loc="lower right")
    text = " and ".join(f"{area:.3f} ({variant})" for variant, area in areas.items())
    figure.suptitle(f"{_where(first)}: area {text}, means over trainings", fontsize=12, fontweight="bold", x=0.01,
                    ha="left")
    return figure


def reliability(table):
    """Confidence against accuracy, a panel for each kind of probabilities. table: rows of results.reliability."""
    kinds = dict(list(table.groupby("probabilities", sort=False)))
    figure, axes = new(4.8 * len(kinds), 4.4, 1, len(kinds))
    for axis, (kind, part) in zip(axes, kinds.items(), strict=True):
        gaps = draw_reliability(axis, dict(list(part.groupby("variant", sort=False))))
        text = " and ".join(f"{gap:.3f} ({variant})" for variant, gap in gaps.items())
        axis.set_title(f"{kind}: off by {text}", fontsize=9)
    figure.suptitle(_where(next(table.itertuples())), fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def curves(found):
    """Figure 4 over all runs of the two main networks on the first set: mean and range of the validation loss."""
    datasets = [run.dataset for run in found]
    dataset = UCSD if UCSD in datasets else datasets[0]
    figure, axes = new(11, 4, 1, 2)
    lowest = []
    for color, variant in zip(sns.color_palette("colorblind"), (results.BASELINE, "improved"), strict=False):
        own = [run.history.set_index("epoch") for run in found
               if (run.variant, run.dataset, run.profile) == (variant, dataset, results.PROFILE)]
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
