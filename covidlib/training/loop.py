"""One training: its epochs, and the run directory it ends in."""

import hashlib
import shutil
import time

import keras
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from covidlib.datasets import SPLITS
from covidlib.datasets.decode import quiet, slice_indices
from covidlib.evaluation import metrics
from covidlib.models import BatchNormalization, build_classifier
from covidlib.models.weights import in_backbone, save_weights
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training import devices, pretraining
from covidlib.training.batches import Batches, to_dataset
from covidlib.training.checkpoints import Checkpoints
from covidlib.training.optimizer import scheduled_adamw
from covidlib.training.runs import write_json
from covidlib.utils import provenance
from covidlib.utils.files import require_room

HISTORY = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "unaugmented_accuracy"]
SEEN_AGAIN = 200  # training slices on which accuracy is measured as on validation slices


class Session:
    """One training with a TrainingConfig, resumed if one with the same `parameters` was begun in `folder`.

    Order and augmentation follow from seed and epoch, dropout from seed generators that are in the checkpoint, the
    learning rate from the optimiser's count of steps: a resumed session ends as if it had never stopped.
    """

    def __init__(self, source, images, folder, config, parameters):
        self.source, self.images, self.config = source, images, config
        codes = source.manifest["label"].map(source.classes.index).to_numpy(dtype=int)
        self.labels = np.eye(len(source.classes), dtype=np.float32)[codes]
        self.checkpoints = Checkpoints(folder, parameters, config.checkpoint_every)
        self.name, done = f"{config.variant} seed {config.seed}", len(self.checkpoints.history)
        keras.utils.clear_session()
        weights = pretraining.resolve(config.weights, config.image_size, config.preparation)
        self.strategy = devices.strategy(config.devices)
        with self.strategy.scope():
            self.model = build_classifier(config.variant, source.classes, config.image_size, weights=weights,
                                          precision=config.precision, seed=config.seed)
            self.backbone = [layer for layer in self.model.layers if in_backbone(layer)]
            frozen = tuple(f"conv{number + 1}" for number in range(config.frozen_stages))
            for layer in self.backbone:
                layer.trainable = not layer.name.startswith(frozen)
                if isinstance(layer, BatchNormalization):
                    layer.frozen_statistics = config.frozen_statistics
            self.trainer = self._compile()
            if done:
                self.checkpoints.restore(self._variables())
                print(f"{self.name}: going on after epoch {done}", flush=True)
        self.eval_model = self.trainer
        if config.devices > 1:  # validation and prediction run on one, and their batches need not divide
            self.eval_model = keras.Model(self.model.inputs, self.model.outputs[0])
            self.eval_model.compile(loss=self.trainer.loss, metrics=["accuracy"], jit_compile=self.trainer.jit_compile)

    def fit(self, progress):
        epochs, done = self.config.epochs, len(self.checkpoints.history)
        with tqdm(desc=self.name, total=epochs, initial=done, unit="epoch", disable=quiet() or not progress) as bar:
            for epoch in range(done, epochs):
                if self._stopped_early():
                    break
                row = self._fit_epoch(epoch)
                self.checkpoints.save(row, self._variables(), self.model.get_weights(), final=epoch + 1 == epochs)
                bar.update()
                bar.set_postfix({name: row[name] for name in HISTORY[1:5] if row[name] is not None})

    def finish(self, run_dir):
        """Write the run directory in the folder of the checkpoints, then move it to its place in one step."""
        ready = self.checkpoints.folder / "finished"
        shutil.rmtree(ready, ignore_errors=True)
        ready.mkdir()
        last = self.model.get_weights()
        require_room(ready, 3 * sum(array.nbytes for array in last))
        self.model.set_weights(self.checkpoints.best_weights(len(last)) or last)
        save_weights(self.model, ready / "best.weights.h5")
        self.model.set_weights(last)
        self.model.save(ready / "model.keras")
        pd.DataFrame(self.checkpoints.history, columns=HISTORY).to_csv(ready / "history.csv", index=False)
        predictions = self._predict()
        predictions.to_csv(ready / "predictions.csv", index=False)
        write_json(ready / "run.json", self._content(predictions))
        shutil.rmtree(run_dir, ignore_errors=True)  # holds no run.json, or training would not have begun
        ready.replace(run_dir)
        shutil.rmtree(self.checkpoints.folder)

    def _compile(self):
        """A model over the same layers, so that the one that is saved has no optimiser."""
        steps = len(self._batches("train", multiple=self.config.devices)) * self.config.epochs
        optimizer = scheduled_adamw(steps, self.config.learning_rate, self.config.weight_decay)
        optimizer.factors = {variable.path: self.config.backbone_rate for layer in self.backbone
                             for variable in layer.trainable_variables}
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=self.config.label_smoothing)
        trainer = keras.Model(self.model.inputs, self.model.outputs[0])
        # XLA on TensorFlow halves the speed of this model on CPUs
        jit = False if keras.backend.backend() == "tensorflow" else "auto"
        trainer.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit)
        optimizer.build(trainer.trainable_variables)
        # a metric that is built while the step is traced has TensorFlow trace it twice
        trainer.compute_metrics(None, self.labels[:1], self.labels[:1])
        trainer.reset_metrics()
        return trainer

    def _rows(self, *splits):
        return np.flatnonzero(self.source.manifest["split"].isin(splits))

    def _batches(self, *splits, **options):
        return self._batches_of(self._rows(*splits), **options)

    def _batches_of(self, rows, **options):
        return Batches(self.images, self.labels, self.config.batch_size, rows, **options)

    def _unaugmented_accuracy(self):
        """Of the training slices as validation slices are seen: of SEEN_AGAIN, the same in every epoch, at most."""
        rows = np.random.default_rng(self.config.seed).permutation(self._rows("train"))[:SEEN_AGAIN]
        return self.eval_model.evaluate(to_dataset(self._batches_of(rows)), verbose=0, return_dict=True)["accuracy"]

    def _variables(self):
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def _fit_epoch(self, epoch):
        config, start = self.config, time.perf_counter()
        training = self._batches("train", seed=config.seed, epoch=epoch, multiple=config.devices,
                                 augmenter=Augmenter(config.augmentation, config.seed))
        with self.strategy.scope(), devices.synchronised(self.model, config.devices):
            history = self.trainer.fit(
                to_dataset(training), class_weight=self._class_weights() if config.class_weights else None,
                initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0,
            ).history
        row = {name: float(history[name][0]) for name in HISTORY[1:3]} | dict.fromkeys(HISTORY[3:5])
        if len(validation := self._batches("val")):
            found = self.eval_model.evaluate(to_dataset(validation), verbose=0, return_dict=True)
            row |= {f"val_{name}": float(found[name]) for name in HISTORY[1:3]}
        self._require_finite(epoch + 1, row["loss"])
        row |= {"seconds": round(time.perf_counter() - start, 3), "unaugmented_accuracy": self._unaugmented_accuracy()}
        return {"epoch": epoch + 1, **row}

    def _require_finite(self, epoch, loss):
        """The loss is the mean before each update, so the last one of an epoch shows in what it changed."""
        if np.isfinite(loss) and all(np.isfinite(variable.numpy()).all() for variable in self._variables()):
            return
        wrong = "weights became infinite or no numbers" if np.isfinite(loss) else f"loss became {loss}"
        last, folder = self.checkpoints.last, self.checkpoints.folder
        kept = f"The state after epoch {last} is kept in {folder}." if last else "None before it is kept."
        raise FloatingPointError(f"the {wrong} in epoch {epoch}: lower the learning rate. {kept} "
                                 f"Received: learning_rate={self.config.learning_rate}")

    def _class_weights(self):
        counts = self.labels[self._rows("train")].sum(axis=0)
        return {k: float(counts.sum() / (len(counts) * count)) for k, count in enumerate(counts)}

    def _stopped_early(self):
        patience, done = self.config.early_stopping, len(self.checkpoints.history)
        return patience is not None and done - (self.checkpoints.best_epoch or 0) >= patience

    def _predict(self):
        chosen = self.source.manifest.iloc[self._rows(*SPLITS)]
        scores = self.eval_model.predict(to_dataset(self._batches(*SPLITS)), verbose=0)
        return pd.DataFrame({
            "path": chosen["path"].to_numpy(), "slice_index": slice_indices(chosen),
            "patient": metrics.patient_names(chosen), "split": chosen["split"].to_numpy(),
            "label": chosen["label"].to_numpy(),
            **{f"p_{name}": scores[:, k] for k, name in enumerate(self.source.classes)}})

    def _content(self, predictions):
        classes, parameters = self.source.classes, self.checkpoints.parameters
        parts = {split: predictions[predictions["split"] == split] for split in ("test", "val")}
        epochs, wall = len(self.checkpoints.history), self.checkpoints.wall_seconds
        manifest = self.source.manifest.to_csv(index=False, lineterminator="\n")
        used = {name: parameters[name] for name in ("weights_sha256", "precision")}
        used["manifest_sha256"] = hashlib.sha256(manifest.encode()).hexdigest()
        return {
            "parameters": parameters,
            "classes": list(classes),
            "metrics": {split: metrics.metrics(rows, classes) for split, rows in parts.items() if len(rows)},
            "best_epoch": self.checkpoints.best_epoch or epochs,
            "epochs_trained": epochs,
            "wall_seconds": wall,
            "model": {"parameters": self.model.count_params(), "weights_sha256": weights_sha256(self.model)},
            "provenance": provenance.collect(parameters, wall_seconds=wall, **used),
        }


def weights_sha256(model):
    """SHA-256 over the bytes of all weights of `model`, in its order."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
