"""Images per second in inference: Keras as one calls it, exported networks, ONNX Runtime; and the roofline.

    python -m benchmarks.inference    # 224 px, batch 1 and 16, all in turns; 6 minutes on 2 quiet cores

Writes (see `tables`) inference_<precision>_<framework>_<device>.csv, the targets, and inference_roofline_<device>.csv:
what this machine reaches in large matrix products and in copying with one thread, which share of the former each
exported network reaches, and its multiply-accumulates for every byte that it has to move.

The harnesses are those of `covidlib.speed.harness`. Keras computes the networks of covidlib in their precision for this
machine (`auto`) and keras.applications in float32. Weights are random, with random statistics: time does not depend on
them.
"""

import argparse
import contextlib
import io
import logging
import math
import os
import tempfile
from collections import namedtuple
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import keras
import numpy as np

from benchmarks import tables
from benchmarks.networks import APPLICATIONS, CLASSES, build
from covidlib.evaluation import complexity
from covidlib.models import resolve_precision
from covidlib.speed import export, harness, timing
from covidlib.utils import provenance

EXPORTED = ("resnet50", "improved", "improved_faithful")
ONNX = ("resnet50", "improved")
LOOP, ROOFLINE = harness.LOOP, "roofline"
SIDE, COPIED = 1536, 2**27  # of the matrices that are multiplied; bytes that are copied
Case = namedtuple("Case", "framework variant harness precision batch")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=10)
    settings = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of a new trace for every batch size
    models = {name: randomised(build(name, settings.image_size)) for name in EXPORTED}
    models[APPLICATIONS] = build(APPLICATIONS, settings.image_size, "float32")
    with tempfile.TemporaryDirectory() as folder:
        calls = of_keras(models, settings.batches) | of_exports(models, Path(folder), settings.batches) | ceilings()
        seconds = harness.measure(calls, settings.rounds, least=0.12)
    rates = {case: 1 / values for case, values in seconds.items()}
    tables.write([tables.rate(case.variant, case.harness, settings.image_size, case.batch, values, case.precision,
                              case.framework) for case, values in rates.items() if case.framework != ROOFLINE],
                 "inference")
    tables.write_targets(targets(rates), "inference")
    roofline(rates, models)


def randomised(model):
    """`model` with random statistics, so that no runtime finds a normalisation or a block that does nothing."""
    rng = np.random.default_rng(0)
    spread = {"moving_mean": (-0.2, 0.2), "moving_variance": (0.5, 1.5), "gamma": (0.5, 1.5), "beta": (-0.2, 0.2)}
    for variable in model.variables:
        if variable.name in spread:
            variable.assign(rng.uniform(*spread[variable.name], variable.shape))
    return model


def of_keras(models, batches):
    """Case -> a function of one call: Keras's ways."""
    own = resolve_precision().removeprefix("mixed_")
    return {Case(keras.backend.backend(), name, case.harness, case.precision, case.batch): call
            for name, precision in ((APPLICATIONS, "float32"), ("resnet50", own), ("improved", own))
            for case, call in harness.keras_cases(name, models[name], precision, batches).items()}


def of_exports(models, folder, batches):
    """Case -> a function of one call: OpenVINO in every precision, and ONNX Runtime. The exports lie in `folder`."""
    size = models["resnet50"].input_shape[1]
    slices = np.random.default_rng(0).integers(0, 256, (max(export.FEWEST, *batches), size, size), np.uint8)
    calls = {}
    for name in EXPORTED:
        export.write(models[name], folder / name, CLASSES, calibration=slices, onnx=name in ONNX)
        runtimes = [("openvino", precision) for precision in export.PRECISIONS]
        for runtime, precision in runtimes + [("onnxruntime", "float32")] * (name in ONNX):
            for batch in batches:
                network = export.load(folder / name, precision, runtime, batch=batch)
                calls[Case(runtime, name, harness.EXPORTED, precision, batch)] = partial(network, slices[:batch])
    return calls


