"""Training steps per second and peak memory: covidlib against keras.applications and PyTorch.

    python -m benchmarks.training      # 224 px, batch 16, all in turns; six minutes on 2 quiet cores, 21 GiB

Each training lives in a process of its own and does one step when it is asked to, so that no framework's threads
disturb another's and each process's peak resident memory is that of one training. A step is forward, backward and AdamW
on a constant batch. Networks of covidlib compute in their precision for this machine (`auto`). keras.applications is
taken as a Keras user gets it: ResNet50 in float32 with Keras's own normalisation and optimiser. PyTorch (extra `bench`,
left out where it is not installed): channels_last, fused AdamW, bfloat16 as autocast.

Writes training_<precision>_<framework>_<device>.csv and the targets (see `tables`). gmacs_per_second counts three times
the forward pass's multiply-accumulates, to be compared with inference_roofline_<device>.csv.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import numpy as np

from benchmarks import tables
from benchmarks.networks import APPLICATIONS, CLASSES, build
from covidlib.speed import memory, timing

TORCH = ("float32", "bfloat16")
Case = namedtuple("Case", "variant framework precision")


def cases():
    """All that are compared; the first three are those of the targets, with PyTorch's two."""
    from covidlib.models import resolve_precision

    own = resolve_precision()
    other = "mixed_bfloat16" if own == "float32" else "float32"
    found = [Case(APPLICATIONS, "tensorflow", "float32"), Case("resnet50", "tensorflow", own),
             Case("improved", "tensorflow", own), Case("improved_faithful", "tensorflow", own),
             Case("resnet50", "tensorflow", other)]
    if importlib.util.find_spec("torch"):
        return found + [Case("resnet50", "torch", precision) for precision in TORCH]
    print("PyTorch is not installed (extra `bench`): it is left out", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--case", nargs=3, help="be one of `cases`: a step for every line read")
    settings = parser.parse_args()
    if settings.case:
        return serve(Case(*settings.case), settings.batch, settings.image_size)
    running = {case: Training(case, settings.batch, settings.image_size) for case in cases()}
    try:
        seconds = timing.interleave({case: one.step for case, one in running.items()}, settings.rounds, warmup=2)
    finally:
        peaks = {case: one.close() for case, one in running.items()}
    rows = []
    for case, values in seconds.items():
        row = tables.rate(case.variant, "training step", settings.image_size, settings.batch, settings.batch / values,
                          case.precision, case.framework, peak_mib=round(peaks[case]))
        macs = complexity_of(case.variant, settings.image_size)
        rows.append(row | {"gmacs_per_second": 3 * row["images_per_second"] * macs / 1e9})
    tables.write(rows, "training", more=("peak_mib", "gmacs_per_second"))
    tables.write_targets(targets(seconds, peaks), "training")


class Training:
    """A training in a process of its own."""

    def __init__(self, case, batch, image_size):
        command = [sys.executable, "-m", "benchmarks.training", "--case", *case, "--batch", str(batch),
                   "--image-size", str(image_size)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        cwd=Path(__file__).parents[1])
        self._answer()

    def step(self):
        print(file=self.process.stdin, flush=True)
        self._answer()

    def close(self):
        """End it; its peak resident memory in MiB."""
        self.process.stdin.close()
        return float(self._answer())

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(self.process.args)} ended with status {self.process.wait()}")
        return line


def serve(case, batch, image_size):
    if case.framework == "torch":
        from benchmarks.torch_resnet import training_step

        step = training_step(batch, image_size, len(CLASSES), case.precision)
    else:
        step = keras_step(case, batch, image_size)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)
    print(memory.resident_peak(), flush=True)


def keras_step(case, batch, image_size):
    import keras

    from covidlib.training.optimizer import AdamW

    model = build(case.variant, image_size, case.precision)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *model.input_shape[1:])).astype("float32")
    labels = np.eye(len(CLASSES), dtype="float32")[rng.integers(0, len(CLASSES), batch)]
    optimizer = keras.optimizers.AdamW if case.variant == APPLICATIONS else AdamW
    model = keras.Model(model.inputs, model.outputs[0])
    model.compile(optimizer(1e-3, weight_decay=0.05), "categorical_crossentropy", metrics=["accuracy"],
                  jit_compile=False)
    return lambda: float(model.train_on_batch(images, labels)[0])


def complexity_of(variant, image_size):
    """Multiply-accumulates of one forward pass."""
    from covidlib.evaluation import complexity

    return complexity.count(build(variant, image_size, "float32")).macs


def targets(seconds, peaks):
    applications, resnet50, improved = list(seconds)[:3]
    torch = [case for case in seconds if case.framework == "torch"]
    ratios = [
        (f"resnet50 ({resnet50.precision}) / keras.applications ResNet50 (float32)", 2.6, resnet50, applications),
        *((f"resnet50 ({resnet50.precision}) / PyTorch ResNet50, channels_last, {case.precision}", 1, resnet50, case)
          for case in torch),
        (f"improved / resnet50 ({resnet50.precision})", 0.9, improved, resnet50),
        (f"improved ({resnet50.precision}) / keras.applications ResNet50 (float32)", 1.62, improved, applications),
    ]
    rows = [(statement, f">= {least}", timing.speedup(seconds[one], seconds[other]))
            for statement, least, one, other in ratios]
    pairs = [(case, other) for case in seconds for other in torch
             if case[:2] == ("resnet50", "tensorflow") and case.precision.removeprefix("mixed_") == other.precision]
    if torch:
        pairs.append((resnet50, min(torch, key=peaks.get)))
    return rows + [(f"peak memory of resnet50 / PyTorch's, {case.precision.removeprefix('mixed_')} against "
                    f"{other.precision}", "<= 1", peaks[case] / peaks[other]) for case, other in dict.fromkeys(pairs)]


if __name__ == "__main__":
    main()
