"""Images per second in inference: Keras as one calls it, exported networks, ONNX Runtime, PyTorch; and the roofline.

    python -m benchmarks.inference    # 224 px, batch 1 and 16, all sides interleaved; 6 minutes on 2 quiet cores

Writes (see `tables`) inference_<precision>_<framework>_<device>.csv, the bars, and inference_roofline_<device>.csv:
what this machine reaches in large matrix products and in copying with one thread (medians in the same rounds), which
share of the former each exported network does, and its multiply-accumulates for every byte that it has to move.

Harnesses: "predict loop" calls `model.predict` for every batch, as a script would and as the paper's probably did;
"predict_on_batch" and "compiled call" are Keras's other ways; "exported" is `covidlib.speed.export`; "frozen trace" is
PyTorch's, of the same network with the same weights, in a process of its own (`torch_graph`). Keras computes the
networks of covidlib in its precision for this machine (`auto`) and keras.applications in float32. Weights are random,
with random statistics: time does not depend on them, and what int8 costs in accuracy is measured by `quantisation`.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import math
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import keras
import numpy as np

from benchmarks import tables
from covidlib.evaluation import complexity
from covidlib.models import build_classifier, resolve_precision
from covidlib.speed import export, timing
from covidlib.speed.harness import compiled
from covidlib.utils import provenance

COMMAND = "python -m benchmarks.inference"
CLASSES = ("covid", "viral", "normal")
EXPORTED = ("resnet50", "improved", "improved_faithful")
APPLICATIONS = "keras.applications"
AGREE = {"float32": 1e-3, "bfloat16": 0.05}  # in probability
LEAST = 0.12  # seconds of a sample
SIDE, COPIED = 1536, 2**27
WORK = dict.fromkeys(export.PRECISIONS, SIDE**3) | {"copy": 2 * COPIED}  # MACs, and bytes read and written


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=10)
    settings = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of a new trace for every batch size
    models = {name: varied(build_classifier(name, CLASSES, settings.size)) for name in EXPORTED}
    models[APPLICATIONS] = keras.applications.ResNet50(
        weights=None, classes=len(CLASSES), input_shape=(settings.size, settings.size, 3))
    rates, ceiling, rows = {}, {}, []
    with tempfile.TemporaryDirectory() as place:
        for name in EXPORTED:
            slices = np.random.default_rng(0).integers(0, 256, (export.FEWEST, *[settings.size] * 2), dtype=np.uint8)
            export.write(models[name], Path(place, name), CLASSES, calibration=slices,
                         onnx=name != "improved_faithful")
        for batch in settings.batches:
            with of_torch(models["improved"], Path(place), batch, settings.size) as tasks:
                tasks = tasks | sides(models, Path(place), batch, settings.size)
                found = measure(tasks | ceilings(), batch, settings.rounds)
            rates |= {key: found[key] for key in tasks}
            ceiling[batch] = {what: work * found[what] / batch / 1e9 for what, work in WORK.items()}
    for (batch, framework, precision, variant, harness), samples in rates.items():
        median, q1, q3 = timing.quartiles(samples)
        rows.append({"variant": variant, "harness": harness, "image_size": settings.size, "batch": batch,
                     "threads": provenance.threads(), "images_per_second": median, "q1": q1, "q3": q3,
                     "rounds": settings.rounds, "precision": precision, "framework": framework})
    tables.write(rows, "inference")
    tables.write_bars(bars(rates), "inference", COMMAND)
    roofline(rates, ceiling, models)


def varied(model):
    """`model` with random statistics, so that no runtime finds a normalisation or a block that does nothing."""
    rng = np.random.default_rng(0)
    spread = {"moving_mean": (-0.2, 0.2), "moving_variance": (0.5, 1.5), "gamma": (0.5, 1.5), "beta": (-0.2, 0.2)}
    for variable in model.variables:
        if variable.name in spread:
            variable.assign(rng.uniform(*spread[variable.name], variable.shape))
    return model


def sides(models, place, batch, size):
    """(batch, framework, precision, variant, harness) -> a function of one call, for all that is compared."""
    images, tasks = pictures(batch, size), {}
    for name in (APPLICATIONS, "resnet50", "improved"):
        tasks |= of_keras(models[name], name, batch, images.astype("float32"))
    for name in EXPORTED:
        for precision in export.PRECISIONS:
            tasks[batch, "openvino", precision, name, "exported"] = bind(
                export.load(place / name, precision, batch=batch), images)
    for name in ("resnet50", "improved"):
        tasks[batch, "onnxruntime", "float32", name, "exported"] = bind(
            export.load(place / name, runtime="onnxruntime", batch=batch), images)
    return tasks


def pictures(batch, size):
    return np.random.default_rng(1).integers(0, 256, (batch, size, size, 1), dtype=np.uint8)


def of_keras(model, name, batch, images):
    precision = "float32" if name == APPLICATIONS else resolve_precision().removeprefix("mixed_")
    images = np.repeat(images, model.input_shape[3], axis=3)
    ways = {"predict loop": lambda: model.predict(images, verbose=0)}
    if name != APPLICATIONS:
        ways["predict_on_batch"] = lambda: model.predict_on_batch(images)
        ways["compiled call"] = bind(compiled(model), images)
    framework = keras.backend.backend()
    return {(batch, framework, precision, name, way): function for way, function in ways.items()}


@contextlib.contextmanager
def of_torch(model, place, batch, size):
    """The tasks of PyTorch, in a process each (see torch_graph)."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (extra `bench`): its side is left out", flush=True)
        yield {}
        return
    from benchmarks.torch_graph import Elsewhere

    images = pictures(batch, size)
    np.save(place / "images.npy", images)
    model.save(place / "model.keras")
    expected = export.load(place / "improved", batch=batch)(images)
    sides = {name: Elsewhere(place / "model.keras", name, place / "images.npy") for name in ("float32", "bfloat16")}
    try:
        for name, side in sides.items():
            difference = np.abs(side.probabilities.reshape(expected.shape) - expected).max()
            print(f"PyTorch's probabilities in {name} are within {difference:.1g} of the exported ones", flush=True)
            if difference > AGREE[name]:
                raise ArithmeticError(f"PyTorch's network in {name} is another one: it differs by {difference}")
        yield {(batch, "torch", name, "improved", "frozen trace"): side for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.close()


def bind(function, images):
    return lambda: function(images)


def measure(tasks, batch, rounds):
    """Images per second of every task in every round: dict of arrays (rounds,)."""
    calls = {}
    for key, task in tasks.items():
        for _ in range(2):
            start = time.perf_counter()
            task()
            calls[key] = max(1, int(np.ceil(LEAST / (time.perf_counter() - start))))
    repeated = {key: repeat(task, calls[key]) for key, task in tasks.items()}
    seconds = timing.interleave(repeated, rounds)
    return {key: calls[key] * batch / taken for key, taken in seconds.items()}


def repeat(task, times):
    def run():
        for _ in range(times):
            task()
    return run


def bars(rates):
    """Ratios at batch 1, each within its round."""
    def of(framework, precision, variant, harness="exported"):
        return rates.get((1, framework, precision, variant, harness))

    def against(one, other):
        return None if one is None or other is None else timing.quartiles(one / other)

    def best(framework, variant, harness="exported"):
        known = [(np.median(samples), key[2], samples) for key, samples in rates.items()
                 if (key[0], key[1], key[3], key[4]) == (1, framework, variant, harness)]
        return max(known, key=lambda one: one[0])[1:] if known else ("", None)

    precision, exported = best("openvino", "improved")
    keras_precision, framework = resolve_precision().removeprefix("mixed_"), keras.backend.backend()
    name = f"exported improved ({precision})"
    rows = [(f"{name} / predict loop of resnet50 ({keras_precision})", 25,
             against(exported, of(framework, keras_precision, "resnet50", "predict loop"))),
            (f"{name} / predict loop of keras.applications ResNet50 (float32)", 25,
             against(exported, of(framework, "float32", APPLICATIONS, "predict loop")))]
    ours = {kind: of("openvino", kind, "improved") for kind in export.PRECISIONS}
    rows += [(f"exported improved / exported resnet50, {kind}", 0.9, against(rate, of("openvino", kind, "resnet50")))
             for kind, rate in ours.items()]
    rows.append(("exported improved, int8 / bfloat16", 1.4, against(ours["int8"], ours["bfloat16"])))
    for title, peer, harness in (("ONNX Runtime", "onnxruntime", "exported"), ("PyTorch", "torch", "frozen trace")):
        rows += [(f"exported improved / {title}, {kind}", 2,
                  against(ours[kind], of(peer, kind, "improved", harness)))
                 for kind in ("float32", "bfloat16") if peer == "torch" or kind == "float32"]
        kind, samples = best(peer, "improved", harness)
        rows.append((f"{name} / {title}'s best ({kind})", 2, against(exported, samples)))
    return rows


def roofline(rates, ceiling, models):
    """Ceilings of this machine and the share of them, round by round, that every exported network reaches."""
    table = []
    for batch, peaks in ceiling.items():
        for what, samples in peaks.items():
            name = "memory copy, read and written" if what == "copy" else f"matrix product, {what}"
            table.append({"what": name, "batch": batch, "giga_per_second": np.median(samples),
                          "unit": "B" if what == "copy" else "MAC"})
    for (batch, framework, precision, variant, _), samples in rates.items():
        if framework == "openvino":
            counted = complexity.count(models[variant])
            reached = samples * counted.macs / 1e9
            table.append({"what": f"{variant}, {precision}", "batch": batch, "giga_per_second": np.median(reached),
                          "unit": "MAC", "share": np.median(reached / ceiling[batch][precision]),
                          "macs_per_byte": counted.macs / traffic(counted, precision, batch)})
    tables.save(f"inference_roofline_{tables.device()}.csv", table,
                ["what", "batch", "giga_per_second", "unit", "share", "macs_per_byte", "date"], 3)


def traffic(counted, precision, batch):
    """Bytes that a slice of a batch moves at least: each weight read, each product's output written and read, once."""
    outputs = sum(math.prod(map(int, row["output"].split("x"))) for row in counted.layers if row["macs"])
    return (counted.parameters / batch + 2 * outputs) * {"float32": 4, "bfloat16": 2, "int8": 1}[precision]


def ceilings():
    """Functions of one product of two SIDE x SIDE matrices in OpenVINO, by precision, and "copy", of 128 MiB."""
    factor = np.random.default_rng(0).uniform(-1, 1, (SIDE, SIDE)).astype("float32")
    source = np.ones(COPIED, np.uint8)
    target = np.empty_like(source)
    return {name: product(factor, name) for name in export.PRECISIONS} | {"copy": lambda: np.copyto(target, source)}


def product(factor, precision):
    """A function that multiplies a float32 matrix by a constant one in OpenVINO, in `precision` inside."""
    core = export.core()
    import openvino
    from openvino import opset13 as ops

    size = len(factor)
    left = ops.parameter([size, size], np.float32)
    network = openvino.Model([ops.matmul(left, ops.constant(factor), False, True)], [left])
    if precision == "int8":
        import nncf

        with contextlib.redirect_stdout(io.StringIO()):
            network = nncf.quantize(network, nncf.Dataset([factor] * 2), subset_size=2)
    hint = "bf16" if precision == "bfloat16" else "f32"
    compiled_product = core.compile_model(network, "CPU", {
        "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": provenance.threads()})
    request = compiled_product.create_infer_request()
    request.set_input_tensor(openvino.Tensor(factor))
    return request.infer


if __name__ == "__main__":
    main()
