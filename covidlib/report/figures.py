"""Every figure and table of the paper, drawn from plain arrays, DataFrames and built models.

Each function returns a matplotlib Figure that pyplot has let go of, so that a notebook shows it
once (as the last line of a cell) and nothing piles up in memory. Titles state what is seen.
"""

import io
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

from covidlib.report.diagrams import figure2_fpn, figure3_attention

__all__ = ["style", "save", "sheet", "figure1_augmentation", "figure2_fpn", "figure3_attention",
           "figure4_curves", "figure5_classified", "figure6_confusion", "roc", "precision_recall", "reliability",
           "comparison", "shortcuts", "draw_reliability", "table1", "table2", "new", "PAPER"]

# What the paper prints in its tables (sections 3.1 and 3.3).
PAPER = {
    "machine": {"machine": "HP Z8G4 workstation", "os": "Windows Server 2019", "python": "3.7",
                "tensorflow": "2.4.0 (GPU)"},
    "accuracy": {"resnet50": 0.87, "improved": 0.901},
    "fps": {("resnet50", "cpu"): 7.89, ("improved", "cpu"): 12.75,
            ("resnet50", "gpu"): 23.52, ("improved", "gpu"): 39.56},
}


def style() -> None:
    """One look for all figures: seaborn's white grid with its colour-blind-safe palette."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.dpi": 100, "savefig.dpi": 150, "text.parse_math": False, "svg.hashsalt": "covidlib", "pdf.fonttype": 42,
        "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left"})


def save(figure, folder, name) -> list[Path]:
    """Write `<folder>/<name>.png`, `.svg` and `.pdf` without dates: the same figure, the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    pictures = [image for axis in figure.axes for image in axis.images]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for all, not twice for every format
    with plt.rc_context({"svg.hashsalt": "covidlib"}):
        for kind, facts in metadata.items():
            for image in pictures:  # vector files hold pictures as they are, not enlarged
                image.set_interpolation(None if kind == "png" else "none")
            figure.savefig(folder / f"{name}.{kind}", metadata=facts, bbox_inches="tight")
    picture = folder / f"{name}.png"
    picture.write_bytes(compact(picture.read_bytes()))
    return [folder / f"{name}.{kind}" for kind in metadata]


def compact(png) -> bytes:
    """A PNG, bytes, in its 256 most common colours, half as large; as it is where that would be larger."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(buffer, "png", optimize=True)
    return min(png, buffer.getvalue(), key=len)


def new(width, height, rows=1, columns=1, **options):
    """(figure, its axes in a flat array); options as in matplotlib's `subplots`."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    plt.close(figure)
    return figure, axes.ravel()


