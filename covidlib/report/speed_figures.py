"""The figures of notebook 06: images per second, the effect of batch and threads, and benchmarking errors.

Each takes DataFrames of `covidlib.speed.harness` and returns a matplotlib Figure, see `figures`.
"""

from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from covidlib.report.figures import PAPER, intervals, new

GAIN = PAPER["fps"]["improved", "cpu"] / PAPER["fps"]["resnet50", "cpu"]  # 1.62
STYLES = {"compiled call": ("o", ":"), "float32": ("s", "-"), "bfloat16": ("^", "--"), "int8": ("D", "-.")}


def speed(table):
    """Median images per second with quartiles of every network and harness; batch 1 and the largest one."""
    table = table[table["threads"] == table["threads"].max()]
    table = table.assign(way=[f"{row.harness}, {row.precision}" + f", {row.device}" * (table["device"].nunique() > 1)
                              for row in table.itertuples()])
    ways, variants = list(dict.fromkeys(table["way"])), list(dict.fromkeys(table["variant"]))
    batches = sorted({1, int(table["batch"].max())})
    figure, axes = new(5.5 * len(batches) + 2.5, 1.8 + 0.34 * len(ways), 1, len(batches))
    for axis, batch in zip(axes, batches, strict=True):
        part = table[table["batch"] == batch]
        for k, variant in enumerate(variants):
            rows = part[part["variant"] == variant]
            places = [ways.index(way) + 0.5 * ((k + 0.5) / len(variants) - 0.5) for way in rows["way"]]
            intervals(axis, places, rows["median_fps"], rows["q1"], rows["q3"], fmt="os^Dv"[k % 5], label=variant,
                      markersize=5)
        best = part.loc[part["median_fps"].idxmax()]
        axis.set(yticks=range(len(ways)), yticklabels=ways if batch == 1 else [], ylim=(len(ways) - 0.5, -0.5),
                 xscale="log", xlabel=f"images per second (median, quartiles of n = {part['n'].min()})",
                 title=f"Batch {batch}: {best['variant']} reaches {best['median_fps']:.0f} images/s")
        _plain(axis.xaxis)
    for variant, line in (("resnet50", ":"), ("improved", "--")):
        value = PAPER["fps"][variant, "cpu"]
        axes[0].axvline(value, color="black", linestyle=line, linewidth=1, label=f"paper, {variant}: {value}")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=5)
    return figure


def scaling(table):
    """Images per second over slices per call (all threads), and over threads (exported, one slice)."""
    figure, axes = new(11, 4.8, 1, 2)
    most = table["threads"].max()
    plain = table[~table["harness"].str.contains("decode|loop")]
    views = {"batch": (plain[plain["threads"] == most], f"slices per call ({most} threads)"),
             "threads": (plain[(plain["harness"] == "exported") & (plain["batch"] == 1)],
                         "threads (one slice per call)")}
    for axis, (name, (part, label)) in zip(axes, views.items(), strict=True):
        part = part.assign(way=part["precision"].where(part["harness"] == "exported", part["harness"]))
        for k, variant in enumerate(dict.fromkeys(part["variant"])):
            for way, (marker, line) in STYLES.items():
                rows = part[(part["variant"] == variant) & (part["way"] == way)].sort_values(name)
                if len(rows):
                    axis.errorbar(rows[name], rows["median_fps"], fmt=marker, linestyle=line, color=f"C{k}",
                                  yerr=[rows["median_fps"] - rows["q1"], rows["q3"] - rows["median_fps"]],
                                  label=f"{variant}, {'' if way == 'compiled call' else 'exported, '}{way}")
        best = part.loc[part["median_fps"].idxmax()]
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="images per second",
                 title=f"{best['median_fps']:.0f} images/s ({name} {best[name]}): {best['variant']}")
        _plain(axis.xaxis)
        _plain(axis.yaxis)
        axis.set_xticks(sorted(part[name].unique()))
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return figure


def _plain(axis):
    """Plain numbers on a logarithmic axis, not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def mistakes(table, first_calls):
    """The ratio improved / resnet50 with and without each benchmarking error, and with the first call counted.

    table: of `harness.mistakes`; first_calls: DataFrame (frames, ratio, q1, q3).
    """
    figure, (left, right) = new(13, 1.8 + 0.55 * len(table), 1, 2)
    rows = table.iloc[::-1].reset_index(drop=True)
    for shift, kind, color, text in ((0.2, "apparent", "C1", "with the error"), (-0.2, "honest", "C0", "without it")):
        spread = [rows[kind] - rows[f"{kind}_q1"], rows[f"{kind}_q3"] - rows[kind]]
        left.barh(rows.index + shift, rows[kind] - 1, 0.38, left=1, xerr=spread, color=color, label=text,
                  error_kw={"elinewidth": 1})
    enough = (table["apparent"] >= GAIN).sum()
    left.set(yticks=rows.index, yticklabels=rows["mistake"], xscale="log", ylim=(-0.6, len(table) - 0.4),
             xlabel="images/s of improved / resnet50 (median, quartiles)",
             title=f"{enough} of {len(table)} errors yield the paper's speed-up or more")
    frames, above = first_calls["frames"], first_calls.loc[first_calls["ratio"] >= GAIN, "frames"]
    right.fill_between(frames, first_calls["q1"], first_calls["q3"], color="C1", alpha=0.3)
    right.plot(frames, first_calls["ratio"], color="C1", marker=".")
    right.set(xlabel="frames timed, including the first call of resnet50", ylabel="apparent ratio", yscale="log",
              title=f"First call counted: {GAIN:.2f} at {above.max()} frames" if len(above) else "First call counted")
    right.xaxis.get_major_locator().set_params(integer=True)
    for line, scale in ((left.axvline, left.xaxis), (right.axhline, right.yaxis)):
        line(1, color="grey", linewidth=1)
        line(GAIN, color="black", linestyle="--", linewidth=1.2, label=f"the paper's {GAIN:.2f}")
        _plain(scale)
    figure.legend(*left.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=3)
    return figure
