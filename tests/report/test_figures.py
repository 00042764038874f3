import io
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from covidlib.audit import shortcuts
from covidlib.report import diagrams, figures, speed_figures

CLASSES = ("covid", "viral", "normal")


@pytest.fixture(autouse=True)
def styled():
    figures.style()


@pytest.fixture(scope="module")
def history():
    return pd.DataFrame({"epoch": [1, 2, 3], "accuracy": [0.5, 0.6, 0.7], "loss": [1.0, 0.8, 0.7],
                         "val_accuracy": [0.4, 0.6, 0.5], "val_loss": [1.1, 0.9, 1.0]})


@pytest.fixture(scope="module")
def compared():
    return pd.DataFrame({"variant": ["resnet50", "improved"], "seeds": [1, 5], "n": [40, 40],
                         "accuracy_mean": [0.8, 0.9], "accuracy_low": [0.7, 0.85], "accuracy_high": [0.88, 0.94],
                         "accuracy_sd": [np.nan, 0.02], "difference": [0.0, 0.1],
                         "difference_low": [0.0, 0.04], "difference_high": [0.0, 0.15]})


@pytest.fixture(scope="module")
def timed():
    rows = [("resnet50", "predict loop", "float32", 1, 2, 8.0), ("improved", "predict loop", "float32", 1, 2, 6.0),
            ("resnet50", "compiled call", "float32", 16, 2, 40.0),
            ("improved", "compiled call", "float32", 16, 2, 30.0),
            ("improved", "exported", "float32", 1, 2, 20.0), ("improved", "exported", "int8", 1, 2, 80.0),
            ("improved", "exported", "int8", 1, 1, 50.0)]
    return pd.DataFrame([{"variant": v, "harness": h, "precision": p, "image_size": 64, "batch": b, "threads": t,
                          "device": "cpu:0", "median_fps": f, "q1": f - 1, "q3": f + 1, "n": 5}
                         for v, h, p, b, t, f in rows])


def titles(figure):
    return [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]


def test_importing_needs_no_keras():
    code = "import sys, covidlib.report.figures; sys.exit('keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_save_writes_three_formats_alike_every_time(tmp_path, history):
    for folder in ("a", "b"):
        figures.save(figures.figure4_curves(history), tmp_path / folder, "curves")
    for kind in ("png", "svg", "pdf"):
        first, second = ((tmp_path / folder / f"curves.{kind}").read_bytes() for folder in ("a", "b"))
        assert first == second and len(first) > 1000
    assert not plt.get_fignums(), "figures do not pile up in pyplot"


def test_figure1_counts_what_changes():
    image = np.full((8, 8), 100, "uint8")
    figure = figures.figure1_augmentation(image, {"brightness": image + 10, "hue": image.copy()})
    assert titles(figure)[:3] == ["before", "brightness", "hue"]
    assert figure.get_suptitle() == "1 of 2 operations change this slice"


def test_figure4_names_acc_as_the_paper_does(history):
    figure = figures.figure4_curves(history)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["acc (training)", "val_acc (validation)"]
    assert titles(figure)[0] == "Validation loss lowest at epoch 2 of 3"
    assert "nats" in figure.axes[1].get_ylabel()
    bare = history.drop(columns=["val_accuracy", "val_loss"])
    assert titles(figures.figure4_curves(bare))[0] == "3 epochs, no validation part"
    later = history.assign(val_loss=[1.0, 0.9, 0.8])
    assert titles(figures.figure4_curves({"a": history, "b": later}))[0].endswith("epoch 2 to 3 of 3")


def test_figure5_marks_right_and_wrong():
    predictions = pd.DataFrame({"label": ["covid", "normal"], "p_covid": [0.9, 0.6], "p_viral": [0.05, 0.1],
                                "p_normal": [0.05, 0.3]})
    figure = figures.figure5_classified(np.zeros((2, 8, 8), "uint8"), predictions, CLASSES)
    assert titles(figure)[:2] == ["covid 0.90 = covid", "covid 0.60 ≠ normal"]
    assert figure.axes[0].title.get_color() != figure.axes[1].title.get_color()