def sheet(images, titles, columns=5, colors=None, suptitle=None):
    """Grid of grey or RGB slices (0..255), each with its title."""
    rows = ceil(len(images) / columns)
    figure, axes = new(2.1 * columns, 2.5 * rows + 0.4, rows, columns)
    for axis in axes:
        axis.set_axis_off()
    for i, (axis, image, title) in enumerate(zip(axes, images, titles, strict=False)):
        image = np.squeeze(np.asarray(image))
        axis.imshow(image if image.ndim == 2 else image.astype("uint8"), cmap="gray", vmin=0, vmax=255)
        color = colors[i] if colors else "black"
        axis.set_title(title, fontsize=9, loc="center", fontweight="normal", color=color)
    if suptitle:
        figure.suptitle(suptitle, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def figure1_augmentation(before, after, columns=4):
    """Figure 1 (§2.1): one slice before, and after each operation. after: title -> image."""
    changed = sum(bool(np.any(np.asarray(image) != np.asarray(before))) for image in after.values())
    return sheet([before, *after.values()], ["before", *after], columns,
                 suptitle=f"{changed} of {len(after)} operations change this slice")


def figure4_curves(history):
    """Figure 4 (§3.2): accuracy and loss per epoch.

    history: DataFrame (epoch, accuracy, loss, val_accuracy, val_loss), or variant -> DataFrame.
    """
    histories = history if isinstance(history, dict) else {"": history}
    figure, axes = new(11, 4, 1, 2)
    for color, (variant, table) in zip(sns.color_palette("colorblind"), histories.items(), strict=False):
        prefix = f"{variant} " if variant else ""
        for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
            short, held_out = quantity.replace("accuracy", "acc"), f"val_{quantity}"
            axis.plot(table["epoch"], table[quantity], color=color, label=f"{prefix}{short} (training)")
            if held_out in table and table[held_out].notna().any():
                axis.plot(table["epoch"], table[held_out], color=color, linestyle="--", marker=".",
                          label=f"{prefix}val_{short} (validation)")
    for axis, unit in zip(axes, ("accuracy (fraction correct)", "loss (cross-entropy, nats)"), strict=True):
        axis.set(xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    axes[0].set(ylim=(0, 1.02), title=_lowest_loss(histories))
    return figure


def _lowest_loss(histories) -> str:
    best = sorted({int(table.loc[table["val_loss"].idxmin(), "epoch"]) for table in histories.values()
                   if "val_loss" in table and table["val_loss"].notna().any()})
    epochs = max(int(table["epoch"].max()) for table in histories.values())
    if not best:
        return f"{epochs} epochs, no validation part"
    where = str(best[0]) if len(best) == 1 else f"{best[0]} to {best[-1]}"
    return f"Validation loss lowest at epoch {where} of {epochs}"


def figure5_classified(images, predictions, classes, columns=6):
    """Figure 5 (§3.2): slices with the predicted class, its probability and the true one.

    images: (N, S, S) in 0..255, in the order of the rows of `predictions` (label, p_<class>...).
    """
    probabilities = predictions[[f"p_{name}" for name in classes]].to_numpy()
    best = probabilities.argmax(axis=1)
    right = [classes[k] == label for k, label in zip(best, predictions["label"], strict=True)]
    palette = sns.color_palette("colorblind")
    titles = [f"{classes[k]} {row[k]:.2f} {'=' if ok else '≠'} {label}"
              for k, row, ok, label in zip(best, probabilities, right, predictions["label"], strict=True)]
    return sheet(images, titles, columns, [palette[0] if ok else palette[3] for ok in right],
                 f"{sum(right)} of these {len(right)} slices are classified correctly (predicted, probability, true)")


def figure6_confusion(confusion):
    """Figure 6 (§3.2): counts with the share of each true class. confusion: DataFrame true x predicted."""
    counts = confusion.to_numpy()
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]
    text = np.array([f"{n:d}\n{s:.0%}" for n, s in zip(counts.flat, share.flat, strict=True)]).reshape(counts.shape)
    figure, (axis,) = new(1.6 + 1.25 * len(counts), 1.2 + 1.05 * len(counts))
    rows = [f"{name}\n(n = {int(n)})" for name, n in zip(confusion.index, totals, strict=True)]
    sns.heatmap(share, annot=text, fmt="", vmin=0, vmax=1, cmap="Blues", square=True, linewidths=1, ax=axis,
                xticklabels=list(confusion.columns), yticklabels=rows,
                cbar_kws={"label": "recall (share of the true class)", "shrink": 0.8})
    axis.set(xlabel="predicted class", ylabel="true class",
             title=f"{np.trace(counts)} of {counts.sum()} slices correct ({np.trace(counts) / counts.sum():.1%})")
    axis.tick_params(axis="both", rotation=0)
    return figure


def roc(curves, n):
    """One curve per class against the rest, of `n` slices. curves: DataFrame class, fpr, tpr."""
    figure, (axis,) = new(5.5, 5.2)
    areas = {}
    for name, part in curves.groupby("class", sort=False):
        areas[name] = np.trapezoid(part["tpr"], part["fpr"])
        axis.plot(part["fpr"], part["tpr"], label=f"{name} (AUC {areas[name]:.3f})")
    best = f"{max(areas, key=areas.get)} is told apart best" if areas else "No class has a curve"
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity (true positive rate)",
             aspect="equal", ylim=(-0.02, 1.02), title=f"{best} (n = {n} slices)")
    axis.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall(curves, n):
    """One curve per class against the rest, of `n` slices. curves: DataFrame class, recall, precision.

    Dotted: a class's share of the slices, which answers at random would have.
    """
    figure, (axis,) = new(5.5, 5.2)
    areas = {}
    colors = sns.color_palette("colorblind")
    for color, (name, part) in zip(colors, curves.groupby("class", sort=False), strict=False):
        areas[name] = average_precision(part)
        axis.step(part["recall"], part["precision"], where="pre", color=color,
                  label=f"{name} (average precision {areas[name]:.3f})")
        axis.axhline(part["precision"].iloc[0], color=color, linestyle=":", linewidth=1)
    best = f"{max(areas, key=areas.get)} is found most precisely" if areas else "No class has a curve"
    axis.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)", xlim=(-0.02, 1.02),
             ylim=(-0.02, 1.02), title=f"{best} (n = {n} slices)")
    axis.legend(loc="lower left", fontsize=9)
    return figure


