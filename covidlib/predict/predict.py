"""A trained network's answer to somebody's own scans: a file or a folder in, a table and an HTML sheet out.

Research software, not for diagnosis. The network knows only the classes and the kind of picture it was
trained on, and answers with one of them whatever it is shown: the column `quality_warnings` says what is unlike that.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.evaluation import calibration
from covidlib.predict import explained, scans
from covidlib.preprocessing import crop, lungs, quality
from covidlib.speed import export
from covidlib.training import runs
from covidlib.utils.files import write_atomically

NOTICE = "Research software, not for diagnosis."


def load(model_path):
    """A trained model and the names of its classes.

    model_path: a run directory's `model.keras`, or a folder that `export.write` made, which is run by OpenVINO in
    float32. Raises FileNotFoundError where the model, or the `run.json` beside it, is missing: a network without
    the names of its classes cannot be read. ValueError for another kind of file, and for a model that holds code
    (Lambda layers, functions of other packages) or is damaged: nothing of it is run.
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
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):  # a whole-model .h5, also one that is a zip as well
        raise ValueError(f"{path.name} is no .keras file. Give the model.keras of a run directory, or an exported "
                         f"folder. Received: model_path={model_path}")
    import keras

    import covidlib.models  # noqa: F401  registers the layers that the file names

    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises what it comes upon
        raise ValueError(f"{path.name} was refused: it is damaged, or holds more than layers of Keras and covidlib. "
                         f"({str(error).strip().splitlines()[0]}) Received: model_path={model_path}") from error
    return model, tuple(json.loads(record.read_text(encoding="utf-8"))["classes"])


def known_of(model_path):
    """answers.facts of the model of a run directory as attributes; of another model `temperature` and `typical`, None.

    The temperature is fitted on the run's validation slices, `typical`: quality.feature_ranges of its training slices.
    """
    folder = Path(model_path).parent
    if Path(model_path).is_dir() or not (folder / "predictions.csv").is_file():
        return SimpleNamespace(temperature=None, typical=None)
    return SimpleNamespace(**explained.facts(runs.read_run(folder)))


def weights_file(model_path):
    """The file with the weights that `load` takes, for its checksum."""
    return Path(model_path, "model.bin") if Path(model_path).is_dir() else Path(model_path)


