import numpy as np
import pytest

from covidlib.app.explorer import Explorer
from covidlib.evaluation import metrics
from covidlib.training import runs


@pytest.fixture(scope="module")
def page(checkout):
    page = Explorer([checkout / "runs"])
    page.refresh()
    assert page._reader.wait(120)
    assert "mechanics only" in page.message.value and len(page.chosen.value) == 2
    return page


def test_curves_of_every_chosen_run(page):
    assert [trace.name.split(", ")[-1] for trace in page.figures["curves"].data] == ["training", "validation"] * 2
    page.quantity.value = "accuracy"
    history = page.read[0][1].history
    assert np.allclose(page.figures["curves"].data[0].y, history["accuracy"])


def test_a_cell_of_the_matrix_opens_its_slices(page, checkout):
    run = page.read[0][1]
    test = run.predictions[run.predictions["split"] == "test"]
    counts = metrics.confusion(test, run.classes).to_numpy()
    assert np.array_equal(page.figures["matrix"].data[0].text, counts)
    i, j = np.unravel_index(counts.argmax(), counts.shape)
    page.cell.value = (int(i), int(j))
    assert page._shower.wait()
    assert f"{counts[i, j]} slices" in page.listed.value and page.slices.png
    assert f"true {run.classes[i]}, predicted {run.classes[j]}" in page.slices.alt
    first = page.listed.value.split("<li>")[1].split(":")[0]
    assert run.predictions.set_index("path").loc[first, "label"] == run.classes[i]


def test_the_threshold_moves_sensitivity_and_specificity(page):
    page.threshold.value = 0
    assert page.figures["roc"].data[1].y[0] == 1 and page.figures["roc"].data[1].x[0] == 1
    page.threshold.value = 1
    assert page.figures["roc"].data[1].y[0] == 0 and "95 % intervals over patients" in page.rates.value


def test_reliability_and_frontier_are_drawn(page):
    assert len(page.figures["reliability"].data) >= 2 and len(page.figures["frontier"].data) >= 2
    assert "images/s" in page.figures["frontier"].data[0].hovertemplate


def test_a_hostile_name_is_text(page, monkeypatch):
    test = page.test.copy()
    monkeypatch.setattr(page, "test", test.assign(path="<b>x</b>"))
    page.cell.value = None
    page.cell.value = page.cell.options[1][1]
    assert page._shower.wait()
    assert "<b>" not in page.listed.value


def test_without_runs_it_says_so(tmp_path):
    page = Explorer([tmp_path])
    page.refresh()
    assert "No finished run yet" in page.message.value and not page.chosen.options


def test_published_runs_are_found_without_models(repository):
    page = Explorer([repository / "reports" / "published" / "runs"])
    page.refresh()
    assert page.found and all(runs.is_run(path) for path in page.found.values())
