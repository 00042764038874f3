"""The capacity page: rates from tables, interpolated and continued, and what is reached first."""

import pytest

from benchmarks import capacity, tables


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rows = [f"{what},{count},{count / 1000},{count / 500},,2026-01-01" for count in (1000, 2000, 4000)
            for what in ("manifest", "split by patient", "leaks of the manifest", "take in")]
    rows += [f"near-duplicates,{count},{(count / 1000) ** 2},{count / 500},{count} pairs,2026-01-01"
             for count in (1000, 2000, 4000)]
    (tmp_path / "manifests_here.csv").write_text("\n".join(["what,rows,cpu_seconds,peak_mib,note,date", *rows]))
    (tmp_path / "intake_cpu.csv").write_text("what,quantity,value,unit\ncache,decode and harmonise once,30,s\n"
                                             "cache,the same with what the audit needs,60,s\n")
    head = "variant,harness,image_size,batch,threads,images_per_second\n"
    (tmp_path / "augmentation_float32_scipy_here.csv").write_text(f"{head}one warp,set paper,224,16,1,200\n")
    for mode, rate in (("training", 10), ("inference", 40), ("backend-training", 20)):
        (tmp_path / f"{mode}_mixed_bfloat16_torch_here.csv").write_text(
            f"{head}improved,step,224,16,2,{rate}\nimproved,step,64,16,2,1000\nresnet50,step,224,16,2,99\n")
    return tmp_path


def test_a_rate_is_the_best_of_the_network_at_its_size_on_each_device(results):
    assert capacity.best("training") == {"here": (20.0, "torch, mixed_bfloat16, batch 16",
                                                  "backend-training_mixed_bfloat16_torch_here.csv")}
    assert capacity.best("inference")["here"][0] == 40 and capacity.decoding() == [100, 50]


def test_rows_are_interpolated_and_continued_with_the_last_slope(results):
    rows = capacity.Rows()
    assert rows.at("near-duplicates", "cpu_seconds", 2000) == pytest.approx(4)
    assert rows.at("near-duplicates", "cpu_seconds", 40_000) == pytest.approx(1600)
    assert rows.at("take in", "peak_mib", 3000) == pytest.approx(6) and rows.largest("take in") == 4000
    assert capacity.reached(lambda n: n**2, 1e8) == pytest.approx(1e4)


def test_the_page_says_what_breaks_in_its_order(results):
    page = capacity.page()
    assert "| train, 35 epochs | here | 1M | 490 | 61 | 7.6 |" in page
    assert "| decode, harmonise, describe | 2 cores | 100M | 560 | 69 | 8.7 |" in page
    reached = page.split("## What breaks first")[1]
    first = reached.index("a day of 35 epochs on one here")
    assert first < reached.index("a day of decoding") and "- **10k slices:** nothing breaks." in reached


@pytest.mark.parametrize("value, text", [(0.0001, "< 0.001"), (0.00312, "0.0031"), (1.23, "1.2"), (9.99, "10"),
                                         (34.6, "35"), (1234, "1,200"), (99_999, "100,000")])
def test_numbers_have_two_digits(value, text):
    assert capacity.number(value) == text


def test_the_page_is_that_of_the_tables():
    assert capacity.PAGE.read_text(encoding="utf-8") == capacity.page(), "run python -m benchmarks.capacity"
