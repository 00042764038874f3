"""A tiny network stands in for the variants where only the machinery around them is looked at."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import every_process
from toy_runs import CLASSES, FILES, OPTIONS, SIZE, assert_same_run, script, tiny, toy

from covidlib import datasets
from covidlib.datasets import decode, splits
from covidlib.training import loop, runs, train
from covidlib.utils.files import sha256


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(loop, "build_classifier", tiny)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, narrowed):
    """The folder of a finished run of a narrow resnet50."""
    folder = tmp_path_factory.mktemp("undisturbed") / "resnet50" / "seed-1"
    with narrowed():
        train.train(*toy(), folder, "resnet50", **OPTIONS)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run of the tiny network; not to be written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_classifier", tiny)
        run_tiny(folder)
    return folder


def run_tiny(folder, **changes):
    source, images = toy()
    return train.train(source, images, folder, "tiny", **(OPTIONS | changes))


@pytest.mark.slow
@pytest.mark.parametrize("closed, told", [
    ("cache", "PermissionError: nothing can be written to this folder (Permission denied): give yourself the right"),
    ("improved", "Give yourself the right to write there, or take another folder.")])
def test_a_folder_that_cannot_be_written_is_told(tmp_path, repository, bound, closed, told):
    home = tmp_path / "home"
    source, _ = decode.decode_dataset(datasets.load("phantom", tmp_path / "data", [6, 6, 6]), SIZE, home / "cache")
    datasets.save(datasets.replace(source, manifest=splits.assign(source.manifest, 0)[0]), home)
    (home / closed).mkdir(exist_ok=True)
    (home / closed).chmod(0o555)
    done = subprocess.run([*bound, sys.executable, "-m", "covidlib.utils.notebook", "notebooks/03_training.ipynb",
                           tmp_path / "03.ipynb", "-p", "output_dir", home, "-p", "image_size", str(SIZE)],
                          cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and told in done.stderr and str(home / closed) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (home / "improved" / "seed-0").exists()


@pytest.mark.slow
def test_killed_and_restarted_it_ends_like_an_undisturbed_run(undisturbed, tmp_path, repository, narrow, capsys):
    folder = tmp_path / "seed-1"
    state = tmp_path / "seed-1.partial" / "state.json"
    process = subprocess.Popen(script(folder, "resnet50", **OPTIONS), cwd=repository, env=every_process())
    deadline = time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(json.loads(state.read_text())["history"])
    assert 1 <= done < OPTIONS["epochs"] and not folder.exists()
    train.train(*toy(), folder, "resnet50", **OPTIONS)
    assert f"going on after epoch {done}" in capsys.readouterr().out
    assert not state.parent.exists()
    assert_same_run(undisturbed, folder)


def test_a_run_directory_holds_what_it_should(undisturbed):
    assert {path.name for path in undisturbed.iterdir()} == FILES
    (run,) = runs.find_runs(undisturbed.parents[1])
    assert run.path == undisturbed and run.classes == CLASSES
    assert list(run.history.columns) == loop.HISTORY and run.history["epoch"].tolist() == [1, 2, 3]
    assert run.history.notna().all(axis=None)
    columns = ["path", "slice_index", "patient", "split", "label", *(f"p_{name}" for name in CLASSES)]
    assert list(run.predictions.columns) == columns
    assert run.predictions["split"].value_counts().to_dict() == {"val": 6, "test": 6}
    assert np.allclose(run.predictions[columns[5:]].sum(axis=1), 1, atol=1e-5)
    assert run.metrics["test"]["n"] == run.metrics["val"]["n"] == 6
    assert run.content["best_epoch"] == run.history["val_loss"].idxmin() + 1
    assert {key: run.parameters[key] for key in OPTIONS} == OPTIONS
    assert run.provenance["manifest_sha256"] and run.provenance["precision"] == "mixed_bfloat16"
    assert run.content["model"]["parameters"] == keras.saving.load_model(undisturbed / "model.keras").count_params()


def test_the_saved_model_knows_no_optimiser_and_gives_the_predictions(undisturbed):
    model = keras.saving.load_model(undisturbed / "model.keras", safe_mode=True)
    assert getattr(model, "optimizer", None) is None
    assert (undisturbed / "model.keras").stat().st_size < 100e6
    source, images = toy()
    run = runs.read_run(undisturbed)
    found = model.predict(images[18:, ..., None].astype("float32"), verbose=0)
    assert np.allclose(found, run.predictions[[f"p_{name}" for name in CLASSES]], atol=2e-2)
    assert loop.weights_sha256(model) == run.content["model"]["weights_sha256"]
    model.load_weights(undisturbed / "best.weights.h5")


def test_two_undisturbed_runs_are_the_same_and_another_seed_is_not(small, whole, tmp_path):
    again, other = run_tiny(tmp_path / "again"), run_tiny(tmp_path / "other", seed=2)
    assert_same_run(whole, tmp_path / "again")
    assert again["model"]["weights_sha256"] != other["model"]["weights_sha256"]


@pytest.mark.parametrize("moment", ["_fit_epoch", "_save", "_predict"])
def test_interrupted_anywhere_it_goes_on(small, whole, tmp_path, monkeypatch, moment):
    original, calls = getattr(loop.Session, moment), []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == (1 if moment == "_predict" else 2):
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Session, moment, interrupted)
        run_tiny(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    run_tiny(tmp_path / "cut")
    assert_same_run(whole, tmp_path / "cut")


def cut_after(folder, monkeypatch, epochs, **options):
    """Leave the partial folder of a tiny run that stopped after so many epochs."""
    original = loop.Session._fit_epoch

    def interrupted(self, epoch):
        if epoch == epochs:
            raise KeyboardInterrupt
        return original(self, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Session, "_fit_epoch", interrupted)
        run_tiny(folder, **options)
    return folder.with_name(folder.name + ".partial")


@pytest.mark.parametrize("file", ["epoch-0002.arrays", "best-*.arrays"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(small, whole, tmp_path, monkeypatch, capsys, file, damage):
    partial = cut_after(tmp_path / "run", monkeypatch, epochs=2)
    path = sorted(partial.glob(file))[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-100])
    with pytest.warns(UserWarning, match="damaged: going on after the one before|no checkpoint .* is whole"):
        run_tiny(tmp_path / "run")
    if file.startswith("epoch"):
        assert "going on after epoch 1" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


def test_without_a_whole_checkpoint_it_starts_over(small, whole, tmp_path, monkeypatch):
    partial = cut_after(tmp_path / "run", monkeypatch, epochs=2)
    for path in partial.glob("*.arrays"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="no checkpoint in .*run.partial is whole: starting over"):
        run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")
    partial = cut_after(tmp_path / "other", monkeypatch, epochs=1)
    (partial / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="state.json is damaged: starting over"):
        run_tiny(tmp_path / "other")
    assert_same_run(whole, tmp_path / "other")


def test_two_trainings_of_one_run_do_not_meet(small, tmp_path, monkeypatch):
    original, told = loop.Session._fit_epoch, []

    def second(self, epoch):
        if not told:
            with pytest.raises(RuntimeError, match="another training is at work on .*run: wait") as error:
                run_tiny(tmp_path / "run")
            told.append(error)
        return original(self, epoch)

    monkeypatch.setattr(loop.Session, "_fit_epoch", second)
    monkeypatch.setattr(train, "PATIENCE", 0)
    run_tiny(tmp_path / "run")
    assert told and runs.read_run(tmp_path / "run").content["epochs_trained"] == 3


@pytest.mark.slow
def test_states_may_be_written_seldom(small, whole, tmp_path, monkeypatch, capsys):
    clock, written, original = itertools.count(0, 10), [], loop.Session._checkpoint
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(loop.Session, "_checkpoint",
                        lambda self, epoch: written.append(epoch) or original(self, epoch))
    partial = cut_after(tmp_path / "run", monkeypatch, epochs=2, checkpoint_every=15)
    assert json.loads((partial / "state.json").read_text())["history"][-1]["epoch"] == 2 and 1 not in written
    run_tiny(tmp_path / "run", checkpoint_every=1e9)
    assert "going on after epoch 2" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


FULL = """
import pathlib, shutil, sys
sys.path.insert(0, 'tests')
from toy_runs import OPTIONS, tiny, toy
from covidlib.training import loop, train
loop.build_classifier, fit = tiny, loop.Session._fit_epoch
disk, out = map(pathlib.Path, sys.argv[1:])

