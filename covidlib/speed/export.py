"""Trained networks as files that run fast and without Keras: OpenVINO (float32, bfloat16, int8) and ONNX Runtime.

An exported folder holds

    model.xml, model.bin             OpenVINO, float32; bfloat16 is an option of `load`
    model.onnx                       ONNX, float32
    model_int8.xml, model_int8.bin   OpenVINO, int8 by NNCF (https://github.com/openvinotoolkit/nncf), if calibrated
    model.json                       classes, image size, origin

Each takes grey values 0..255 as uint8 (B, S, S, 1): normalisation is in the graph, so that no slice is normalised
otherwise or twice.

NNCF and OpenVINO's converter report their use to Google Analytics through the package openvino-telemetry; it is
disabled before they are imported, and nothing goes out.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from covidlib import preprocessing
from covidlib.utils import provenance

PRECISIONS = ("float32", "bfloat16", "int8")
RUNTIMES = ("openvino", "onnxruntime")
FILES = {f"{name}.{end}" for name in ("model", "model_int8") for end in ("xml", "bin")} | {"model.onnx", "model.json"}
FEWEST = 32  # slices that a calibration needs at least; 300 are usual


def write(model, folder, classes, *, preparation="whole", calibration=None, onnx=True):
    """Export `model` to `folder`, which appears with all its files or stays as it was. Returns its Path.

    Args:
        model: a classifier of covidlib.models of any precision, exported in float32. Its name is the variant's.
        folder: new, empty, or an earlier export, which is replaced.
        classes: names, in the order of the model's outputs.
        preparation: that of the slices which it was trained on, one of crop.PREPARATIONS.
        calibration: prepared slices of the training part, uint8 (N, S, S), from which the ranges of the int8
            network are learned; without them there is none.
        onnx: whether model.onnx is written, which takes longer than the rest.

    ValueError for a model, classes, calibration or folder that cannot be right.
    """
    folder = Path(folder).absolute()
    calibration = None if calibration is None else np.asarray(calibration)
    _check(model, classes, calibration)
    if folder.exists() and not (folder.is_dir() and FILES.issuperset(os.listdir(folder))):
        raise ValueError(f"folder must be new, empty or an earlier export. Received: folder={folder}")
    with replacing(folder) as ready:
        serving = in_float32(model)
        network = as_openvino(serving)
        network.outputs[0].tensor.set_names({"probabilities"})
        openvino().save_model(network, ready / "model.xml", compress_to_fp16=False)
        if calibration is not None:
            openvino().save_model(_quantised(network, calibration), ready / "model_int8.xml", compress_to_fp16=False)
        if onnx:
            _convert(serving, ready / "model.onnx", "onnx")
        record = _record(model, classes, preparation, calibration)
        (ready / "model.json").write_text(json.dumps(record, indent=1) + "\n")
    return folder


def load(folder, precision="float32", runtime="openvino", threads=None, batch=1):
    """The network in `folder` as an `Exported`, compiled for this machine.

    Args:
        precision: "float32", "bfloat16" or "int8". Where the processor has no bfloat16 arithmetic OpenVINO emulates
            it or keeps to float32. ONNX Runtime has float32 only.
        runtime: "openvino" or "onnxruntime".
        threads: by default all that this process may use.
        batch: slices to a step, compiled for that number; None: any number, somewhat slower.

    FileNotFoundError where `folder` lacks the file; ValueError for other values, and for a folder of a version before
    0.2, which does not say how slices are prepared. Warns where another version of the
    code that reads pictures wrote it.
    """
    folder = Path(folder)
    for name, value, known in (("precision", precision, PRECISIONS), ("runtime", runtime, RUNTIMES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}. Received: {name}={value!r}")
    if runtime == "onnxruntime" and precision != "float32":
        raise ValueError(f"model.onnx runs in float32 only. Received: precision={precision!r}")
    for name, value in (("threads", threads), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
    file = folder / ("model.onnx" if runtime == "onnxruntime" else f"model{'_int8' * (precision == 'int8')}.xml")
    for needed in (folder / "model.json", file):
        if not needed.is_file():
            raise FileNotFoundError(f"no {needed.name} in {folder}: write it with export.write"
                                    f"{', giving calibration slices' * (precision == 'int8')}.")
    record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if "preparation" not in record:
        raise ValueError(f"{folder} is of a version of covidlib that did not say how slices are prepared: train the "
                         "network again with notebook 03_training and export it with export.write")
    if record.get("preprocessing_sha256") != preprocessing.code_sha256():
        warnings.warn(f"{folder} was exported for pictures read by another version of covidlib", stacklevel=2)
    threads = threads or provenance.threads()
    if runtime == "onnxruntime":
        return Exported(_start_onnxruntime(file, threads), record, precision, runtime, batch)
    network = compiled(core().read_model(file), (batch, *[record["image_size"]] * 2, 1), precision, threads)
    return Exported(lambda images: network(images)[0], record, precision, runtime, batch)


class Exported:
    """A network that `load` compiled: `exported(images)`. One thread at a time may call it.

    Attributes: classes, image_size, preparation, precision, runtime, batch; name and input_shape as Keras models have.
    """

    def __init__(self, run, record, precision, runtime, batch):
        self.classes, self.image_size, self.name = tuple(record["classes"]), record["image_size"], record["variant"]
        self.preparation = record["preparation"]
        self.precision, self.runtime, self.batch, self._run = precision, runtime, batch, run
        self.input_shape = (batch, self.image_size, self.image_size, 1)

    def __call__(self, images):
        """Probabilities, float32 (B, classes), of uint8 (B, S, S) or (B, S, S, 1). ValueError for anything else."""
        images = np.asarray(images)
        size = self.image_size
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1:4] not in (
                (size, size), (size, size, 1)) or not len(images):
            raise ValueError(f"images must be uint8 (B, {size}, {size}) or (B, {size}, {size}, 1), grey 0..255, "
                             f"B at least 1. Received: {images.dtype} {images.shape}")
        images = images.reshape(-1, size, size, 1)
        if self.batch in (None, len(images)):
            return self._run(images)
        return in_batches(self._run, images, self.batch)


def in_batches(run, images, batch):
    """Results (N, ...) of `run`, which takes `batch` images at a time; the last batch is filled up with blanks."""
    blanks = np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)
    parts = np.split(np.concatenate([images, blanks]), range(batch, len(images), batch))
    return np.concatenate([run(part) for part in parts])[: len(images)]


@contextlib.contextmanager
def replacing(folder):
    """An empty folder that takes the place of `folder` once it is filled; after an error `folder` is as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        ready, before = Path(place, "ready"), Path(place, "before")
        ready.mkdir()
        yield ready
        if folder.exists():
            folder.replace(before)
        try:
            ready.replace(folder)
        except BaseException:
            if before.exists():
                before.replace(folder)
            raise