def test_figure6_gives_counts_and_recall():
    table = pd.DataFrame([[9, 1, 0], [1, 1, 0], [0, 0, 0]], index=CLASSES, columns=CLASSES)
    figure = figures.figure6_confusion(table)
    assert titles(figure)[0] == "10 of 12 slices correct (83.3%)"
    assert figure.axes[0].texts[0].get_text() == "9\n90%"
    assert "n = 2" in figure.axes[0].get_yticklabels()[1].get_text()


def test_curves_name_the_best_class_and_show_chance():
    curves = pd.DataFrame({"class": ["covid"] * 3 + ["viral"] * 3, "fpr": [0, 0, 1, 0, 0.5, 1],
                           "tpr": [0, 1, 1, 0, 0.5, 1], "recall": [1, 1, 0] * 2,
                           "precision": [0.5, 1, 1, 0.25, 0.5, 1]})
    figure = figures.roc(curves, 12)
    assert titles(figure)[0] == "Highest AUC: covid (n = 12 slices)"
    assert "covid (AUC 1.000)" in figure.axes[0].get_legend_handles_labels()[1]
    figure = figures.precision_recall(curves, 12)
    assert titles(figure)[0] == "Highest precision: covid (n = 12 slices)"
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [0.5, 0.25]


def test_comparison_titles_follow_the_intervals(compared):
    figure = figures.comparison(compared)
    assert titles(figure) == ["Highest accuracy: improved (n = 40 slices)", "Interval excludes zero: improved"]
    bars = figure.axes[0].collections[0].get_segments()
    assert sorted(segment[:, 0].tolist() for segment in bars) == [[0.7, 0.88], [0.85, 0.94]]
    without_baseline = compared[1:].assign(difference=np.nan, difference_low=np.nan, difference_high=np.nan)
    for table in (compared.assign(difference_low=-0.1), without_baseline):
        assert titles(figures.comparison(table))[1] == "Interval excludes zero: none"
    tie = figures.comparison(compared.assign(accuracy_mean=0.86))
    assert titles(tie)[0] == "2 variants share first place (n = 40 slices)"


def test_speed_has_a_panel_per_batch(timed):
    figure = speed_figures.speed(timed)
    assert titles(figure) == ["Batch 1: improved reaches 80 images/s", "Batch 16: resnet50 reaches 40 images/s"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"resnet50", "improved", "paper, improved: 12.75"} <= set(labels)
    both = pd.concat([timed, timed.assign(device="gpu:0")], ignore_index=True)
    ways = [text.get_text() for text in speed_figures.speed(both).axes[0].get_yticklabels()]
    assert "compiled call, float32, gpu:0" in ways


def test_scaling_over_batch_and_threads(timed):
    assert titles(speed_figures.scaling(timed)) == ["80 images/s (batch 1): improved",
                                                   "80 images/s (threads 2): improved"]


def test_errors_are_counted_against_the_papers_speed_up():
    rows = [["a", 2.0, 1.9, 2.1, 0.9, 0.8, 1.0], ["b", 1.2, 1.1, 1.3, 0.9, 0.8, 1.0]]
    kinds = [f"{kind}{end}" for kind in ("apparent", "honest") for end in ("", "_q1", "_q3")]
    first = pd.DataFrame({"frames": [1, 2, 3], "ratio": [4.0, 2.0, 1.0], "q1": [4.0, 2.0, 1.0], "q3": [4.0, 2.0, 1.0]})
    table = pd.DataFrame(rows, columns=["mistake", *kinds])
    assert titles(speed_figures.mistakes(table, first)) == ["1 of 2 errors yield the paper's speed-up or more",
                                                           "First call counted: 1.62 at 2 frames"]
    assert titles(speed_figures.mistakes(table, first[2:]))[1] == "First call counted"


