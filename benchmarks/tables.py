"""Where benchmarks write: one CSV per mode, precision, framework and device, and one of the bars per mode and device.

    results/<mode>_<precision>_<framework>_<device>.csv     rows of COLUMNS
    results/<mode>_bars_<device>.csv                        rows of BARS; ratios of one run, sides interleaved
"""

import datetime
import re
from pathlib import Path

import pandas as pd

from covidlib import provenance

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["variant", "harness", "image_size", "batch", "threads", "images_per_second", "q1", "q3", "rounds", "date"]
BARS = ["bar", "wanted", "measured", "q1", "q3", "met", "command", "date"]


def device():
    """Short name of what is timed: the GPU, else the processor and its threads, e.g. "amd-epyc-2-threads"."""
    name = provenance.machine()["gpu"] or f"{provenance.machine()['cpu']} {provenance.threads()} threads"
    name = re.sub(r"\(r\)|\(tm\)|cpu|processor|@.*ghz", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def write(rows, mode):
    """rows: dicts with `precision`, `framework` and COLUMNS (without date). Each file is written anew."""
    table = pd.DataFrame(rows).assign(date=str(datetime.date.today()))
    RESULTS.mkdir(exist_ok=True)
    for (precision, framework), part in table.groupby(["precision", "framework"]):
        path = RESULTS / f"{mode}_{precision}_{framework}_{device()}.csv"
        part = part[COLUMNS].round({"images_per_second": 2, "q1": 2, "q3": 2})
        part.to_csv(path, index=False, lineterminator="\n")
        print(f"{path.name}\n{part.to_string(index=False)}\n", flush=True)


def write_bars(bars, mode, command):
    """bars: (statement, least wanted, (median, q1, q3)) of each; a bar is met if the median reaches it."""
    rows = [[bar, wanted, median, q1, q3, "yes" if median >= wanted else "no", command, str(datetime.date.today())]
            for bar, wanted, (median, q1, q3) in bars]
    table = pd.DataFrame(rows, columns=BARS).round({"measured": 3, "q1": 3, "q3": 3})
    RESULTS.mkdir(exist_ok=True)
    table.to_csv(RESULTS / f"{mode}_bars_{device()}.csv", index=False, lineterminator="\n")
    print(table.drop(columns="command").to_string(index=False), flush=True)
