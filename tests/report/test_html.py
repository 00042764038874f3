import json
import re

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from test_claims import make_runs

from covidlib.audit import shortcuts
from covidlib.report import claims, figures, html

NETWORKS = pd.DataFrame([["improved", 0.7, 0.6, 0.8], ["resnet50", 0.99, 0.97, 1.0]],
                        columns=["variant", "accuracy_mean", "accuracy_low", "accuracy_high"])
BASELINES = pd.DataFrame([["sharpness", "lungs", "official test split", 0.9, 0.85, 0.95, 0.97],
                          ["sharpness", "lungs", "grouped cross-validation", 0.1, 0.05, 0.15, 0.5]],
                         columns=shortcuts.COLUMNS)
LOADS = re.compile(r"""<(?:script|link|img|iframe|object|source)\b[^>]*?(?:src|href)=["']?(?!data:)([^"'> ]*)""")


def notebook(folder, name, cells):
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    runs_dir, folder = make_runs(root / "runs" / "phantom" / "quick", "phantom"), root / "reports" / "phantom" / "quick"
    (runs_dir / "dataset.json").write_text(json.dumps({
        "name": "phantom", "classes": ["covid", "viral", "normal"], "notes": ["Pairs <leak> here."], "slices": 120,
        "patients": 60,
        "left_out": [{"path": "covid/<x>.dcm", "reason": "is empty (0 bytes)", "hint": "Copy it again"}]}))
    tables = {runs_dir / "comparison/comparison.csv": NETWORKS, runs_dir / "audit/shortcuts.csv": BASELINES,
              folder / "tables/audit_shortcuts.csv": BASELINES,
              folder / "tables/table1.csv": pd.DataFrame({"item": ["cpu"], "here": ["x < y"]})}
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    history = pd.read_csv(runs_dir / "improved" / "seed-0" / "history.csv")
    figures.save(figures.figure4_curves(history), folder / "figures", "figure4_curves")
    notebook(folder / "notebooks", "02_model", [new_markdown_cell("# Model\n\n$x_1$")])
    claims.write(*claims.check(runs_dir), folder)
    html.build(runs_dir, folder)
    return folder


@pytest.fixture(scope="module")
def index(report):
    return re.sub(r">\s+<", "><", (report / "index.html").read_text(encoding="utf-8"))


def test_warnings_stand_before_the_claims(index):
    top = index[: index.index('id="claims"')]
    assert "Synthetic slices" in top and "mechanics only" in top and "not for diagnosis" in top
    assert "Pairs &lt;leak&gt; here." in top
    assert "1 files cannot be used and were left out" in top
    assert "covid/&lt;x&gt;.dcm is empty (0 bytes). Copy it again." in top


def test_accuracies_stand_beside_the_baselines(index):
    top, metrics = index[: index.index('id="claims"')], index[index.index('id="metrics"') :]
    assert "Not above a shortcut.</b> improved&#39;s accuracy of 0.700 (0.600 to 0.800)" in top
    assert "resnet50&#39;s accuracy" not in top
    assert "<td>sharpness (lungs)</td><td>official test split</td><td>0.900</td>" in metrics
    assert "<td>0.100</td>" not in metrics
    assert "<td>improved</td><td>0</td><td>120</td><td>60</td>" in metrics and "<th>commit</th>" in index


def test_every_claim_has_its_verdict_in_words(index, report):
    for row in json.loads((report / "claims.json").read_text()):
        part = index[index.index(f'<tr id="{row["id"]}">') :]
        assert f"<span>{row['verdict']}</span>" in part[: part.index("</tr>")]


def test_every_numbered_figure_and_table_is_listed(index, report):
    gallery = (report / "gallery.html").read_text(encoding="utf-8")
    numbered = [*(f"Figure {n}" for n in range(1, 7)), "Table 1", "Table 2"]
    assert re.findall(r"<b>((?:Figure|Table) \d)\.</b>", gallery) == numbered
    assert set(numbered) <= set(re.findall(r"<b>([^<]*)\.</b>", index))
    assert "x &lt; y" in index and index.count("Not in this report.") == 6
    assert "Audit" not in gallery and "mechanics only" in gallery


def test_every_link_leads_to_a_file_and_nothing_is_loaded_from_a_network(index, report):
    assert {"figures/figure4_curves.svg", "tables/table1.csv", "notebooks/02_model.html"} <= set(
        re.findall(r'(?:href|src)="([^"#]+)"', index))
    for page in report.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert all((page.parent / link).is_file() for link in re.findall(r'(?:href|src)="([^"#]+)"', text))
        assert "<script" not in text and "@import" not in text
        assert not [found for found in LOADS.findall(text) if "//" in found]


@pytest.mark.slow
def test_it_is_read_from_disk_without_a_network_and_printed_whole(report, chromium):
    page = chromium.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
    trouble = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("requestfailed", lambda request: trouble.append(request.url))
    for path in sorted(report.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
        assert page.evaluate("[...document.images].every(one => one.naturalWidth && one.alt)")
    assert not trouble
    page.goto((report / "index.html").as_uri())
    page.set_viewport_size({"width": 718, "height": 1046})  # A4 within its margins, at 96 pixels an inch
    page.emulate_media(media="print")
    assert page.evaluate("Math.max(...[...document.images].map(one => one.getBoundingClientRect().height))") < 1046
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()


def test_without_claims_the_notebook_is_named(tmp_path, capsys):
    assert html.main([str(tmp_path), str(tmp_path)]) == 2
    assert "07_report" in capsys.readouterr().err


def test_notebook_page(tmp_path):
    outputs = [
        new_output("stream", name="stderr", text="  0%| \r 50%| \r100%| 2/2\nI0000 00:00 port.cc\n 3 2it/s]\n"),
        new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"},
                                         "text/plain": "bar: 0%"}),
        new_output("display_data", data={"text/html": "<b>kept</b><script>alert(1)</script>"})]
    cells = [new_markdown_cell("Cost `$HOME`, $a_1 < b_{2}$ and\n\n$$p = \\frac{e^z}{\\sum_k e^k} \\qquad (2)$$"),
             new_code_cell("print(1)", outputs=outputs)]
    text = html.notebook_to_html(notebook(tmp_path, "n", cells), tmp_path / "n.html").read_text(encoding="utf-8")
    assert text.count("<math") == 2 and 'display="block"' in text and "<mfrac>" in text
    assert "$HOME" in text and ".highlight .k" in text
    assert "100%| 2/2" in text and "50%|" not in text and "port.cc" not in text and "2it/s" not in text
    assert "bar: 0%" not in text and "<b>kept</b>" in text and "alert" not in text
