"""Weights from phantoms: made once, resumed, named by what they depend on; lesions lie where the network sees them."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest

from covidlib.models import build_classifier, resnet
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training import checkpoints, pretraining
from covidlib.training.batches import Batches

SLICES, SIZE = (12, 6, 12), 32
MAPS, STAGES = pretraining.MAPS, resnet.STAGES  # those that are not narrow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module", autouse=True)
def small(narrowed):
    """Narrow networks, whose stages are of one block."""
    with narrowed(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "MAPS", {"conv3_block1_out": 8, "conv4_block1_out": 16})
        yield


@pytest.fixture(scope="module")
def made(home):
    """The weights, and what was printed when an interrupted training was gone on with."""
    save = checkpoints.Checkpoints.save

    def interrupted(self, row, *rest):
        save(self, row, *rest)
        raise KeyboardInterrupt("killed after the first epoch")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretraining.make(SIZE, "lungs", home, slices=SLICES, epochs=2, precision="float32")
    assert not pretraining.path(SIZE, "lungs", home).exists()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        path = pretraining.make(SIZE, "lungs", home, slices=SLICES, epochs=2, precision="float32")
    return path, printed.getvalue()


def test_the_name_depends_on_size_and_settings(home, monkeypatch):
    names = {pretraining.path(64, "lungs", home), pretraining.path(96, "lungs", home)}
    monkeypatch.setattr(pretraining, "EPOCHS", 3)
    assert len(names | {pretraining.path(64, "lungs", home)}) == 3


def test_maps_come_from_the_ends_of_stages():
    assert set(MAPS) <= {f"{stage}_block{blocks}_out" for stage, (_, blocks) in STAGES.items()}


def test_lesions_lie_where_the_network_sees_them(home):
    source, images, lesions = pretraining.load(home, 64, "lungs", SLICES)
    assert images.shape == lesions.shape == (30, 64, 64)
    kinds = source.manifest.label.map({"covid": 1, "viral": 2, "normal": 0})
    for kind, image, lesion in zip(kinds, images, lesions, strict=True):
        assert set(np.unique(lesion)) <= {0, kind}
        assert (image[lesion > 0] > 0).all()  # inside of what is kept
    ill = lesions[(kinds > 0).to_numpy()]
    assert (ill > 0).any(axis=(1, 2)).mean() > 0.9
    assert set(source.manifest.split) == {"train", "val"}


def test_shares_of_lesions_follow_the_augmented_picture():
    images = np.zeros((1, 64, 64), np.uint8)
    images[0, 10:22, 40:52] = 200
    lesions, geometric = (images > 0).astype(np.uint8), Augmenter(pretraining.AUGMENTATION, pretraining.SEED)

    def labelled(augmenter, epoch=0):
        plain = Batches(images, np.eye(3)[:1], 1, seed=1, epoch=epoch, augmenter=augmenter)
        return pretraining.LesionBatches(plain, lesions)[0]

    _, (_, fine, _) = labelled(None)
    assert np.array_equal(fine[0, ..., 0], images[0].reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 200)
    for epoch in range(6):
        picture, (_, fine, coarse) = labelled(geometric, epoch)
        assert fine.shape == (1, 8, 8, 2) and coarse.shape == (1, 4, 4, 2)
        bright = picture[0, :, :, 0] > picture.min() + 0.5 * np.ptp(picture)
        cells = bright.reshape(8, 8, 8, 8).mean(axis=(1, 3))
        assert np.abs(cells - fine[0, ..., 0]).max() < 0.3 and fine[..., 1].max() == 0


@pytest.mark.slow
def test_every_variant_starts_from_the_same_backbone(made, home):
    path, _ = made
    history = pd.read_csv(path.with_suffix(".csv"))
    assert list(history.epoch) == [1, 2] and history.val_probabilities_accuracy.between(0, 1).all()
    assert not list(home.glob("*.partial*"))
    stem = []
    for variant in ("resnet50", "improved"):
        model = build_classifier(variant, ("covid", "non_covid"), SIZE, weights=str(path), precision="float32")
        stem.append(model.get_layer("conv4_block1_3_conv").get_weights()[0])
    assert np.array_equal(*stem)
    fresh = build_classifier("resnet50", ("covid", "non_covid"), SIZE, precision="float32")
    assert not np.array_equal(stem[0], fresh.get_layer("conv4_block1_3_conv").get_weights()[0])


@pytest.mark.slow
def test_interrupted_it_goes_on_and_made_it_is_not_made_again(made, home):
    path, printed = made
    assert "epoch 2 of 2" in printed and "epoch 1 of 2" not in printed
    stamp = path.stat().st_mtime_ns
    assert pretraining.make(SIZE, "lungs", home).stat().st_mtime_ns == stamp


def test_phantom_means_that_file(home, monkeypatch):
    monkeypatch.setattr(pretraining, "make", lambda size, preparation: home / f"phantom-{preparation}-{size}.h5")
    assert pretraining.resolve("phantom", 96, "lungs").name == "phantom-lungs-96.h5"
    for given in ("some/where.h5", None):
        assert pretraining.resolve(given, 96, "lungs") == given
