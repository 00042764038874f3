"""A trained network as somebody asks it who looks at a scan: probabilities, Grad-CAM and attention from one graph.

    python -m covidlib.predict.explained runs/phantom/quick/improved/seed-0    # made ahead; else when first asked

`make` exports the network to OpenVINO with the maps of `explain` as outputs beside the probabilities, so that answers
come without Keras and in milliseconds. Files: `<dataset>/<profile>/answers/<variant>-seed-<k>/` beside the runs.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from filelock import FileLock

from covidlib.evaluation import calibration, explain
from covidlib.preprocessing import quality
from covidlib.speed import export
from covidlib.training import runs
from covidlib.utils import provenance

FILE, FACTS = "network.xml", "network.json"
BATCH = 16  # slices at a time of a series


def folder(run_dir):
    """Where the network of a run directory is exported to."""
    run_dir = Path(run_dir).absolute()
    return run_dir.parents[1] / "answers" / f"{run_dir.parent.name}-{run_dir.name}"


def is_made(run_dir):
    """Whether the export is there, and of the weights that the run holds now."""
    own = folder(run_dir)
    try:
        made, held = runs.read_json(own / FACTS), runs.read_json(Path(run_dir, "run.json"))
        same = made["weights_sha256"] == held["model"]["weights_sha256"]
    except (OSError, ValueError, KeyError):
        return False
    return same and all((own / FILE).with_suffix(end).is_file() for end in (".xml", ".bin"))


def make(run_dir):
    """Export the network of a run directory, unless that is done. Returns the folder, which appears whole or not.

    Raises FileNotFoundError where there is no finished run, ValueError for a network whose maps `explain` cannot tell.
    """
    run, target = runs.read_run(run_dir), folder(run_dir)
    if not (run.path / "model.keras").is_file():
        raise FileNotFoundError(f"no model.keras in {run_dir}: train it with notebook 03_training")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # another page may be at it
        return target if is_made(run_dir) else _make(run, target)


def _make(run, target):
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".answers.") as place:
        ready = Path(place, "ready")
        ready.mkdir()
        told = _write(run, ready) | facts(run)
        runs.write_json(ready / FACTS, told)
        shutil.rmtree(target, ignore_errors=True)
        ready.replace(target)
    return target


def _write(run, ready):
    """Write the graph; which outputs are what."""
    import keras
    from keras import ops

    if not explain.explains(run.variant):
        raise ValueError(f"maps of {run.variant} are not told: choose a network on ResNet-50. Received: {run.path}")
    single = export.with_float32_layers(run.model)
    names = explain.levels(single)
    blocks = [layer.name.removesuffix("_weights") for layer in single.layers if layer.name.endswith("_weights")]
    kernel = ops.convert_to_numpy(single.get_layer("logits").kernel)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    reader = keras.Model(single.input, [single.outputs[0], *(single.get_layer(name).output for name in names),
                                        *(single.get_layer(f"{name}_weights").output for name in blocks)])
    inputs = keras.Input(single.input_shape[1:], dtype="uint8", name="slice")
    scores, *found = reader(ops.cast(inputs, "float32"))
    maps, first = [], 0
    for feature in found[: len(names)]:
        height, width, channels = feature.shape[1:]
        own = kernel[first : first + channels] / (height * width)
        first += channels
        maps.append(ops.matmul(feature, own))  # (B, h, w, classes)
    outputs = [scores, *maps, *found[len(names):]]
    serving = keras.Model(inputs, outputs)
    example = np.random.default_rng(0).integers(0, 256, (2, *inputs.shape[1:]), np.uint8)
    wanted = [ops.convert_to_numpy(output) for output in serving(example)]
    export.convert(serving, ready / "converted.xml")
    order = _keep(ready / "converted.xml", ready / FILE, example, wanted)
    return {
        "outputs": order, "levels": names,
        "blocks": [{"name": name, "queries": list(single.get_layer(name).output.shape[1:3]),
                    "keys": list(single.get_layer(f"{name}_key").output.shape[1:3])} for name in blocks],
    }


def _keep(converted, target, example, wanted):
    """Save the converted graph; for each wanted output the place among the graph's own, found by its values.

    The converter may change their order, and adds shapes that nobody reads.
    """
    openvino = export._openvino()
    network = export.core().read_model(converted)
    for result in network.results:
        if result.output(0).element_type != openvino.Type.f32:
            network.remove_result(result)
    network.validate_nodes_and_infer_types()
    found = list(export.core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(example).values())
    order = []
    for values in wanted:
        gaps = [np.abs(other - values).max() / (np.abs(values).max() + 1e-9) if other.shape == values.shape else np.inf
                for other in found]
        order.append(int(np.argmin(gaps)))
        if min(gaps) > 0.01:
            raise ValueError(f"the exported network answers otherwise than the trained one (by {min(gaps):.3f})")
    openvino.save_model(network, target, compress_to_fp16=False)
    del network
    for file in (converted, converted.with_suffix(".bin")):
        file.unlink()
    return order


def facts(run):
    """What is told of the network of a run beside its answers: what it is, was trained on, and is worth."""
    from covidlib.evaluation import metrics

    test = run.predictions[run.predictions["split"] == "test"]
    temperature = run.temperature if np.isfinite(run.temperature) else None
    truth, _, scores = metrics.decide(test, run.classes)
    scaled = calibration.scale(scores, temperature) if temperature and len(test) else scores
    parameters = run.parameters
    return {
        "variant": run.variant, "seed": run.seed, "dataset": run.dataset, "profile": run.profile,
        "classes": list(run.classes), "image_size": parameters["image_size"], "epochs": len(run.history),
        "start": parameters.get("weights") or "none", "synthetic": run.dataset == "phantom",
        "temperature": temperature,
        "calibration_error": calibration.expected_error(truth, scaled) if len(test) else None,
        "test": run.metrics.get("test") and {
            name: run.metrics["test"][name] for name in ("n", "patients", "accuracy", "accuracy_interval")},
        "typical": _typical(run), "weights_sha256": run.content["model"]["weights_sha256"],
        "packages": provenance.packages(),
    }


def slices_of(run):
    """(datasets.Source, uint8 (N, S, S)) of what a run was trained and tested on, or None where it is not at hand."""
    from covidlib import datasets
    from covidlib.datasets import decode

    try:
        source = datasets.open_saved(run.home)
        return source, decode.load_images(source, run.parameters["image_size"], run.home / "cache")
    except (OSError, ValueError, datasets.DataError):
        return None


def describe(network):
    """One sentence: which network answers, trained on what, and what it reached there."""
    start = "" if network.start == "none" else f", start: {network.start} weights"
    text = (f"{network.variant}, seed {network.seed}, trained on {network.dataset} ({network.profile}, "
            f"{network.epochs} epochs, {network.image_size} px{start})")
    if network.synthetic:
        text += ". Its slices were drawn, not scanned: what it says of a patient means nothing"
    if network.test:
        low, high = network.test["accuracy_interval"]
        right, number = network.test["accuracy"], network.test["n"]
        text += f". Right on {right:.0%} of its {number} test slices ({low:.0%} to {high:.0%})"
    return text + "."


def _typical(run):
    """quality.feature_ranges of the training slices, None where they are not at hand."""
    found = slices_of(run)
    if found is None:
        return None
    source, images = found
    return quality.feature_ranges(images[np.flatnonzero(source.manifest["split"] == "train")])


class Answerer:
    """An exported network: `answerer(image)`. Attributes are those of network.json, `classes` and `levels` tuples."""

    def __init__(self, folder):
        facts = json.loads(Path(folder, FACTS).read_text(encoding="utf-8"))
        for name, value in facts.items():
            setattr(self, name, tuple(value) if name in ("classes", "levels") else value)
        self._network = export.core().read_model(Path(folder, FILE))
        self._compiled = {}

    def _ask(self, images):
        batch = len(images)
        if batch not in self._compiled:
            network = self._network.clone()
            network.reshape([batch, self.image_size, self.image_size, 1])
            options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
                       "INFERENCE_NUM_THREADS": provenance.threads()}
            self._compiled[batch] = export.core().compile_model(network, "CPU", options)
        found = list(self._compiled[batch](np.ascontiguousarray(images)[..., None]).values())
        return [found[place] for place in self.outputs]

    def __call__(self, image):
        """An Answer to one harmonised slice, uint8 (S, S)."""
        scores, *rest = (output[0] for output in self._ask(image[None]))
        maps = dict(zip(self.levels, rest, strict=False))
        attention = {block["name"]: weights for block, weights in zip(self.blocks, rest[len(maps):], strict=True)}
        return Answer(self, scores, maps, attention)

    def probabilities(self, images):
        """float32 (N, classes), scaled by the temperature, of harmonised slices uint8 (N, S, S)."""
        parts = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            full = np.zeros((BATCH, *part.shape[1:]), np.uint8)
            full[: len(part)] = part
            parts.append(self._ask(full)[0][: len(part)])
        return self.calibrated(np.concatenate(parts)) if parts else np.zeros((0, len(self.classes)), np.float32)

    def calibrated(self, scores):
        """Probabilities after the temperature; as they are where there were no validation slices to fit it on."""
        return calibration.scale(scores, self.temperature) if self.temperature else scores


class Answer:
    """What a network says of a slice.

    scores: (classes,) as trained; probabilities: after the temperature; maps: level -> (h, w, classes), what each
    place adds to the logit of a class (explain.class_maps); attention: block -> (queries or 1, keys).
    """

    def __init__(self, answerer, scores, maps, attention):
        self.answerer, self.scores, self.maps, self.attention = answerer, scores, maps, attention
        self.probabilities = answerer.calibrated(scores[None])[0]

    def heat(self, level, k, size):
        """float32 (size, size), what speaks for class `k` at a level, or at ALL of them together; negative: against."""
        chosen = self.maps.values() if level == explain.ALL else [self.maps[level]]
        large = [explain.enlarge(one[None, ..., k], (size, size))[0] * np.prod(one.shape[:2]) for one in chosen]
        return sum(large) / size**2

    def related(self, block, place, size):
        """float32 (size, size): the weights by which `block` gathers features for a place (row, column) in 0..1."""
        known = next(one for one in self.answerer.blocks if one["name"] == block)
        rows, columns = known["queries"]
        row, column = (min(int(share * count), count - 1) for share, count in zip(place, (rows, columns), strict=True))
        weights = self.attention[block]
        own = weights[row * columns + column if len(weights) > 1 else 0].reshape(known["keys"])
        return explain.enlarge(own[None], (size, size))[0]


def main(arguments):
    try:
        for run_dir in arguments:
            print(make(run_dir))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
