import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from covidlib.evaluation import metrics
from covidlib.report import figures

CLASSES = ("covid", "viral", "normal")


def made_up(labels, predicted, patients=None, classes=CLASSES):
    """Predictions with 0.8 for the predicted class."""
    scores = np.full((len(labels), len(classes)), 0.2 / (len(classes) - 1))
    scores[np.arange(len(labels)), [classes.index(name) for name in predicted]] = 0.8
    table = pd.DataFrame({"label": labels, "patient": patients if patients is not None else ""})
    return table.assign(**{f"p_{name}": scores[:, k] for k, name in enumerate(classes)})


@pytest.fixture
def useless():
    """300 slices with probabilities that know nothing of the class."""
    labels, scores = np.array(CLASSES)[np.arange(300) % 3], np.random.default_rng(0).dirichlet([1, 1, 1], 300)
    return made_up(labels, labels).assign(**{f"p_{name}": scores[:, k] for k, name in enumerate(CLASSES)})


@pytest.fixture
def paper():
    """The paper's Figure 6 with viral and normal exchanged: 1298 of 1350, 184 of 300, 1221 of 1350."""
    labels, predicted = [], []
    for name, n, right, wrong in (("covid", 1350, 1298, "normal"), ("viral", 300, 184, "covid"),
                                  ("normal", 1350, 1221, "viral")):
        labels += [name] * n
        predicted += [name] * right + [wrong] * (n - right)
    return made_up(labels, predicted)


def test_the_figures_of_the_paper(paper):
    found = metrics.metrics(paper, CLASSES)
    assert found["n"] == 3000 and found["patients"] == 0
    assert found["accuracy"] == pytest.approx(0.901, abs=5e-4)
    assert found["balanced_accuracy"] == pytest.approx(0.826, abs=5e-4)
    recalls = [found["per_class"][name]["sensitivity"] for name in CLASSES]
    assert recalls == pytest.approx([0.961, 0.613, 0.904], abs=5e-4)
    assert found["per_class"]["viral"]["ppv"] == pytest.approx(184 / (184 + 129))
    assert found["per_class"]["viral"]["specificity"] == pytest.approx(1 - 129 / 2700)
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high and high - low == pytest.approx(0.0214, abs=1e-3)
    low, high = found["balanced_accuracy_interval"]
    assert low < found["balanced_accuracy"] < high
    low, high = found["per_class"]["viral"]["sensitivity_interval"]
    assert low < recalls[1] < high and high - low > 0.1


def test_confusion_has_the_truth_in_rows(paper):
    counts = metrics.confusion(paper, CLASSES)
    assert counts.loc["covid", "normal"] == 52 and counts.loc["normal", "covid"] == 0
    assert counts.sum(axis=1).tolist() == [1350, 300, 1350]
    assert (counts.index.name, counts.columns.name) == ("true", "predicted")


def test_clustered_intervals_are_wider(paper):
    free = metrics.metrics(paper, CLASSES)
    paper["patient"] = [f"{name}{n // 50}" for n, name in enumerate(paper["label"])]
    clustered = metrics.metrics(paper, CLASSES)
    assert clustered["patients"] == 60
    assert np.diff(clustered["accuracy_interval"]) > 2 * np.diff(free["accuracy_interval"])
    assert clustered == metrics.metrics(paper, CLASSES)


def test_roc_and_auc_of_a_perfect_and_a_useless_score(useless):
    perfect = made_up(useless["label"], useless["label"])
    assert metrics.metrics(perfect, CLASSES)["auc"] == 1
    found, curves = metrics.metrics(useless, CLASSES), metrics.roc(useless, CLASSES)
    assert found["auc"] == pytest.approx(0.5, abs=0.07)
    assert list(curves.columns) == ["class", "fpr", "tpr", "threshold"]
    for name, curve in curves.groupby("class"):
        assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(found["per_class"][name]["auc"])


def test_precision_and_recall_have_scikit_learns_average(useless):
    curves = metrics.precision_recall(useless, CLASSES)
    assert list(curves.columns) == ["class", "recall", "precision", "threshold"]
    for name, curve in curves.groupby("class", sort=False):
        expected = average_precision_score(useless["label"] == name, useless[f"p_{name}"])
        assert figures.average_precision(curve) == pytest.approx(expected)
        assert curve["precision"].iloc[0] == pytest.approx(1 / 3) and curve["recall"].iloc[-1] == 0
    assert metrics.precision_recall(useless[:0], CLASSES).empty


def test_two_classes_share_one_auc():
    classes = ("covid", "non_covid")
    labels, predicted = ["covid"] * 4 + ["non_covid"] * 4, ["covid"] * 3 + ["non_covid"] * 4 + ["covid"]
    found = metrics.metrics(made_up(labels, predicted, classes=classes), classes)
    assert [found["auc"], *(figures["auc"] for figures in found["per_class"].values())] == [0.75] * 3


def test_what_is_undefined_is_nan_and_no_crash(recwarn):
    table = made_up(["covid", "covid", "viral"], ["covid", "viral", "viral"], patients=["a", "b", "c"])
    found = metrics.metrics(table, CLASSES)
    normal = found["per_class"]["normal"]
    assert normal["n"] == 0 and normal["specificity"] == 1
    assert np.isnan([normal[name] for name in ("sensitivity", "ppv", "auc")]).all()
    assert np.isnan(normal["sensitivity_interval"]).all()
    assert found["balanced_accuracy"] == 0.75 and np.isfinite(found["auc"])
    assert set(metrics.roc(table, CLASSES)["class"]) == {"covid", "viral"}
    one = metrics.metrics(table[:2], CLASSES)
    assert np.isnan(one["auc"]) and one["accuracy"] == 0.5
    nothing = metrics.metrics(table[:0], CLASSES)
    assert nothing["n"] == 0 and np.isnan([nothing["accuracy"], nothing["macro_f1"], nothing["auc"]]).all()
    assert metrics.confusion(table[:0], CLASSES).to_numpy().sum() == 0
    assert metrics.roc(table[:0], CLASSES).empty
    assert not recwarn.list


def test_mistakes_are_named(paper):
    with pytest.raises(ValueError, match="lack columns \\['p_viral'\\]"):
        metrics.metrics(paper.drop(columns="p_viral"), CLASSES)
    with pytest.raises(ValueError, match="Received: \\['cap'\\]"):
        metrics.metrics(paper.replace({"label": {"viral": "cap"}}), CLASSES)


def test_no_keras_is_needed(repository):
    code = ("import sys; from covidlib.evaluation import comparison, metrics; from covidlib.training import runs;"
            "from covidlib.preprocessing import augmentation; assert 'keras' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)
