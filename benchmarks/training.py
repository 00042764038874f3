"""Training steps per second and peak memory: covidlib beside keras.applications and PyTorch, and its own roofline.

    python -m benchmarks.training      # 224 px, batch 16, sides interleaved; six minutes on 2 quiet cores

Each side lives in a process of its own and does one step when it is asked to, so that no framework's threads stand in
another's way, all take turns within one run, and each process's peak resident memory is that of one training. Together
they take 21 GiB. A step is forward, backward and AdamW on a constant batch. Networks of covidlib compute in their
precision for this machine (`auto`). keras.applications is taken as a Keras user gets it: ResNet50 in float32 with
Keras's own normalisation and optimiser. PyTorch: channels_last, fused AdamW, bfloat16 as autocast.
Writes training_<precision>_<framework>_<device>.csv and training_bars_<device>.csv; gmacs_per_second counts three times
the forward pass's multiply-accumulates, to be held beside inference_roofline_<device>.csv.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # of the processor; of a GPU: benchmarks.gpu

import numpy as np

from benchmarks import tables
from covidlib.speed import memory, timing
from covidlib.utils import provenance

COMMAND = "python -m benchmarks.training"
CLASSES = ("covid", "viral", "normal")
APPLICATIONS = "keras.applications"
TENSORFLOW, TORCH = ("float32", "mixed_bfloat16"), ("float32", "bfloat16")


def sides():
    """(variant, framework, precision) of all; the first three are those of the bars, with PyTorch's two."""
    from covidlib.models import resolve_precision

    own = resolve_precision()
    other = next(precision for precision in TENSORFLOW if precision != own)
    return [(APPLICATIONS, "tensorflow", "float32"), ("resnet50", "tensorflow", own), ("improved", "tensorflow", own),
            ("improved_faithful", "tensorflow", own), ("resnet50", "tensorflow", other),
            *(("resnet50", "torch", precision) for precision in TORCH)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--side", nargs=3, help="be one of `sides`: a step for every line read")
    settings = parser.parse_args()
    if settings.side:
        return serve(*settings.side, settings.batch, settings.image_size)
    working = {key: Side(key, settings.batch, settings.image_size) for key in sides()}
    try:
        seconds = timing.interleave({key: side.step for key, side in working.items()}, settings.rounds, warmup=2)
    finally:
        memories = {key: side.close() for key, side in working.items()}
    rows = []
    for key, taken in seconds.items():
        name, framework, precision = key
        rate, q1, q3 = timing.quartiles(settings.batch / taken)
        rows.append({"variant": name, "harness": "training step", "image_size": settings.image_size,
                     "batch": settings.batch, "threads": provenance.threads(), "images_per_second": rate, "q1": q1,
                     "q3": q3, "rounds": settings.rounds, "precision": precision, "framework": framework,
                     "peak_mib": round(memories[key]), "gmacs_per_second": 3 * rate * macs(name, settings.image_size)})
    tables.write(rows, "training", more=("peak_mib", "gmacs_per_second"))
    tables.write_bars(bars(seconds, memories), "training", COMMAND)


class Side:
    """A training in a process of its own."""

    def __init__(self, key, batch, image_size):
        command = [sys.executable, "-m", "benchmarks.training", "--side", *key, "--batch", str(batch),
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


def serve(name, framework, precision, batch, image_size):
    if framework == "torch":
        from benchmarks.torch_resnet import training_step

        step = training_step(batch, image_size, len(CLASSES), precision)
    else:
        step = keras_step(name, precision, batch, image_size)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)
    print(memory.resident_peak(), flush=True)


def keras_step(name, precision, batch, image_size):
    import keras

    from covidlib.training.optimizer import AdamW

    model = build(name, image_size, precision)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *model.input_shape[1:])).astype("float32")
    labels = np.eye(len(CLASSES), dtype="float32")[rng.integers(0, len(CLASSES), batch)]
    kind = keras.optimizers.AdamW if name == APPLICATIONS else AdamW
    trainer = keras.Model(model.inputs, model.outputs[0])
    trainer.compile(kind(1e-3, weight_decay=0.05), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return lambda: float(trainer.train_on_batch(images, labels)[0])


def build(name, image_size, precision):
    import keras

    from covidlib.models import build_classifier

    if name == APPLICATIONS:
        return keras.applications.ResNet50(weights=None, classes=len(CLASSES), input_shape=(image_size, image_size, 3))
    return build_classifier(name, CLASSES, image_size, precision=precision)


def macs(name, image_size):
    """Of one forward pass, in thousands of millions."""
    from covidlib.evaluation import complexity

    return complexity.count(build(name, image_size, "float32")).macs / 1e9


def bars(seconds, memories):
    applications, resnet50, improved = list(seconds)[:3]
    found = [
        (f"resnet50 ({resnet50[2]}) / keras.applications ResNet50 (float32)", 2.6, resnet50, applications),
        *((f"resnet50 ({resnet50[2]}) / PyTorch ResNet50, channels_last, {key[2]}", 1.0, resnet50, key)
          for key in seconds if key[1] == "torch"),
        (f"improved / resnet50 ({resnet50[2]})", 0.9, improved, resnet50),
        (f"improved ({resnet50[2]}) / keras.applications ResNet50 (float32)", 1.62, improved, applications),
    ]
    rows = [(name, wanted, timing.speedup(seconds[one], seconds[other])) for name, wanted, one, other in found]
    theirs = {key[2]: peak for key, peak in memories.items() if key[1] == "torch"}
    shares = {f"{key[2].removeprefix('mixed_')} in both": peak / theirs[key[2].removeprefix("mixed_")]
              for key, peak in memories.items() if key[:2] == ("resnet50", "tensorflow")}
    shares[f"{resnet50[2]} beside {min(theirs, key=theirs.get)}"] = memories[resnet50] / min(theirs.values())
    rows += [(f"peak memory of resnet50 / PyTorch's, {name}", tables.AtMost(1.0), (share,) * 3)
             for name, share in shares.items()]
    return rows


if __name__ == "__main__":
    main()