def test_tables_hold_the_papers_values_and_ours(compared, timed):
    table = figures.table1({"cpu": "a cpu", "gpu": None, "python": "3.12"}).set_index("item")
    assert table.loc["python", "paper"] == "3.7" and table.loc["gpu", "here"] == "none"
    table = figures.table2(compared, timed).set_index("variant")
    assert table.loc["improved", "accuracy, paper"] == 0.901
    assert table.loc["improved", "FPS CPU, here"] == 6.0
    assert table["FPS GPU, here"].isna().all()
    assert table.loc["improved", "FPS CPU, exported"] == 80.0 and pd.isna(table.loc["resnet50", "FPS CPU, exported"])
    assert figures.table2(compared)["FPS CPU, here"].isna().all()


@pytest.fixture(scope="module")
def build():
    from covidlib.models import build_classifier

    return lambda variant: build_classifier(variant, CLASSES, 64, precision="float32")


def drawn(figure):
    return " ".join(text.get_text().replace("\n", " ") for text in figure.axes[0].texts)


def test_figure2_is_drawn_from_the_model(build):
    words = drawn(diagrams.figure2_fpn(build("improved")))
    for part in ("conv5_block3_out 2 × 2 × 2048 with attention", "P2: 3x3 convolution 16 × 16 × 64",
                 "conv2_block3_out 16 × 16 × 256 1x1"):
        assert part in words
    with pytest.raises(ValueError, match="pyramid"):
        diagrams.figure2_fpn(build("resnet50_attention"))


@pytest.mark.parametrize("variant, placement, inside", [
    ("improved", "inside the branch", "softmax of query · key 16 × 4"),
    ("improved_after", "after the block", "softmax of query · key 16 × 4"),
    ("improved_before", "before the block", "softmax of query · key 16 × 4"),
    ("improved_global_context", "inside the branch", "softmax over positions 1 × 16")])
def test_figure3_finds_the_placement_and_the_kind(build, variant, placement, inside):
    figure = diagrams.figure3_attention(build(variant))
    assert titles(figure)[0] == f"attention_conv4: 4 × 4 × 1024 goes in and comes out; placed {placement}"
    assert inside in drawn(figure)
    with pytest.raises(ValueError, match="attention in conv2"):
        diagrams.figure3_attention(build(variant), "conv2")


def test_shortcuts_has_a_panel_per_protocol_and_names_the_best():
    rows = [["majority class", shortcuts.FILES, "official test split", 0.5, 0.4, 0.6, 0.5],
            ["file facts", shortcuts.FILES, "official test split", 0.91, 0.85, 0.95, 0.97],
            ["sharpness", "lungs", "official test split", 0.55, 0.45, 0.65, 0.6]]
    table = pd.DataFrame(rows, columns=["baseline", "seen", "protocol", "accuracy", "low", "high", "auc"])
    both = pd.concat([table, table.assign(protocol="grouped cross-validation", accuracy=[0.5, 0.6, 0.7],
                                           low=0.4, high=0.8)])
    assert titles(figures.shortcuts(both)) == [
        "official test split:\nfile facts (files) alone reaches 91.0%",
        "grouped cross-validation:\nsharpness (lungs) alone reaches 70.0%",
    ]


def test_a_compact_picture_looks_the_same():
    rng = np.random.default_rng(0)
    grey = np.repeat(rng.integers(0, 256, (80, 80, 1), dtype=np.uint8), 3, axis=2)
    grey[:20, :20] = (200, 40, 40)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "png")
    small = figures.compact(buffer.getvalue())
    assert len(small) < 0.7 * len(buffer.getvalue())
    found = np.asarray(Image.open(io.BytesIO(small)).convert("RGB")).astype(int)
    assert np.abs(found - grey).max() <= 12 and np.abs(found - grey).mean() < 2
    assert figures.compact(small) == small
