"""Where benchmarks write: one CSV per mode, precision, framework and device, and one of the bars per mode and device.

    results/<mode>_<precision>_<framework>_<device>.csv     rows of COLUMNS
    results/<mode>_bars_<device>.csv                        rows of BARS; ratios of one run, sides interleaved

Needs the standard library only, so that a bare machine with a GPU can write the same files.
"""

import csv
import datetime
import math
import re
from numbers import Integral, Real
from pathlib import Path

from covidlib.utils import provenance

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["variant", "harness", "image_size", "batch", "threads", "images_per_second", "q1", "q3", "rounds", "date"]
BARS = ["bar", "wanted", "measured", "q1", "q3", "met", "command", "date"]


class AtMost(float):
    """What a bar wants where less is better."""

    def __repr__(self):
        return f"<= {float(self):g}"

    __str__ = __repr__


def device(gpu=False):
    """Short name of what is timed: the processor, "amd-epyc-2-threads", or the GPU if `gpu`."""
    name = gpu and provenance._gpu() or f"{provenance._cpu()} {provenance.threads()} threads"
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*ghz", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def write(rows, mode, more=(), where=None, show=True):
    """rows: dicts with `precision`, `framework` and COLUMNS (without date). Each file is written anew.

    more: names of columns besides those; where: the device's name unless it is `device()`.
    """
    for precision, framework in sorted({(row["precision"], row["framework"]) for row in rows}):
        part = [row for row in rows if (row["precision"], row["framework"]) == (precision, framework)]
        save(f"{mode}_{precision}_{framework}_{where or device()}.csv", part, [*COLUMNS, *more], 2, show)


def write_bars(bars, mode, command, where=None, show=True):
    """bars: (statement, wanted, (median, q1, q3)) of each; a bar is met if the median reaches what is wanted.

    wanted: the least, or the most as `AtMost`. In place of the quartiles stands None for "not measured".
    """
    rows = []
    for bar, wanted, found in bars:
        row = {"bar": bar, "wanted": wanted, "met": "not measured", "command": command}
        if found is not None:
            reached = found[0] <= wanted if isinstance(wanted, AtMost) else found[0] >= wanted
            row |= dict(zip(("measured", "q1", "q3"), found, strict=True), met="yes" if reached else "no")
        rows.append(row)
    save(f"{mode}_bars_{where or device()}.csv", rows, BARS, 3, show, hidden=("command",))


def save(name, rows, columns, digits=2, show=True, hidden=()):
    """Write dicts to the file `name` in RESULTS, `date` added, numbers rounded to `digits`, what is missing empty.

    show: print the table, too, without the columns `hidden`.
    """
    rows = [[_text(row.get(column, ""), digits) for column in columns]
            for row in ({**row, "date": datetime.date.today()} for row in rows)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / name, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    if show:
        shown = [[value for value, column in zip(row, columns, strict=True) if column not in hidden]
                 for row in (columns, *rows)]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ("  ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)) for row in shown)
        print(name, *lines, "", sep="\n", flush=True)


def _text(value, digits):
    if isinstance(value, AtMost | Integral) or not isinstance(value, Real):
        return "" if value is None else str(value)
    return "" if math.isnan(value) else str(round(float(value), digits))
