"""Training steps per second and peak memory: covidlib beside keras.applications and PyTorch, and its own roofline.

    python -m benchmarks.training      # 224 px, batch 16, sides interleaved; four minutes on 2 quiet cores

Each side lives in a process of its own and does one step when it is asked to, so that no framework's threads stand in
another's way, all take turns within one run, and each process's peak resident memory is that of one training. A step is
forward, backward and AdamW on a constant batch. keras.applications is taken as a Keras user gets it: ResNet50 in
float32 with Keras's own normalisation and optimiser. PyTorch: channels_last, bfloat16 autocast, fused AdamW.
Writes training_<precision>_<framework>_<device>.csv and training_bars_<device>.csv; gmacs_per_second counts three times
the forward pass's multiply-accumulates, to be held beside inference_roofline_<device>.csv.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import tables
from covidlib import memory, provenance, timing

COMMAND = "python -m benchmarks.training"
CLASSES = ("covid", "viral", "normal")
SIDES = {  # name: (framework, precision)
    "keras.applications": ("tensorflow", "float32"),
    "resnet50": ("tensorflow", "mixed_bfloat16"),
    "improved": ("tensorflow", "mixed_bfloat16"),
    "improved_faithful": ("tensorflow", "mixed_bfloat16"),
    "resnet50 in float32": ("tensorflow", "float32"),
    "pytorch": ("torch", "bfloat16"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help="be that side: a step for every line read")
    settings = parser.parse_args()
    if settings.side:
        return serve(settings.side, settings.batch, settings.image_size)
    sides = {name: Side(name, settings.batch, settings.image_size) for name in SIDES}
    try:
        seconds = timing.interleave({name: side.step for name, side in sides.items()}, settings.rounds, warmup=2)
    finally:
        memories = {name: side.close() for name, side in sides.items()}
    rows = []
    for name, taken in seconds.items():
        framework, precision = SIDES[name]
        rate, q1, q3 = timing.quartiles(settings.batch / taken)
        rows.append({"variant": name, "harness": "training step", "image_size": settings.image_size,
                     "batch": settings.batch, "threads": provenance.threads(), "images_per_second": rate, "q1": q1,
                     "q3": q3, "rounds": settings.rounds, "precision": precision, "framework": framework,
                     "peak_mib": round(memories[name]), "gmacs_per_second": 3 * rate * macs(name, settings.image_size)})
    tables.write(rows, "training", more=("peak_mib", "gmacs_per_second"))
    tables.write_bars(bars(seconds, memories), "training", COMMAND)


class Side:
    """A training in a process of its own."""

    def __init__(self, name, batch, image_size):
        command = [sys.executable, "-m", "benchmarks.training", "--side", name, "--batch", str(batch),
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


def serve(name, batch, image_size):
    step = torch_step(batch, image_size) if name == "pytorch" else keras_step(name, batch, image_size)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(step(), flush=True)
    print(memory.resident_peak(), flush=True)


def torch_step(batch, image_size):
    from benchmarks.torch_resnet import training_step

    return training_step(batch, image_size, len(CLASSES))


def keras_step(name, batch, image_size):
    import keras

    from covidlib.optimizer import AdamW

    model = build(name, image_size)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *model.input_shape[1:])).astype("float32")
    labels = np.eye(len(CLASSES), dtype="float32")[rng.integers(0, len(CLASSES), batch)]
    kind = keras.optimizers.AdamW if name == "keras.applications" else AdamW
    trainer = keras.Model(model.inputs, model.outputs[0])
    trainer.compile(kind(1e-3, weight_decay=0.05), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return lambda: float(trainer.train_on_batch(images, labels)[0])


def build(name, image_size):
    import keras

    from covidlib.models import build_classifier

    if name == "keras.applications":
        return keras.applications.ResNet50(weights=None, classes=len(CLASSES), input_shape=(image_size, image_size, 3))
    variant = name.removesuffix(" in float32")
    return build_classifier(variant, CLASSES, image_size, precision=SIDES[name][1])


def macs(name, image_size):
    """Of one forward pass, in thousands of millions."""
    from covidlib import complexity

    return complexity.count(build("resnet50" if name == "pytorch" else name, image_size)).macs / 1e9


def bars(seconds, memories):
    def faster(one, other):
        return timing.speedup(seconds[one], seconds[other])

    share = memories["resnet50"] / memories["pytorch"]
    return [
        ("resnet50 / keras.applications ResNet50 in float32", 2.6, faster("resnet50", "keras.applications")),
        ("resnet50 / PyTorch ResNet50, channels_last, bfloat16", 1.0, faster("resnet50", "pytorch")),
        ("improved / resnet50", 0.9, faster("improved", "resnet50")),
        ("improved / keras.applications ResNet50 in float32", 1.62, faster("improved", "keras.applications")),
        ("peak memory of resnet50 / PyTorch's", tables.AtMost(1.0), (share, share, share)),
    ]


if __name__ == "__main__":
    main()
