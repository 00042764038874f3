"""One training: epochs, checkpoints, and the run directory it ends in."""

import hashlib
import json
import shutil
import time
import warnings

import keras
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from covidlib.datasets.decode import quiet, slice_indices
from covidlib.evaluation import metrics
from covidlib.models import build_classifier
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training import devices, pretraining
from covidlib.training.batches import Batches, to_dataset
from covidlib.training.optimizer import AdamW
from covidlib.training.runs import differences, write_json
from covidlib.utils import provenance
from covidlib.utils.files import require_room, sha256, write_atomically

WEIGHT_DECAY = 0.05
WARM_UP = 0.1
HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]


class Session:
    """One training in `folder`, resumed if the same one was begun there.

    state.json is the truth: it holds the history, and checksums of the checkpoints and best weights of the last two
    epochs that were written; where a file of the last is damaged, the one before counts. Order and augmentation
    follow from seed and epoch, dropout from seed generators that are in the checkpoint, the learning rate from the
    optimiser's count of steps: a resumed session ends as if it had never stopped.
    """

    def __init__(self, source, images, folder, parameters, every=0):
        self.source, self.images, self.folder, self.parameters = source, images, folder, parameters
        self.every, self.written = every, time.monotonic()
        codes = source.manifest["label"].map({name: k for k, name in enumerate(source.classes)})
        self.labels = np.eye(len(source.classes), dtype=np.float32)[codes.to_numpy(dtype=int)]
        self.state = {"parameters": parameters, "history": [], "sha256": {}, "wall_seconds": 0.0}
        self.started = time.perf_counter()
        begun = self._begun()
        keras.utils.clear_session()
        options = {name: parameters[name] for name in ("precision", "seed")}
        options["weights"] = pretraining.resolve(parameters["weights"], parameters["image_size"])
        self.devices = parameters.get("devices", 1)
        self.strategy = devices.strategy(self.devices)
        with self.strategy.scope():
            self.model = build_classifier(parameters["variant"], source.classes, parameters["image_size"], **options)
            self.trainer = self._compile()
            if begun:
                self._load()
        self.eval_model = self.trainer if self.devices == 1 else self._one_device()

    def fit(self, progress):
        wanted, done = self.parameters["epochs"], len(self.state["history"])
        hidden = quiet() or not progress
        with tqdm(desc=self._name(), total=wanted, initial=done, unit="epoch", disable=hidden) as bar:
            for epoch in range(done, wanted):
                if self._stopped_early():
                    break
                row = self._fit_epoch(epoch)
                self._save(row)
                bar.update()
                bar.set_postfix({name: row[name] for name in HISTORY[1:5] if row[name] is not None})

    def finish(self, run_dir):
        """Write the run directory beside the state, then put it in place in one step."""
        ready = self.folder / "finished"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        require_room(ready, 3 * sum(array.nbytes for array in self.model.get_weights()))
        best, last = _best_epoch(self.state["history"]), self.model.get_weights()
        if best is not None:
            with open(self._best(best), "rb") as file:
                self.model.set_weights([np.load(file) for _ in last])
        self.model.save_weights(ready / "best.weights.h5")
        self.model.set_weights(last)
        self.model.save(ready / "model.keras")
        pd.DataFrame(self.state["history"], columns=HISTORY).to_csv(ready / "history.csv", index=False)
        predictions = self._predict()
        predictions.to_csv(ready / "predictions.csv", index=False)
        write_json(ready / "run.json", self._content(predictions))
        shutil.rmtree(run_dir, ignore_errors=True)  # holds no run.json, or training would not have begun
        ready.replace(run_dir)
        shutil.rmtree(self.folder)

    def _compile(self):
        """A model over the same layers, so that the one that is saved knows no optimiser."""
        steps = len(self._batches("train", multiple=self.devices)) * self.parameters["epochs"]
        peak, rise = self.parameters["learning_rate"], max(1, round(WARM_UP * steps))
        decay = keras.optimizers.schedules.CosineDecay
        schedule = decay(0.0, max(1, steps - rise), alpha=0.01, warmup_target=peak, warmup_steps=rise)
        optimizer = AdamW(schedule, weight_decay=WEIGHT_DECAY)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        trainer = keras.Model(self.model.inputs, self.model.outputs[0])
        # XLA on TensorFlow halves the speed of this model on CPUs
        jit = False if keras.backend.backend() == "tensorflow" else "auto"
        trainer.compile(optimizer, "categorical_crossentropy", metrics=["accuracy"], jit_compile=jit)
        optimizer.build(trainer.trainable_variables)
        # a metric that is built while the step is traced has TensorFlow trace it twice
        trainer.compute_metrics(None, self.labels[:1], self.labels[:1])
        trainer.reset_metrics()
        return trainer

    def _one_device(self):
        """A model over the same layers for validation and prediction, whose batches need not divide."""
        eval_model = keras.Model(self.model.inputs, self.model.outputs[0])
        eval_model.compile(loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=self.trainer.jit_compile)
        return eval_model

    def _rows(self, *splits):
        return np.flatnonzero(self.source.manifest["split"].isin(splits))

    def _batches(self, *splits, **options):
        return Batches(self.images, self.labels, self.parameters["batch_size"], self._rows(*splits), **options)

    def _fit_epoch(self, epoch):
        seed, start = self.parameters["seed"], time.perf_counter()
        augmenter, validation = Augmenter(self.parameters["augmentation"], seed), self._batches("val")
        training = self._batches("train", seed=seed, epoch=epoch, augmenter=augmenter, multiple=self.devices)
        with self.strategy.scope(), devices.synchronised(self.model):
            history = self.trainer.fit(
                to_dataset(training), class_weight=self._class_weights() if self.parameters["class_weights"] else None,
                initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0,
            ).history
        row = {name: float(history[name][0]) for name in HISTORY[1:3]} | dict.fromkeys(HISTORY[3:5])
        if len(validation):
            found = self.eval_model.evaluate(to_dataset(validation), verbose=0, return_dict=True)
            row |= {f"val_{name}": float(found[name]) for name in HISTORY[1:3]}
        self._require_finite(epoch + 1, row["loss"])
        return {"epoch": epoch + 1, **row, "seconds": round(time.perf_counter() - start, 3)}

    def _require_finite(self, epoch, loss):
        """The loss is the mean before each update, so the last one of an epoch shows in what it changed."""
        if np.isfinite(loss) and all(np.isfinite(variable.numpy()).all() for variable in self._variables()):
            return
        wrong = "weights became infinite or no numbers" if np.isfinite(loss) else f"loss became {loss}"
        kept = _written(self.state["sha256"])[:1]
        raise FloatingPointError(
            f"the {wrong} in epoch {epoch}: lower the learning rate. "
            + (f"The state after epoch {kept[0]} is kept in {self.folder}. " if kept else "None before it is kept. ")
            + f"Received: learning_rate={self.parameters['learning_rate']}")

    def _class_weights(self):
        counts = self.labels[self._rows("train")].sum(axis=0)
        return {k: float(counts.sum() / (len(counts) * count)) for k, count in enumerate(counts)}

    def _stopped_early(self):
        patience, best = self.parameters["early_stopping"], _best_epoch(self.state["history"])
        return patience is not None and len(self.state["history"]) - (best or 0) >= patience

    def _variables(self):
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def _write_variables(self, file):
        for variable in self._variables():
            np.save(file, variable.numpy())

    def _write_weights(self, file):
        for array in self.model.get_weights():
            np.save(file, array)

    def _checkpoint(self, epoch):
        return self.folder / f"epoch-{epoch:04d}.arrays"

    def _best(self, epoch):
        return self.folder / f"best-{epoch:04d}.arrays"

    def _files(self, history):
        """What a session needs to go on after the epochs of `history`."""
        best = _best_epoch(history)
        return [self._checkpoint(len(history)), *([self._best(best)] if best else [])]

    def _save(self, row):
        """Write what the session needs to go on after this epoch; seldom but for its last where `every` says so."""
        epoch, history, known = row["epoch"], [*self.state["history"], row], self.state["sha256"]
        before = _written(known)[:1]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if _best_epoch(history) == epoch:
                write_atomically(self._best(epoch), self._write_weights)
            self.state["history"] = history
            if time.monotonic() - self.written < self.every and epoch < self.parameters["epochs"]:
                return
            write_atomically(self._checkpoint(epoch), self._write_variables)
            files = {path for count in (*before, epoch) for path in self._files(history[:count])}
            self.state["sha256"] = {path.name: known.get(path.name) or sha256(path) for path in files}
            state = {**self.state, "wall_seconds": self._wall_seconds()}
            write_atomically(self.folder / "state.json", json.dumps(state))
        except OSError as error:
            raise OSError(f"epoch {epoch} could not be written to {self.folder} ({error}). Mend that: the same call "
                          f"goes on after epoch {before[0] if before else 0}.") from error
        self.written = time.monotonic()
        for path in set(self.folder.iterdir()) - files - {self.folder / "state.json"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _begun(self):
        """Whether `folder` holds this very training; what it holds of another one, or nothing whole of, is removed."""
        if not (self.folder / "state.json").is_file():
            shutil.rmtree(self.folder, ignore_errors=True)
            return False
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except ValueError:
            return self._start_over(f"{self.folder / 'state.json'} is damaged")
        if other := differences(state["parameters"], self.parameters):
            return self._start_over(f"{self.folder} was begun with {other}")
        epochs, known = len(state["history"]), state.get("sha256", {})
        for count in _written(known):
            files = self._files(state["history"][:count])
            if all(path.is_file() and known.get(path.name) == sha256(path) for path in files):
                break
        else:
            return self._start_over(f"no checkpoint in {self.folder} is whole")
        if count < epochs:
            warnings.warn(f"{self.folder}, epoch {epochs} is damaged: going on after the one before", stacklevel=5)
        self.state = state | {"history": state["history"][:count],
                              "sha256": {path.name: known[path.name] for path in files}}
        return True

    def _start_over(self, why):
        warnings.warn(f"{why}: starting over", stacklevel=6)
        shutil.rmtree(self.folder)
        return False

    def _load(self):
        with open(self._checkpoint(len(self.state["history"])), "rb") as file:
            for variable in self._variables():
                variable.assign(np.load(file))
        print(f"{self._name()}: going on after epoch {len(self.state['history'])}", flush=True)

    def _name(self):
        return f"{self.parameters['variant']} seed {self.parameters['seed']}"

    def _wall_seconds(self):
        return round(self.state["wall_seconds"] + time.perf_counter() - self.started, 1)

    def _predict(self):
        rows = self._rows("val", "test")
        chosen = self.source.manifest.iloc[rows]
        table = {
            "path": chosen["path"].to_numpy(),
            "slice_index": slice_indices(chosen),
            "patient": metrics.patient_names(chosen),
            "split": chosen["split"].to_numpy(),
            "label": chosen["label"].to_numpy(),
        }
        batches = self._batches("val", "test")
        scores = self.eval_model.predict(to_dataset(batches), verbose=0) if len(rows) else self.labels[rows]
        return pd.DataFrame(table | {f"p_{name}": scores[:, k] for k, name in enumerate(self.source.classes)})

    def _content(self, predictions):
        classes = self.source.classes
        parts = {split: predictions[predictions["split"] == split] for split in ("test", "val")}
        wall = self._wall_seconds()
        manifest = self.source.manifest.to_csv(index=False, lineterminator="\n")
        used = {name: self.parameters[name] for name in ("weights_sha256", "precision")}
        used["manifest_sha256"] = hashlib.sha256(manifest.encode()).hexdigest()
        return {
            "parameters": self.parameters,
            "classes": list(classes),
            "metrics": {split: metrics.metrics(rows, classes) for split, rows in parts.items() if len(rows)},
            "best_epoch": _best_epoch(self.state["history"]) or len(self.state["history"]),
            "epochs_trained": len(self.state["history"]),
            "wall_seconds": wall,
            "model": {"parameters": self.model.count_params(), "weights_sha256": weights_sha256(self.model)},
            "provenance": provenance.collect(self.parameters, wall_seconds=wall, **used),
        }


def _written(known):
    """The epochs whose checkpoints are among the names of `known`, the last first."""
    return sorted((int(name[len("epoch-"):-len(".arrays")]) for name in known if name.startswith("epoch-")),
                  reverse=True)


def _best_epoch(history):
    """The first epoch of the lowest validation loss; None without validation slices."""
    rows = [row for row in history if row["val_loss"] is not None]
    return min(rows, key=lambda row: np.nan_to_num(row["val_loss"], nan=np.inf))["epoch"] if rows else None


def weights_sha256(model):
    """SHA-256 over the bytes of all weights of `model`, in its order."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
