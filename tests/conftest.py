"""Fixtures shared by all tests."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent


LONG = ("test_workflow.py", "test_notebooks.py", "test_browser.py", "test_viewer.py")  # minutes each: these first
NARROW = {"conv2": (8, 1), "conv3": (16, 1), "conv4": (32, 1), "conv5": (64, 1)}


def pytest_collection_modifyitems(items):
    """Files in the order in which two workers end soonest.

    The longest after those comes no sooner than test_train, since a training makes its whole process deterministic,
    which the tests before were not written for.
    """
    def place(item):
        name = item.path.name
        if name in LONG:
            return LONG.index(name)
        after = "training" in item.path.parts or item.path.parent == TESTS
        return len(LONG) + after * (1 if name == "test_train.py" else 2)

    items.sort(key=place)


@pytest.fixture(scope="session")
def narrowed():
    """A context in which ResNets are built with 4 blocks and 1/8 of the channels: all kinds of layers, little to do."""
    @contextlib.contextmanager
    def patched():
        from covidlib.models import resnet

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resnet, "STAGES", NARROW)
            yield

    return patched


@pytest.fixture
def narrow(narrowed):
    """The same for the length of a test."""
    with narrowed():
        yield


def every_process(**changes):
    """os.environ for processes that train narrow networks, as do theirs; `changes`: every_process/sitecustomize.py."""
    found = os.pathsep.join([str(TESTS / "every_process"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": found, "NARROW": json.dumps(NARROW)} | changes


@pytest.fixture(scope="session")
def repository():
    return REPOSITORY


@pytest.fixture(scope="session")
def bound():
    """What stands before a command that file permissions shall bind, which they do not where root runs the tests."""
    if os.geteuid() != 0:
        return []
    command = ["setpriv", "--bounding-set=-dac_override"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("file permissions do not bind root, and setpriv cannot have them do so")
    return command


@pytest.fixture(scope="session")
def chromium():
    """A Chromium that playwright drives; tests that need it skip where none is installed (.ci/run installs it)."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real CT images beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real CT images beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, repository, narrowed):
    """A folder with notebooks/app.ipynb, and data/phantom and runs/phantom/tiny of two narrow networks of one epoch.

    What they answer does not matter; they are exported.
    """
    root = tmp_path_factory.mktemp("checkout")
    import numpy as np

    from covidlib import datasets
    from covidlib.datasets import decode, splits
    from covidlib.predict import explained
    from covidlib.training import train

    home, phantoms = root / "runs" / "phantom" / "tiny", root / "data" / "phantom" / "tiny"
    source = datasets.load("phantom", phantoms, [12, 9, 12], seed=0)
    source, _ = decode.decode_dataset(source, 32, "lungs", home / "cache")
    manifest, _ = splits.assign(source.manifest, 0)
    source = datasets.replace(source, manifest=manifest)
    datasets.save(source, home)
    images = decode.load_images(source, 32, "lungs", home / "cache")
    for variant in ("resnet50", "improved"):
        run_dir = home / variant / "seed-0"
        with narrowed():
            config = train.TrainingConfig(variant=variant, image_size=32, preparation="lungs", epochs=1, batch_size=16,
                                          seed=0, precision="float32", deterministic=False)
            train.train(source, np.array(images), run_dir, config, progress=False)
        explained.make(run_dir)
    (root / "reports" / "published" / "runs").mkdir(parents=True)
    (root / "notebooks").mkdir()
    shutil.copy(repository / "notebooks" / "app.ipynb", root / "notebooks")
    return root
