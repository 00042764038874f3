"""The figures and tables of the paper, drawn from arrays and DataFrames (Figures 2 and 3: see `diagrams`).

Each function returns a matplotlib Figure that pyplot has let go of, so that a notebook shows it
once (as the last line of a cell) and nothing piles up in memory. Titles state the result.
"""

import io
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

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


def save(figure, folder, name) -> None:
    """Write `<folder>/<name>.png`, `.svg` and `.pdf` without dates: the same figure, the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out and measured once for all, not twice for every format
    box = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    for kind, dated in {"png": "Software", "svg": "Date", "pdf": "CreationDate"}.items():
        for image in (image for axis in figure.axes for image in axis.images):
            image.set_interpolation(None if kind == "png" else "none")  # vector files hold pictures as they are
        figure.savefig(folder / f"{name}.{kind}", metadata={dated: None}, bbox_inches=box)
    picture = folder / f"{name}.png"
    picture.write_bytes(compact(picture.read_bytes()))


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


def intervals(axis, places, value, low, high, **options):
    """Points with bars from `low` to `high`, at the heights `places`."""
    axis.errorbar(value, places, xerr=[value - low, high - value], capsize=3, **options)


def sheet(images, titles, columns=5, colors=None, suptitle=None):
    """Grid of grey or RGB slices (0..255), each with its title."""
    rows = ceil(len(images) / columns)
    figure, axes = new(2.1 * columns, 2.5 * rows + 0.4, rows, columns)
    for axis in axes:
        axis.set_axis_off()
    colors = colors or ["black"] * len(images)
    for axis, image, title, color in zip(axes, images, titles, colors, strict=False):
        image = np.squeeze(np.asarray(image))
        axis.imshow(image if image.ndim == 2 else image.astype("uint8"), cmap="gray", vmin=0, vmax=255)
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
    units = {"accuracy": "fraction correct", "loss": "cross-entropy, nats"}
    for axis, (quantity, unit) in zip(axes, units.items(), strict=True):
        short, held_out = quantity.replace("accuracy", "acc"), f"val_{quantity}"
        for k, (variant, table) in enumerate(histories.items()):
            axis.plot(table["epoch"], table[quantity], color=f"C{k}", label=f"{variant} {short} (training)".strip())
            if held_out in table and table[held_out].notna().any():
                axis.plot(table["epoch"], table[held_out], color=f"C{k}", linestyle="--", marker=".",
                          label=f"{variant} val_{short} (validation)".strip())
        axis.set(xlabel="epoch", ylabel=f"{quantity} ({unit})")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    axes[0].set(ylim=(0, 1.02), title=_lowest_loss(histories))
    return figure


def _lowest_loss(histories) -> str:
    best = sorted({int(table.loc[table["val_loss"].idxmin(), "epoch"]) for table in histories.values()
                   if "val_loss" in table and table["val_loss"].notna().any()})
    epochs = max(int(table["epoch"].max()) for table in histories.values())
    where = " to ".join(str(epoch) for epoch in dict.fromkeys([best[0], best[-1]])) if best else ""
    return f"Validation loss lowest at epoch {where} of {epochs}" if best else f"{epochs} epochs, no validation part"


def figure5_classified(images, predictions, classes, columns=6):
    """Figure 5 (§3.2): slices with the predicted class, its probability and the true one.

    images: (N, S, S) in 0..255, in the order of the rows of `predictions` (label, p_<class>...).
    """
    probabilities = predictions[[f"p_{name}" for name in classes]].to_numpy()
    answers = [classes[k] for k in probabilities.argmax(axis=1)]
    right = [answer == label for answer, label in zip(answers, predictions["label"], strict=True)]
    titles = [f"{answer} {p:.2f} {'=' if ok else '≠'} {label}" for answer, p, ok, label in
              zip(answers, probabilities.max(axis=1), right, predictions["label"], strict=True)]
    return sheet(images, titles, columns, ["C0" if ok else "C3" for ok in right],
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
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance")
    axis.set(xlabel="1 - specificity (false positive rate)", ylabel="sensitivity (true positive rate)",
             aspect="equal", ylim=(-0.02, 1.02), title=_highest_area(areas, "AUC", n))
    axis.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall(curves, n):
    """One curve per class against the rest, of `n` slices. curves: DataFrame class, recall, precision.

    Dotted: a class's share of the slices, the precision of random answers.
    """
    figure, (axis,) = new(5.5, 5.2)
    areas = {}
    for k, (name, part) in enumerate(curves.groupby("class", sort=False)):
        areas[name] = average_precision(part)
        axis.step(part["recall"], part["precision"], where="pre", color=f"C{k}",
                  label=f"{name} (average precision {areas[name]:.3f})")
        axis.axhline(part["precision"].iloc[0], color=f"C{k}", linestyle=":", linewidth=1)
    axis.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)", xlim=(-0.02, 1.02),
             ylim=(-0.02, 1.02), title=_highest_area(areas, "precision", n))
    axis.legend(loc="lower left", fontsize=9)
    return figure


def _highest_area(areas, measure, n) -> str:
    first = f"Highest {measure}: {max(areas, key=areas.get)}" if areas else "No class has a curve"
    return f"{first} (n = {n} slices)"


def average_precision(curve):
    """The precision of every step of a curve, weighted by its gain of recall; curve: recall falling, precision."""
    return float(-np.sum(np.diff(curve["recall"]) * curve["precision"].to_numpy()[:-1]))


def reliability(views):
    """Accuracy over confidence: a line for each name in `views` (see calibration.reliability), empty bins left out."""
    figure, (axis,) = new(5.5, 4.5)
    gaps = draw_reliability(axis, views)
    axis.set_title("Calibration error " + ", ".join(f"{gap:.3f} {name}" for name, gap in gaps.items()), fontsize=10)
    return figure


def draw_reliability(axis, views):
    """The lines of a reliability diagram; returns the expected calibration error by name."""
    gaps = {}
    for k, (name, bins) in enumerate(views.items()):
        bins = bins[bins["n"] > 0]
        gaps[name] = np.average((bins["confidence"] - bins["accuracy"]).abs(), weights=bins["n"])
        axis.plot(bins["confidence"], bins["accuracy"], "o-", color=f"C{k}",
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
    others = table[table["difference_low"].notna() & (table["variant"] != "resnet50")]
    figure, (left, right) = new(11, 2 + 0.45 * len(table), 1, 2)
    intervals(left, table.index, *(table[f"accuracy_{name}"] for name in ("mean", "low", "high")), fmt="o",
              label="here (bars: 95 % interval, of the difference paired)")
    intervals(right, others.index, *(others[f"difference{name}"] for name in ("", "_low", "_high")), fmt="o")
    paper = table["variant"].map(PAPER["accuracy"]).dropna()
    gains = paper[table["variant"] != "resnet50"] - PAPER["accuracy"]["resnet50"]
    left.plot(paper, paper.index, "D", color="C1", label="paper (its own images)")
    right.plot(gains, gains.index, "D", color="C1")
    right.axvline(0, color="grey", linestyle=":")
    names = [f"{row.variant} ({row.seeds} seed{'s'[:row.seeds > 1]})" for row in table.itertuples()]
    for axis, labels in ((left, names), (right, [""] * len(table))):
        axis.set(yticks=table.index, yticklabels=labels, ylim=(-0.6, len(table) - 0.4))
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    best = table.loc[table["accuracy_mean"] == table["accuracy_mean"].max(), "variant"]
    first = f"Highest accuracy: {best.iloc[0]}" if len(best) == 1 else f"{len(best)} variants share first place"
    clear = others[(others["difference_low"] > 0) | (others["difference_high"] < 0)]["variant"]
    left.set(xlabel="accuracy on the test part (fraction correct)", title=f"{first} (n = {table['n'].max()} slices)")
    right.locator_params(axis="x", nbins=6)
    right.set(xlabel="accuracy - accuracy of resnet50",
              title=f"Interval excludes zero: {', '.join(clear) or 'none'}")
    return figure


def shortcuts(table):
    """Accuracy of every shortcut baseline, 95 % intervals, one panel per protocol. See shortcuts.measure."""
    protocols, names, views = (list(dict.fromkeys(table[name])) for name in ("protocol", "baseline", "seen"))
    names = names[::-1]
    figure, axes = new(5.5 * len(protocols) + 1.5, 1.2 + 0.42 * len(names), 1, len(protocols))
    for axis, protocol in zip(axes, protocols, strict=True):
        part = table[table["protocol"] == protocol]
        floor = part.loc[part["baseline"] == "majority class", "accuracy"].iloc[0]
        axis.axvline(floor, color="black", linewidth=1, linestyle=":")
        for k, view in enumerate(views):
            rows = part[part["seen"] == view]
            places = [names.index(name) + 0.14 * (1 - k) for name in rows["baseline"]]
            intervals(axis, places, rows["accuracy"], rows["low"], rows["high"], fmt="os^D"[k % 4], label=view)
        best = part.loc[part["accuracy"].idxmax()]
        axis.set(yticks=range(len(names)), yticklabels=names, xlim=(min(0.3, part["low"].min()), 1.01),
                 xlabel="accuracy, 95 % interval", title=f"{protocol}:\n{best['baseline']} ({best['seen']}) alone "
                                                         f"reaches {best['accuracy']:.1%}")
    axes[-1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1), title="input")
    return figure


def table1(machine) -> pd.DataFrame:
    """Table 1 (§3.1): the paper's machine and this one. machine: `covidlib.utils.provenance.machine()`."""
    return pd.DataFrame([{"item": key.replace("_", " "), "paper": PAPER["machine"].get(key, "not in its text"),
                          "here": "none" if value is None else str(value)}
                         for key, value in {"machine": "this one", **machine}.items()])