def targets(rates):
    """Ratios at batch 1, each within its round."""
    def rate(framework, precision, variant, kind=harness.EXPORTED):
        return rates[Case(framework, variant, kind, precision, 1)]

    own, framework = resolve_precision().removeprefix("mixed_"), keras.backend.backend()
    improved = {precision: rate("openvino", precision, "improved") for precision in export.PRECISIONS}
    best = max(improved, key=lambda precision: np.median(improved[precision]))
    name, onnxruntime = f"exported improved ({best})", rate("onnxruntime", "float32", "improved")
    ratios = [
        (f"{name} / predict loop of resnet50 ({own})", 25, improved[best], rate(framework, own, "resnet50", LOOP)),
        (f"{name} / predict loop of keras.applications ResNet50 (float32)", 25, improved[best],
         rate(framework, "float32", APPLICATIONS, LOOP)),
        *((f"exported improved / exported resnet50, {precision}", 0.9, improved[precision],
           rate("openvino", precision, "resnet50")) for precision in export.PRECISIONS),
        ("exported improved, int8 / bfloat16", 1.4, improved["int8"], improved["bfloat16"]),
        ("exported improved / ONNX Runtime, float32", 2, improved["float32"], onnxruntime),
        (f"{name} / ONNX Runtime (float32)", 2, improved[best], onnxruntime)]
    return [(statement, f">= {least}", timing.quartiles(one / other)) for statement, least, one, other in ratios]


def roofline(rates, models):
    """What this machine reaches, and the share of it, round by round, that every exported network reaches."""
    rows, products = [], {}
    for case, values in rates.items():
        if case.framework == ROOFLINE:
            copies = case.precision == ""
            giga = values * (2 * COPIED if copies else SIDE**3) / 1e9
            rows.append({"what": f"{case.variant} {case.precision}".strip(), "giga_per_second": np.median(giga),
                         "unit": "B" if copies else "MAC"})
            products[case.precision] = giga
    for case, values in rates.items():
        if case.framework == "openvino":
            counted = complexity.count(models[case.variant])
            giga = values * counted.macs / 1e9
            rows.append({"what": f"{case.variant}, {case.precision}", "batch": case.batch, "unit": "MAC",
                         "giga_per_second": np.median(giga), "share": np.median(giga / products[case.precision]),
                         "macs_per_byte": counted.macs / traffic(counted, case.precision, case.batch)})
    tables.save(f"inference_roofline_{tables.device()}.csv", rows,
                ["what", "batch", "giga_per_second", "unit", "share", "macs_per_byte", "date"])


def traffic(counted, precision, batch):
    """Bytes that a slice of a batch moves at least: each weight read, each product's output written and read, once."""
    outputs = sum(math.prod(map(int, row["output"].split("x"))) for row in counted.layers if row["macs"])
    return (counted.parameters / batch + 2 * outputs) * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]


def ceilings():
    """Case -> a function of one product of two matrices in OpenVINO, by precision, or of one copy of COPIED bytes."""
    factor = np.random.default_rng(0).uniform(-1, 1, (SIDE, SIDE)).astype("float32")
    source = np.ones(COPIED, np.uint8)
    calls = {Case(ROOFLINE, "matrix product,", "", precision, 1): product(factor, precision)
             for precision in export.PRECISIONS}
    return calls | {Case(ROOFLINE, "memory copy, read and written", "", "", 1):
                    partial(np.copyto, np.empty_like(source), source)}


def product(factor, precision):
    """A function that multiplies a float32 matrix by a constant one in OpenVINO, in `precision` inside."""
    core = export.core()
    import nncf
    import openvino
    from openvino import opset13 as ops

    left = ops.parameter(factor.shape, np.float32)
    network = openvino.Model([ops.matmul(left, ops.constant(factor), False, True)], [left])
    if precision == "int8":
        with contextlib.redirect_stdout(io.StringIO()):
            network = nncf.quantize(network, nncf.Dataset([factor] * 2), subset_size=2)
    request = core.compile_model(network, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": provenance.threads()}).create_infer_request()
    request.set_input_tensor(openvino.Tensor(factor))
    return request.infer


if __name__ == "__main__":
    main()
