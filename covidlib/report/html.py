"""The report: one index.html over claims, figures, tables and the executed notebooks, readable from disk.

    python -m covidlib.report.html runs/phantom/quick reports/phantom/quick

Nothing in it is loaded from a network, and nothing is computed here but the pages.
"""

import argparse
import base64
import re
import sys
from collections import Counter
from pathlib import Path

import jinja2
import latex2mathml.converter
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from covidlib.audit import leaks, shortcuts
from covidlib.report import claims, figures
from covidlib.training import runs
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

ROWS = 24  # of a table that the page shows; the CSV has all
CAPTIONS = Path(__file__).with_name("templates") / "captions.csv"
CHECKLIST = provenance.ROOT / "reports" / "published" / "CHECKLIST.md"
PAGES = jinja2.Environment(loader=jinja2.PackageLoader("covidlib.report"), autoescape=True, trim_blocks=True,
                           lstrip_blocks=True)
NOISE = re.compile(r".*it/s\].*\n?|.*\r(?=.)|^(?:[IWEF]\d{4} |WARNING: All log messages before absl|"
                   r"To enable the following instructions).*\n?", re.MULTILINE)  # progress bars, TensorFlow's log


def build(runs_dir, report_dir) -> Path:
    """Write `index.html`, `gallery.html` and a page for every notebook in `report_dir`; returns that of index.html.

    Reads `figures/`, `tables/`, `claims.json` and `notebooks/*.ipynb` of `report_dir`, `dataset.json`,
    `audit/`, `comparison/` and the runs of `runs_dir`. Raises FileNotFoundError where notebook 07_report has not run.
    """
    runs_dir, folder = Path(runs_dir), Path(report_dir)
    if not (folder / "claims.json").is_file():
        raise FileNotFoundError(f"no claims.json in {folder}: run notebook 07_report first")
    rows, dataset = runs.read_json(folder / "claims.json"), runs.read_json(runs_dir / "dataset.json")
    counts, found = Counter(row["verdict"] for row in rows), runs.find_runs(runs_dir)
    baselines = pd.read_csv(runs_dir / "audit" / "shortcuts.csv")
    compared = pd.read_csv(runs_dir / "comparison" / "comparison.csv")
    shared = {"title": f"{dataset['name']}, profile {runs_dir.resolve().name}",
              "synthetic": dataset["name"] == "phantom", "figures": _gallery(folder / "figures", ".png"),
              "tables": _gallery(folder / "tables", ".csv")}
    page = PAGES.get_template("report.html").render(
        dataset=dataset, claims=rows, measured=claims.measured, **shared,
        counts=[(name, counts[name]) for name in claims.VERDICTS if counts[name]],
        warnings=leaks.shortcut_warnings(compared, shortcuts.visible(baselines, found[0].parameters)),
        metrics=_metrics(found), baselines=_baselines(baselines),
        checklist=_checklist(), notebooks=_notebooks(folder / "notebooks"), provenance=_provenance(found[0].provenance))
    for name, text in (("index.html", page), ("gallery.html", PAGES.get_template("gallery.html").render(**shared))):
        write_atomically(folder / name, text)
    return folder / "index.html"


def _gallery(folder, suffix) -> list[dict]:
    """What the paper numbers, in its order and even if absent, then everything else in the folder."""
    captions = pd.read_csv(CAPTIONS, keep_default_na=False)
    known = {row.pop("name"): row for row in captions[captions["folder"] == folder.name].to_dict("records")}
    items = []
    for name in dict.fromkeys([*known, *(path.stem for path in sorted(folder.glob(f"*{suffix}")))]):
        item = known.get(name) or {"label": "Additional", "caption": f"{name.replace('_', ' ')}."}
        files = [path for path in sorted(folder.glob(f"{name}.*")) if path.stem == name]
        if files or item["label"].startswith(("Figure", "Table")):
            shown = next((path for path in files if path.suffix == suffix), None)
            items.append({**item, "id": f"{folder.name}-{name}",
                          "files": [(path.suffix[1:].upper(), f"{folder.name}/{path.name}") for path in files],
                          "image": f"{folder.name}/{shown.name}" if shown and suffix == ".png" else "",
                          "table": _read_table(shown) if shown and suffix == ".csv" else ""})
    return items


def _read_table(path) -> str:
    whole = pd.read_csv(path)
    table = whole.head(ROWS)
    numbers = table.select_dtypes("number").columns
    table[numbers] = table[numbers].map(lambda x: f"{x:.4g}" if abs(x) < 1e4 else f"{x:,.0f}", na_action="ignore")
    return _html(table) + (f"<p>The first {ROWS} of {len(whole)} rows.</p>" if len(whole) > ROWS else "")


