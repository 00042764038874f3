"""docs/capacity.md: hours, memory and disk of large sets, computed from the rates in benchmarks/results.

    python -m benchmarks.capacity          # seconds; nothing is measured here

A device's rate is the best of `improved` at 224 px among its tables. What benchmarks.manifests measured is interpolated
between the sizes that were run, and goes on beyond them with the exponent of the last two, at least 1.
"""

import csv
from pathlib import Path

import numpy as np

from benchmarks import intake, tables

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
SIZES, DEVICES, EPOCHS, SIDE = (10_000, 1_000_000, 100_000_000), (1, 8, 64), 35, 224
MEMORY, DISK, DAY = 24 * 2**30, 250e9, 24  # of the machine that is asked about: bytes, bytes; hours that one waits


def read(name):
    """Rows of a table of results as dicts of texts."""
    with open(tables.RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def best(mode):
    """device -> (images/s, what and where) of the fastest `improved` at 224 px in the tables of `mode`."""
    found = {}
    for path in sorted(tables.RESULTS.glob(f"*{mode}_*_*_*.csv")):
        kind, framework, device = path.stem.rsplit("_", 2)
        for row in read(path.name):
            if row.get("variant") == "improved" and row.get("image_size") == str(SIDE) and row["images_per_second"]:
                rate = float(row["images_per_second"])
                if rate > found.get(device, (0,))[0]:
                    precision = kind.rpartition(f"{mode}_")[2]
                    found[device] = rate, f"{framework}, {precision}, batch {row['batch']}", path.name
    return found


def decoding():
    """(slices/s of decoding and harmonising, of the same with what the audit needs): PNGs of 512 px, two cores."""
    taken = {row["quantity"]: float(row["value"]) for row in read("intake_cpu.csv") if row["what"] == "cache"}
    return [intake.SLICES / taken[name] for name in ("decode and harmonise once", "the same with what the audit needs")]


def augmenting():
    """Slices/s of the set "paper" at 224 px on one core."""
    rows = [row for path in tables.RESULTS.glob("augmentation_float32_scipy_*.csv") for row in read(path.name)]
    return max(float(row["images_per_second"]) for row in rows
               if row["variant"] == "one warp" and row["image_size"] == str(SIDE))


class Rows:
    """What benchmarks.manifests measured, of the first of its tables."""

    def __init__(self):
        path = sorted(tables.RESULTS.glob("manifests_*.csv"))[0]
        self.name, self.rows = path.name, read(path.name)

    def points(self, what, column):
        """(rows, values), both floats, rising."""
        rows = [row for row in self.rows if row["what"] == what]
        return np.array([[float(row["rows"]), max(float(row[column]), 1e-3)] for row in rows]).T

    def slope(self, what, column):
        """Exponent over the last two sizes."""
        (x, y) = np.log(self.points(what, column)[:, -2:])
        return (y[1] - y[0]) / (x[1] - x[0])

    def at(self, what, column, count):
        x, y = np.log(self.points(what, column))
        if np.log(count) <= x[-1]:
            return float(np.exp(np.interp(np.log(count), x, y)))
        return float(np.exp(y[-1] + max(1, self.slope(what, column)) * (np.log(count) - x[-1])))

    def largest(self, what):
        return int(self.points(what, "cpu_seconds")[0, -1])

    def note(self, what):
        return [row for row in self.rows if row["what"] == what][-1]["note"]


def reached(cost, limit):
    """Slices at which the rising function `cost` of slices comes to `limit`."""
    low, high = 1.0, 1e13
    for _ in range(100):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if cost(middle) < limit else (low, middle)
    return high


def line(*cells):
    return f"| {' | '.join(map(str, cells))} |\n"


def table(head, rows):
    return line(*head) + "|" + "---|" * len(head) + "\n" + "".join(line(*row) for row in rows) + "\n"


def number(value):
    """Two digits: 0.0031, 1.2, 35, 1,200; and what is too small to matter."""
    two = float(f"{value:.2g}")
    return "< 0.001" if two < 0.001 else f"{two:,.0f}" if two >= 10 else f"{two:g}"


def size(count):
    """Of slices: 10k, 1M, 620k."""
    power, unit = next(((power, unit) for power, unit in ((9, "G"), (6, "M"), (3, "k")) if count >= 10**power), (0, ""))
    return f"{number(count / 10**power)}{unit}"


def page():
    rows, (decoded, audited), cores = Rows(), decoding(), augmenting()
    training, inference = best("training"), best("inference")
    used = [("decode and harmonise", f"{decoded:.0f} slices/s", "3,000 PNGs of 512 px to 96 px, 2 cores",
             "intake_cpu.csv"),
            ("the same with what the audit needs", f"{audited:.0f} slices/s", "as above", "intake_cpu.csv"),
            ("augment", f"{cores:.0f} slices/s", f"set `paper`, {SIDE} px, one core", "augmentation_float32_scipy_*")]
    used += [(f"{name} `improved`, {SIDE} px", f"{rate:.0f} slices/s", f"{device}: {how}", where)
             for name, found in (("train", training), ("ask", inference))
             for device, (rate, how, where) in sorted(found.items())]
    parts = dict.fromkeys(row["what"] for row in rows.rows)
    grown = [(what, f"{rows.largest(what):,}", *(number(rows.points(what, column)[1, -1]) for column in
                                                 ("cpu_seconds", "peak_mib")),
              f"{rows.slope(what, 'cpu_seconds'):.2f}", f"{rows.slope(what, 'peak_mib'):.2f}", rows.note(what) or "")
             for what in parts]
    text = HEAD.format(memory=MEMORY // 2**30, disk=f"{DISK / 1e9:.0f}", epochs=EPOCHS)
    text += "## Rates that were measured\n\n" + table(("what", "rate", "how", "`benchmarks/results/`"), used)
    text += MANIFESTS.format(name=rows.name)
    text += table(("what", "largest run, rows", "seconds", "MiB", "exponent of seconds", "of memory", ""), grown)
    text += hours(rows, audited, training, inference)
    text += memory(rows)
    text += breaks(rows, audited, cores, training)
    return text


def search(rows, count):
    """Hours of what the audit does in one process, but for the shortcuts, which see 4,000 slices of any set."""
    parts = "near-duplicates", "leaks of the manifest", "split by patient", "take in"
    return sum(rows.at(what, "cpu_seconds", count) for what in parts) / 3600


def hours(rows, audited, training, inference):
    stages = [("decode, harmonise, describe", "2 cores", lambda n: n / audited / 3600, True),
              ("split, manifest, near-duplicates", "one process", lambda n: search(rows, n), False)]
    for name, found, passes in ((f"train, {EPOCHS} epochs", training, EPOCHS), ("ask once", inference, 1)):
        for device, (rate, *_) in sorted(found.items()):
            stages.append((name, device, lambda n, rate=rate, passes=passes: n * passes / rate / 3600, True))
    lines = [(name, device, size(count), *(number(cost(count) / (many if spreads else 1)) for many in DEVICES))
             for name, device, cost, spreads in stages for count in SIZES]
    head = ("stage", "device", "slices", *(f"hours, {many} device{'s' * (many > 1)}" for many in DEVICES))
    return HOURS.format(largest=f"{rows.largest('near-duplicates'):,}") + table(head, lines)


def held(rows, count):
    """Bytes resident in one process: the manifest with the facts, and the search beside them."""
    parts = "manifest", "take in", "near-duplicates"
    return [rows.at(what, "peak_mib", count) * 2**20 for what in parts]


def memory(rows):
    lines = []
    for count in SIZES:
        parts = held(rows, count)
        lines.append((size(count), *(f"{number(part / 2**30)} GiB" for part in (*parts, sum(parts))),
                      *(f"{number(count * each / 1e9)} GB" for each in (64**2, 96**2, SIDE**2))))
    head = ("slices", "manifest", "facts of decoding", "search", "together", "thumbnails, disk", "cache at 96 px",
            f"cache at {SIDE} px")
    return MEMORY_TEXT + table(head, lines)


def breaks(rows, audited, cores, training):
    per_epoch = EPOCHS / 3600
    limits = [
        ("memory of the audit: manifest, facts and search", reached(lambda n: sum(held(rows, n)), MEMORY),
         "one process holds a row of text and the graph's links of every slice; audit patients apart, in parts"),
        ("a day of decoding on 2 cores", audited * DAY * 3600,
         "more cores (one process each); more machines only by hand, a part of the set each, as one process writes the "
         "cache"),
        ("a day of the audit's search", reached(lambda n: search(rows, n), DAY), "one process, by design: equal pairs"),
        (f"the cache at {SIDE} px no longer lies in memory", MEMORY / SIDE**2, "random reads from disk: a fast one"),
        (f"disk: cache at {SIDE} px, made at twice its size, and thumbnails", DISK / (2 * SIDE**2 + 64**2),
         "a larger disk"),
        ("disk: cache at 96 px likewise", DISK / (2 * 96**2 + 64**2), "a larger disk"),
    ]
    for device, (rate, *_) in sorted(training.items()):
        limits.append((f"a day of {EPOCHS} epochs on one {device}", rate * DAY / per_epoch,
                       "more devices, fewer epochs"))
    limits.sort(key=lambda limit: limit[1])
    text = BREAKS.format(memory=MEMORY // 2**30, disk=f"{DISK / 1e9:.0f}")
    text += table(("limit", "reached at slices", "why, and what helps"),
                  [(what, size(count), why) for what, count, why in limits])
    for count in SIZES:
        passed = [what for what, limit, _ in limits if limit <= count]
        text += f"- **{size(count)} slices:** " + ("; ".join(passed) if passed else "nothing breaks") + ".\n"
    text += "\nTo feed one device with augmented slices takes, at the rate of one core above, "
    text += ", ".join(f"{number(rate / cores)} cores for {device}" for device, (rate, *_) in sorted(training.items()))
    return text + ".\n"


HEAD = """# Capacity: 10 thousand, 1 million, 100 million slices

Computed by `python -m benchmarks.capacity` from the tables in `benchmarks/results`; nothing here was run at 1 million
slices or more, or on more than one device. **Measured** are the rates of the first two tables. **Extrapolated** is
all that follows: slices divided by the rate and by the devices, as if nothing were lost between devices. The machine
asked about has {memory} GiB of memory and {disk} GB of disk; training is {epochs} epochs of `improved`.

Sets of that size that can be had: COVIDx-CT 2A, about 200,000 slices; CC-CCII, about 617,000. Neither was at hand.

"""
MANIFESTS = """## Manifests

Rows that are made up, no files (`python -m benchmarks.manifests`), in `{name}`.
Seconds are the processor's, as other work ran on the same two cores. An exponent is that of the last two sizes: 1 is
linear; what follows takes no less. The search for near-duplicates depends on how many slices resemble each other: here
each has about 50 neighbours in its volume that count as such. Where every further slice is
a copy, changed, of one of the same few, they grow with the set and the exponent is 1.5 (`near_duplicates_cpu.csv`).

"""
HOURS = """## Hours

The search for near-duplicates and what surrounds it is one process, which more devices do not help; it was run to
{largest} rows. Decoding uses all cores of one machine; more machines would each have to be given their part of the set
by hand. What 8 and 64 devices surely give is as many networks, seeds and folds side by side. The devices of one machine
can share one training (`devices` of notebook 03); what is lost between them was not measured, and the table has none.

"""
MEMORY_TEXT = """## Memory and disk

Pictures are not held in memory: caches and thumbnails are memory maps, batches stream (tests
`test_pictures_are_not_held_in_memory`, `test_memory_does_not_grow_with_the_set`). What grows is a row of the manifest,
of the facts, and of the search. Training holds the same at every size but for the manifest, an order
(8 bytes a slice) and the labels (4 bytes a slice and class).

"""
BREAKS = """## What breaks first

In the order in which they come, on {memory} GiB, {disk} GB, one machine:

"""

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.name)
