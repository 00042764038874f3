"""Weights from phantoms: made once, resumed, named by what they depend on; lesions lie where the network sees them."""

import contextlib
import io
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from covidlib.models import build_classifier, resnet
from covidlib.training import pretraining
from covidlib.utils.files import write_atomically

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
    """The weights, and what was printed when an interrupted making was gone on with."""
    calls = []

    def interrupted(path, content):
        """In the second epoch, when its row is written and its state is not."""
        write_atomically(path, content)
        calls.append(path.suffix)
        if calls.count(".csv") == 2:
            raise KeyboardInterrupt("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "write_atomically", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretraining.make(SIZE, home, slices=SLICES, epochs=2, precision="float32")
    assert not pretraining.path(SIZE, home).exists()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        path = pretraining.make(SIZE, home, slices=SLICES, epochs=2, precision="float32")
    return path, printed.getvalue()


def test_the_name_depends_on_size_and_settings(home, monkeypatch):
    names = {pretraining.path(64, home), pretraining.path(96, home)}
    monkeypatch.setattr(pretraining, "EPOCHS", 3)
    assert len(names | {pretraining.path(64, home)}) == 3


def test_maps_come_from_the_ends_of_stages():
    assert set(MAPS) <= {f"{stage}_block{blocks}_out" for stage, (_, blocks) in STAGES.items()}


def test_lesions_lie_where_the_network_sees_them(home):
    source, images, lesions = pretraining.load(home, 64, SLICES)
    assert images.shape == lesions.shape == (30, 64, 64)
    kinds = source.manifest.label.map({"covid": 1, "viral": 2, "normal": 0})
    for kind, image, lesion in zip(kinds, images, lesions, strict=True):
        assert set(np.unique(lesion)) <= {0, kind}
        assert (image[lesion > 0] > 0).all()  # inside of what is kept
    ill = lesions[(kinds > 0).to_numpy()]
    assert (ill > 0).any(axis=(1, 2)).mean() > 0.9
    assert set(source.manifest.split) == {"train", "val"}


def test_shares_are_means_of_the_cells_and_follow_the_picture():
    masks = np.zeros((1, 10, 10, 2), np.float32)
    masks[0, :4, :4, 1] = 1
    shares = pretraining._shares(masks, 4)
    assert shares.shape == (1, 3, 3, 2) and shares[0, 0, 0, 1] == 1 and shares.sum() == 1
    images = np.zeros((1, 64, 64), np.uint8)
    images[0, 10:22, 40:52] = 200
    lesions = (images > 0).astype(np.uint8)
    from covidlib.preprocessing.augmentation import Augmenter

    labels, geometric = np.eye(3)[:1], Augmenter(pretraining.AUGMENTATION, pretraining.SEED)
    for epoch in range(6):
        batches = pretraining._batches(images, labels, lesions, None, seed=1, epoch=epoch, augmenter=geometric)
        picture, (_, fine, coarse) = batches[0]
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
    assert pretraining.make(SIZE, home).stat().st_mtime_ns == stamp


def test_phantom_means_that_file(home, monkeypatch):
    monkeypatch.setattr(pretraining, "make", lambda image_size: home / f"phantom-{image_size}.weights.h5")
    assert pretraining.resolve("phantom", 96).name == "phantom-96.weights.h5"
    assert pretraining.resolve("some/where.h5", 96) == "some/where.h5" and pretraining.resolve(None, 96) is None


STATE = """
import pathlib, sys
from covidlib.training import pretraining
print(int(pretraining.fit(pathlib.Path(sys.argv[1]), None, None, 1, 1).optimizer.iterations))
"""


def test_a_state_is_read_by_a_process_that_has_built_no_network(tmp_path, repository):
    import keras

    from covidlib.models.layers import BatchNormalization

    target = tmp_path / "some.weights.h5"
    model = keras.Sequential([keras.Input((4, 4, 1)), BatchNormalization(), keras.layers.Flatten()])
    model.compile("sgd", "mse")
    model.fit(np.zeros((2, 4, 4, 1)), np.zeros((2, 16)), verbose=0)
    model.save(pretraining._state(target))
    target.with_suffix(".csv").write_text("epoch,loss\n1,0.5\n")
    found = subprocess.run([sys.executable, "-c", STATE, target], cwd=repository, capture_output=True, text=True)
    assert found.stdout.strip() == "1", found.stderr[-2000:]