def _check(model, classes, calibration):
    if len(classes) != model.output_shape[-1] or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be {model.output_shape[-1]} different names. Received: classes={classes!r}")
    size = model.input_shape[1]
    if model.input_shape[1:] != (size, size, 1):
        raise ValueError(f"model must take grey squares (B, S, S, 1). Received: input_shape={model.input_shape}")
    if calibration is None:
        return
    if calibration.dtype != np.uint8 or calibration.shape[1:] != (size, size) or len(calibration) < FEWEST:
        raise ValueError(f"calibration must be uint8 (N, {size}, {size}), N at least {FEWEST}. "
                         f"Received: {calibration.dtype} {calibration.shape}")
    if calibration.min() == calibration.max():
        raise ValueError(f"calibration must be slices, not blanks. Received: {calibration.min()} everywhere")


def with_float32_layers(model):
    """A copy of a network that computes in float32, whatever its policy was."""
    import keras

    single = keras.models.clone_model(
        model, clone_function=lambda layer: type(layer).from_config({**layer.get_config(), "dtype": "float32"}))
    single.set_weights(model.get_weights())
    return single


def in_float32(model):
    """The same network with float32 layers and uint8 inputs, called once, which Keras's exporter needs."""
    import keras

    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="slice")
    serving = keras.Model(inputs, with_float32_layers(model)(keras.ops.cast(inputs, "float32")))
    serving(np.zeros((1, *model.input_shape[1:]), np.uint8))
    return serving


def as_openvino(serving):
    """openvino.Model of a Keras model, called once before, with its float outputs alone."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "converted.xml")
        _convert(serving, file, "openvino")
        network = core().read_model(file.read_bytes(), file.with_suffix(".bin").read_bytes())
    for result in network.results:
        if result.output(0).element_type != openvino().Type.f32:
            network.remove_result(result)  # shapes, which the converter adds
    network.validate_nodes_and_infer_types()
    return network


def _convert(serving, path, format):
    openvino()  # before Keras imports it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras asks for np.object
        serving.export(str(path), format=format, verbose=False)


def _quantised(network, calibration):
    """The network in int8: symmetric weights, activations symmetric where nothing is negative.

    No correction of biases: on four trained networks NNCF's default left probabilities farther from float32 (mean .022
    to .027) than none (.010 to .022). Weights keep half of their range: processors with AVX2 alone add in 16 bits,
    which overflow.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    options = nncf.AdvancedQuantizationParameters(disable_bias_correction=True, overflow_fix=nncf.OverflowFix.ENABLE)
    slices = nncf.Dataset([image[None, ..., None] for image in calibration])
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(network, slices, subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED,
                             advanced_parameters=options)


def _record(model, classes, preparation, calibration):
    from covidlib.training.loop import weights_sha256

    versions = {name: importlib.metadata.version(name) for name in ("openvino", "nncf", "onnx", "tf2onnx")}
    return {
        "classes": list(classes), "image_size": model.input_shape[1], "preparation": preparation,
        "variant": model.name,
        "weights_sha256": weights_sha256(model), "preprocessing_sha256": preprocessing.code_sha256(),
        "calibration": None if calibration is None else {
            "slices": len(calibration), "sha256": hashlib.sha256(np.ascontiguousarray(calibration)).hexdigest()},
        "packages": provenance.packages() | versions,
    }


def openvino():
    """The package with its telemetry disabled: not importable or, where it is imported already, unable to send."""
    if sys.modules.setdefault("openvino_telemetry") is not None:
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = lambda *_: None
    import openvino

    if sys.version_info >= (3, 13):
        # OpenVINO's converter does exec("import tensorflow"), then exec("del tensorflow"): an error since PEP 667
        from openvino.frontend.tensorflow import utils

        utils.get_environment_setup = lambda framework: {"tensorflow": importlib.metadata.version("tensorflow")}
    return openvino


@functools.cache
def core():
    """OpenVINO's object that reads and compiles networks, one for the process."""
    return openvino().Core()


def compiled(network, shape, precision="float32", threads=None):
    """An openvino.Model compiled for inputs of `shape` (None: any size); the model takes that shape, too."""
    network.reshape([-1 if size is None else size for size in shape])
    options = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
               "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads or provenance.threads()}
    return core().compile_model(network, "CPU", options)


def _start_onnxruntime(file, threads):
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
