import csv

import pytest

from benchmarks import bars, tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_bar_is_met_at_least_at_most_or_not_measured(results):
    tables.write_bars([
        ("faster", 2.0, (2.0, 1.9, 2.1)), ("not faster", 2.0, (1.99, 1.9, 2.1)),
        ("smaller", tables.AtMost(1), (0.9, 0.9, 0.9)), ("not smaller", tables.AtMost(1), (1.1, 1.1, 1.1)),
        ("unknown", 3, None)], "mode", "command", where="here", show=False)
    rows = read(results / "mode_bars_here.csv")
    assert [row["met"] for row in rows] == ["yes", "no", "yes", "no", "not measured"]
    assert [row["wanted"] for row in rows] == ["2.0", "2.0", "<= 1", "<= 1", "3"]
    assert rows[4]["measured"] == "" and rows[0]["command"] == "command" and rows[0]["date"]


def test_rows_go_to_a_file_for_each_precision_and_framework(results):
    row = {"variant": "resnet50", "images_per_second": 1 / 3, "q1": float("nan"), "batch": 16}
    rows = [{**row, "precision": precision, "framework": "jax"} for precision in ("float32", "int8")]
    tables.write(rows, "mode", where="here", show=False)
    assert sorted(path.name for path in results.iterdir()) == ["mode_float32_jax_here.csv", "mode_int8_jax_here.csv"]
    (only,) = read(results / "mode_int8_jax_here.csv")
    assert (only["images_per_second"], only["q1"], only["batch"], only["rounds"]) == ("0.33", "", "16", "")


def test_the_page_gets_every_bar_between_its_marks(results, tmp_path, monkeypatch):
    tables.write_bars([("faster", 2.0, (2.5, 2.4, 2.6)), ("unknown", 2.0, None)], "mode", "run it", where="here",
                      show=False)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{bars.BEGIN}\nold\n{bars.END}\nafter\n")
    monkeypatch.setattr(bars, "PAGE", page)
    bars.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{bars.END}\nafter\n") and "old" not in text
    assert "| faster | >= 2.0 | 2.5 (2.4 to 2.6) | yes |" in text and "`run it`" in text
    assert "| unknown | >= 2.0 | not measured | not measured |" in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must hold the lines"):
        bars.main()
    assert page.read_text() == "no marks"