def filled(self, epoch):
    if epoch == 1:
        try:
            (disk / 'filler').write_bytes(bytes(10_000_000))
        except OSError:
            pass
    return fit(self, epoch)

loop.Session._fit_epoch = filled
try:
    train.train(*toy(), disk / 'run', 'tiny', **OPTIONS)
except OSError as error:
    print(error)
(disk / 'filler').unlink()
loop.Session._fit_epoch = fit
train.train(*toy(), disk / 'run', 'tiny', **OPTIONS)
shutil.copytree(disk / 'run', out)
"""


@pytest.fixture
def disk(tmp_path):
    """(what stands before a command that shall have a disk of 1 MB, the folder where it has it)."""
    (tmp_path / "disk").mkdir()
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && "$@"', str(tmp_path / "disk")]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here (root may)")
    return command, tmp_path / "disk"


def test_a_full_disk_is_told_and_loses_no_epoch(whole, disk, tmp_path, repository):
    mounted, place = disk
    done = subprocess.run([*mounted, sys.executable, "-c", FULL, place, tmp_path / "run"], cwd=repository,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = f"epoch 2 could not be written to {place}/run.partial ([Errno 28] No space left on device). Mend that: the "
    assert f"{told}same call goes on after epoch 1." in done.stdout and "going on after epoch 1" in done.stdout
    assert_same_run(whole, tmp_path / "run")


def test_without_room_for_the_run_it_stays_where_it_is(small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="MB are needed in .* 0 MB are free: make room"):
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        run_tiny(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_checkpoint_holds_the_whole_state_exactly(small, tmp_path):
    folder = tmp_path / "run"
    options = OPTIONS | {"learning_rate": 1e-3, "class_weights": False, "early_stopping": None}
    parameters = options | {"variant": "tiny", "weights": None, "augmentation": "paper"}
    one = loop.Session(*toy(), folder, parameters)
    one._save(one._fit_epoch(0))
    before = [variable.numpy() for variable in one._variables()]
    two = loop.Session(*toy(), folder, parameters)
    after = [variable.numpy() for variable in two._variables()]
    assert int(two.trainer.optimizer.iterations) == 3
    assert any("seed_generator" in variable.path for variable in two._variables())
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_a_finished_run_is_returned_at_once(whole, monkeypatch):
    monkeypatch.setattr(loop, "build_classifier", lambda *_, **__: pytest.fail("built again"))
    partial = whole.with_name("run.partial")
    partial.mkdir()
    assert run_tiny(whole) == runs.read_run(whole).content
    assert not partial.exists()


def test_a_run_with_other_parameters_is_not_overwritten(whole):
    with pytest.raises(ValueError, match="epochs=3 instead of 2"):
        run_tiny(whole, epochs=2)
    source, images = toy()
    with pytest.raises(ValueError, match="data_sha256"):
        train.train(source, 255 - images, whole, "tiny", **OPTIONS)


def test_what_is_left_of_a_run_without_its_record_is_replaced(small, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    run_tiny(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_partial_run_with_other_parameters_is_discarded(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Session, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_tiny(tmp_path / "run", epochs=1)
    with pytest.warns(UserWarning, match="learning_rate=0.001 instead of 0.002: starting over"):
        run_tiny(tmp_path / "run", epochs=1, learning_rate=2e-3)
    assert runs.read_run(tmp_path / "run").parameters["learning_rate"] == 2e-3


@pytest.mark.parametrize("weights", ["a file", "imagenet"])
def test_the_checksum_of_what_it_began_with_is_recorded(small, tmp_path, monkeypatch, weights):
    file = tmp_path / "own.weights.h5"
    file.write_bytes(b"weights")
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: str(file))
    source, images = toy()
    content = train.train(source, images, tmp_path / "run", "resnet50", **OPTIONS | {"epochs": 1},
                             weights=str(file) if weights == "a file" else weights)
    assert content["parameters"]["weights_sha256"] == content["provenance"]["weights_sha256"] == sha256(file)


@pytest.mark.parametrize("moment, told", [("before", "loss became nan"), ("after", "weights became .*")])
def test_a_loss_or_weight_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
        small, whole, tmp_path, monkeypatch, moment, told):
    """Before the second epoch, and by its last step, which its mean loss does not show."""
    original = loop.Session._fit_epoch

    def spoil(self):
        self.model.layers[-1].bias.assign([np.nan] * 3)

    def spoiled(self, epoch):
        fit = self.trainer.fit
        if epoch == 1 and moment == "before":
            spoil(self)
        if epoch == 1 and moment == "after":
            self.trainer.fit = lambda *given, **options: (fit(*given, **options), spoil(self))[0]
        return original(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Session, "_fit_epoch", spoiled)
        with pytest.raises(FloatingPointError, match=f"{told} in epoch 2: lower .* after epoch 1 is kept in .* "
                                                     "Received: learning_rate=0.001"):
            run_tiny(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(runs.read_json(tmp_path / "run.partial" / "state.json")["history"]) == 1
    run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_where_no_epoch_was_written_none_is_said_to_be_kept(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Session, "_variables", lambda self: [keras.Variable([np.inf])])
    with pytest.raises(FloatingPointError, match="in epoch 1: lower .* None before it is kept"):
        run_tiny(tmp_path / "run")


def test_without_validation_slices_the_best_epoch_is_the_last(small, tmp_path):
    source, images = toy()
    source.manifest["split"] = source.manifest["split"].replace("val", "train")
    content = train.train(source, images, tmp_path / "run", "tiny", **OPTIONS)
    run = runs.read_run(tmp_path / "run")
    assert run.history[["val_loss", "val_accuracy"]].isna().all(axis=None)
    assert content["best_epoch"] == 3 and set(content["metrics"]) == {"test"}
    with pytest.raises(ValueError, match="no validation slices"):
        train.train(source, images, tmp_path / "other", "tiny", **OPTIONS, early_stopping=1)


def test_early_stopping_is_off_by_default_and_stops_when_asked(small, tmp_path, monkeypatch):
    losses = iter([0.5, 0.4, 0.6, 0.45, 0.3, 0.2])
    original = loop.Session._fit_epoch
    monkeypatch.setattr(
        loop.Session, "_fit_epoch", lambda self, epoch: original(self, epoch) | {"val_loss": next(losses)}
    )
    content = run_tiny(tmp_path / "run", epochs=6, early_stopping=2)
    assert content["epochs_trained"] == 4 and content["best_epoch"] == 2
    assert content["parameters"]["early_stopping"] == 2


def test_class_weights_balance_the_classes(small, tmp_path):
    source, images = toy()
    training_rows = source.manifest["split"] == "train"
    drop = source.manifest.index[training_rows & (source.manifest["label"] == "viral")][2:]
    source.manifest.loc[drop, "split"] = ""
    parameters = OPTIONS | {"variant": "tiny", "weights": None, "learning_rate": 1e-3}
    found = loop.Session(source, images, tmp_path / "run", parameters)._class_weights()
    assert found == pytest.approx({0: 14 / 18, 1: 14 / 6, 2: 14 / 18})
    options = OPTIONS | {"epochs": 1}
    plain = train.train(source, images, tmp_path / "plain", "tiny", **options)
    weighted = train.train(source, images, tmp_path / "weighted", "tiny", **options, class_weights=True)
    assert plain["model"]["weights_sha256"] != weighted["model"]["weights_sha256"]


def test_it_learns_what_brightness_tells(small, tmp_path):
    content = run_tiny(tmp_path / "run", epochs=20, learning_rate=0.03, augmentation="none")
    assert content["metrics"]["test"]["accuracy"] == 1.0


def test_mistakes_are_named_before_anything_is_written(small, tmp_path):
    source, images = toy()
    cases = [
        ({"epochs": 0}, "from 1 up. Received: epochs=0"),
        ({"batch_size": 0}, "Received: batch_size=0"),
        ({"seed": -1}, "from 0 up. Received: seed=-1"),
        ({"learning_rate": 0.0}, "Received: learning_rate=0.0"),
        ({"early_stopping": 0}, "Received: early_stopping=0"),
        ({"image_size": 64}, r"uint8 \(30, 64, 64\)"),
        ({"augmentation": "strong"}, "one of paper, mild, none"),
        ({"precision": "float8"}, "precision must be one of"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            run_tiny(tmp_path / "run", **changes)
    source.manifest.loc[source.manifest["label"] == "viral", "split"] = "test"
    with pytest.raises(ValueError, match="none of: viral"):
        train.train(source, images, tmp_path / "run", "tiny", **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_an_unknown_variant_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        train.train(*toy(), tmp_path / "run", "resnet5", **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_a_missing_run_names_the_mend(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 03_training first"):
        runs.read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 03_training first"):
        runs.find_runs(tmp_path)


@pytest.mark.slow
def test_training_on_jax(tmp_path, repository):
    pytest.importorskip("jax")
    folder = tmp_path / "run"
    options = OPTIONS | {"epochs": 1, "precision": "float32"}
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    command = script(folder, "tiny", **options)
    subprocess.run(command, cwd=repository, env=environment, check=True, timeout=300)
    run = runs.read_run(folder)
    assert run.parameters["backend"] == "jax" and np.isfinite(run.history["loss"]).all()
