"""Trained networks as files that answer fast and without Keras: OpenVINO (float32, bfloat16, int8) and ONNX Runtime.

An exported folder holds

    model.xml, model.bin             OpenVINO, float32; bfloat16 is a way to run it
    model.onnx                       ONNX, float32
    model_int8.xml, model_int8.bin   OpenVINO, int8 by NNCF (https://github.com/openvinotoolkit/nncf), if calibrated
    model.json                       classes, image size, and where it all came from

Each takes grey values 0..255 as uint8 (B, S, S, 1), what `intake.see` gives: normalisation is in the graph, so that a
served network cannot be fed slices that were normalised otherwise or twice.

NNCF and OpenVINO's converter report their use to Google Analytics through the package openvino-telemetry unless they
are told not to; here they are told before they are imported, and nothing goes out.
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

from covidlib.datasets import decode
from covidlib.utils import provenance

PRECISIONS = ("float32", "bfloat16", "int8")
RUNTIMES = ("openvino", "onnxruntime")
FILES = {f"{name}.{end}" for name in ("model", "model_int8") for end in ("xml", "bin")} | {"model.onnx", "model.json"}
FEWEST = 32  # slices that a calibration needs at least; 300 are usual
_PACKAGES = ("openvino", "nncf", "onnx", "tf2onnx")


def write(model, folder, classes, *, calibration=None, onnx=True):
    """Export `model` to `folder`, which appears with all its files or stays as it was. Returns its Path.

    Args:
        model: a classifier of covidlib.models, built or loaded, of any precision: what is exported are its float32
            weights, computed with in float32. Its name is taken for the variant's.
        folder: new, empty, or an earlier export, which is replaced.
        classes: names, in the order of the model's outputs.
        calibration: harmonised slices of the training part, uint8 (N, S, S), from which the ranges of the int8
            network are learned; without them there is none.
        onnx: whether model.onnx is written, which takes longer than the rest.

    ValueError for a model, classes, calibration or folder that cannot be right.
    """
    folder = Path(folder).absolute()
    calibration = None if calibration is None else np.asarray(calibration)
    _check(model, classes, calibration)
    if folder.exists() and not (folder.is_dir() and FILES.issuperset(os.listdir(folder))):
        raise ValueError(f"folder must be new, empty or an earlier export. Received: folder={folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        ready = Path(place, "export")
        ready.mkdir()
        _write_files(in_float32(model), ready, calibration, onnx)
        (ready / "model.json").write_text(json.dumps(_record(model, classes, calibration), indent=1) + "\n")
        _put_in_place(ready, folder)
    return folder


def load(folder, precision="float32", runtime="openvino", threads=None, batch=1):
    """The network in `folder` as an `Exported`, compiled for this machine.

    Args:
        precision: "float32", "bfloat16" or "int8". Where the processor has no bfloat16 arithmetic OpenVINO emulates
            it or keeps to float32. ONNX Runtime has float32 only.
        runtime: "openvino" or "onnxruntime".
        threads: how many compute, by default all that this process may use.
        batch: slices to a step, compiled for that number; None: any number, somewhat slower.

    FileNotFoundError where `folder` lacks the file; ValueError for other values. Warns where the pictures it was made
    for were read by other code than that of today.
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
    if record.get("preprocessing_sha256") != decode.code_sha256():
        warnings.warn(f"{folder} was exported for pictures read by another version of covidlib", stacklevel=2)
    shape = (batch, record["image_size"], record["image_size"], 1)
    start = _start_onnxruntime if runtime == "onnxruntime" else _start_openvino
    return Exported(start(file, precision, threads or provenance.threads(), shape), record, precision, runtime, batch)


class Exported:
    """A network ready to answer: `exported(images)`. Made by `load`; one thread at a time may call it.

    Attributes: classes, image_size, precision, runtime, batch; name and input_shape as a Keras model has them.
    """

    def __init__(self, run, record, precision, runtime, batch):
        self.classes, self.image_size, self.name = tuple(record["classes"]), record["image_size"], record["variant"]
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
        parts = np.split(images, range(self.batch, len(images), self.batch))
        missing = self.batch - len(parts[-1])
        parts[-1] = np.concatenate([parts[-1], np.zeros((missing, size, size, 1), np.uint8)])
        return np.concatenate([self._run(part) for part in parts])[:len(images)]


