"""A trained network as the viewer asks it: probabilities, Grad-CAM and attention of a slice from one graph.

    python -m covidlib.predict.explained runs/phantom/quick/improved/seed-0    # ahead; else when first asked

`make` exports the network to OpenVINO with the maps of `explain` as further outputs, so that answers come without Keras
and in milliseconds. Files: `<dataset>/<profile>/answers/<variant>-seed-<k>/`, in the folder of the runs.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
from filelock import FileLock

from covidlib import datasets
from covidlib.datasets import decode
from covidlib.evaluation import calibration, explain, metrics
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
        exported, run = runs.read_json(own / FACTS), runs.read_json(Path(run_dir, "run.json"))
        same = exported["weights_sha256"] == run["model"]["weights_sha256"] and "preparation" in exported
    except (OSError, ValueError, KeyError):
        return False
    return same and all((own / FILE).with_suffix(end).is_file() for end in (".xml", ".bin"))


def make(run_dir):
    """Export the network of a run directory, unless that is done. Returns the folder, which appears whole or not.

    FileNotFoundError where there is no finished run, ValueError for a network without maps (`explain.explains`).
    """
    run, target = runs.read_run(run_dir), folder(run_dir)
    if not (run.path / "model.keras").is_file():
        raise FileNotFoundError(f"no model.keras in {run_dir}: train it with notebook 03_training")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # another page may be exporting it
        if not is_made(run_dir):
            with export.replacing(target) as ready:
                runs.write_json(ready / FACTS, _write(run, ready) | facts(run))
    return target


def _write(run, ready):
    """Write the graph. Returns which of its outputs is what, the levels of the maps, and the attention blocks."""
    import keras
    from keras import ops

    if not explain.explains(run.variant):
        raise ValueError(f"no maps of {run.variant}: choose a network on ResNet-50. Received: {run.path}")
    single = export.with_float32_layers(run.model)
    maps, blocks = explain.map_outputs(single), explain.attention_blocks(single)
    weights = [single.get_layer(f"{name}_weights").output for name in blocks]
    inputs = keras.Input(single.input_shape[1:], dtype="uint8", name="slice")
    outputs = keras.Model(single.input, [single.outputs[0], *maps.values(), *weights])(ops.cast(inputs, "float32"))
    serving = keras.Model(inputs, outputs)
    example = np.random.default_rng(0).integers(0, 256, (2, *inputs.shape[1:]), np.uint8)
    expected = [ops.convert_to_numpy(output) for output in serving(example)]
    network = export.as_openvino(serving)
    order = _match(list(export.compiled(network.clone(), example.shape)(example).values()), expected)
    export.openvino().save_model(network, ready / FILE, compress_to_fp16=False)
    return {"outputs": order, "levels": list(maps), "blocks": [
        {"name": name, "queries": list(queries), "keys": list(keys)} for name, (queries, keys) in blocks.items()]}


def _match(outputs, expected):
    """For each expected array its position among the outputs, whose order the converter may change."""
    order = []
    for values in expected:
        gaps = [np.abs(other - values).max() / (np.abs(values).max() + 1e-9) if other.shape == values.shape else np.inf
                for other in outputs]
        if min(gaps) > 0.01:
            raise ValueError(f"the exported network answers otherwise than the trained one (by {min(gaps):.3f})")
        order.append(int(np.argmin(gaps)))
    return order


def facts(run):
    """What the viewer says about the network of a run: what it is, its training data, its figures."""
    folder, profile = run.path.absolute().parts[-4:-2]
    dataset = run.parameters.get("dataset", folder)
    test = run.predictions[run.predictions["split"] == "test"]
    temperature = run.temperature if np.isfinite(run.temperature) else None
    truth, _, scores = metrics.decide(test, run.classes)
    scaled = calibration.scale(scores, temperature) if temperature and len(test) else scores
    source, images = slices_of(run) or (None, None)
    return {
        "variant": run.variant, "seed": run.seed, "dataset": dataset, "profile": profile,
        "classes": list(run.classes), "image_size": run.parameters["image_size"],
        "preparation": run.preparation, "epochs": len(run.history),
        "start": run.parameters.get("weights") or "none", "synthetic": dataset == "phantom",
        "temperature": temperature,
        "calibration_error": calibration.expected_error(truth, scaled) if len(test) else None,
        "test": run.metrics.get("test") and {
            name: run.metrics["test"][name] for name in ("n", "patients", "accuracy", "accuracy_interval")},
        "typical": source and quality.feature_ranges(
            images[np.flatnonzero(source.manifest["split"] == "train")]),  # of the training slices
        "weights_sha256": run.content["model"]["weights_sha256"], "packages": provenance.packages(),
    }


def slices_of(run):
    """(datasets.Source, uint8 (N, S, S)) that a run was trained and tested on, or None where it is not available."""
    home = run.path.parents[1]
    try:
        source = datasets.open_saved(home)
        return source, decode.load_images(source, run.parameters["image_size"], run.preparation, home / "cache")
    except (OSError, ValueError, datasets.DataError):
        return None


def describe(network):
    """One sentence: which network answers, trained on what, and what it reached there."""
    start = "" if network.start == "none" else f", start: {network.start} weights"
    text = (f"{network.variant}, seed {network.seed}, trained on {network.dataset} ({network.profile}, "
            f"{network.epochs} epochs, {network.image_size} px, {network.preparation} slices{start})")
    if network.synthetic:
        text += ". Its slices were drawn, not scanned: what it says of a patient means nothing"
    if network.test:
        low, high = network.test["accuracy_interval"]
        right, number = network.test["accuracy"], network.test["n"]
        text += f". Right on {right:.0%} of its {number} test slices ({low:.0%} to {high:.0%})"
    return text + "."


class Answerer:
    """An exported network: `answerer(image)`. Attributes are those of network.json, `classes` and `levels` tuples."""

    def __init__(self, folder):
        facts = json.loads(Path(folder, FACTS).read_text(encoding="utf-8"))
        for name, value in facts.items():
            setattr(self, name, tuple(value) if name in ("classes", "levels") else value)
        network, shape = export.core().read_model(Path(folder, FILE)), (self.image_size, self.image_size, 1)
        self._compiled = functools.cache(lambda batch: export.compiled(network.clone(), (batch, *shape)))

    def _ask(self, images):
        found = list(self._compiled(len(images))(np.ascontiguousarray(images)[..., None]).values())
        return [found[position] for position in self.outputs]

    def __call__(self, image):
        """An Answer to one prepared slice, uint8 (S, S)."""
        scores, *rest = (output[0] for output in self._ask(image[None]))
        maps = dict(zip(self.levels, rest, strict=False))
        attention = {block["name"]: weights for block, weights in zip(self.blocks, rest[len(maps):], strict=True)}
        return Answer(self, scores, maps, attention)

    def probabilities(self, images):
        """float32 (N, classes), scaled by the temperature, of prepared slices uint8 (N, S, S)."""
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        return self.calibrated(export.in_batches(lambda part: self._ask(part)[0], images, BATCH))

    def calibrated(self, scores):
        """Probabilities after the temperature; as they are where there were no validation slices to fit it on."""
        return calibration.scale(scores, self.temperature) if self.temperature else scores


class Answer:
    """A network's answer to a slice.

    scores: (classes,) as trained; probabilities: after the temperature; maps: level -> (h, w, classes), what each
    place adds to the logit of a class (explain.class_maps); attention: block -> (queries or 1, keys).
    """

    def __init__(self, answerer, scores, maps, attention):
        self.answerer, self.scores, self.maps, self.attention = answerer, scores, maps, attention
        self.probabilities = answerer.calibrated(scores[None])[0]

    def heat(self, level, k, size):
        """float32 (size, size), what speaks for class `k` at a level, or at ALL of them together; negative: against."""
        chosen = self.maps.values() if level == explain.ALL else [self.maps[level]]
        return explain.combine([one[None, ..., k] for one in chosen], (size, size))[0]

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