def find_slices(input_path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All slices under a file or folder: `(path, patient, slice_index)`, and `(path, error)` for files of no use.

    Headers are read, and slices are not: what of them is damaged shows when they are.

    Paths are relative to the folder; the patient is the folder a file lies in. Volumes and series give a row per slice,
    from the feet up, as scans.find reads them; of a series that is turned to axial, the path is its first file's. Links
    that lead out of the folder are not followed, but listed: they may lead to what nobody wants on a sheet.
    """
    slices, errors = _find(input_path)
    return pd.DataFrame([row for _, _, row in slices], columns=["path", "patient", "slice_index"]), errors


def pictures(input_path, rows):
    """uint8 (H, W) of every row (a mapping with path and slice_index) of `find_slices`, in the lung window."""
    slices, _ = _find(input_path)
    places = {(row["path"], row["slice_index"]): (scan, number) for scan, number, row in slices}
    chosen = [places[row["path"], row["slice_index"]] for row in rows]
    return [scan.picture(number) for scan, number in chosen]


def _find(input_path):
    """([(scan, number within it, its row), ...], errors as in `find_slices`)."""
    top = Path(input_path)
    if not top.exists():
        raise FileNotFoundError(f"no such file or folder. Received: input_path={input_path}")
    root = _root(top)
    try:
        found, problems = scans.find(top, limit=math.inf) if top.is_dir() else ([scans.of_file(top)], [])
    except readers.ReadError as error:
        found, problems = [], [error]
    slices = []
    for scan in found:
        for number, (file, index) in enumerate(scan.slices):
            name = Path(file).relative_to(root)
            slices.append((scan, number, {"path": name.as_posix(), "patient": name.parent.as_posix(),
                                          "slice_index": index}))
    errors = [(Path(problem.path).relative_to(root).as_posix(), f"{problem.reason}. {problem.hint}.")
              for problem in problems]
    return slices, pd.DataFrame(errors, columns=["path", "error"])


def _root(input_path):
    return Path(input_path) if Path(input_path).is_dir() else Path(input_path).parent


def predict(model_path, input_path, output_dir, batch_size: int = 16) -> pd.DataFrame:
    """Classify every slice of `input_path` and write `predictions.csv`, `patients.csv`, `errors.csv`, `sheet.html`.

    Returns the predictions: `path, patient, slice_index, predicted, p_<class>..., lung, doubts`; probabilities after
    the temperature of `known_of`, `lung` whether one was found, `quality_warnings` sentences on what is unlike the
    training slices. A file that cannot be read is listed in `errors.csv` and the rest goes on. Raises ValueError where
    no file can be read.
    """
    from tqdm.auto import tqdm

    model, classes = load(model_path)
    known, size = known_of(model_path), model.input_shape[1]
    slices, errors = _find(input_path)
    rows, faults, pictures = [], errors.to_dict("records"), {}
    progress = tqdm(range(0, len(slices), batch_size), desc="slices", disable=None)
    for start in progress:
        images, kept = [], []
        for scan, number, row in slices[start:start + batch_size]:
            try:
                picture = scan.picture(number)
            except readers.ReadError as error:
                fault = {"path": row["path"], "error": f"{error.reason}. {error.hint}."}
                faults += [fault] if fault not in faults[-1:] else []  # a volume is one fault, not one for each slice
                continue
            body, lung = lungs.segment(picture)
            images.append(crop.crop_to_lungs(picture, size, lung)[0])
            found = [*scan.quality_warnings(number),
                     *quality.slice_warnings(picture, lung, body, images[-1], known.typical)]
            kept.append(row | {"lung": bool(lung.any()), "quality_warnings": " ".join(found)})
        for scan in {id(scan): scan for scan, _, _ in slices[start:start + batch_size]}.values():
            if start + batch_size < len(slices) and scan is not slices[start + batch_size][0]:
                scan.forget()
        if not images:
            continue
        probabilities = _ask(model, np.stack(images))
        if known.temperature:
            probabilities = calibration.scale(probabilities, known.temperature)
        for row, image, p in zip(kept, images, probabilities, strict=True):
            last = {name: row.pop(name) for name in ("lung", "quality_warnings")}
            rows.append(row | {"predicted": classes[int(p.argmax())]}
                        | {f"p_{name}": round(float(value), 6) for name, value in zip(classes, p, strict=True)} | last)
            suspicion = 1 - p[-1]
            if suspicion > pictures.get(row["patient"], (-1, None))[0]:
                pictures[row["patient"]] = suspicion, image
    if not rows:
        raise ValueError(f"no readable slice among {len(faults)} files. Received: input_path={input_path}. "
                         f"First error: {faults[0]['error'] if faults else 'the folder is empty'}")
    predictions = pd.DataFrame(rows)
    patients = by_patient(predictions, classes)
    sheet = _sheet(patients, pd.DataFrame(faults, columns=["path", "error"]),
                   {patient: image for patient, (_, image) in pictures.items()}, _told(model, known),
                   {note: None for scan, _, _ in slices for note in scan.notes})
    _write(output_dir, predictions, patients, pd.DataFrame(faults, columns=["path", "error"]), sheet)
    return predictions


def _ask(model, images):
    """Probabilities (B, classes) of uint8 (B, S, S)."""
    if isinstance(model, export.Exported):
        return model(images)
    return np.asarray(model.predict_on_batch(images[..., None].astype("float32")))


def by_patient(predictions: pd.DataFrame, classes) -> pd.DataFrame:
    """Mean probabilities over each patient's slices, and the class of the largest mean.

    As in the app, slices without lung are left out where a patient has others. Columns: `patient, slices, used,
    doubtful, predicted, p_<class>..., suspicious`; doubtful: slices with a doubt; suspicious: the slice (path, index)
    whose probability of the last class, `normal` or `non_covid`, is least.
    """
    columns = [f"p_{name}" for name in classes]
    rows = []
    for patient, own in predictions.groupby("patient"):
        used = own[own["lung"]] if own["lung"].any() else own
        mean = used[columns].mean()
        worst = own.loc[own[columns[-1]].idxmin()]
        rows.append({"patient": patient, "slices": len(own), "used": len(used),
                     "slices_with_warnings": int(own["quality_warnings"].ne("").sum()),
                     "predicted": classes[int(mean.to_numpy().argmax())],
                     **mean, "suspicious": f"{worst['path']}, slice {worst['slice_index'] + 1}"})
    return pd.DataFrame(rows)


def _told(model, known):
    """Which network answers, and how far it is to be believed."""
    trained = explained.describe(known) if hasattr(known, "variant") else f"{model.name}."
    scaled = f"after temperature {known.temperature:.2f}" if known.temperature else "as trained, not calibrated"
    usual = "" if known.typical else " Its training slices are not at hand to compare with."
    return f"{trained} Probabilities {scaled}.{usual}"


def _write(output_dir, predictions, patients, errors, sheet):
    for name, text in [("errors.csv", errors.to_csv(index=False)), ("patients.csv", patients.to_csv(index=False)),
                       ("sheet.html", sheet), ("predictions.csv", predictions.to_csv(index=False))]:
        write_atomically(Path(output_dir, name), text)


def _sheet(patients, errors, images, told, notes) -> str:
    """One HTML page without links: a row and a picture per patient, then the files that could not be read."""
    from PIL import Image

    pictures = {}
    for patient, image in images.items():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        code = base64.b64encode(buffer.getvalue()).decode()
        alt = html.escape(f"most suspicious slice of {patient}", quote=True)
        pictures[patient] = f'<img alt="{alt}" src="data:image/png;base64,{code}">'
    table = patients.round(3).map(lambda value: html.escape(str(value)))
    table.insert(0, "most suspicious", [pictures.get(patient, "") for patient in patients["patient"]])
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Predictions</title>'
            "<style>body{font:16px system-ui;margin:2rem}td,th{padding:.3rem .8rem;text-align:left}</style>"
            f"<h1>Predictions</h1><p><strong>{NOTICE}</strong></p><p>{html.escape(told)} "
            "Doubtful: slices unlike those it was trained on; predictions.csv says in what.</p>"
            f"{table.to_html(index=False, escape=False)}{''.join(f'<p>{html.escape(note)}</p>' for note in notes)}"
            f"<h2>Files that could not be read: {len(errors)}</h2>{errors.to_html(index=False)}</html>")
