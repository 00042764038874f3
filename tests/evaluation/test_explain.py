import functools

import keras
import numpy as np
import pytest

from covidlib.evaluation import explain
from covidlib.models import build_classifier

CLASSES = ("covid", "viral", "normal")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)


@functools.cache
def built(variant):
    return build_classifier(variant, CLASSES, 64, precision="float32")


@pytest.fixture(params=["resnet50", "improved"])
def model(request):
    return built(request.param)


def test_the_maps_of_all_levels_add_up_to_the_logit(model, images, monkeypatch):
    monkeypatch.setattr(explain, "BATCH", 2)
    classes = np.array([0, 1, 2, 1, 0])
    maps = explain.class_maps(model, images, classes)
    logits = keras.Model(model.input, model.get_layer("logits").output).predict(
        images[..., None].astype("float32"), verbose=0)
    expected = logits[np.arange(5), classes] - logits.mean(axis=1)
    total = sum(maps[name].sum(axis=(1, 2)) for name in explain.levels(model))
    assert total == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_every_pooled_level_has_a_map_at_its_own_size(images):
    improved = built("improved")
    maps = explain.class_maps(improved, images, np.zeros(5, int))
    assert [maps[name].shape[1] for name in explain.levels(improved)] == [16, 8, 4, 2]
    assert maps[explain.ALL].shape == (5, 16, 16)
    plain = explain.class_maps(built("resnet50"), images, np.zeros(5, int))
    assert list(plain) == ["conv5_block3_out", explain.ALL] and plain["conv5_block3_out"].shape == (5, 2, 2)
    assert np.array_equal(*plain.values())


def slices_with_a_lesion():
    lesions, lungs = np.zeros((2, 2, 96, 96), bool)
    lungs[:, 20:80, 10:86] = True
    lesions[0, 40:52, 20:32] = True
    return lesions, lungs


def test_a_map_on_the_lesion_hits_and_one_on_the_border_does_not():
    lesions, lungs = slices_with_a_lesion()
    right, wrong = np.zeros((2, 2, 24, 24))
    right[:, 11, 6] = 1
    wrong[:, 0, 0] = 1
    found = explain.on_lesions(right, lesions, lungs)
    assert found.hit[0] == 1 and found.enrichment[0] > 10 and found.outside[0] == pytest.approx(0, abs=1e-6)
    assert 0.03 < found.chance[0] < 0.1
    missed = explain.on_lesions(wrong, lesions, lungs)
    assert missed.hit[0] == 0 and missed.outside[0] == pytest.approx(1, abs=1e-6)
    assert explain.on_lesions(np.ones((2, 6, 6)), lesions, lungs).enrichment[0] == pytest.approx(1)
    # the second slice has no lesion, and a map without a positive place shows nothing
    assert np.isnan(found.hit[1]) and np.isnan(found.chance[1])
    assert explain.on_lesions(-right, lesions, lungs).hit.isna().all()


def test_occlusion_finds_the_place_that_decides(monkeypatch):
    monkeypatch.setattr(explain, "PATCH", 8)
    slice_, scores = keras.Input((32, 32, 1)), keras.layers.Cropping2D(((8, 16), (16, 8)))
    x = keras.layers.GlobalAveragePooling2D()(scores(slice_))  # rows 8 to 15 and columns 16 to 23 alone
    x = keras.layers.Rescaling(1 / 255)(x)
    outputs = keras.layers.Softmax()(keras.layers.Concatenate()([x, keras.layers.Rescaling(-1.0)(x)]))
    lost = explain.occlusion(keras.Model(slice_, outputs), np.full((1, 32, 32), 200, np.uint8), np.zeros(1, int))
    assert lost.shape == (1, 4, 4)
    assert np.unravel_index(lost[0].argmax(), (4, 4)) == (1, 2)
    assert np.count_nonzero(np.abs(lost) > 1e-6) == 1


def test_uniform_attention_has_an_enrichment_of_one(images):
    model = keras.models.clone_model(built("improved"))
    for layer in model.layers:
        if layer.name.endswith("_query"):
            layer.set_weights([np.zeros_like(array) for array in layer.get_weights()])
    lesions = np.zeros((5, 64, 64), bool)
    lesions[:3, 16:48, 16:48] = True
    found = explain.attention_on_lesions(model, images, lesions)
    assert set(found) == {"attention_conv3", "attention_conv4", "attention_conv5"}
    for table in found.values():
        assert table.enrichment[:3].to_numpy() == pytest.approx(1, rel=1e-4) and table[3:].isna().all(axis=None)
        assert table.hit[:3].between(0, 1).all() and table.chance[:3].between(0, 1).all()


def test_random_weights_change_the_map_and_leave_the_network_alone(model, images):
    before = model.get_weights()
    lesions, lungs = slices_with_a_lesion()
    table = explain.measure(model, images[:2], np.zeros(2, int), lesions[:, :64, :64], lungs[:, :64, :64])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert set(table.weights) == {"trained", "random"}
    maps, others = (explain.class_maps(one, images, np.zeros(5, int)) for one in (model, explain.randomised(model)))
    assert not any(np.allclose(maps[name], others[name]) for name in maps)
    assert table.similarity.dropna().between(-1, 1).all() and table.similarity.notna().any()
    attention = table[table["map"].str.startswith("attention")]
    assert attention.empty or set(attention.weights) == {"trained", "random"}
    assert set(table["map"]) >= set(explain.levels(model))


def test_phantoms_to_explain_come_with_lesions_inside_of_lungs(tmp_path):
    manifest, images, lesions, lungs = explain.phantoms(tmp_path, 6, 64, "lungs")
    assert len(manifest) == 12 and set(manifest.label) == {"covid", "viral"}
    assert images.shape == lesions.shape == lungs.shape == (12, 64, 64)
    assert lesions.any(axis=(1, 2)).mean() > 0.9
    assert (lesions & ~lungs).sum() < 0.5 * lesions.sum()
