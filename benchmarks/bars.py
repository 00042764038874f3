"""Put every bar of benchmarks/results into benchmarks/README.md, between its two marks: `python -m benchmarks.bars`."""

import csv
from pathlib import Path

from benchmarks import tables

PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- the bars, by benchmarks.bars -->", "<!-- end of the bars -->"


def main():
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{PAGE.name} must hold the lines {BEGIN} and {END}; restore it from git")
    PAGE.write_text(f"{before}{BEGIN}\n{''.join(sections())}{END}{after}")


def sections():
    """A heading and a table for every file of bars."""
    for path in sorted(tables.RESULTS.glob("*_bars_*.csv")):
        mode, _, device = path.stem.partition("_bars_")
        rows = list(csv.DictReader(path.open(newline="")))
        yield f"\n**{mode}** on {device}, {rows[0]['date']}: `{rows[0]['command']}`\n\n"
        yield "| bar | wanted | measured (quartiles) | met |\n|---|---|---|---|\n"
        for row in rows:
            yield f"| {row['bar']} | {wanted(row['wanted'])} | {measured(row)} | {row['met']} |\n"


def wanted(text):
    return text if text.startswith("<=") else f">= {text}"


def measured(row):
    if not row["measured"]:
        return "not measured"
    spread = f" ({row['q1']} to {row['q3']})" if row["q1"] != row["q3"] else ""
    return f"{row['measured']}{spread}"


if __name__ == "__main__":
    main()
