import csv

import pytest

from benchmarks import tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_target_is_met_at_least_at_most_or_not_measured(results):
    tables.write_targets([("faster", ">= 2", (2.0, 1.9, 2.1)), ("not faster", ">= 2", (1.99, 1.9, 2.1)),
                          ("smaller", "<= 1", 0.9), ("not smaller", "<= 1", 1.1), ("unknown", ">= 3", None)], "mode",
                         where="here")
    rows = read(results / "mode_targets_here.csv")
    assert [row["met"] for row in rows] == ["yes", "no", "yes", "no", "not measured"]
    assert [row["wanted"] for row in rows] == [">= 2", ">= 2", "<= 1", "<= 1", ">= 3"]
    assert [row["q1"] for row in rows] == ["1.9", "1.9", "0.9", "1.1", ""]
    assert rows[4]["measured"] == "" and rows[0]["command"] == "python -m benchmarks.mode" and rows[0]["date"]


def test_rows_go_to_a_file_for_each_precision_and_framework(results):
    rows = [tables.rate("resnet50", "step", 224, 16, [1 / 3, float("nan")], precision, "jax", threads=None)
            for precision in ("float32", "int8")]
    rows[1] |= {"images_per_second": 1 / 3}
    tables.write(rows, "mode", where="here", show=False)
    assert sorted(path.name for path in results.iterdir()) == ["mode_float32_jax_here.csv", "mode_int8_jax_here.csv"]
    (only,) = read(results / "mode_int8_jax_here.csv")
    assert [only[name] for name in ("images_per_second", "q1", "batch", "rounds", "threads")] == [
        "0.333", "", "16", "2", ""]


def test_the_page_gets_every_target_between_its_marks(results, tmp_path, monkeypatch):
    tables.write_targets([("faster", ">= 2", (2.5, 2.4, 2.6)), ("unknown", ">= 2", None)], "mode", "here", "run it")
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    monkeypatch.setattr(tables, "PAGE", page)
    tables.write_page()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith(f"{tables.END}\nafter\n") and "old" not in text
    assert "| faster | >= 2 | 2.5 (2.4 to 2.6) | yes |" in text and "`run it`" in text
    assert "| unknown | >= 2 | - | not measured |" in text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="must hold the lines"):
        tables.write_page()
    assert page.read_text() == "no marks"
