"""Procedural chest CT: patients, DICOM files and lesion masks, the dataset that needs no download.

Nothing here is a person's scan. Noise, kernel, field of view, table and all healthy variation are drawn without
regard to the class, so only the lesions tell the classes apart. The difficulty is set so that ResNet50 from random
weights ends well above grey-level histograms (82 % against 71 % of the test slices at 1350/300/1350 slices, 96 px and
12 epochs) and well below 100 %; most errors are small lesions.
"""

import json
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from tqdm.auto import tqdm

from covidlib.phantom import drawing, lesions
from covidlib.phantom.anatomy import draw_patient
from covidlib.phantom.geometry import Slice
from covidlib.phantom.lesions import CLASSES

VERSION = 9
TALLEST = 185.0  # mm below the aortic arch
LEAST = 30  # pixels of lesion that every diseased slice shows


def render(label, rng, patient=None, height=None, found=None):
    """One axial slice: a `drawing.Phantom` with hu, lungs, lesions and pixel (size in mm).

    label: "covid", "viral" or "normal"; rng: `numpy.random.Generator`; patient, found (its lesions): drawn from `rng`
    unless given; height: mm below the aortic arch, 0 to 185. A diseased slice always shows some lesion: where the
    patient's miss it, others are drawn. ValueError for an unknown label.
    """
    if label not in CLASSES:
        raise ValueError(f"label must be one of {', '.join(CLASSES)}. Received: label={label!r}")
    height = rng.uniform(0, TALLEST) if height is None else height
    patient = patient or draw_patient(rng, [height])
    found = lesions.draw(label, rng, patient, [height]) if found is None else list(found)
    s = Slice(patient, height, rng)
    healthy = s.tissue()
    tissue, mask = lesions.apply(found, s, healthy)
    tries = 0 if label == "normal" else 8
    while tries and mask.sum() < LEAST:
        tries -= 1
        found += lesions.draw(label, rng, patient, [height])[:2]
        tissue, mask = lesions.apply(found, s, healthy)
    return drawing.scan(s, tissue, mask)


def generate(data_root, slices_per_class, seed=0):
    """Write phantoms under `data_root` and return their manifest.

    slices_per_class: counts for covid, viral, normal. Writes int16 slices of 256 x 256
    `<label>/<patient>/<slice>.dcm` and `masks/...png` (0 background, 1 lung, 2 lesion), the same bytes for the same
    counts and seed. A patient does not change with the counts, only how many of its slices are written. A finished
    folder of the same counts and seed is read back; phantoms of other ones are replaced. `phantom.json`, written
    last, marks the folder as finished. ValueError for counts below 1.
    """
    counts = tuple(slices_per_class)
    if len(counts) != len(CLASSES) or any(isinstance(n, bool) or int(n) != n or n < 1 for n in counts):
        raise ValueError(
            f"slices_per_class must be {len(CLASSES)} whole numbers of at least 1 ({', '.join(CLASSES)}). "
            f"Received: slices_per_class={counts}"
        )
    root, marker, table = (Path(data_root, name) for name in ("", "phantom.json", "manifest.csv"))
    wanted = {"version": VERSION, "seed": int(seed), "slices_per_class": [int(n) for n in counts]}
    known = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    if known != wanted or not table.is_file():
        marker.unlink(missing_ok=True)
        _remove(root)
        root.mkdir(parents=True, exist_ok=True)
        jobs = [(label, index, count) for label, total in zip(CLASSES, wanted["slices_per_class"], strict=True)
                for index, count in enumerate(patient_sizes(total))]
        # few patients are not worth starting processes for
        written = joblib.Parallel(2 if len(jobs) >= 16 else 1, return_as="generator")(
            joblib.delayed(_write_patient)(root, wanted["seed"], *job) for job in jobs)
        written = tqdm(written, "phantom patients", len(jobs), disable=len(jobs) < 60)
        pd.DataFrame([row for rows in written for row in rows]).to_csv(table, index=False)
        marker.write_text(json.dumps(wanted))
    return pd.read_csv(table, dtype={"patient": str, "split": str}, keep_default_na=False)


def _remove(root):
    """Delete the phantoms under `root`, and nothing else that lies there."""
    for label in CLASSES:
        for folder, suffix in ((root / label, "dcm"), (root / "masks" / label, "png")):
            for patient in folder.glob("phantom-[0-9][0-9][0-9][0-9]"):
                for file in patient.glob(f"[0-9][0-9][0-9].{suffix}"):
                    file.unlink()
                if not any(patient.iterdir()):
                    patient.rmdir()


def patient_sizes(total):
    """Slices of every patient: one to six each, at least three patients from three slices on."""
    each = 1 if total < 6 else int(np.clip(round(0.6 * np.sqrt(total)), 2, 6))
    return [min(each, total - start) for start in range(0, total, each)]


def _write_patient(root, seed, label, index, count):
    """Rows of the manifest."""
    number = CLASSES.index(label)
    rng = np.random.default_rng([seed, number, index])
    first, gap = rng.uniform(0, TALLEST - 40), rng.uniform(5, 8)
    heights = (first + gap * np.arange(6))[rng.permutation(6)].tolist()
    patient = draw_patient(rng, heights)
    found = lesions.draw(label, rng, patient, heights)
    # no name tells the class: a file's size must not give it away
    name, rows = f"phantom-{len(CLASSES) * index + number:04d}", []
    for k, height in enumerate(heights[:count]):
        phantom = render(label, np.random.default_rng([seed, number, index, k]), patient, height, found)
        path = Path(label, name, f"{k:03d}.dcm")
        _write_slice(root, path, phantom, name, k, height, seed)
        rows.append(dict(path=path.as_posix(), label=label, patient=name, source="phantom", split="", slice_index=k,
                         series=name, level=("upper", "mid", "lower")[int(height // 62)],
                         lesion_fraction=round(float(phantom.lesions.sum() / max(1, phantom.lungs.sum())), 5)))
    return rows


def _write_slice(root, path, phantom, name, k, height, seed):
    for folder in (root / path.parent, root / "masks" / path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(phantom.lungs) + phantom.lesions).save(root / "masks" / path.with_suffix(".png"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(k), str(seed)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["covidlib phantom"])
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        generate_uid(entropy_srcs=[name, kind, str(seed)]) for kind in ("study", "series", "frame"))
    ds.Modality, ds.PatientID, ds.PatientName = "CT", name, name
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    ds.InstanceNumber, ds.SeriesNumber = k + 1, 1
    pixel, z = round(phantom.pixel, 4), round(-height, 3)
    ds.PixelSpacing, ds.SliceLocation = [pixel, pixel], z
    ds.ImagePositionPatient = [round(-127.5 * pixel, 3), round(-127.5 * pixel, 3), z]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *phantom.hu.shape, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = -1024, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = -600, 1500
    ds.PixelData = (np.rint(phantom.hu) + 1024).astype("<i2").tobytes()
    ds.save_as(root / path, enforce_file_format=True)
