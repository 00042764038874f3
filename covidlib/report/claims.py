"""The claims ledger: every claim of the paper, a row of claims.csv, with the check that measures it again.

    python -m covidlib.report.claims reports/phantom/quick          # print the ledger of a report
    python -m covidlib.report.claims --check attention-size         # measure one row anew
"""

import argparse
import math
import shutil
import sys
import textwrap
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from covidlib.evaluation.metrics import MECHANICS
from covidlib.report import checks
from covidlib.report.checks import Evidence, Finding, Missing
from covidlib.training import runs

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
INCONSISTENT = "inconsistent in the paper"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, checks.INCONCLUSIVE, checks.NOT_COMPARABLE, INCONSISTENT, MECHANICS)
ON_IMAGES = ("accuracy", "difference", "plateau", "training_time")  # checks that need labelled slices
# check: a function of `checks` and its arguments, or empty where `reading` is what reading the paper shows;
# otherwise: the verdict where the statement does not hold, if it is not the usual one
CLAIMS = tuple(pd.read_csv(Path(__file__).with_name("claims.csv"), dtype=str, keep_default_na=False).itertuples(
    index=False, name="Claim"))


def check(runs_dir, only=None) -> tuple[list[dict], dict[str, str]]:
    """(the ledger for the artifacts in `runs_dir` as plain data, the other claims: id -> what is missing for them).

    only: the id of a single claim. Raises ValueError for an id that is not in the ledger.
    """
    chosen = [claim for claim in CLAIMS if only in (None, claim.id)]
    if not chosen:
        raise ValueError(f"no such claim; known are {', '.join(claim.id for claim in CLAIMS)}. Received: id={only!r}")
    evidence, rows, missing = Evidence(runs_dir), [], {}
    for claim in chosen:
        try:
            rows.append(_row(claim, evidence))
        except Missing as reason:
            missing[claim.id] = str(reason)
    return rows, missing


def _row(claim, evidence) -> dict:
    if claim.reading:
        how = "reading of the paper"
        finding = Finding(False if claim.otherwise else checks.NOT_COMPARABLE, claim.reading)
    else:
        name, *arguments = claim.check.split()
        measure = getattr(checks, name)
        how = measure.__doc__.split("\n")[0]
        finding = measure(evidence, *arguments)
    dataset, interval = evidence.dataset if needs_images(claim) else None, finding.interval
    return {"id": claim.id, "section": claim.section, "statement": claim.statement, "paper_value": claim.paper_value,
            "check": how, "measured": finding.measured,
            "interval": list(interval) if interval and all(map(math.isfinite, interval)) else None,
            "dataset": dataset, "command": _command(claim, evidence), "verdict": verdict(claim, finding, dataset)}


def needs_images(claim) -> bool:
    """Whether its verdict belongs to a data set."""
    return claim.check.startswith(ON_IMAGES)


def _command(claim, evidence) -> str:
    if claim.reading:
        return f"read the paper, {claim.section}"
    if not claim.check.startswith((*ON_IMAGES, "fps ", "faster ")):
        return f".venv/bin/python -m covidlib.report.claims --check {claim.id}"
    name = evidence.dataset or "phantom"
    profile, *start = evidence.folder.resolve().name.split("-")  # see workflow/reproduce.py
    lungs, weights = start[:1] == ["lungs"], "-".join(start[start[:1] == ["lungs"]:])
    return (f"make reproduce PROFILE={profile} DATASET={name}" + " DATA_ROOT=<its folder>" * (name != "phantom")
            + " PREPARATION=lungs" * lungs + f" WEIGHTS={weights}" * bool(weights))


def verdict(claim, finding, dataset) -> str:
    """One of VERDICTS. What was measured on synthetic slices is never more than `mechanics only`."""
    if needs_images(claim) and dataset in (None, "phantom"):
        return MECHANICS
    if isinstance(finding.holds, str):
        return finding.holds
    return REPRODUCED if finding.holds else claim.otherwise or NOT_REPRODUCED


def write(rows, missing, folder) -> None:
    """Write `claims.json` (the rows) and `claims.md` (their table, and what is `missing`) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "claims.json", rows)
    lines = ["# Claims of the paper", "", "| section | statement | paper | measured here | verdict |", "|" + "---|" * 5]
    for row in rows:
        where = f"{row['dataset']}: " if row["dataset"] else ""
        cells = (row["section"], row["statement"], row["paper_value"], where + measured(row), row["verdict"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if missing:
        lines += ["", "Not measured here:", "", *(f"- {name}: {reason}" for name, reason in missing.items())]
    (folder / "claims.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def measured(row) -> str:
    """What was measured, with its interval."""
    return row["measured"] + (" [{:.3g} to {:.3g}]".format(*row["interval"]) if row["interval"] else "")


def table(rows, width=None) -> str:
    """The ledger as text for a terminal, and how often each verdict was given."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    left, right = 18, max(map(len, VERDICTS))
    middle = max(30, (width - left - right - 8) // 2)
    cells = [("claim", "the paper", "measured here", "verdict"), *(
        (row["id"], f"{row['section']}: {row['statement']} ({row['paper_value']})", measured(row), row["verdict"])
        for row in rows)]
    lines = []
    for row in cells:
        wrapped = [textwrap.wrap(text, size) or [""]
                   for text, size in zip(row, (left, middle, middle, right), strict=True)]
        lines += [f"{a:{left}}  {b:{middle}}  {c:{middle}}  {d}".rstrip() for a, b, c, d in
                  zip_longest(*wrapped, fillvalue="")]
    lines.insert(1, "-" * (left + 2 * middle + right + 6))
    counts = Counter(row["verdict"] for row in rows)
    return "\n".join([*lines, "", ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m covidlib.report.claims", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default=".", type=Path, help="of a report; with --check, of runs")
    parser.add_argument("--check", metavar="ID", help="measure this claim anew")
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know no paragraph sign
    saved = options.folder / "claims.json"
    if not options.check and not saved.is_file():
        print(f"error: no claims.json in {options.folder}: run `make reproduce` first, and give the folder of its "
              "report, for example reports/phantom/quick", file=sys.stderr)
        return 2
    try:
        rows, missing = check(options.folder, options.check) if options.check else (runs.read_json(saved), {})
        print(table(rows) if rows else "\n".join(f"{name}: {reason}" for name, reason in missing.items()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        print(f"\nReport: {options.folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