def table2(comparison, speed=None) -> pd.DataFrame:
    """Table 2 (§3.3): accuracy and images per second of each variant, the paper's and ours.

    comparison: as `evaluation.comparison.table` gives it; speed: as `speed.harness.table` does, or None.
    """
    def fps(variant, *where):
        return [] if speed is None else timed(speed, variant, *where)["median_fps"].tolist()

    rows = []
    for row in comparison.to_dict("records"):
        variant = row["variant"]
        line = {"variant": variant, "accuracy, paper": PAPER["accuracy"].get(variant),
                "accuracy, here": row["accuracy_mean"], "sd over seeds": row["accuracy_sd"],
                "difference to resnet50": row["difference"], "low": row["difference_low"],
                "high": row["difference_high"]}
        for device in ("cpu", "gpu"):
            line[f"FPS {device.upper()}, paper"] = PAPER["fps"].get((variant, device))
            line[f"FPS {device.upper()}, here"] = next(iter(fps(variant, device)), None)
        rows.append(line | {"FPS CPU, exported": max(fps(variant, "cpu", "exported"), default=None)})
    return pd.DataFrame(rows)


def timed(speed, variant, device, harness="predict loop") -> pd.DataFrame:
    """Rows of the speed table for single slices, all threads, on the devices whose name starts so."""
    there = speed[speed["device"].str.startswith(device)]  # a GPU's rows may be of another machine
    return there[(there["variant"] == variant) & (there["harness"] == harness) & (there["batch"] == 1)
                 & (there["threads"] == there["threads"].max())]
