"""The study's results, to read and to compute again: `make publish`.

    python -m study.publish                                # runs/*/study* into reports/published
    python -m study.publish --runs none                    # from what is committed alone

The small files of finished runs are copied, and every table, figure, the ledger, and the tables of README.md and
MODEL_CARD.md are computed from the copies alone, so that anyone gets the same without training.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from covidlib.evaluation import metrics
from covidlib.report import claims, figures
from covidlib.training import runs
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically
from study import panels, results
from study.results import PROFILE

HOME = provenance.ROOT / "reports" / "published"
SEVEN_DIGITS = "%.7g"
MEASURED = ("audit/shortcuts.csv", "audit/leaks.csv", "audit/conflicts.csv", "evaluation/explanations.csv",
            "speed/speed.csv")
OPENING = (("accuracy", "ucsd-covid-ct"), ("accuracy", "sarscov2-ct"), ("gain", "ucsd-covid-ct"),
           ("gain-pyramid", "ucsd-covid-ct"), ("gain-attention", "ucsd-covid-ct"), ("time-complexity", None),
           ("faster-cpu", None), ("detected", None))  # claim, data set
BEGIN, END = "<!-- {} -->", "<!-- end -->"


def gather(source, folder=HOME):
    """Copy the small files of every finished run of the study from `source` (runs/) to `folder`/runs.

    Numbers keep seven digits; run.json loses the metrics and the names of folders. Returns the number of runs. Runs
    that only `folder` has stay. Unfinished trainings are listed in runs/unfinished.csv.
    """
    count, unfinished = 0, []
    for profile in sorted(Path(source).glob(f"*/{PROFILE}*")):
        target = Path(folder, "runs", *profile.parts[-2:])
        if (profile / "dataset.json").is_file():
            facts = runs.read_json(profile / "dataset.json")
            kept = {name: facts[name] for name in ("name", "classes", "slices", "patients", "official_split",
                                                   "counts", "manifest_sha256")}
            write_atomically(target / "dataset.json", json.dumps(kept | {"notes": []}, indent=1) + "\n")
        for name in MEASURED:
            if (profile / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(profile / name, target / name)
        for record in sorted(profile.glob("*/seed-*/run.json")):
            if runs.is_run(record.parent):
                _copy_run(runs.read_run(record.parent), target / record.parent.parent.name / record.parent.name)
                count += 1
        for state in sorted(profile.glob("*/seed-*.partial/state.json")):
            place = [*profile.parts[-2:], state.parent.parent.name, state.parent.name.removesuffix(".partial")]
            unfinished.append([*place, len(runs.read_json(state)["history"])])
    table = pd.DataFrame(unfinished, columns=["dataset", "profile", "variant", "run", "epochs"])
    _write_csv(Path(folder, "runs", "unfinished.csv"), table)
    return count


def _copy_run(run, target):
    target.mkdir(parents=True, exist_ok=True)
    tables = {"history": run.history, "predictions": run.predictions,
              **{path.stem: runs.read_predictions(path) for path in run.path.glob("across-*.csv")}}
    for name, table in tables.items():
        _write_csv(target / f"{name}.csv", table, float_format=SEVEN_DIGITS)
    kept = {name: value for name, value in run.content.items() if name != "metrics"}  # computed from the predictions
    own = kept["provenance"] = dict(kept["provenance"])
    # the provenance repeats the parameters, with names of folders cut
    kept["parameters"] = kept["parameters"] | {"weights": own.pop("parameters").get("weights")}
    machine = own.get("machine", {})
    if "os" in machine:  # of older runs it has the whole version, which may name a host
        machine["os"] = re.match(r"\w+(?: \d+(?:\.\d+)?)?", machine["os"])[0]
    runs.write_json(target / "run.json", kept)


def _write_csv(path, table, **options):
    write_atomically(path, table.to_csv(index=False, lineterminator="\n", **options))


def ledger(folder=HOME):
    """(rows, missing) of the claims on the sets of the study: those that need no images once, the others for every set.

    missing: see claims.check, of the claims that no set answers.
    """
    homes = sorted(path.parent for path in Path(folder, "runs").glob(f"*/{PROFILE}/dataset.json"))
    homes.sort(key=lambda path: path.parent.name != "ucsd-covid-ct")
    if not homes:
        raise FileNotFoundError(f"{folder} holds no runs/<dataset>/{PROFILE}: make reproduce PROFILE={PROFILE} first")
    (first, missing), *others = [claims.check(home) for home in homes]
    rows = [*first, *(row for more, _ in others for row in more if row["dataset"])]
    order = {claim.id: place for place, claim in enumerate(claims.CLAIMS)}
    rows.sort(key=lambda row: order[row["id"]])
    return rows, {name: reason for name, reason in missing.items() if name not in {row["id"] for row in rows}}


def build(folder=HOME, pages=True):
    """Compute tables, figures and the ledger in `folder`; with `pages` also those of README.md and MODEL_CARD.md."""
    rows, missing = ledger(folder)
    tables = results.write(folder)
    claims.write(rows, missing, folder)
    figures.style()
    for name, figure in panels.draw(tables, results.find(folder)).items():
        figures.save(figure, Path(folder, "figures"), name)
    findings = Path(folder, "findings.md")
    text = findings.read_text(encoding="utf-8").strip() if findings.is_file() else ""
    write_atomically(Path(folder, "README.md"), page(tables, rows, text))
    if pages:
        put(provenance.ROOT / "README.md", "study", opening(rows))
        put(provenance.ROOT / "MODEL_CARD.md", "performance", performance(tables))
    return tables


def opening(rows):
    """The table that README.md opens with: paper, measured with its interval, verdict."""
    lines = ["| the paper | | measured here (95 % interval) | verdict |", "|---|---|---|---|"]
    for row in rows:
        if (row["id"], row["dataset"]) in OPENING:
            where = f"{row['dataset']}: " if row["dataset"] else ""
            lines.append(f"| {row['statement']} | {row['paper_value']} | {where}{claims.measured(row)} | "
                         f"**{row['verdict']}** |")
    return "\n".join(lines)


def page(tables, rows, findings=""):
    """README.md of the folder: text (`findings`), tables and figures."""
    counts = pd.Series([row["verdict"] for row in rows]).value_counts()
    verdicts = ", ".join(f"{counts[name]} {name}" for name in claims.VERDICTS if name in counts)
    parts = [
        "# What the study found",
        "Written by `make publish` from the small files in `runs/`; anyone gets every figure again by "
        "`.venv/bin/python -m study.publish --runs none`, without images and without training. Asked and laid down "
        "beforehand: [PROTOCOL_FIRST_STUDY.md](PROTOCOL_FIRST_STUDY.md); pilots: [pilots.csv](pilots.csv); every claim "
        f"of the paper: [claims.md](claims.md) ({verdicts}); CLAIM and TRIPOD+AI: [CHECKLIST.md](CHECKLIST.md). "
        "Research software, not for diagnosis.", *([findings] if findings else []),
        "## Is it better than ResNet50?", _markdown(tables["differences"], (
            "dataset", "profile", "protocol", "tested_on", "variant", "evidence_level", "seeds", "folds", "n",
            "difference", "low", "high", "p_bootstrap", "p_mcnemar", "p_holm", "auc_difference", "p_delong")),
        "![differences](figures/differences.png)",
        "## How good is it?", performance(tables), "![accuracy](figures/accuracy.png)",
        "## Targets set beforehand", _markdown(tables["targets"]),
        "![ROC, precision and recall](figures/discrimination.png)",
        "## Can the probabilities be believed?", "![reliability](figures/reliability.png)",
        "## Training", "![curves](figures/curves.png)",
        "## Maps against lesions", _markdown(tables["explanations"], (
            "dataset", "slices", "variant", "map", "weights", "n", "hit", "hit_low", "hit_high", "chance", "enrichment",
            "enrichment_low", "enrichment_high", "outside", "outside_low", "outside_high", "expected", "similarity")),
        "## Every run", _markdown(tables["runs"], (
            "dataset", "profile", "variant", "seed", "fold", "n", "accuracy", "balanced_accuracy", "ece",
            "train_accuracy", "val_accuracy", "seconds")),
        "## What the protocol plans, and what is there", _markdown(tables["missing"]),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table, columns=None):
    columns = [name for name in columns or table.columns if name in table]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table[columns].itertuples(index=False):
        lines.append("| " + " | ".join("" if pd.isna(cell) else f"{cell:.3g}" if isinstance(cell, float) else str(cell)
                                       for cell in row) + " |")
    return "\n".join(lines) if len(table) else "Nothing yet."


def performance(tables):
    """MODEL_CARD.md's table: every network on every set, with intervals."""
    lines = ["| data | tested on | network | seeds | n | accuracy (95 %) | AUC (95 %) | ECE, scaled |",
             "|---|---|---|---|---|---|---|---|"]
    for row in tables["summary"].itertuples():
        figures_ = ([f"{row.accuracy:.3f} ({row.low:.3f} to {row.high:.3f})",
                     f"{row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})",
                     f"{row.ece:.3f}, {'-' if pd.isna(row.ece_scaled) else f'{row.ece_scaled:.3f}'}"]
                    if row.evidence_level != metrics.TOO_FEW else [metrics.TOO_FEW] * 3)
        mark = f", {row.evidence_level}" if row.evidence_level == metrics.MECHANICS else ""
        lines.append(f"| {row.dataset} ({row.profile}{mark}) | {results.tested(row)} | `{row.variant}` | {row.seeds} | "
                     f"{row.n} {row.unit}s | {' | '.join(figures_)} |")
    return "\n".join(lines)


def put(page, name, text):
    """Replace what stands in `page` between the marks <!-- name --> and <!-- end -->. ValueError without them."""
    begin = BEGIN.format(name)
    before, _, rest = Path(page).read_text(encoding="utf-8").partition(begin)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{page} must hold the lines {begin} and {END}; restore it from git")
    write_atomically(page, f"{before}{begin}\n{text}\n{mark}{after}")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m study.publish", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", default=str(provenance.ROOT / "runs"), help="folder of runs, or none")
    parser.add_argument("--folder", default=str(HOME))
    options = parser.parse_args(arguments)
    try:
        if options.runs != "none":
            print(f"{gather(options.runs, options.folder)} runs copied")
        home = Path(options.folder)
        for name, table in build(home, pages=home.resolve() == HOME).items():
            print(f"{name}: {len(table)} rows")
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
