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
import pandas as pd

from covidlib.audit import leaks, shortcuts
from covidlib.report import claims, figures
from covidlib.training import runs
from covidlib.utils import provenance
from covidlib.utils.files import write_atomically

FIGURES = {  # name in figures/: number in the paper, caption
    "figure1_augmentation": ("Figure 1", "One slice before and after every operation of §2.1."),
    "figure2_fpn": ("Figure 2", "The pyramid on four stages of ResNet-50 (§2.2), read off the model."),
    "figure3_attention": ("Figure 3", "The residual block with attention (§2.3), read off the model."),
    "figure4_curves": ("Figure 4", "Accuracy and loss: acc is training, val_acc validation (§3.2)."),
    "figure5_classified": ("Figure 5", "Test slices: predicted class, its probability, true class (§3.2)."),
    "figure6_confusion": ("Figure 6", "Confusion matrix of the test part: counts and recall (§3.2)."),
    "roc": ("Beside the paper", "Each class against the rest, test part."),
    "precision_recall": ("Beside the paper", "Precision over recall, each class, test part; dotted: chance."),
    "comparison": ("Beside the paper", "Variants against ResNet-50 (§3.3)."),
    "audit_shortcuts": ("Audit", "Accuracy of classifiers without anatomy, before and after harmonisation."),
    "audit_views": ("Audit", "Slices as read, lungs outlined, and as the network sees them."),
    "audit_pairs": ("Audit", "Near-identical pairs, those in two parts of the split first."),
    "speed": ("Beside the paper", "Images per second of every way to call the networks, quartiles (§3.3)."),
    "speed_scaling": ("Beside the paper", "Images per second over slices per call and threads."),
    "speed_mistakes": ("Beside the paper", "How to get 1.6x out of nothing: slips of a harness, made on purpose."),
}
TABLES = {
    "table1": ("Table 1", "The machine of the paper and the one used here (§3.1)."),
    "table2": ("Table 2", "Accuracy and images per second beside the paper's (§3.3)."),
    "ratios": ("Beside the paper", "Images per second of improved over resnet50, both treated alike."),
    "mistakes": ("Beside the paper", "What slips of a harness make of that ratio; which the paper made is not known."),
    "costs": ("Beside the paper", "Parameters, multiply-accumulates and peak memory (one slice)."),
    "audit_leaks": ("Audit", "What the parts of the split, or the classes, share."),
    "audit_conflicts": ("Audit", "The same picture under two labels."),
    "audit_duplicates": ("Audit", "Near-identical pairs; a distance in bits of 64."),
    "audit_shortcuts": ("Audit", "How far one gets without anatomy."),
}
IN_THE_PAPER = {  # its pictures are its authors' and are not shown here
    "figure1_augmentation": "examples of flips, rotation, colour and affine changes; no ranges.",
    "figure2_fpn": "the pyramid on conv2_3, conv3_4, conv4_6 and conv5_3.",
    "figure3_attention": "the attention module in the last residual block of conv3, conv4 and conv5.",
    "figure4_curves": "acc and val_acc over the epochs; the validation loss is said to be stable past 35.",
    "figure5_classified": "images with the class they were given.",
    "figure6_confusion": "\u201c2903\u201d correct: 1298 COVID-19, 1221 viral, 184 normal, their sum 2703; 90.1 %.",
    "comparison": "90.1 % against ResNet50's 87 %, one run each, no interval.",
    "speed": "12.75 and 39.56 images per second (CPU, GPU) against 7.89 and 23.52.",
}
ROWS = 24  # of a table that the page shows; the CSV has all
CHECKLIST = provenance.ROOT / "reports" / "published" / "CHECKLIST.md"
LOGS = re.compile(r"[IWEF]\d{4} |WARNING: All log messages before absl|To enable the following instructions")
MATH = re.compile(r"(`[^`]*`)|\$\$(.+?)\$\$|\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", re.DOTALL)


