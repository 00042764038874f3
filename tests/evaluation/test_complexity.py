import keras
import pytest
from keras import layers, ops

from covidlib.evaluation import complexity
from covidlib.models import build_classifier


def counted(build, shape):
    entry = keras.Input(shape)
    return complexity.count(keras.Model(entry, build(entry)))


@pytest.mark.parametrize("build, shape, macs", [
    (layers.Conv2D(4, 3, padding="same"), (8, 6, 2), 8 * 6 * 3 * 3 * 2 * 4),
    (layers.Conv2D(4, 3, strides=2, padding="same"), (8, 8, 2), 4 * 4 * 9 * 2 * 4),
    (layers.Conv2D(4, 1, groups=2), (8, 8, 4), 64 * 2 * 4),
    (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), (8, 8, 4), 64 * 9 * 8),
    (layers.Dense(3), (5,), 15),
    (lambda x: layers.Dot(2)([x, x]), (6, 7), 6 * 7 * 6),
    (lambda x: layers.Dot((2, 1))([layers.Dot(2)([x, x]), x]), (6, 7), 2 * 6 * 7 * 6)])
def test_convolutions_and_products_by_formula(build, shape, macs):
    assert counted(build, shape).macs == macs


def test_a_layer_used_twice_runs_twice_but_is_stored_once():
    shared = layers.Dense(4)
    result = counted(lambda x: shared(shared(x)), (4,))
    assert (result.macs, result.parameters) == (32, 4 * 4 + 4)
    assert sum(row["parameters"] for row in result.layers) == 20


@pytest.mark.parametrize("build, shape, message", [
    (keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="inner"), (4,), "layer='inner'"),
    (lambda x: ops.matmul(x, x), (4, 4), "Matmul"), (layers.Conv1D(2, 3), (8, 2), "Conv1D"),
    (layers.Conv2D(4, 3), (None, None, 3), "fixed input size")])
def test_unknown_products_and_open_sizes_are_refused(build, shape, message):
    with pytest.raises(ValueError, match=message):
        counted(build, shape)


def built(variant, **options):
    model = build_classifier(variant, ("covid", "viral", "normal"), 224, precision="float32", **options)
    return complexity.count(model)


@pytest.fixture(scope="module")
def resnet50():
    return built("resnet50")


def test_resnet50_is_the_published_size(resnet50):
    assert resnet50.parameters - (2048 * 3 + 3) == pytest.approx(23.5e6, rel=0.01)
    assert resnet50.macs == sum(row["macs"] for row in resnet50.layers) == pytest.approx(3.86e9, rel=0.01)
    table = {row["layer"]: row for row in resnet50.layers}
    assert table["conv5_block3_out"]["output"] == "7x7x2048" and all(row["macs"] >= 0 for row in resnet50.layers)


@pytest.mark.parametrize(("width", "extra"), [(64, 0.25e9), (128, 0.81e9), (256, 2.84e9)])
def test_pyramid_adds_what_its_formula_gives(resnet50, width, extra):
    assert built("resnet50_fpn", fpn_width=width).macs - resnet50.macs == pytest.approx(extra, abs=0.006e9)
