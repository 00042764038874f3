"""The variants as whole networks."""

import keras
import numpy as np
import pytest

from covidlib.models import VARIANTS, build_classifier, resnet, resolve_precision

CLASSES = ("covid", "viral", "normal")
ARMS = [name for name, options in VARIANTS.items() if options["backbone"] == "resnet50"]
ATTENTIVE = [name for name in ARMS if VARIANTS[name]["attention"] != "none"]


@pytest.fixture(scope="module", autouse=True)
def shallow():
    """ResNets of an eighth of the channels, with two blocks where the last one may have attention."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "STAGES", {"conv2": (8, 1), "conv3": (16, 2), "conv4": (32, 2), "conv5": (64, 1)})
        yield


@pytest.fixture(scope="module")
def models(shallow):
    """Every variant at 65 px in the precision of this machine, built once."""
    return {variant: build_classifier(variant, CLASSES, 65) for variant in VARIANTS}


@pytest.fixture(scope="module")
def slices():
    return np.random.default_rng(0).integers(0, 256, (2, 65, 65, 1)).astype("float32")


def run(model, x, training=False):
    return keras.ops.convert_to_numpy(model(x, training=training))


@pytest.mark.parametrize("variant", VARIANTS)
def test_slices_go_in_and_float32_probabilities_come_out(models, slices, variant):
    model = models[variant]
    assert model.name == variant and model.input_shape == (None, 65, 65, 1)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    outputs = run(model, slices)
    assert outputs.shape == (2, 3) and outputs.dtype == np.float32
    np.testing.assert_allclose(outputs.sum(axis=1), 1.0, atol=1e-5)
    assert model.get_layer("conv1_conv" if variant != "mobilenet_v2" else "Conv1").compute_dtype == (
        "bfloat16" if resolve_precision() == "mixed_bfloat16" else "float32"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_input_is_normalised_in_float32(models, variant):
    layer = models[variant].get_layer("normalisation")
    assert layer.compute_dtype == "float32"
    grey = np.arange(256, dtype="float32").reshape(1, 16, 16, 1)
    module = {"mobilenet_v2": "mobilenet_v2", "densenet169": "densenet"}.get(variant, "resnet")
    want = getattr(keras.applications, module).preprocess_input(np.repeat(grey, 3, axis=-1))
    have = keras.ops.convert_to_numpy(layer(np.repeat(grey, 3, axis=-1)))
    np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("variant", ["improved", "improved_global_context", "mobilenet_v2"])
def test_saved_and_safely_loaded_it_answers_the_same(models, slices, variant, tmp_path):
    models[variant].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(run(loaded, slices), run(models[variant], slices))


@pytest.mark.parametrize("size", [32, 33, 97, 225])
def test_any_size_from_32_up(size):
    model = build_classifier("improved", ("a", "b"), size, precision="float32")
    for number, stage in enumerate(("conv2_block1", "conv3_block2", "conv4_block2", "conv5_block1"), start=2):
        features = model.get_layer(f"{stage}_out").output
        assert model.get_layer(f"fpn_p{number}_relu").output.shape[:3] == features.shape[:3]
        assert model.get_layer(f"fpn_p{number}_lateral").output.shape[1:] == (*features.shape[1:3], 64)
    assert run(model, np.zeros((1, size, size, 1))).shape == (1, 2)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_at_the_start_improved_is_resnet50_fpn_bit_for_bit(slices, precision):
    arms = [
        build_classifier(name, CLASSES, 65, precision=precision, seed=3) for name in ("improved", "resnet50_fpn")
    ]
    for training in (False, True):
        outputs = [run(arm, slices, training) for arm in arms]
        np.testing.assert_array_equal(*outputs)
        assert outputs[0].std() > 0
    np.testing.assert_array_equal(*(arm.predict(slices, verbose=0) for arm in arms))


@pytest.mark.parametrize("variant", ATTENTIVE)
def test_attention_starts_as_identity_in_every_arm(models, slices, variant):
    without = {0: "resnet50", 64: "resnet50_fpn"}.get(VARIANTS[variant]["fpn_width"])
    plain = models[without] if without else build_classifier("resnet50_fpn", CLASSES, 65, fpn_width=256)
    np.testing.assert_array_equal(run(models[variant], slices), run(plain, slices))


@pytest.mark.parametrize("variant", ARMS)
def test_layers_of_the_same_name_start_equal(models, variant):
    reference = models["resnet50"]
    for layer in reference.layers:
        if layer.weights and layer.name != "logits":  # which is as wide as the features
            pairs = zip(models[variant].get_layer(layer.name).get_weights(), layer.get_weights(), strict=True)
            assert all(np.array_equal(have, want) for have, want in pairs)


def test_a_seed_makes_the_weights():
    first, again, other = (
        build_classifier("improved", CLASSES, 32, precision="float32", seed=seed) for seed in (1, 1, 2)
    )
    pairs = zip(first.get_weights(), again.get_weights(), strict=True)
    assert all(np.array_equal(one, two) for one, two in pairs)
    kernels = [model.get_layer("fpn_p2_output").get_weights()[0] for model in (first, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01
    limit = np.sqrt(6 / (9 * 128))  # Glorot, 64 channels to 64 by 3x3
    assert limit * 0.99 < np.abs(kernels[0]).max() <= limit
    assert abs(kernels[0].mean()) < limit / 100


@pytest.mark.parametrize(
    ("variant", "neighbours"),
    [
        ("improved", ("conv4_block2_3_bn", "conv4_block2_add")),
        ("improved_after", ("conv4_block2_out", "conv5_block1_1_conv")),
        ("improved_before", ("conv4_block1_out", "conv4_block2_1_conv")),
    ],
)
def test_attention_sits_where_its_placement_says(models, variant, neighbours):
    above, below = neighbours
    for name, source in {"attention_conv4": above, below: "attention_conv4"}.items():
        given = keras.tree.flatten(models[variant].get_layer(name).input)
        assert source in [tensor._keras_history.operation.name for tensor in given]
    attended = {layer.name for layer in models[variant].layers if layer.name.endswith("_weights")}
    assert attended == {f"attention_conv{stage}_weights" for stage in (3, 4, 5)}


def test_options_reach_the_graph():
    model = build_classifier(
        "resnet50", CLASSES, 65, precision="float32", dropout=0.5, seed=4,
        fpn_width=16, attention="non_local", placement="after", reduction=4, pooled_keys=False,
    )  # fmt: skip
    assert model.get_layer("fpn_p5_output").filters == 16
    assert model.get_layer("attention_conv3_query").filters == 64 // 4
    assert model.get_layer("attention_conv3_weights").output.shape == (None, 81, 81)
    assert (model.get_layer("dropout").rate, model.get_layer("dropout").seed) == (0.5, 4)
    assert model.get_layer("fpn_features").output.shape == (None, 4 * 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "improvd"}, "unknown variant; did you mean 'improved'. Known: resnet50, .*Received"),
        ({"variant": "zzz"}, "unknown variant Known: resnet50"),
        ({"classes": ("covid",)}, "two or more different names.*Received: classes="),
        ({"classes": ("covid", "covid")}, "two or more different names"),
        ({"classes": "covid"}, "two or more different names"),
        ({"image_size": 31}, "32 pixels or more. Received: image_size=31"),
        ({"image_size": 64.0}, "32 pixels or more. Received: image_size=64.0"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"dropout": 1.0}, "below 1. Received: dropout=1.0"),
        ({"dropout": -0.1}, "at least 0"),
        ({"fpn_widht": 8}, "no such option; did you mean 'fpn_width'.*Received: fpn_widht=8"),
        ({"backbone": "vgg"}, "no such option"),
        ({"attention": "local"}, "attention must be one of .*Received: attention='local'"),
        ({"placement": "beside"}, "placement must be one of .*Received: placement='beside'"),
        ({"fpn_width": -1}, "fpn_width must be at least 0"),
        ({"reduction": 0}, "reduction must be at least 1"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_said(changes, message):
    arguments = {"variant": "improved", "classes": CLASSES, "image_size": 64, **changes}
    with pytest.raises(ValueError, match=message):
        build_classifier(**arguments)


def test_the_callers_precision_stays_as_it_was():
    before = keras.config.dtype_policy()
    build_classifier("mobilenet_v2", CLASSES, 32, precision="mixed_bfloat16")
    assert keras.config.dtype_policy() is before
    with pytest.raises(FileNotFoundError):
        build_classifier("mobilenet_v2", CLASSES, 32, weights="absent.h5", precision="mixed_bfloat16")
    assert keras.config.dtype_policy() is before
