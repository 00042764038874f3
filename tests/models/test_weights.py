"""Weights from files: keras.applications' and this library's, and what goes wrong with them."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from conftest import NARROW

from covidlib.models import build_classifier, resnet
from covidlib.models import weights as starting_weights

CLASSES = ("covid", "viral", "normal")


def randomise(model, seed=0):
    """Weights that use every layer: no zero bias, no unit statistics."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.0, variable.shape))
        elif variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.1, variable.shape))


@pytest.fixture(scope="module")
def applications(tmp_path_factory):
    """keras.applications' ResNet50 with three classes and random weights, and its .h5 file."""
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=3)
    randomise(model)
    path = tmp_path_factory.mktemp("weights") / "resnet50.h5"
    model.save(path)
    return model, path


def build(weights, variant="resnet50", **options):
    return build_classifier(variant, CLASSES, 64, weights=weights, precision="float32", **options)


def run(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def assert_equal(have, want):
    for one, other in zip(have, want, strict=True):
        np.testing.assert_array_equal(one, other)


def slices(count=3):
    return np.random.default_rng(1).integers(0, 256, (count, 64, 64, 1)).astype("float32")


def test_output_equals_keras_applications(applications):
    theirs, path = applications
    ours = build(path)
    ours.get_layer("logits").set_weights(theirs.get_layer("predictions").get_weights())
    x = slices()
    prepared = keras.applications.resnet.preprocess_input(np.repeat(x, 3, axis=-1))
    np.testing.assert_allclose(run(ours, x), run(theirs, prepared), atol=1e-4)
    pooled = [keras.Model(model.input, model.get_layer("avg_pool").output) for model in (ours, theirs)]
    features = run(pooled[0], x), run(pooled[1], prepared)
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-4 * features[1].max())
    names = {layer.name for layer in ours.layers}
    assert {layer.name for layer in theirs.layers[1:-1]} <= names


@pytest.mark.parametrize(
    ("variant", "network", "module"),
    [("mobilenet_v2", "MobileNetV2", "mobilenet_v2"), ("densenet169", "DenseNet169", "densenet")],
)
def test_other_networks_get_their_own_normalisation(variant, network, module, tmp_path):
    theirs = getattr(keras.applications, network)(
        weights=None, input_shape=(64, 64, 3), include_top=False, pooling="avg"
    )
    randomise(theirs)
    theirs.save(tmp_path / "network.h5")
    ours = build(tmp_path / "network.h5", variant)
    pooled = keras.Model(ours.input, ours.get_layer("avg_pool").output)
    x = slices()
    prepared = getattr(keras.applications, module).preprocess_input(np.repeat(x, 3, axis=-1))
    want = run(theirs, prepared)
    np.testing.assert_allclose(run(pooled, x), want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.fixture(scope="module")
def trained(narrowed):
    """A narrow classifier of this library whose weights differ from those that any seed gives."""
    with narrowed():
        model = build(None, "improved")
    randomise(model, seed=2)
    return model


@pytest.fixture(scope="module")
def plain(narrowed):
    """(a narrow ResNet-50, the names of its layers that a file must have, its weights), for files that are refused."""
    with narrowed():
        model = build(None)
    return model, [layer.name for layer in model.layers if layer.name.startswith("conv")], model.get_weights()


def assert_refused(path, plain, message):
    """And the network is as before."""
    model, names, before = plain
    with pytest.raises(ValueError, match=message):
        starting_weights.load_weights(model, path, "resnet50", names)
    assert_equal(model.get_weights(), before)


@pytest.mark.parametrize(("name", "variant"), [("model.keras", "improved"), ("best.weights.h5", "resnet50")])
def test_own_files_give_all_but_the_head(trained, narrow, name, variant, tmp_path):
    (trained.save if name.endswith(".keras") else trained.save_weights)(tmp_path / name)
    fresh, loaded = build(None, variant), build(str(tmp_path / name), variant)
    for layer in loaded.layers:
        source = fresh if layer.name == "logits" else trained
        if layer.weights:
            assert_equal(layer.get_weights(), source.get_layer(layer.name).get_weights())


def test_a_plain_file_leaves_pyramid_and_attention_as_they_start(applications):
    fresh, loaded = build(None, "improved"), build(applications[1], "improved")
    for name in ("fpn_p3_output", "attention_conv4_query", "logits"):
        np.testing.assert_array_equal(*(model.get_layer(name).get_weights()[0] for model in (fresh, loaded)))
    kernel = loaded.get_layer("conv4_block6_2_conv").get_weights()[0]
    np.testing.assert_array_equal(kernel, applications[0].get_layer("conv4_block6_2_conv").get_weights()[0])


def test_a_missing_file_is_named(narrow, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weight file .*absent.h5.*imagenet"):
        build(tmp_path / "absent.h5")


@pytest.mark.parametrize("name, share", [
    ("cut.h5", 0.0), ("cut.h5", 0.001), ("cut.h5", 0.5), ("cut.h5", 0.99), ("cut.keras", 0.5)])
def test_a_truncated_file_is_refused(trained, plain, tmp_path, name, share):
    trained.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    assert_refused(tmp_path / name, plain, f"{name} is no weight file, or damaged or cut short")


def deeper():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "STAGES", NARROW | {"conv3": (16, 2)})
        return build(None)


def other_family():
    return keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), include_top=False)