def _check(model, classes, calibration):
    if len(classes) != model.output_shape[-1] or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be {model.output_shape[-1]} different names. Received: classes={classes!r}")
    if len(model.input_shape) != 4 or model.input_shape[3] != 1 or model.input_shape[1] != model.input_shape[2]:
        raise ValueError(f"model must take grey squares (B, S, S, 1). Received: input_shape={model.input_shape}")
    if calibration is None:
        return
    size = model.input_shape[1]
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
    """The same network with float32 layers and uint8 inputs, called once, as Keras's exporter wants it."""
    import keras

    single = with_float32_layers(model)
    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="slice")
    serving = keras.Model(inputs, single(keras.ops.cast(inputs, "float32")))
    serving(np.zeros((1, *model.input_shape[1:]), np.uint8))
    return serving


def convert(serving, path, format="openvino"):
    """Write a Keras model, called once before, to `path`; OpenVINO is told before Keras imports it, see _openvino."""
    _openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras asks for np.object
        serving.export(str(path), format=format, verbose=False)


def _write_files(serving, folder, calibration, onnx):
    openvino = _openvino()
    converted = folder / "converted.xml"
    convert(serving, converted)
    if onnx:
        convert(serving, folder / "model.onnx", "onnx")
    network = core().read_model(converted)
    for result in network.results:
        if result.output(0).element_type != openvino.Type.f32:
            network.remove_result(result)  # shapes that the converter found nobody to read
    network.outputs[0].tensor.set_names({"probabilities"})
    network.validate_nodes_and_infer_types()
    openvino.save_model(network, folder / "model.xml", compress_to_fp16=False)
    if calibration is not None:
        openvino.save_model(_quantised(network, calibration), folder / "model_int8.xml", compress_to_fp16=False)
    del network  # it maps the file that goes
    for file in (converted, converted.with_suffix(".bin")):
        file.unlink()


def _quantised(network, calibration):
    """The network in int8: symmetric weights, activations symmetric where nothing is negative.

    On four trained networks (96 px, 300 slices) NNCF's default correction of biases left probabilities farther from
    float32 than none (mean .022 to .027 against .010 to .022); the exact one comes as near as none and takes 7 times
    as long. Attention's products and softmax may be quantised, too: leaving them out changed nothing. Weights keep half
    of their range: processors with AVX2 alone add in 16 bits, which overflow (mean .076 on an untrained network, .029
    so).
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    options = nncf.AdvancedQuantizationParameters(disable_bias_correction=True, overflow_fix=nncf.OverflowFix.ENABLE)
    slices = nncf.Dataset([image[None, ..., None] for image in calibration])
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(network, slices, subset_size=len(calibration), preset=nncf.QuantizationPreset.MIXED,
                             advanced_parameters=options)


def _record(model, classes, calibration):
    from covidlib.training.loop import weights_sha256

    packages = provenance.packages() | {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "classes": list(classes), "image_size": model.input_shape[1], "variant": model.name,
        "weights_sha256": weights_sha256(model), "preprocessing_sha256": decode.code_sha256(),
        "calibration": None if calibration is None else {
            "slices": len(calibration), "sha256": hashlib.sha256(np.ascontiguousarray(calibration)).hexdigest()},
        "packages": packages,
    }


def _put_in_place(ready, folder):
    before = ready.with_name("before")
    if folder.exists():
        folder.replace(before)
    try:
        ready.replace(folder)
    except BaseException:
        if before.exists():
            before.replace(folder)
        raise


def _openvino():
    """The package, its telemetry cut off: not importable, or where somebody else imported it, unable to send."""
    if sys.modules.setdefault("openvino_telemetry") is not None:
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = lambda *_: None
    import openvino

    if sys.version_info >= (3, 13):
        _let_it_convert()
    return openvino


def _let_it_convert():
    """Tell OpenVINO's converter TensorFlow's version; from Python 3.13 on (PEP 667) its own way ends in an error.

    It does `exec("import tensorflow")` and then `exec("del tensorflow")`, which finds no such name there (2026.4).
    """
    from openvino.frontend.tensorflow import utils

    utils.get_environment_setup = lambda framework: {"tensorflow": importlib.metadata.version("tensorflow")}


@functools.cache
def core():
    """OpenVINO's own object that reads and compiles networks, one for the process."""
    return _openvino().Core()


def _start_openvino(file, precision, threads, shape):
    network = core().read_model(file)
    network.reshape([-1 if size is None else size for size in shape])
    options = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
               "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = core().compile_model(network, "CPU", options)
    return lambda images: compiled(images)[0]


def _start_onnxruntime(file, _, threads, shape):
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]