def average_precision(curve):
    """The precision of every step of a curve, weighted by its gain of recall; curve: recall falling, precision."""
    return float(-np.sum(np.diff(curve["recall"]) * curve["precision"].to_numpy()[:-1]))


def reliability(views):
    """Accuracy over confidence: a line for each name in `views` (see calibration.reliability), empty bins left out."""
    figure, (axis,) = new(5.5, 4.5)
    gaps = draw_reliability(axis, views)
    axis.set_title("Confidence is off by " + ", ".join(f"{gap:.3f} {name}" for name, gap in gaps.items()), fontsize=10)
    return figure


def draw_reliability(axis, views):
    """The lines of a reliability diagram; returns the expected calibration error by name."""
    gaps = {}
    for color, (name, bins) in zip(sns.color_palette("colorblind"), views.items(), strict=False):
        bins = bins[bins["n"] > 0]
        gaps[name] = np.average((bins["confidence"] - bins["accuracy"]).abs(), weights=bins["n"])
        axis.plot(bins["confidence"], bins["accuracy"], "o-", color=color,
                  label=f"{name}, n = {bins['n'].sum()}, error {gaps[name]:.3f}")
    axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1)
    axis.set(xlim=(0, 1.02), ylim=(-0.02, 1.02), xlabel="confidence (highest probability)",
             ylabel="accuracy (fraction correct)")
    axis.legend(fontsize=8)
    return gaps


def comparison(table):
    """Accuracy of each variant and its difference to ResNet50, the paper's as diamonds (§3.3, Table 2).

    table: as `covidlib.evaluation.comparison.table` gives it. Bars: 95 % intervals over patients, on the right paired.
    """
    table = table.iloc[::-1].reset_index(drop=True)
    figure, (left, right) = new(11, 2 + 0.45 * len(table), 1, 2)
    mean, low, high = (table[f"accuracy_{name}"] for name in ("mean", "low", "high"))
    left.errorbar(mean, table.index, xerr=[mean - low, high - mean], fmt="o", capsize=4,
                  label="here (bars: 95 % interval, of the difference paired)")
    others = table[table["difference_low"].notna() & (table["variant"] != "resnet50")]
    mean, low, high = (others[name] for name in ("difference", "difference_low", "difference_high"))
    right.errorbar(mean, others.index, xerr=[mean - low, high - mean], fmt="o", capsize=4)
    known = {i: PAPER["accuracy"][v] for i, v in table["variant"].items() if v in PAPER["accuracy"]}
    left.plot(list(known.values()), list(known), "D", color="C1", label="paper (its own images)")
    gains = {i: value - PAPER["accuracy"]["resnet50"] for i, value in known.items()
             if table["variant"][i] != "resnet50"}
    right.plot(list(gains.values()), list(gains), "D", color="C1")
    right.axvline(0, color="grey", linestyle=":")
    names = [f"{row.variant} ({row.seeds} seed{'s'[:row.seeds > 1]})" for row in table.itertuples()]
    for axis, labels in ((left, names), (right, [])):
        axis.set(yticks=table.index, yticklabels=labels or [""] * len(table), ylim=(-0.6, len(table) - 0.4))
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    left.set(xlabel="accuracy on the test part (fraction correct)", title=_highest(table))
    right.locator_params(axis="x", nbins=6)
    clear = others[(low > 0) | (high < 0)]["variant"]
    right.set(xlabel="accuracy - accuracy of resnet50",
              title=f"Clearly different from resnet50: {', '.join(clear) or 'none'}")
    return figure


