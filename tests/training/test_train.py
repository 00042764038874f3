"""A tiny network stands in for the variants where only the machinery around them is tested."""

import itertools
import json
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
from toy_runs import CLASSES, FILES, OPTIONS, SIZE, assert_same_run, config, script, tiny, toy

from covidlib import datasets
from covidlib.datasets import decode, splits
from covidlib.evaluation import metrics
from covidlib.training import checkpoints, loop, runs, train
from covidlib.utils.files import sha256


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(loop, "build_classifier", tiny)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, narrowed):
    """The finished run of a narrow `improved`."""
    folder = tmp_path_factory.mktemp("toy") / "profile" / "improved" / "seed-1"
    with narrowed():
        train.train(*toy(), folder, config(variant="improved"))
    return runs.read_run(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run of the tiny network; not to be written to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_classifier", tiny)
        run_tiny(folder)
    return folder


def run_tiny(folder, **changes):
    return train.train(*toy(), folder, config(**changes))


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_reported(tmp_path, repository, bound):
    home = tmp_path / "home"
    source = datasets.load("phantom", tmp_path / "data", [6, 6, 6])
    source, _ = decode.decode_dataset(source, SIZE, "whole", home / "cache")
    datasets.save(datasets.replace(source, manifest=splits.assign(source.manifest, 0)[0]), home)
    (home / "improved").mkdir()
    (home / "improved").chmod(0o555)
    done = subprocess.run([*bound, sys.executable, "-m", "covidlib.utils.notebook", "notebooks/03_training.ipynb",
                           tmp_path / "03.ipynb", "-p", "output_dir", home, "-p", "image_size", str(SIZE)],
                          cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and str(home / "improved") in done.stderr, done.stderr
    assert "Give yourself the right to write there, or take another folder." in done.stderr
    assert "Traceback" not in done.stderr and not (home / "improved" / "seed-0").exists()


@pytest.mark.slow
def test_killed_and_restarted_it_ends_like_an_undisturbed_run(undisturbed, tmp_path, repository, narrow, capsys):
    folder, state = tmp_path / "seed-1", tmp_path / "seed-1.partial" / "state.json"
    process = subprocess.Popen(script(folder, "improved"), cwd=repository, env=every_process())
    deadline = time.monotonic() + 300
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(json.loads(state.read_text())["history"])
    assert 1 <= done < OPTIONS["epochs"] and not folder.exists()
    train.train(*toy(), folder, config(variant="improved"))
    assert f"going on after epoch {done}" in capsys.readouterr().out
    assert not state.parent.exists()
    assert_same_run(undisturbed.path, folder)


def test_a_run_directory_is_complete(undisturbed):
    assert {path.name for path in undisturbed.path.iterdir()} == FILES
    (run,) = runs.find_runs(undisturbed.home)
    assert (run.path, run.classes) == (undisturbed.path, CLASSES)
    assert (run.dataset, run.profile, run.variant, run.seed, run.fold) == ("toy", "profile", "improved", 1, -1)
    assert list(run.history.columns) == loop.HISTORY and run.history["epoch"].tolist() == [1, 2, 3]
    assert run.history.notna().all(axis=None)
    columns = ["path", "slice_index", "patient", "split", "label", *(f"p_{name}" for name in CLASSES)]
    assert list(run.predictions.columns) == columns
    assert run.predictions["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    assert np.allclose(run.predictions[columns[5:]].sum(axis=1), 1, atol=1e-5)
    assert run.metrics["test"]["n"] == run.metrics["val"]["n"] == 6
    assert run.content["best_epoch"] == run.history["val_loss"].idxmin() + 1
    assert {key: run.parameters[key] for key in OPTIONS} == OPTIONS
    assert run.provenance["manifest_sha256"] and run.provenance["precision"] == "mixed_bfloat16"


def test_the_parameters_of_run_json_stay_as_they_are(undisturbed):
    """With others, runs of before would not be recognised as the same."""
    assert [name for name in undisturbed.parameters if not name.endswith("sha256")] == [
        "dataset", "variant", "weights", "image_size", "preparation", "epochs", "batch_size", "seed", "precision",
        "learning_rate", "backbone_rate", "frozen_statistics", "frozen_stages", "label_smoothing", "weight_decay",
        "class_weights", "early_stopping", "augmentation", "deterministic", "backend"]
    assert config(weights="none", checkpoint_every=5).parameters() == config().parameters()


def test_the_saved_model_has_no_optimiser_and_gives_the_predictions(undisturbed):
    model = undisturbed.model
    saved = keras.saving.load_model(undisturbed.path / "model.keras", safe_mode=True)
    assert model is undisturbed.model and getattr(saved, "optimizer", None) is None
    assert undisturbed.content["model"] == {"parameters": model.count_params(),
                                            "weights_sha256": loop.weights_sha256(model)}
    found = model.predict(toy()[1][..., None].astype("float32"), verbose=0)
    assert np.allclose(found, undisturbed.predictions[[f"p_{name}" for name in CLASSES]], atol=2e-2)
    keras.models.clone_model(model).load_weights(undisturbed.path / "best.weights.h5")


def test_two_undisturbed_runs_are_the_same_and_another_seed_is_not(small, whole, tmp_path):
    again, other = run_tiny(tmp_path / "again"), run_tiny(tmp_path / "other", seed=2)
    assert_same_run(whole, tmp_path / "again")
    assert again["model"]["weights_sha256"] != other["model"]["weights_sha256"]


def interrupt(patch, owner, method, call):
    """Have `method` of a class interrupted at its `call`-th call."""
    original, calls = getattr(owner, method), itertools.count(1)

    def interrupted(self, *arguments, **options):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    patch.setattr(owner, method, interrupted)


def cut(folder, monkeypatch, owner=loop.Session, method="_fit_epoch", call=3, **options):
    """Leave the partial folder of a tiny run that was interrupted there, by default after two epochs."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, owner, method, call)
        run_tiny(folder, **options)
    assert not folder.exists()
    return folder.with_name(folder.name + ".partial")


@pytest.mark.parametrize("owner, method, call", [
    (loop.Session, "_fit_epoch", 2), (checkpoints.Checkpoints, "save", 2), (loop.Session, "_predict", 1)])
def test_interrupted_anywhere_it_goes_on(small, whole, tmp_path, monkeypatch, owner, method, call):
    cut(tmp_path / "run", monkeypatch, owner, method, call)
    run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("file", ["epoch-0002.arrays", "best-*.arrays"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(small, whole, tmp_path, monkeypatch, capsys, file, damage):
    path = sorted(cut(tmp_path / "run", monkeypatch).glob(file))[-1]
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


@pytest.mark.parametrize("files, content, message", [
    ("*.arrays", "", "no checkpoint in .*run.partial is whole"), ("state.json", "{", "state.json is damaged")])
def test_without_a_whole_checkpoint_it_starts_over(small, whole, tmp_path, monkeypatch, files, content, message):
    for path in cut(tmp_path / "run", monkeypatch).glob(files):
        path.write_text(content)
    with pytest.warns(UserWarning, match=f"{message}: starting over"):
        run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_partial_run_with_other_parameters_is_discarded(small, tmp_path, monkeypatch):
    cut(tmp_path / "run", monkeypatch, method="finish", call=1, epochs=1)
    with pytest.warns(UserWarning, match="learning_rate=0.001 instead of 0.002: starting over"):
        run_tiny(tmp_path / "run", epochs=1, learning_rate=2e-3)
    assert runs.read_run(tmp_path / "run").parameters["learning_rate"] == 2e-3


def test_two_trainings_of_one_run_do_not_meet(small, tmp_path, monkeypatch):
    original, refused = loop.Session._fit_epoch, []

    def second(self, epoch):
        if not refused:
            with pytest.raises(RuntimeError, match="another training is at work on .*run: wait") as error:
                run_tiny(tmp_path / "run")
            refused.append(error)
        return original(self, epoch)

    monkeypatch.setattr(loop.Session, "_fit_epoch", second)
    monkeypatch.setattr(train, "PATIENCE", 0)
    run_tiny(tmp_path / "run")
    assert refused and runs.read_run(tmp_path / "run").content["epochs_trained"] == 3


@pytest.mark.slow
def test_checkpoints_may_be_written_seldom(small, whole, tmp_path, monkeypatch, capsys):
    clock, written, original = itertools.count(0, 10), [], checkpoints.Checkpoints._checkpoint
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(checkpoints.Checkpoints, "_checkpoint",
                        lambda self, epoch: written.append(epoch) or original(self, epoch))
    partial = cut(tmp_path / "run", monkeypatch, checkpoint_every=15)
    assert json.loads((partial / "state.json").read_text())["history"][-1]["epoch"] == 2 and 1 not in written
    run_tiny(tmp_path / "run", checkpoint_every=1e9)
    assert "going on after epoch 2" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


FULL = """
import pathlib, shutil, sys
sys.path.insert(0, 'tests')
from toy_runs import config, tiny, toy
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
    train.train(*toy(), disk / 'run', config())
except OSError as error:
    print(error)
(disk / 'filler').unlink()
loop.Session._fit_epoch = fit
train.train(*toy(), disk / 'run', config())
shutil.copytree(disk / 'run', out)
"""


def test_a_full_disk_is_reported_and_loses_no_epoch(whole, tmp_path, repository):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && "$@"', disk]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here (root may)")
    done = subprocess.run([*mounted, sys.executable, "-c", FULL, disk, tmp_path / "run"], cwd=repository,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    reason = f"epoch 2 could not be written to {disk}/run.partial ([Errno 28] No space left on device). "
    assert f"{reason}Solve that: the same call goes on after epoch 1." in done.stdout
    assert "going on after epoch 1" in done.stdout
    assert_same_run(whole, tmp_path / "run")


def test_without_room_for_the_run_it_stays_where_it_is(small, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="MB are needed in .* 0 MB are free: make room"):
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        run_tiny(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run_tiny(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_checkpoint_holds_the_whole_state_exactly(small, tmp_path):
    one = loop.Session(*toy(), tmp_path / "run", config(), {})
    one.checkpoints.save(one._fit_epoch(0), one._variables(), one.model.get_weights())
    before = [variable.numpy() for variable in one._variables()]
    two = loop.Session(*toy(), tmp_path / "run", config(), {})
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
        train.train(source, 255 - images, whole, config())


def test_what_is_left_of_a_run_without_its_record_is_replaced(small, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "run.json").unlink()
    run_tiny(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("weights", ["a file", "imagenet"])
def test_the_checksum_of_the_starting_weights_is_recorded(small, tmp_path, monkeypatch, weights):
    file = tmp_path / "own.weights.h5"
    file.write_bytes(b"weights")
    monkeypatch.setattr(keras.utils, "get_file", lambda *_, **__: str(file))
    content = run_tiny(tmp_path / "run", variant="resnet50", epochs=1,
                       weights=file if weights == "a file" else weights)
    assert content["parameters"]["weights_sha256"] == content["provenance"]["weights_sha256"] == sha256(file)


@pytest.mark.parametrize("moment, message", [("before", "loss became nan"), ("after", "weights became .*")])
def test_a_loss_or_weight_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(
        small, whole, tmp_path, monkeypatch, moment, message):
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
        with pytest.raises(FloatingPointError, match=f"{message} in epoch 2: lower .* after epoch 1 is kept in .* "
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
    content = train.train(source, images, tmp_path / "run", config())
    run = runs.read_run(tmp_path / "run")
    assert run.history[["val_loss", "val_accuracy"]].isna().all(axis=None)
    assert content["best_epoch"] == 3 and set(content["metrics"]) == {"test"}
    with pytest.raises(ValueError, match="no validation slices"):
        train.train(source, images, tmp_path / "other", config(early_stopping=1))


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
    found = loop.Session(source, images, tmp_path / "run", config(), {})._class_weights()
    assert found == pytest.approx({0: 14 / 18, 1: 14 / 6, 2: 14 / 18})
    weights = {train.train(source, images, tmp_path / str(chosen), config(epochs=1, class_weights=chosen))["model"]
               ["weights_sha256"] for chosen in (False, True)}
    assert len(weights) == 2


def test_it_learns_to_tell_brightness(small, tmp_path):
    content = run_tiny(tmp_path / "run", epochs=20, learning_rate=0.03, augmentation="none")
    assert content["metrics"]["test"]["accuracy"] == 1.0


@pytest.mark.parametrize("changes, message", [
    ({"epochs": 0}, "from 1 up. Received: epochs=0"),
    ({"batch_size": 0}, "Received: batch_size=0"),
    ({"seed": -1}, "from 0 up. Received: seed=-1"),
    ({"learning_rate": 0.0}, "Received: learning_rate=0.0"),
    ({"early_stopping": 0}, "Received: early_stopping=0"),
    ({"augmentation": "strong"}, "one of paper, mild, none"),
    ({"precision": "float8"}, "precision must be one of"),
    ({"devices": 0}, "whole number from 1 up. Received: devices=0"),
    ({"devices": 1.5}, "Received: devices=1.5"),
    ({"devices": 64}, "set_logical_device_configuration .* Received: devices=64"),
], ids=str)
def test_a_value_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_data_that_do_not_fit_are_named_before_anything_is_written(small, tmp_path):
    with pytest.raises(ValueError, match=r"uint8 \(30, 64, 64\)"):
        run_tiny(tmp_path / "run", image_size=64)
    source, images = toy()
    source.manifest.loc[source.manifest["label"] == "viral", "split"] = "test"
    with pytest.raises(ValueError, match="none of: viral"):
        train.train(source, images, tmp_path / "run", config())
    assert not list(tmp_path.iterdir())


def test_an_unknown_variant_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        run_tiny(tmp_path / "run", variant="resnet5")
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


@pytest.mark.parametrize("read", [runs.read_run, runs.find_runs])
def test_a_missing_run_names_the_notebook_to_run(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="run notebook 03_training first"):
        read(tmp_path)


@pytest.mark.slow
def test_a_tiny_set_is_learned_by_heart(tmp_path, narrow):
    """Noise under labels that nothing explains: a loop that learns knows it, in inference mode, too."""
    source, images = toy()
    images = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    train.train(source, images, tmp_path / "resnet50" / "seed-1", config(
        variant="resnet50", epochs=40, augmentation="none", precision="float32", learning_rate=3e-3))
    run = runs.read_run(tmp_path / "resnet50" / "seed-1")
    assert run.history["unaugmented_accuracy"].iloc[-1] == 1
    known = run.predictions[run.predictions["split"] == "train"]
    assert metrics.correct(known, run.classes).all() and len(known) == 18
