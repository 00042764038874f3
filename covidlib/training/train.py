"""Training of one network (§3.2): reproducible, and resumed where it was interrupted.

The paper names neither optimiser nor learning rate nor batch size, so these are this project's: AdamW
(https://arxiv.org/abs/1711.05101) with weight decay on kernels only, and a learning rate that rises over the
first tenth of the steps and falls along a cosine (https://arxiv.org/abs/1608.03983).
"""

import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock, Timeout

from covidlib.models import resolve_precision
from covidlib.models.classifier import backbone_of
from covidlib.models.weights import resolve
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training import pretraining
from covidlib.training.devices import strategy
from covidlib.training.loop import Session
from covidlib.training.runs import Run, differences, find_runs, read_json, read_run
from covidlib.utils.files import sha256

__all__ = ["Run", "find_runs", "read_run", "train"]

PATIENCE = 10  # seconds for the kernel of a killed training of the same run to end


def train(source, images, run_dir, variant, *, image_size, epochs, batch_size, seed, weights=None, precision="auto",
          learning_rate=1e-3, class_weights=False, early_stopping=None, augmentation="paper",
          deterministic=True, progress=True, checkpoint_every=0, devices=1):
    """Train `variant` on the "train" rows of `source` and predict its "val" and "test" rows.

    Args:
        source: a datasets.Source whose manifest has `split`; `images`: uint8 (N, image_size, image_size) in
            its order (`pipeline.load_images`).
        run_dir: appears complete or not at all, with model.keras (last epoch), best.weights.h5 (lowest
            val_loss; the last epoch without validation slices), history.csv, predictions.csv (of the last
            epoch) and run.json. Work goes on in `<run_dir>.partial` and is resumed from there.
        weights: None, "imagenet", "phantom" or a path, see `build_classifier`.
        learning_rate: its peak.
        class_weights: weigh the loss of a class by the inverse of its share.
        early_stopping: None, or epochs without a lower val_loss after which to stop.
        augmentation: "paper", "mild", "none", or a dict for `augmentation.Augmenter`.
        deterministic: same seed and machine, same weights byte for byte. On TensorFlow this stays switched
            on for the rest of the process.
        checkpoint_every: seconds between two states that are written; after each epoch where it is 0. On a GPU an
            epoch of a small set is shorter than the writing of its state.
        devices: GPUs, or CPU devices where there is no GPU, that share every batch, see `distribution`; `batch_size`, a
            multiple of it, is that of all together. Of training slices that do not divide, up to devices - 1 are left
            out in an epoch, others in each; validation and prediction are done on one device and see every slice once.

    Returns the content of run.json; at once if `run_dir` holds this very run. Raises ValueError for a
    parameter or data that does not fit, or if `run_dir` holds another run; FloatingPointError if the loss
    is not finite, OSError if an epoch cannot be written (the last good one stays in the partial folder); RuntimeError
    if another process trains this run.
    """
    for name, value, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} up. Received: {name}={value!r}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0. Received: learning_rate={learning_rate!r}")
    strategy(devices)
    if batch_size % devices:
        raise ValueError("batch_size is that of all devices and must be a multiple of them. "
                         f"Received: batch_size={batch_size}, devices={devices}")
    Augmenter(augmentation, seed)
    _check_data(source, images, image_size)
    _check_patience(early_stopping, source)
    parameters = {
        "dataset": source.name, "variant": variant,
        "weights": None if weights in (None, "none") else str(weights),
        "image_size": image_size, "epochs": epochs, "batch_size": batch_size, "seed": seed,
        "precision": resolve_precision(precision), "learning_rate": learning_rate,
        "class_weights": class_weights, "early_stopping": early_stopping,
        "augmentation": augmentation, "deterministic": deterministic, "backend": keras.backend.backend(),
        "data_sha256": _data_sha256(source, images),
        "weights_sha256": _weights_sha256(weights, image_size, variant),
    }
    parameters |= {"devices": devices} if devices > 1 else {}
    parameters = json.loads(json.dumps(parameters))  # as run.json will give them back
    run_dir = Path(run_dir)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run_dir.with_name(f".{run_dir.name}.lock"), timeout=PATIENCE):
            return _train(source, images, run_dir, parameters, progress, checkpoint_every)
    except Timeout:
        raise RuntimeError(f"another training is at work on {run_dir}: wait for its end, or choose another "
                           "folder") from None


def _train(source, images, run_dir, parameters, progress, every):
    partial = run_dir.with_name(run_dir.name + ".partial")
    if (run_dir / "run.json").exists():
        content = read_run(run_dir).content
        if other := differences(content["parameters"], parameters):
            raise ValueError(f"{run_dir} holds a finished run with {other}. Choose another folder or remove it.")
        shutil.rmtree(partial, ignore_errors=True)
        return content
    keras.utils.set_random_seed(parameters["seed"])
    if parameters["deterministic"] and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    session = Session(source, images, partial, parameters, every)
    session.fit(progress)
    session.finish(run_dir)
    return read_json(run_dir / "run.json")


def _weights_sha256(weights, image_size, variant):
    if weights in (None, "none"):
        return None
    file = resolve(str(pretraining.resolve(weights, image_size)), backbone_of(variant))
    return sha256(file) if file.is_file() else None


def _data_sha256(source, images):
    """Of what training sees: pixels, labels, splits and class order."""
    columns = source.manifest[["path", "label", "split"]].to_csv(index=False, lineterminator="\n")
    digest = hashlib.sha256(f"{','.join(source.classes)}\n{columns}".encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()


def _check_data(source, images, image_size):
    wanted = (len(source.manifest), image_size, image_size)
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 {wanted}. Received: {images.dtype} {images.shape}")
    training = source.manifest[source.manifest["split"] == "train"]
    missing = [name for name in source.classes if not (training["label"] == name).any()]
    if missing:
        raise ValueError("every class needs training slices: give the manifest a split with splits.assign. "
                         f"Received none of: {', '.join(missing)}")


def _check_patience(patience, source):
    if patience is None:
        return
    if not isinstance(patience, int) or patience < 1:
        raise ValueError(f"early_stopping must be None or epochs, 1 or more. Received: early_stopping={patience!r}")
    if not (source.manifest["split"] == "val").any():
        raise ValueError("there are no validation slices: leave early_stopping=None. "
                         f"Received: early_stopping={patience}")