def _highest(table) -> str:
    best = table.loc[table["accuracy_mean"] == table["accuracy_mean"].max(), "variant"]
    first = f"{best.iloc[0]} scores highest" if len(best) == 1 else f"{len(best)} variants share first place"
    return f"{first} (n = {table['n'].max()} slices)"


def shortcuts(table):
    """Accuracy of every baseline without anatomy, 95 % intervals, one panel per protocol. See shortcuts.measure."""
    protocols = list(dict.fromkeys(table["protocol"]))
    names = list(dict.fromkeys(table["baseline"]))[::-1]
    figure, axes = new(5.5 * len(protocols) + 1.5, 1.2 + 0.42 * len(names), 1, len(protocols))
    views = list(dict.fromkeys(table["seen"]))
    for axis, protocol in zip(axes, protocols, strict=True):
        part = table[table["protocol"] == protocol]
        floor = part.loc[part["baseline"] == "majority class", "accuracy"].iloc[0]
        axis.axvline(floor, color="black", linewidth=1, linestyle=":")
        for k, view in enumerate(views):
            rows = part[part["seen"] == view]
            place = [names.index(name) + 0.14 * (1 - k) for name in rows["baseline"]]
            spread = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
            axis.errorbar(rows["accuracy"], place, xerr=spread, fmt="os^D"[k % 4], color=f"C{k}", label=view, capsize=2)
        best = part.loc[part["accuracy"].idxmax()]
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(min(0.3, part["low"].min()), 1.01),
                 xlabel="accuracy, 95 % interval", title=f"{protocol}:\n{best['baseline']} ({best['seen']}) alone "
                                                         f"reaches {best['accuracy']:.1%}")
    axes[-1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1), title="what is seen")
    return figure


def table1(machine) -> pd.DataFrame:
    """Table 1 (§3.1): this machine beside the paper's. machine: `covidlib.utils.provenance.machine()`."""
    return pd.DataFrame([{"item": key.replace("_", " "), "paper": PAPER["machine"].get(key, "not in its text"),
                          "here": "none" if value is None else str(value)}
                         for key, value in {"machine": "this one", **machine}.items()])


def table2(comparison, speed=None) -> pd.DataFrame:
    """Table 2 (§3.3): accuracy and images per second of each variant, the paper's beside ours.

    comparison: as `evaluation.comparison.table` gives it; speed: as `speed.harness.table` does, or None.
    """
    rows = []
    for row in comparison.to_dict("records"):
        variant = row["variant"]
        line = {"variant": variant, "accuracy, paper": PAPER["accuracy"].get(variant),
                "accuracy, here": row["accuracy_mean"], "sd over seeds": row["accuracy_sd"],
                "difference to resnet50": row["difference"], "low": row["difference_low"],
                "high": row["difference_high"]}
        for device in ("cpu", "gpu"):
            line[f"FPS {device.upper()}, paper"] = PAPER["fps"].get((variant, device))
            here = [] if speed is None else timed(speed, variant, device)["median_fps"].tolist()
            line[f"FPS {device.upper()}, here"] = here[0] if here else None
        exported = [] if speed is None else timed(speed, variant, "cpu", "exported")["median_fps"].tolist()
        line["FPS CPU, exported"] = max(exported, default=None)
        rows.append(line)
    return pd.DataFrame(rows)


def timed(speed, variant, device, harness="predict loop") -> pd.DataFrame:
    """Rows of the speed table for single slices, all threads, on the devices whose name starts so."""
    there = speed[speed["device"].str.startswith(device)]  # of another machine, it may be: a GPU's
    return there[(there["variant"] == variant) & (there["harness"] == harness) & (there["batch"] == 1)
                 & (there["threads"] == there["threads"].max())]
