"""Predictions for somebody's own scans: a file or a folder in, tables and an HTML sheet out.

Research software, not for diagnosis. A network predicts one of its classes for any image: the column
`quality_warnings` says in what a slice differs from the training slices.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.evaluation import calibration
from covidlib.predict import explained, scans
from covidlib.preprocessing import crop, lungs, quality
from covidlib.speed import export
from covidlib.training import runs
from covidlib.utils.files import write_atomically

HEALTHY = ("normal", "non_covid")  # classes without the disease that is looked for
NOTICE = "Research software, not for diagnosis."


def load(model_path):
    """A trained model and the names of its classes.

    model_path: a run directory's `model.keras`, or a folder that `export.write` made, which OpenVINO runs in float32.
    Raises FileNotFoundError where the model or `run.json`, which names its classes, is missing; ValueError for another
    kind of file, and for a model that is damaged or holds code (Lambda layers, functions of other packages), which is
    not run.
    """
    path = Path(model_path)
    if path.is_dir():
        exported = export.load(path, batch=None)
        return exported, exported.classes
    record = path.with_name("run.json")
    for needed in (path, record):
        if not needed.is_file():
            raise FileNotFoundError(f"no {needed.name} at {needed}. Train one with notebook 03_training, or give the "
                                    "model.keras of a run directory, or an exported folder. "
                                    f"Received: model_path={model_path}")
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):  # .h5, also one that is a zip as well
        raise ValueError(f"{path.name} is no .keras file. Give the model.keras of a run directory, or an exported "
                         f"folder. Received: model_path={model_path}")
    import keras

    import covidlib.models  # noqa: F401  registers the layers that the file names

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras documents no type
        raise ValueError(f"{path.name} was refused: it is damaged, or holds more than layers of Keras and covidlib. "
                         f"({str(error).strip().splitlines()[0]}) Received: model_path={model_path}") from error
    return model, tuple(json.loads(record.read_text(encoding="utf-8"))["classes"])


def model_facts(model_path):
    """explained.facts of the model of a run directory as attributes; of an exported one `temperature`, `typical`: None.

    temperature: fitted on the validation slices; typical: quality.feature_ranges of the training slices; preparation:
    see crop.prepare. ValueError where the run was trained before preparations had names.
    """
    folder, path = Path(model_path).parent, Path(model_path)
    if path.is_dir():
        record = runs.read_json(path / "model.json")
        return SimpleNamespace(temperature=None, typical=None, preparation=record["preparation"])
    if (folder / "predictions.csv").is_file():
        return SimpleNamespace(**explained.facts(runs.read_run(folder)))
    return SimpleNamespace(temperature=None, typical=None, preparation=runs.preparation(folder))


def weights_file(model_path):
    """The file with the weights that `load` reads, for its checksum."""
    return Path(model_path, "model.bin") if Path(model_path).is_dir() else Path(model_path)


def find_slices(input_path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All slices of a file or folder, `(path, patient, slice_index)`, and `(path, error)` of unusable files.

    Only headers are read. Paths are relative to the folder; the patient is the folder of a file, or, of several scans
    that lie in no folder of their own, the scan. Volumes and series
    have a row per slice, from the feet up, as in scans.find; of a series that is turned to axial, the path is its first
    file's. Links that lead out of the folder are errors: nobody may want their targets on a sheet.
    """
    slices, errors = _find(input_path)
    return pd.DataFrame([row for _, _, row in slices], columns=["path", "patient", "slice_index"]), _table(errors)


def pictures(input_path, rows):
    """uint8 (H, W), in the lung window, of rows (mappings with path and slice_index) of `find_slices`."""
    slices, _ = _find(input_path)
    places = {(row["path"], row["slice_index"]): (scan, number) for scan, number, row in slices}
    chosen = [places[row["path"], row["slice_index"]] for row in rows]
    return [scan.picture(number) for scan, number in chosen]


def _find(input_path):
    """([(scan, number within it, its row), ...], list of errors as `_error` gives them)."""
    top = Path(input_path)
    if not top.exists():
        raise FileNotFoundError(f"no such file or folder. Received: input_path={input_path}")
    root = top if top.is_dir() else top.parent
    try:
        found, problems = scans.find(top) if top.is_dir() else ([scans.of_file(top)], [])
    except readers.ReadError as error:
        found, problems = [], [error]
    loose = sum(Path(scan.slices[0][0]).parent == root for scan in found)
    slices = []
    for scan in found:
        for number, (file, index) in enumerate(scan.slices):
            name = Path(file).relative_to(root)
            patient = name.parent if name.parent != Path(".") or loose == 1 else Path(scan.slices[0][0]).name
            slices.append((scan, number, {"path": name.as_posix(), "patient": str(patient), "slice_index": index}))
    return slices, [_error(Path(problem.path).relative_to(root).as_posix(), problem) for problem in problems]


def _error(path, error):
    return {"path": path, "error": f"{error.reason}. {error.hint}."}


def _table(errors):
    return pd.DataFrame(errors, columns=["path", "error"])