def build(runs_dir, report_dir) -> Path:
    """Write `index.html`, `gallery.html` and a page for every notebook in `report_dir`; returns that of index.html.

    Reads `figures/`, `tables/`, `claims.json` and `notebooks/*.ipynb` of `report_dir`, `dataset.json`,
    `audit/`, `comparison/` and the runs of `runs_dir`. Raises FileNotFoundError where notebook 07_report has not run.
    """
    runs_dir, folder = Path(runs_dir), Path(report_dir)
    if not (folder / "claims.json").is_file():
        raise FileNotFoundError(f"no claims.json in {folder}: run notebook 07_report first")
    rows = runs.read_json(folder / "claims.json")
    dataset = runs.read_json(runs_dir / "dataset.json")
    counts = Counter(row["verdict"] for row in rows)
    shared = {"title": f"{dataset['name']}, profile {runs_dir.resolve().name}", "read": _read_table,
              "synthetic": dataset["name"] == "phantom", "figures": _gallery(folder / "figures", "png", FIGURES),
              "tables": _gallery(folder / "tables", "csv", TABLES)}
    page = _template("report.html").render(
        dataset=dataset, claims=rows, measured=claims.measured, **shared,
        counts=[(name, counts[name]) for name in claims.VERDICTS if counts[name]], metrics=_metrics(runs_dir),
        warnings=_warnings(runs_dir), baselines=_baselines(runs_dir), checklist=_checklist(),
        notebooks=_notebooks(folder / "notebooks"), provenance=_provenance(runs_dir))
    for name, text in (("index.html", page), ("gallery.html", _template("gallery.html").render(**shared))):
        write_atomically(folder / name, text)
    return folder / "index.html"


def _template(name):
    environment = jinja2.Environment(loader=jinja2.PackageLoader("covidlib.report"), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True)
    environment.filters["slug"] = lambda text: re.sub(r"\W+", "-", text)
    return environment.get_template(name)


def _gallery(folder, kind, known) -> list[dict]:
    """What the paper numbers, in its order and even if absent, then everything else in the folder."""
    found = {path.stem: path for path in sorted(folder.glob(f"*.{kind}"))}
    items = []
    for name in [*known, *(name for name in found if name not in known)]:
        label, caption = known.get(name, ("Beside the paper", f"{name.replace('_', ' ')}."))
        files = [(path.suffix[1:].upper(), f"{folder.name}/{path.name}")
                 for path in sorted(folder.glob(f"{name}.*")) if path.stem == name]
        if files or label.split()[0] in ("Figure", "Table"):
            items.append({"name": name, "label": label, "caption": caption, "path": found.get(name), "files": files,
                          "paper": IN_THE_PAPER.get(name)})
    return items


def _read_table(path) -> str:
    whole = pd.read_csv(path)
    table = whole.head(ROWS)
    numbers = table.select_dtypes("number").columns
    table[numbers] = table[numbers].map(lambda x: f"{x:.4g}" if abs(x) < 1e4 else f"{x:,.0f}", na_action="ignore")
    more = f"<p>The first {ROWS} of {len(whole)} rows.</p>" if len(whole) > ROWS else ""
    return table.to_html(index=False, border=0, na_rep="") + more


def _metrics(runs_dir) -> list[list]:
    """Test metrics of every run, one row each, in the order of the page's columns."""
    rows = []
    for run in runs.find_runs(runs_dir):
        if found := run.metrics.get("test"):
            low, high = found["accuracy_interval"]
            rows.append([run.parameters["variant"], run.parameters["seed"], found["n"], found["patients"] or "unknown",
                         f"{found['accuracy']:.3f}", f"{low:.3f} to {high:.3f}",
                         *(f"{found[key]:.3f}" for key in ("balanced_accuracy", "macro_f1", "auc"))])
    return rows


def _warnings(runs_dir) -> list[str]:
    """On networks that a baseline without anatomy comes near to."""
    compared = pd.read_csv(runs_dir / "comparison" / "comparison.csv")
    return leaks.shortcut_warnings(compared, pd.read_csv(runs_dir / "audit" / "shortcuts.csv"))


