"""Run directories: what training leaves behind, read without Keras."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

_FOLDER = re.compile(r"seed-(\d+)(?:-fold-(\d+))?")


def folder_name(seed, fold=-1):
    """Name of a run's folder below that of its variant."""
    return f"seed-{seed}" + (f"-fold-{fold}" if fold >= 0 else "")


def is_run(folder):
    """Whether a folder has the name of a run's."""
    return bool(_FOLDER.fullmatch(Path(folder).name))


@dataclass(frozen=True)
class Run:
    """A finished run. `content` is run.json; its `metrics` map "test" and "val" to `evaluation.metrics`."""

    path: Path
    content: dict
    history: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def home(self):
        """The folder `<dataset>/<profile>` that it lies in."""
        return self.path.absolute().parents[1]

    @property
    def dataset(self):
        return self.parameters.get("dataset", self.home.parent.name)

    @property
    def profile(self):
        return self.home.name

    @property
    def variant(self):
        return self.path.parent.name

    @property
    def seed(self):
        return int(_FOLDER.fullmatch(self.path.name)[1])

    @property
    def fold(self):
        """The fold that was its test part, -1 where it was the split's."""
        return int(_FOLDER.fullmatch(self.path.name)[2] or -1)

    @property
    def parameters(self):
        return self.content["parameters"]

    @property
    def preparation(self):
        return preparation(self.path)

    @property
    def classes(self):
        return tuple(self.content["classes"])

    @property
    def provenance(self):
        return self.content["provenance"]

    @cached_property
    def model(self):
        """The trained network (last epoch), not compiled."""
        import keras

        import covidlib.models  # noqa: F401  the layers that the file names

        return keras.models.load_model(self.path / "model.keras", compile=False)

    @cached_property
    def temperature(self):
        """Fitted on the validation slices; NaN where there are none."""
        from covidlib.evaluation import calibration, metrics

        rows = self._part("val")
        truth, _, scores = metrics.decide(rows, self.classes)
        return float(calibration.fit_temperature(truth, scores)) if len(rows) else math.nan

    @cached_property
    def metrics(self):
        """As run.json has them, or computed from the predictions where it does not."""
        from covidlib.evaluation import metrics

        return self.content.get("metrics") or {split: metrics.metrics(self._part(split), self.classes)
                                               for split in ("test", "val") if len(self._part(split))}

    def _part(self, split):
        return self.predictions[self.predictions["split"] == split]


def preparation(run_dir):
    """How the slices of a run were prepared. ValueError where it was trained before preparations had names."""
    found = read_json(Path(run_dir, "run.json")).get("parameters", {}).get("preparation")
    if found is None:
        raise ValueError(f"{run_dir} is of a version of covidlib that did not say how slices are prepared: train the "
                         "network again with notebook 03_training")
    return found


def read_run(run_dir):
    """The finished run in `run_dir`. Raises FileNotFoundError where there is none."""
    run_dir = Path(run_dir)
    if not (run_dir / "run.json").is_file():
        raise FileNotFoundError(f"{run_dir} holds no finished run: run notebook 03_training first.")
    return Run(
        run_dir,
        read_json(run_dir / "run.json"),
        pd.read_csv(run_dir / "history.csv"),
        read_predictions(run_dir / "predictions.csv"),
    )


def find_runs(output_dir, folds=False):
    """All finished runs `<variant>/seed-<k>/` under `output_dir`, by variant, then seed.

    With `folds` those of cross-validation, `<variant>/seed-<k>-fold-<i>/`, instead. Raises FileNotFoundError where
    there is none.
    """
    folders = [path.parent for path in Path(output_dir).glob("*/seed-*/run.json")]
    found = [read_run(folder) for folder in folders if (match := _FOLDER.fullmatch(folder.name))
             and (match[2] is not None) == folds]
    if not found:
        raise FileNotFoundError(f"{output_dir} holds no finished run: run notebook 03_training first.")
    return sorted(found, key=lambda run: (run.variant, run.seed, run.fold))


def read_predictions(path):
    """predictions.csv as a DataFrame; path, patient, split and label stay text ("" where empty)."""
    texts = ("path", "patient", "split", "label")
    return pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False)


def write_json(path, content):
    """Strict JSON: NaN and infinities, which it lacks, become null."""
    finite = _replace(content, lambda x: isinstance(x, float) and not math.isfinite(x), None)
    Path(path).write_text(json.dumps(finite, indent=1) + "\n", encoding="utf-8")


def read_json(path):
    """What `write_json` wrote; null inside `metrics` is NaN again."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    if "metrics" in content:
        content["metrics"] = _replace(content["metrics"], lambda x: x is None, math.nan)
    return content


def differences(there, here):
    """The parameters that differ, as text: "epochs=3 instead of 4"; "" if none does."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return ", ".join(f"{name}={there.get(name)!r} instead of {here.get(name)!r}" for name in names)


def _replace(value, found, by):
    if isinstance(value, dict):
        return {key: _replace(item, found, by) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, found, by) for item in value]
    return by if found(value) else value
