import keras
import pytest
from keras import layers, ops

from covidlib.evaluation import complexity

CLASSES = ("covid", "viral", "normal")


def counted(build, shape):
    entry = keras.Input(shape)
    return complexity.count(keras.Model(entry, build(entry)))


def test_convolution_counts_kernel_times_positions():
    result = counted(layers.Conv2D(4, 3, padding="same"), (8, 6, 2))
    assert result.macs == 8 * 6 * 3 * 3 * 2 * 4
    assert result.parameters == 3 * 3 * 2 * 4 + 4


def test_strided_and_grouped_convolutions():
    assert counted(layers.Conv2D(4, 3, strides=2, padding="same"), (8, 8, 2)).macs == 4 * 4 * 9 * 2 * 4
    assert counted(layers.Conv2D(4, 1, groups=2), (8, 8, 4)).macs == 64 * 2 * 4
    depthwise = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")
    assert counted(depthwise, (8, 8, 4)).macs == 64 * 9 * 8


def test_dense_and_matrix_products():
    assert counted(layers.Dense(3), (5,)).macs == 15
    assert counted(lambda x: layers.Dot(2)([x, x]), (6, 7)).macs == 6 * 7 * 6
    assert counted(lambda x: layers.Dot((2, 1))([layers.Dot(2)([x, x]), x]), (6, 7)).macs == 2 * 6 * 7 * 6


def test_a_layer_used_twice_runs_twice_but_is_stored_once():
    shared = layers.Dense(4)
    result = counted(lambda x: shared(shared(x)), (4,))
    assert (result.macs, result.parameters) == (32, 20)
    assert sum(row["parameters"] for row in result.layers) == 20


def test_nested_model_is_refused_by_name():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4)], name="inner")
    with pytest.raises(ValueError, match="layer='inner'"):
        counted(inner, (4,))


def test_unknown_products_are_refused():
    with pytest.raises(ValueError, match="Matmul"):
        counted(lambda x: ops.matmul(x, x), (4, 4))
    with pytest.raises(ValueError, match="Conv1D"):
        counted(layers.Conv1D(2, 3), (8, 2))


def test_open_input_size_is_refused():
    with pytest.raises(ValueError, match="fixed input size"):
        counted(layers.Conv2D(4, 3), (None, None, 3))


@pytest.fixture(scope="module")
def resnet50():
    from covidlib.models import build_classifier

    return complexity.count(build_classifier("resnet50", CLASSES, 224, precision="float32"))


def test_resnet50_is_the_published_size(resnet50):
    head = 2048 * 3 + 3
    assert resnet50.parameters - head == pytest.approx(23.5e6, rel=0.01)
    assert resnet50.macs == pytest.approx(3.86e9, rel=0.01)
    assert sum(row["macs"] for row in resnet50.layers) == resnet50.macs


@pytest.mark.parametrize(("width", "extra"), [(64, 0.25e9), (128, 0.81e9), (256, 2.84e9)])
def test_pyramid_adds_what_its_formula_says(resnet50, width, extra):
    from covidlib.models import build_classifier

    model = build_classifier("resnet50_fpn", CLASSES, 224, precision="float32", fpn_width=width)
    assert complexity.count(model).macs - resnet50.macs == pytest.approx(extra, abs=0.006e9)


def test_table_names_the_stages(resnet50):
    table = {row["layer"]: row for row in resnet50.layers}
    assert table["conv5_block3_out"]["output"] == "7x7x2048"
    assert all(row["macs"] >= 0 for row in resnet50.layers)