def other_widths():
    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(8, 7, name="conv1_conv")])


@pytest.mark.parametrize("network", [deeper, other_family, other_widths])
def test_another_architecture_is_refused_and_changes_nothing(plain, network, tmp_path):
    network().save(tmp_path / "other.h5")
    assert_refused(tmp_path / "other.h5", plain, "does not fit .* of 'resnet50'.*Give weights of resnet50")


def test_a_pyramid_of_another_width_is_refused(trained, narrow, tmp_path):
    trained.save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(ValueError, match="fpn_p2_lateral has shapes .* instead of"):
        build(tmp_path / "own.weights.h5", "resnet50_fpn", fpn_width=32)


@pytest.fixture
def own(trained, tmp_path):
    """A weight file of this library, open to be changed: (its path, the group that holds the kernel of conv1_conv)."""
    trained.save_weights(tmp_path / "own.weights.h5")
    with h5py.File(tmp_path / "own.weights.h5", "r+") as file:
        groups = [group["vars"] for group in file["layers"].values()]
        yield tmp_path / "own.weights.h5", next(one for one in groups if one.attrs.get("name") == "conv1_conv")


@pytest.mark.parametrize("kind", ["external data", "virtual data", "an external link", "a soft link"])
def test_nothing_is_read_but_the_file_itself(own, plain, tmp_path, kind):
    path, group = own
    shape, secret = group["0"].shape, str(tmp_path / "secret")
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones(shape, np.float32)
    del group["0"]
    if kind == "external data":
        group.create_dataset("0", shape, "float32", external=[(secret, 0, h5py.h5f.UNLIMITED)])
    elif kind == "virtual data":
        layout = h5py.VirtualLayout(shape, "float32")
        layout[:] = h5py.VirtualSource(secret, "kernel", shape)
        group.create_virtual_dataset("0", layout)
    else:
        group["0"] = h5py.SoftLink("/layers") if kind == "a soft link" else h5py.ExternalLink(secret, "kernel")
    group.file.close()
    assert_refused(path, plain, "own.weights.h5 is no weight file.*0 is (a link|kept in another file)")


@pytest.mark.parametrize("kind", ["a petabyte", "words"])
def test_only_numbers_of_the_right_shape_are_read(own, narrow, kind):
    path, group = own
    shape, kinds = group["0"].shape, {"a petabyte": "u1", "words": h5py.string_dtype()}
    del group["0"]
    group.create_dataset("0", (10**15,) if kind == "a petabyte" else shape, kinds[kind], chunks=True)
    group.file.close()
    with pytest.raises(ValueError, match="does not fit .*conv1_conv (has shapes|does not consist of numbers)"):
        build(path, "improved")


def test_an_archive_of_too_much_is_not_unpacked(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(starting_weights, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(2000))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert_refused(tmp_path / "model.keras", plain, "2000 bytes; at most 1000 are read")


def test_imagenet_asks_keras_for_the_published_file(applications, monkeypatch):
    asked = []

    def get_file(name, address, cache_subdir, file_hash):
        asked.append((name, address.startswith("https://"), cache_subdir, file_hash))
        return str(applications[1])

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    model = build("imagenet")
    name = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    assert asked == [(name, True, "models", "4d473c1dd8becc155b73f8504c6f6626")]
    kernel = model.get_layer("conv1_conv").get_weights()[0]
    np.testing.assert_array_equal(kernel, applications[0].get_layer("conv1_conv").get_weights()[0])


@pytest.mark.parametrize("variant", ["improved", "mobilenet_v2"])
def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(variant, monkeypatch):
    def get_file(name, address, **options):
        raise Exception(f"URL fetch failure on {address}")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    with pytest.raises(FileNotFoundError, match=r'Fetch https://\S+\.h5 .* at \S+models\S+\.h5.*"none"'):
        build("imagenet", variant)


def test_the_addresses_and_hashes_are_those_of_keras():
    from keras.src.applications import densenet, resnet

    assert starting_weights.IMAGENET["resnet50"][1] == resnet.WEIGHTS_HASHES["resnet50"][1]
    addresses = {name: starting_weights.DOWNLOADS + file for name, (file, _) in starting_weights.IMAGENET.items()}
    assert addresses["resnet50"].startswith(resnet.BASE_WEIGHTS_PATH)
    assert addresses["densenet169"] == densenet.DENSENET169_WEIGHT_PATH_NO_TOP


@pytest.mark.parametrize("name", ["own.weights.h5", "model.keras"])
def test_a_file_says_which_stride_and_normalisation_its_weights_expect(narrow, tmp_path, name):
    trained, path = build(None, stride="3x3", normalisation="unit"), tmp_path / name
    randomise(trained)
    starting_weights.save_weights(trained, path) if name.endswith(".h5") else trained.save(path)
    again = build(path)
    again.get_layer("logits").set_weights(trained.get_layer("logits").get_weights())
    x = slices()
    assert_equal(run(again, x), run(trained, x))
    assert not np.allclose(run(build(path, stride="1x1", normalisation="caffe"), x), run(trained, x))


def test_files_of_others_expect_what_keras_applications_do(applications, tmp_path):
    assert starting_weights.backbone_options(applications[1]) == {}
    assert starting_weights.backbone_options(tmp_path / "absent.h5") == starting_weights.backbone_options(None) == {}
