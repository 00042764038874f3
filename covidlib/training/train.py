"""Training of one network (§3.2): reproducible, and resumed where it was interrupted.

The paper names neither optimiser nor learning rate nor batch size, so these are this project's (see `optimizer`).
"""

import hashlib
import json
import shutil
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock, Timeout

from covidlib.models.classifier import backbone_of
from covidlib.models.weights import resolve
from covidlib.training import pretraining
from covidlib.training.config import TrainingConfig
from covidlib.training.loop import Session
from covidlib.training.runs import differences, read_json
from covidlib.utils.files import sha256

__all__ = ["TrainingConfig", "train"]

PATIENCE = 10  # seconds for the kernel of a killed training of the same run to end


def train(source, images, run_dir, config, progress=True):
    """Train a network on the "train" rows of `source` and predict its "val" and "test" rows.

    Args:
        source: a datasets.Source whose manifest has `split`.
        images: uint8 (N, image_size, image_size) in its order (`decode.load_images`).
        run_dir: appears complete or not at all, with model.keras (last epoch), best.weights.h5 (lowest
            val_loss; the last epoch without validation slices), history.csv, predictions.csv (of the last
            epoch) and run.json. Work goes on in `<run_dir>.partial` and is resumed from there.
        config: a TrainingConfig.

    Returns the content of run.json; at once if `run_dir` holds this very run. Raises ValueError for data that do not
    fit, or if `run_dir` holds another run; FloatingPointError if the loss is not finite; OSError if an epoch cannot be
    written (the last good one stays in the partial folder); RuntimeError if another process trains this run.
    """
    _check_data(source, images, config)
    parameters = {
        "dataset": source.name, **config.parameters(), "backend": keras.backend.backend(),
        "data_sha256": _data_sha256(source, images), "weights_sha256": _weights_sha256(config),
    }
    parameters = json.loads(json.dumps(parameters))  # as run.json will give them back
    run_dir = Path(run_dir)
    partial = run_dir.with_name(run_dir.name + ".partial")
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run_dir.with_name(f".{run_dir.name}.lock")).acquire(timeout=PATIENCE)
    except Timeout:
        raise RuntimeError(f"another training is at work on {run_dir}: wait for its end, or choose another "
                           "folder") from None
    with lock:
        if (run_dir / "run.json").exists():
            content = read_json(run_dir / "run.json")
            if other := differences(content["parameters"], parameters):
                raise ValueError(f"{run_dir} holds a finished run with {other}. Choose another folder or remove it.")
            shutil.rmtree(partial, ignore_errors=True)
            return content
        keras.utils.set_random_seed(config.seed)
        if config.deterministic and keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_op_determinism()
        session = Session(source, images, partial, config, parameters)
        session.fit(progress)
        session.finish(run_dir)
    return read_json(run_dir / "run.json")


def _weights_sha256(config):
    if config.weights is None:
        return None
    weights = pretraining.resolve(config.weights, config.image_size, config.preparation)
    file = resolve(str(weights), backbone_of(config.variant))
    return sha256(file) if file.is_file() else None


def _data_sha256(source, images):
    """Of pixels, labels, splits and the order of the classes."""
    columns = source.manifest[["path", "label", "split"]].to_csv(index=False, lineterminator="\n")
    digest = hashlib.sha256(f"{','.join(source.classes)}\n{columns}".encode())
    digest.update(np.ascontiguousarray(images))
    return digest.hexdigest()


def _check_data(source, images, config):
    wanted = (len(source.manifest), config.image_size, config.image_size)
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 {wanted}. Received: {images.dtype} {images.shape}")
    split = source.manifest["split"]
    trained = set(source.manifest["label"][split == "train"])
    missing = [name for name in source.classes if name not in trained]
    if missing:
        raise ValueError("every class needs training slices: give the manifest a split with splits.assign. "
                         f"Received none of: {', '.join(missing)}")
    if config.early_stopping is not None and not (split == "val").any():
        raise ValueError("there are no validation slices: leave early_stopping=None. "
                         f"Received: early_stopping={config.early_stopping}")
