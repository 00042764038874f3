"""All slices of a scan, classified by several networks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from covidlib import readers
from covidlib.predict import predict
from covidlib.preprocessing import crop, lungs, quality
from covidlib.utils import provenance


def classify(scan, networks, cancelled, progress):
    """(slices, scores, problems), or None where the Event `cancelled` was set.

    slices: DataFrame slice, name, lung, one row per readable slice; scores: variant -> (N, classes); problems: errors
    of the other slices; progress: called with (share, sentence).
    """
    images, rows, problems = {_input(network): [] for network in networks}, [], []
    with ThreadPoolExecutor(provenance.threads()) as pool:  # SciPy releases the lock while it finds lungs
        pending = [pool.submit(_prepared, scan, index, list(images)) for index in range(len(scan))]
        for index, future in enumerate(pending):
            if cancelled.is_set():
                pool.shutdown(cancel_futures=True)
                return None
            try:
                prepared, lung = future.result()
            except (readers.ReadError, OSError) as error:
                problems.append(error)
                continue
            for given, image in prepared.items():
                images[given].append(image)
            name = Path(scan.slices[index][0]).name + ("" if lung else ", no lung found")
            rows.append({"slice": index + 1, "name": name, "lung": lung})
            progress(0.8 * (index + 1) / len(scan), f"{index + 1} of {len(scan)} slices read")
    scores = {}
    for network in networks if rows else []:
        if cancelled.is_set():
            return None
        scores[network.variant] = network.probabilities(np.stack(images[_input(network)])).astype(float)
        progress(0.8 + 0.2 * len(scores) / len(networks), f"{len(rows)} slices classified by {network.variant}")
    return pd.DataFrame(rows), scores, problems


def _input(network):
    return network.image_size, network.preparation


def _prepared(scan, index, inputs):
    """({input: the slice as prepared for it}, whether a lung was found). Raises ReadError or OSError."""
    picture = scan.picture(index)
    body, lung = lungs.segment(picture)
    return {given: crop.prepare(picture, *given, lung)[0] for given in inputs}, quality.shows_lung(lung, body)


def summarise(slices, scores, networks):
    """(table, means, number of slices used) of what `classify` returns; slices with the last network's suspicion first.

    table: slice, name, predicted, suspicion, p_<class>... of the last network, p_<class> (<variant>)... of the others;
    suspicion: see predict.suspicion. means: variant -> mean probabilities
    over the slices with lung.
    """
    used, main = predict.with_lung(slices).index, networks[-1]
    means = {variant: own[used].mean(axis=0) for variant, own in scores.items()}
    table = slices[["slice", "name"]].assign(
        predicted=[main.classes[k] for k in scores[main.variant].argmax(axis=1)],
        suspicion=predict.suspicion(scores[main.variant], main.classes))
    for network in (main, *networks[:-1]):
        suffix = "" if network is main else f" ({network.variant})"
        table[[f"p_{name}{suffix}" for name in network.classes]] = scores[network.variant]
    return table.sort_values("suspicion", ascending=False, kind="stable", ignore_index=True), means, len(used)
