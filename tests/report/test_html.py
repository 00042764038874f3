import json
import re

import nbformat
import pandas as pd
import pytest
from test_claims import make_runs

from covidlib.audit import shortcuts
from covidlib.report import claims, figures, html

NETWORKS = pd.DataFrame([["improved", 0.7, 0.6, 0.8], ["resnet50", 0.99, 0.97, 1.0]],
                        columns=["variant", "accuracy_mean", "accuracy_low", "accuracy_high"])
BASELINES = pd.DataFrame([["file facts", "files", "official test split", 0.9, 0.85, 0.95, 0.97],
                          ["file facts", "files", "grouped cross-validation", 0.1, 0.05, 0.15, 0.5]],
                         columns=shortcuts.COLUMNS)
LOADS = re.compile(
    r"""<(?:script|link|img|iframe|object|source)\b[^>]*?(?:src|href)=["']?(?!data:)([^"'> ]*)"""
)


def notebook(folder, name, cells):
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    runs_dir = make_runs(root / "runs" / "phantom" / "quick", "phantom")
    dataset = {
        "name": "phantom",
        "classes": ["covid", "viral", "normal"],
        "notes": ["Pairs <leak> here."],
        "slices": 120,
        "patients": 60,
        "left_out": [{"path": "covid/<x>.dcm", "reason": "is empty (0 bytes)", "hint": "Copy it again"}],
    }
    for name, table in {"comparison/comparison": NETWORKS, "audit/shortcuts": BASELINES}.items():
        (runs_dir / name).parent.mkdir(exist_ok=True)
        table.to_csv(runs_dir / f"{name}.csv", index=False)
    (runs_dir / "dataset.json").write_text(json.dumps(dataset))
    folder = root / "reports" / "phantom" / "quick"
    history = pd.read_csv(runs_dir / "improved" / "seed-0" / "history.csv")
    figures.save(figures.figure4_curves(history), folder / "figures", "figure4_curves")
    (folder / "tables").mkdir()
    BASELINES.to_csv(folder / "tables" / "audit_shortcuts.csv", index=False)
    pd.DataFrame({"item": ["cpu"], "here": ["x < y"]}).to_csv(folder / "tables" / "table1.csv", index=False)
    notebook(folder / "notebooks", "02_model", [nbformat.v4.new_markdown_cell("# Model\n\n$x_1$")])
    claims.write(claims.check(runs_dir), folder)
    html.build(runs_dir, folder)
    return folder


@pytest.fixture(scope="module")
def index(made):
    return (made / "index.html").read_text(encoding="utf-8")


def test_warnings_stand_before_the_claims(index):
    top = index[: index.index('id="claims"')]
    assert "Synthetic slices" in top and "mechanics only" in top and "not for diagnosis" in top
    assert "Pairs &lt;leak&gt; here." in top


def test_accuracies_stand_beside_the_baselines(index):
    top, metrics = index[: index.index('id="claims"')], index[index.index('id="metrics"') :]
    assert "Not above a shortcut.</b> improved&#39;s accuracy of 0.700 (0.600 to 0.800)" in top
    assert "resnet50&#39;s accuracy" not in top
    assert "<td>file facts (files)</td><td>official test split</td><td>0.900</td>" in metrics
    assert "<td>0.100</td>" not in metrics


def test_files_left_out_are_counted_and_named(index):
    assert "1 files cannot be used and were left out" in index
    assert "covid/&lt;x&gt;.dcm is empty (0 bytes). Copy it again." in index


def test_every_claim_has_its_verdict_in_words(index, made):
    rows = json.loads((made / "claims.json").read_text())
    for row in rows:
        part = index[index.index(f'<tr id="{row["id"]}">') :]
        assert f"<span>{row['verdict']}</span>" in part[: part.index("</tr>")]


def test_every_numbered_figure_and_table_is_listed(index):
    for number in range(1, 7):
        assert f"<b>Figure {number}.</b>" in index
    assert "<b>Table 1.</b>" in index and "<b>Table 2.</b>" in index
    assert index.count("Not drawn in this report.") == 5 and index.count("Not made in this report.") == 1


def test_every_link_leads_to_a_file(index, made):
    links = re.findall(r'(?:href|src)="([^"#]+)"', index)
    assert {"figures/figure4_curves.svg", "tables/table1.csv", "notebooks/02_model.html"} <= set(links)
    assert all((made / link).is_file() for link in links)


def test_the_gallery_holds_what_the_paper_numbers_and_nothing_else(made):
    gallery = (made / "gallery.html").read_text(encoding="utf-8")
    assert re.findall(r"<b>((?:Figure|Table) \d)\.</b>", gallery) == [
        *(f"Figure {n}" for n in range(1, 7)), "Table 1", "Table 2"]
    assert "Audit" not in gallery and "mechanics only" in gallery
    assert all((made / link).is_file() for link in re.findall(r'(?:href|src)="([^"#]+)"', gallery))


def test_nothing_is_loaded_from_a_network(made):
    for page in made.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "@import" not in text
        assert not [found for found in LOADS.findall(text) if "//" in found]


@pytest.mark.slow
def test_it_is_read_from_disk_without_a_network_and_printed_whole(made, chromium):
    page = chromium.new_context(offline=True, viewport={"width": 390, "height": 844}).new_page()
    trouble = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("requestfailed", lambda request: trouble.append(request.url))
    for path in sorted(made.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
        assert page.evaluate("[...document.images].every(one => one.naturalWidth && one.alt)")
    assert not trouble
    page.goto((made / "index.html").as_uri())
    page.set_viewport_size({"width": 718, "height": 1046})  # A4 within its margins, at 96 pixels an inch
    page.emulate_media(media="print")
    assert page.evaluate("Math.max(...[...document.images].map(one => one.getBoundingClientRect().height))") < 1046
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()


def test_metrics_and_provenance(index):
    assert "<td>improved</td>" in index and "<th>commit</th>" in index


def test_without_claims_the_notebook_is_named(tmp_path, capsys):
    assert html.main([str(tmp_path), str(tmp_path)]) == 2
    assert "07_report" in capsys.readouterr().err


def test_notebook_page(tmp_path):
    stream = nbformat.v4.new_output(
        "stream", name="stderr", text="  0%| \r 50%| \r100%| 2/2\nI0000 00:00 port.cc\n"
    )
    widget = nbformat.v4.new_output(
        "display_data",
        data={"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "bar: 0%"},
    )
    script = nbformat.v4.new_output(
        "display_data", data={"text/html": "<b>kept</b><script>alert(1)</script>"}
    )
    cells = [
        nbformat.v4.new_markdown_cell(
            "Cost `$HOME`, $a_1 < b_{2}$ and\n\n$$p = \\frac{e^z}{\\sum_k e^k} \\qquad (2)$$"
        ),
        nbformat.v4.new_code_cell("print(1)", outputs=[stream, widget, script]),
    ]
    text = html.notebook_to_html(notebook(tmp_path, "n", cells), tmp_path / "n.html").read_text(
        encoding="utf-8"
    )
    assert text.count("<math") == 2 and 'display="block"' in text and "<mfrac>" in text
    assert "FORMULA" not in text and "$HOME" in text
    assert "100%| 2/2" in text and "50%|" not in text and "port.cc" not in text
    assert "bar: 0%" not in text and "<b>kept</b>" in text and "alert" not in text
