"""What a training has reached, kept in a folder so that it can go on from there."""

import json
import shutil
import time
import warnings
from pathlib import Path

import numpy as np

from covidlib.training.runs import differences
from covidlib.utils.files import sha256, write_atomically


class Checkpoints:
    """The checkpoints of a training in `folder`, taken over if one with the same `parameters` was begun there.

    state.json is the truth: it holds the history (a dict per epoch), and checksums of the checkpoints and best weights
    of the last two epochs that were written. Where a file of the last is damaged, the one before counts. A folder of
    other parameters, or without a whole checkpoint, is removed.

    every: seconds between two checkpoints; 0: one after each epoch.
    """

    def __init__(self, folder, parameters, every=0):
        self.folder, self.parameters, self.every = Path(folder), parameters, every
        self.history, self.sha256, self.seconds_before = [], {}, 0.0
        self.started, self.written = time.perf_counter(), time.monotonic()
        if problem := self._read():
            warnings.warn(f"{problem}: starting over", stacklevel=4)
        if not self.history:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def best_epoch(self):
        """The first epoch of the lowest validation loss; None without validation slices."""
        return _best_epoch(self.history)

    @property
    def last(self):
        """The last epoch that was written, 0 before the first."""
        return max(_epochs(self.sha256), default=0)

    @property
    def wall_seconds(self):
        return round(self.seconds_before + time.perf_counter() - self.started, 1)

    def save(self, row, variables, weights, final=False):
        """Write what is needed to go on after the epoch of `row`; seldom but for the final one where `every` says so.

        weights: arrays that are kept where the epoch is the best so far. OSError names the epoch to go on after.
        """
        epoch, history, before = row["epoch"], [*self.history, row], self.last
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if _best_epoch(history) == epoch:
                write_atomically(self._best(epoch), lambda file: _write(file, weights))
            self.history = history
            if time.monotonic() - self.written < self.every and not final:
                return
            values = (variable.numpy() for variable in variables)
            write_atomically(self._checkpoint(epoch), lambda file: _write(file, values))
            files = {path for count in {before, epoch} - {0} for path in self._files(count)}
            self.sha256 = {path.name: self.sha256.get(path.name) or sha256(path) for path in files}
            state = {"parameters": self.parameters, "history": history, "sha256": self.sha256,
                     "wall_seconds": self.wall_seconds}
            write_atomically(self.folder / "state.json", json.dumps(state))
        except OSError as error:
            raise OSError(f"epoch {epoch} could not be written to {self.folder} ({error}). Solve that: the same call "
                          f"goes on after epoch {before}.") from error
        self.written = time.monotonic()
        for path in set(self.folder.iterdir()) - files - {self.folder / "state.json"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self, variables):
        """Assign what the last checkpoint holds of them."""
        with open(self._checkpoint(len(self.history)), "rb") as file:
            for variable in variables:
                variable.assign(np.load(file))

    def best_weights(self, count):
        """The first `count` arrays of the best epoch's `weights`; None where no epoch has a validation loss."""
        if self.best_epoch is None:
            return None
        with open(self._best(self.best_epoch), "rb") as file:
            return [np.load(file) for _ in range(count)]

    def _read(self):
        """Take over the last whole checkpoint in the folder; returns why one that is there cannot be used, or ""."""
        path = self.folder / "state.json"
        if not path.is_file():
            return ""
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return f"{path} is damaged"
        if other := differences(state["parameters"], self.parameters):
            return f"{self.folder} was begun with {other}"
        known, self.history, epochs = state.get("sha256", {}), state["history"], len(state["history"])
        for count in sorted(_epochs(known), reverse=True):
            self.history = state["history"][:count]
            files = self._files(count)
            if all(path.is_file() and known.get(path.name) == sha256(path) for path in files):
                break
        else:
            self.history = []
            return f"no checkpoint in {self.folder} is whole"
        if count < epochs:
            warnings.warn(f"{self.folder}, epoch {epochs} is damaged: going on after the one before", stacklevel=5)
        self.sha256 = {path.name: known[path.name] for path in files}
        self.seconds_before = state["wall_seconds"]
        return ""

    def _files(self, count):
        """What is needed to go on after so many epochs."""
        best = _best_epoch(self.history[:count])
        return [self._checkpoint(count), *([self._best(best)] if best else [])]

    def _checkpoint(self, epoch):
        return self.folder / f"epoch-{epoch:04d}.arrays"

    def _best(self, epoch):
        return self.folder / f"best-{epoch:04d}.arrays"


def _best_epoch(history):
    rows = [row for row in history if row["val_loss"] is not None]
    return min(rows, key=lambda row: np.nan_to_num(row["val_loss"], nan=np.inf))["epoch"] if rows else None


def _epochs(names):
    return [int(name[len("epoch-"):-len(".arrays")]) for name in names if name.startswith("epoch-")]


def _write(file, arrays):
    for array in arrays:
        np.save(file, array)