def _baselines(runs_dir) -> list[list]:
    """What needs no anatomy, to stand below the networks: the protocol nearest to theirs, best first."""
    table = pd.read_csv(runs_dir / "audit" / "shortcuts.csv")
    if shortcuts.OFFICIAL in set(table["protocol"]):
        table = table[table["protocol"] == shortcuts.OFFICIAL]
    return [[f"{row.baseline} ({row.seen})", row.protocol, f"{row.accuracy:.3f}", f"{row.low:.3f} to {row.high:.3f}",
             f"{row.auc:.3f}"] for row in table.sort_values("accuracy", ascending=False).itertuples()]


def _checklist() -> str:
    """The checklists of reports/published as HTML without links; empty where covidlib is installed without them."""
    from nbconvert.filters import markdown2html

    text = markdown2html(CHECKLIST.read_text(encoding="utf-8")) if CHECKLIST.is_file() else ""
    return re.sub(r"</?a\b[^>]*>", "", text)  # the page leads to files beside it and nowhere else


def _provenance(runs_dir) -> list[tuple[str, str]]:
    """What the first run says of its origin, as lines."""
    facts = runs.find_runs(runs_dir)[0].provenance
    flat = {"covidlib": provenance.packages().get("covidlib", ""), **facts.get("machine", {}),
            **{key: value for key, value in facts.items() if not isinstance(value, dict)}}
    git = facts.get("git", {})
    return [("commit", (git.get("commit") or "unknown") + (" with local changes" if git.get("dirty") else "")),
            *((key.replace("_", " "), str(value)) for key, value in flat.items() if value is not None)]


def _notebooks(folder) -> list[dict]:
    """Convert every executed notebook; name, page and file of each."""
    converted = []
    for path in sorted(folder.glob("*.ipynb")):
        if not path.name.startswith(".") and not path.stem.endswith(".failed"):
            target = notebook_to_html(path, path.with_suffix(".html"))
            converted.append({"name": path.stem, "html": f"{folder.name}/{target.name}",
                              "ipynb": f"{folder.name}/{path.name}"})
    return converted


def notebook_to_html(notebook, target) -> Path:
    """One page that loads nothing: formulas as MathML, no scripts, no progress bars, no framework's log."""
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    content = nbformat.read(notebook, as_version=4)
    formulas = []
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = MATH.sub(lambda match: _formula(match, formulas), cell.source)
        elif cell.cell_type == "code":
            cell.outputs = [output for output in map(_quiet, cell.outputs) if output]
    body, _ = HTMLExporter(template_name="basic", exclude_anchor_links=True).from_notebook_node(content)
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    for number, formula in enumerate(formulas):
        body = body.replace(f"FORMULA{number}END", formula)
    colours = HtmlFormatter(style="default").get_style_defs(".highlight")
    page = _template("notebook.html").render(title=Path(notebook).stem, body=body, colours=colours)
    Path(target).write_text(page, encoding="utf-8")
    return Path(target)


def _formula(match, formulas) -> str:
    code, block, inline = match.groups()
    if code:
        return code
    import latex2mathml.converter

    formulas.append(latex2mathml.converter.convert((block or inline).strip(), display="block" if block else "inline"))
    return f"FORMULA{len(formulas) - 1}END"


def _quiet(output):
    """The output without what only made sense while it ran, pictures made compact; None if nothing is left."""
    if output.output_type == "stream":
        lines = [line.rsplit("\r", 1)[-1] for line in output.text.split("\n")]
        output.text = "\n".join(line for line in lines if not LOGS.match(line) and "it/s]" not in line)
        return output if output.text.strip() else None
    data = output.get("data", {})
    if "image/png" in data:
        data["image/png"] = base64.b64encode(figures.compact(base64.b64decode(data["image/png"]))).decode()
    return None if "application/vnd.jupyter.widget-view+json" in data else output


def main(arguments=None) -> int:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m covidlib.report.html", description=__doc__.split("\n")[0])
    parser.add_argument("runs_dir")
    parser.add_argument("report_dir")
    options = parser.parse_args(arguments)
    try:
        print(build(options.runs_dir, options.report_dir))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