def predict(model_path, input_path, output_dir, batch_size: int = 16) -> pd.DataFrame:
    """Classify every slice of `input_path`; write `predictions.csv`, `patients.csv`, `errors.csv` and `sheet.html`.

    Returns the predictions: `path, patient, slice_index, predicted, p_<class>..., lung, quality_warnings`.
    Probabilities are calibrated by the temperature of `model_facts`; lung: see quality.shows_lung. Files that cannot be
    read are listed in `errors.csv`. Raises ValueError where no file can be read.
    """
    from tqdm.auto import tqdm

    model, classes = load(model_path)
    facts, size = model_facts(model_path), model.input_shape[1]
    slices, errors = _find(input_path)
    rows, places = [], {(row["path"], row["slice_index"]): (scan, number) for scan, number, row in slices}
    for start in tqdm(range(0, len(slices), batch_size), desc="slices", disable=None):
        batch, next_scan = slices[start:start + batch_size], [scan for scan, *_ in slices[start + batch_size:][:1]]
        own, images = _prepare(batch, size, facts, errors)
        for scan in {id(scan): scan for scan, _, _ in batch}.values():
            if next_scan and scan is not next_scan[0]:
                scan.forget()
        if not images:
            continue
        for row, p in zip(own, _probabilities(model, np.stack(images), facts.temperature), strict=True):
            rows.append(row | {"predicted": classes[int(p.argmax())]}
                        | {f"p_{name}": round(float(value), 6) for name, value in zip(classes, p, strict=True)})
    if not rows:
        raise ValueError(f"no readable slice among {len(errors)} files. Received: input_path={input_path}. "
                         f"First error: {errors[0]['error'] if errors else 'the folder is empty'}")
    predictions = pd.DataFrame(rows)
    last = ["lung", "quality_warnings"]
    predictions = predictions[[*predictions.columns.drop(last), *last]]
    patients = by_patient(predictions, classes)
    shown = {}
    for patient, own in predictions.groupby("patient"):
        row = most_suspicious(own, classes)
        scan, number = places[row["path"], row["slice_index"]]
        shown[patient] = crop.prepare(scan.picture(number), size, facts.preparation)[0]
        scan.forget()
    notes = dict.fromkeys(note for scan, _, _ in slices for note in scan.notes)
    sheet = _sheet(patients, errors, shown, model.name, facts, notes)
    for name, table in (("errors", _table(errors)), ("patients", patients), ("predictions", predictions)):
        write_atomically(Path(output_dir, f"{name}.csv"), table.to_csv(index=False))
    write_atomically(Path(output_dir, "sheet.html"), sheet)
    return predictions


def _prepare(batch, size, facts, errors):
    """(rows with lung and quality_warnings, images uint8 (size, size)) of those that can be read; else into errors."""
    rows, images = [], []
    for scan, number, row in batch:
        try:
            picture = scan.picture(number)
        except readers.ReadError as error:
            if (own := _error(row["path"], error)) not in errors[-1:]:  # a volume has one error, not one per slice
                errors.append(own)
            continue
        body, lung = lungs.segment(picture)
        images.append(crop.prepare(picture, size, facts.preparation, lung)[0])
        warnings = [*scan.quality_warnings(number), *quality.slice_warnings(picture, lung, body, images[-1],
                                                                                   facts.typical)]
        rows.append(row | {"lung": quality.shows_lung(lung, body), "quality_warnings": " ".join(warnings)})
    return rows, images


def _probabilities(model, images, temperature):
    """(B, classes) of uint8 (B, S, S)."""
    if isinstance(model, export.Exported):
        scores = model(images)
    else:
        scores = np.asarray(model.predict_on_batch(images[..., None].astype("float32")))
    return calibration.scale(scores, temperature) if temperature else scores


def with_lung(table):
    """The rows of slices with lung, all rows where no slice has any: a patient's mean is over these."""
    return table[table["lung"]] if table["lung"].any() else table


def suspicion(scores, classes):
    """What makes a slice worth a look, float (N,) of scores (N, classes): the probability of anything but `normal`.

    `non_covid` likewise; where neither is a class, the probability of the class that the mean of all slices predicts.
    """
    for name in HEALTHY:
        if name in classes:
            return 1 - scores[:, classes.index(name)]
    return scores[:, scores.mean(axis=0).argmax()]


def most_suspicious(own, classes):
    """The row of a patient's predictions with the largest `suspicion`, among those `with_lung`."""
    used = with_lung(own)
    return used.iloc[suspicion(used[[f"p_{name}" for name in classes]].to_numpy(), tuple(classes)).argmax()]


def by_patient(predictions: pd.DataFrame, classes) -> pd.DataFrame:
    """Mean probabilities over each patient's slices `with_lung`, and the class of the largest mean.

    Columns: `patient, slices, used, slices_with_warnings, predicted, p_<class>..., suspicious`; suspicious: the slice
    (path, number) that is `most_suspicious`.
    """
    columns = [f"p_{name}" for name in classes]
    rows = []
    for patient, own in predictions.groupby("patient"):
        used = with_lung(own)
        mean = used[columns].mean()
        worst = most_suspicious(own, classes)
        rows.append({"patient": patient, "slices": len(own), "used": len(used),
                     "slices_with_warnings": int(own["quality_warnings"].ne("").sum()),
                     "predicted": classes[int(mean.to_numpy().argmax())],
                     **mean, "suspicious": f"{worst['path']}, slice {worst['slice_index'] + 1}"})
    return pd.DataFrame(rows)


def _sheet(patients, errors, images, name, facts, notes) -> str:
    """One HTML page without links: a row and a picture per patient, then the files that could not be read."""
    from PIL import Image

    pictures = {}
    for patient, image in images.items():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        pictures[patient] = base64.b64encode(buffer.getvalue()).decode()
    environment = jinja2.Environment(loader=jinja2.PackageLoader("covidlib.predict"), autoescape=True)
    return environment.get_template("sheet.html").render(
        notice=NOTICE, facts=facts, patients=patients.round(3), pictures=pictures, errors=errors, notes=notes,
        network=explained.describe(facts) if hasattr(facts, "variant") else f"{name}.",
        calibrated=facts.temperature and calibration.describe(facts.temperature))