def _html(table, **options) -> str:
    return table.to_html(border=0, na_rep="", **{"index": False} | options)


def _metrics(found) -> str:
    """Test metrics of every run, one row each."""
    rows = []
    for run in found:
        if test := run.metrics.get("test"):
            low, high = test["accuracy_interval"]
            rows.append({"Variant": run.variant, "Seed": run.seed, "Slices": test["n"],
                         "Patients": test["patients"] or "unknown", "Accuracy": f"{test['accuracy']:.3f}",
                         "95 % interval": f"{low:.3f} to {high:.3f}", "Macro-F1": f"{test['macro_f1']:.3f}",
                         "Balanced accuracy": f"{test['balanced_accuracy']:.3f}", "AUC": f"{test['auc']:.3f}"})
    return _html(pd.DataFrame(rows))


def _baselines(table) -> str:
    """Shortcut baselines, best first, under the protocol nearest to the networks'; "" where there is none."""
    if shortcuts.OFFICIAL in set(table["protocol"]):
        table = table[table["protocol"] == shortcuts.OFFICIAL]
    rows = [{"Baseline": f"{row.baseline} ({row.seen})", "Protocol": row.protocol, "Accuracy": f"{row.accuracy:.3f}",
             "95 % interval": f"{row.low:.3f} to {row.high:.3f}", "AUC": f"{row.auc:.3f}"}
            for row in table.sort_values("accuracy", ascending=False).itertuples()]
    return _html(pd.DataFrame(rows)) if rows else ""


def _checklist() -> str:
    """The checklists of reports/published as HTML without links; empty where covidlib is installed without them."""
    text = markdown2html(CHECKLIST.read_text(encoding="utf-8")) if CHECKLIST.is_file() else ""
    return re.sub(r"</?a\b[^>]*>", "", text)  # the page links to files of the report only


def _provenance(facts) -> str:
    """A table of a run's provenance."""
    git = facts.get("git", {})
    rows = {"commit": (git.get("commit") or "unknown") + (" with local changes" if git.get("dirty") else ""),
            "covidlib": provenance.packages().get("covidlib", ""), **facts.get("machine", {}),
            **{key: value for key, value in facts.items() if not isinstance(value, dict)}}
    rows = {key.replace("_", " "): str(value) for key, value in rows.items() if value is not None}
    return _html(pd.Series(rows).to_frame(), index=True, header=False)


def _notebooks(folder) -> list[dict]:
    """Convert every executed notebook; name, page and file of each."""
    paths = [path for path in sorted(folder.glob("*.ipynb"))
             if not path.name.startswith(".") and not path.stem.endswith(".failed")]
    return [{"name": path.stem, "ipynb": f"{folder.name}/{path.name}",
             "html": f"{folder.name}/{notebook_to_html(path, path.with_suffix('.html')).name}"} for path in paths]


class _Formulas(IPythonRenderer):
    """Formulas as MathML; nbconvert's own would be drawn by MathJax from a network."""

    def block_math(self, body):
        return latex2mathml.converter.convert(body.strip(), display="block")

    def inline_math(self, body):
        return latex2mathml.converter.convert(body.strip())


def notebook_to_html(notebook, target) -> Path:
    """One page that loads nothing: formulas as MathML, no scripts, no progress bars, no framework's log."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _clean(output)]
    renderer = _Formulas(escape=False, exclude_anchor_links=True)
    exporter = HTMLExporter(template_name="basic", filters={"markdown2html": MarkdownWithMath(renderer).render})
    body, resources = exporter.from_notebook_node(content)
    page = PAGES.get_template("notebook.html").render(
        title=Path(notebook).stem, colours=resources["inlining"]["css"][0],
        body=re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL))
    Path(target).write_text(page, encoding="utf-8")
    return Path(target)


def _clean(output) -> bool:
    """Take progress and logs out of an output and make its picture small; False if nothing is left to show."""
    if output.output_type == "stream":
        output.text = NOISE.sub("", output.text)
        return bool(output.text.strip())
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = base64.b64encode(figures.compact(base64.b64decode(data["image/png"]))).decode()
    return "application/vnd.jupyter.widget-view+json" not in data


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m covidlib.report.html", description=__doc__.split("\n")[0])
    parser.add_argument("runs_dir")
    parser.add_argument("report_dir")
    try:
        print(build(**vars(parser.parse_args(arguments))))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
