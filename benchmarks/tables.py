"""What benchmarks write: tables of rates and of targets in results/, and the targets' section of README.md.

    results/<mode>_<precision>_<framework>_<device>.csv     rows of COLUMNS
    results/<mode>_targets_<device>.csv                     rows of TARGETS
    python -m benchmarks.tables                             puts all targets into README.md, between its two marks

Needs NumPy only, so that a bare machine with a GPU can write the same files.
"""

import csv
import datetime
import re
from numbers import Integral, Real
from pathlib import Path

from covidlib.speed import timing
from covidlib.utils import provenance

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["variant", "harness", "image_size", "batch", "threads", "images_per_second", "q1", "q3", "rounds", "date"]
TARGETS = ["target", "wanted", "measured", "q1", "q3", "met", "command", "date"]
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- the targets, by benchmarks.tables -->", "<!-- end of the targets -->"


def device(gpu=False):
    """Short name of what is timed: the processor, "amd-epyc-2-threads", or the GPU if `gpu`."""
    name = gpu and provenance._gpu() or f"{provenance._cpu()} {provenance.threads()} threads"
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*ghz", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def rate(variant, harness, image_size, batch, rates, precision, framework, **more):
    """A row for `write`: median and quartiles of `rates`, images per second of each round."""
    median, q1, q3 = timing.quartiles(rates)
    return {"variant": variant, "harness": harness, "image_size": image_size, "batch": batch,
            "threads": provenance.threads(), "images_per_second": median, "q1": q1, "q3": q3, "rounds": len(rates),
            "precision": precision, "framework": framework} | more


def write(rows, mode, more=(), where=None, show=True):
    """One file for each precision and framework of `rows` (of `rate`), written anew.

    more: names of columns besides COLUMNS; where: the device's name unless it is `device()`.
    """
    for precision, framework in sorted({(row["precision"], row["framework"]) for row in rows}):
        part = [row for row in rows if (row["precision"], row["framework"]) == (precision, framework)]
        save(f"{mode}_{precision}_{framework}_{where or device()}.csv", part, [*COLUMNS, *more], show)


def write_targets(targets, mode, where=None, command=None):
    """targets: (statement, wanted, found) of each; wanted is ">= 2" or "<= 2", found is one number or (median, q1, q3).

    A target whose `found` is None was not measured.
    """
    rows = []
    for statement, wanted, found in targets:
        row = {"target": statement, "wanted": wanted, "met": "not measured",
               "command": command or f"python -m benchmarks.{mode}"}
        if found is not None:
            found = found if isinstance(found, tuple) else (found,) * 3
            sign, limit = wanted.split()
            met = found[0] <= float(limit) if sign == "<=" else found[0] >= float(limit)
            row |= dict(zip(("measured", "q1", "q3"), found, strict=True), met="yes" if met else "no")
        rows.append(row)
    save(f"{mode}_targets_{where or device()}.csv", rows, TARGETS)


def save(name, rows, columns, show=True):
    """Write dicts to the file `name` in RESULTS: `date` added, 3 decimals, what is missing empty.

    show: print the table, too.
    """
    rows = [[_text(row.get(column, "")) for column in columns]
            for row in ({**row, "date": datetime.date.today()} for row in rows)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    with open(RESULTS / name, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    if show:
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = ("  ".join(map(str.rjust, row, widths)) for row in (columns, *rows))
        print(name, *lines, "", sep="\n", flush=True)


def _text(value):
    if isinstance(value, Integral) or not isinstance(value, Real):
        return "" if value is None else str(value)
    return "" if value != value else str(round(float(value), 3))


def write_page():
    """Put the targets of all tables into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE.name} must hold the lines {BEGIN} and {END}; restore it from git")
    PAGE.write_text(f"{before}{BEGIN}\n{''.join(_sections())}{END}{after}")


def _sections():
    """A heading and a table for every file of targets."""
    for path in sorted(RESULTS.glob("*_targets_*.csv")):
        mode, _, where = path.stem.partition("_targets_")
        rows = list(csv.DictReader(path.open(newline="")))
        yield f"\n**{mode}** on {where}, {rows[0]['date']}: `{rows[0]['command']}`\n\n"
        yield "| target | wanted | measured (quartiles) | met |\n|---|---|---|---|\n"
        for row in rows:
            spread = f" ({row['q1']} to {row['q3']})" if row["q1"] != row["q3"] else ""
            yield f"| {row['target']} | {row['wanted']} | {row['measured'] or '-'}{spread} | {row['met']} |\n"


if __name__ == "__main__":
    write_page()
