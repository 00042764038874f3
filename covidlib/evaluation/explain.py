"""Where a network looks, and whether that is where the lesions are.

Every network here ends in average pooling and one dense layer. There Grad-CAM (Selvaraju et al.,
https://arxiv.org/abs/1610.02391) needs no gradient: it is the class activation map (Zhou et al.,
https://arxiv.org/abs/1512.04150), and the maps of all pooled levels add up to the logit exactly. Softmax ignores what
all logits share, so that is taken off: a map says what speaks for a class rather than for the others.
"""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.transform import resize

from covidlib import datasets
from covidlib.datasets import decode
from covidlib.evaluation import statistics
from covidlib.preprocessing import crop

ALL = "all levels"
MEASURES = ["hit", "chance", "enrichment", "outside", "expected", "similarity"]
FORMER = {"gain": "enrichment", "even": "expected", "likeness": "similarity"}  # columns of older tables
BATCH = 64
PATCH, STRIDE = 16, 8  # pixels, of what hides a part of the slice
SEED = 2000  # of the phantoms that explanations are held against: no training draws it
TENTH = 0.1  # share of a place that makes it one of lesion
NEAR = 3 / 96  # of the side: how far from a lesion a hit may lie; maps are coarser than that


def explains(variant):
    """Whether the maps of a variant stand for it: those on ResNet-50, the others are there for their accuracy."""
    from covidlib.models import VARIANTS

    return VARIANTS[variant]["backbone"] == "resnet50"


def levels(model):
    """Names of the layers whose maps are pooled into the features, in the order of the features."""
    names = [name for name in ("avg_pool", *(f"fpn_p{n}_pool" for n in (2, 3, 4, 5)))
             if any(layer.name == name for layer in model.layers)]
    return [model.get_layer(name).input._keras_history.operation.name for name in names]


def class_maps(model, images, classes):
    """Grad-CAM on every pooled level: level -> float32 (N, h, w), what each place adds to the logit.

    images: uint8 (N, S, S); classes: int (N,), the class to explain for each. Over all levels and places the maps sum
    to the logit less the mean of all logits, bias left out. ALL is their sum at the finest size.
    """
    import keras
    from keras import ops

    names = levels(model)
    kernel = ops.convert_to_numpy(model.get_layer("logits").kernel)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    reader = keras.Model(model.input, [model.get_layer(name).output for name in names])
    parts = [[] for _ in names]
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        features = reader(np.asarray(images[rows], np.float32)[..., None], training=False)
        features = features if isinstance(features, list | tuple) else [features]
        chosen, first = kernel[:, classes[rows]], 0
        for part, feature in zip(parts, features, strict=True):
            array = ops.convert_to_numpy(ops.cast(feature, "float32"))  # (B, h, w, c)
            own = chosen[first : first + array.shape[-1]]
            first += array.shape[-1]
            part.append(np.einsum("bhwc,cb->bhw", array, own) / (array.shape[1] * array.shape[2]))
    maps = {name: np.concatenate(part) for name, part in zip(names, parts, strict=True)}
    finest = max((one.shape[1:] for one in maps.values()), key=np.prod)
    return maps | {ALL: sum(enlarge(one, finest) * np.prod(one.shape[1:]) / np.prod(finest) for one in maps.values())}


def enlarge(maps, size):
    """(N, h, w) -> (N, *size), bilinear."""
    return resize(maps, (len(maps), *size), order=1, mode="edge", anti_aliasing=False).astype(np.float32)


def occlusion(model, images, classes):
    """How much log probability is lost where a patch hides the slice: float32 (N, rows, columns).

    Zeiler and Fergus, https://arxiv.org/abs/1311.2901. images: uint8 (N, S, S); classes: int (N,). A network call on
    (S / STRIDE)^2 pictures for each slice.
    """
    size = images.shape[1]
    starts = np.arange(0, size - PATCH + 1, STRIDE)
    lost = np.zeros((len(images), len(starts), len(starts)), np.float32)
    for n, (image, k) in enumerate(zip(images, classes, strict=True)):
        hidden = np.repeat(image[None].astype(np.float32), len(starts) ** 2 + 1, axis=0)
        for place, (row, column) in enumerate((row, column) for row in starts for column in starts):
            hidden[place, row : row + PATCH, column : column + PATCH] = 0
        scores = np.log(np.maximum(model.predict(hidden[..., None], batch_size=BATCH, verbose=0)[:, k], 1e-12))
        lost[n] = (scores[-1] - scores[:-1]).reshape(len(starts), -1)
    return lost


def on_lesions(maps, lesions, lungs):
    """How maps of one level meet the lesions: DataFrame hit, chance, enrichment, outside, expected, a row per slice.

    maps: (N, h, w), of which the positive part counts; lesions, lungs: bool (N, S, S). hit: the largest value lies on a
    lesion or within NEAR of one (the pointing game, https://doi.org/10.1007/s11263-017-1059-x); chance: the share of
    the lungs that would be a hit; enrichment: mean relevance on lesions over that on the lungs; outside: share of the
    relevance outside of the lungs, lesions counted as lung; expected: what an expected map would have there. NaN where
    nothing is positive, or no lesion there.
    """
    size = lesions.shape[1]
    relevance = np.maximum(enlarge(maps, (size, size)), 0)
    reach = max(1, round(NEAR * size))
    rows = []
    for values, lesion, lung in zip(relevance, lesions, lungs, strict=True):
        lung = lung | lesion
        near = ndimage.distance_transform_edt(~lesion) <= reach if lesion.any() else lesion
        seen, known = values.sum() > 0, lesion.any()
        mean = values[lung].mean() if lung.any() else 0
        rows.append({
            "hit": float(near.ravel()[values.argmax()]) if seen and known else np.nan,
            "chance": float(near[lung].mean()) if known else np.nan,
            "enrichment": float(values[lesion].mean() / mean) if known and mean > 0 else np.nan,
            "outside": float(values[~lung].sum() / values.sum()) if seen and lung.any() else np.nan,
            "expected": float((~lung).mean()) if lung.any() else np.nan,
        })
    return pd.DataFrame(rows)


def attention_on_lesions(model, images, lesions, batch_size=32):
    """How much lesions attend to lesions: block -> DataFrame hit, chance, enrichment, a row per slice; NaN without one.

    Of the queries whose place is at least a TENTH lesion. hit: their share whose strongest key is at such a place;
    chance: the share of such keys; enrichment: their attention on keys, weighted by the keys' share of lesion, over the
    mean share of all keys (1: even attention).
    """
    import keras
    from keras import ops

    blocks = [layer.name.removesuffix("_weights") for layer in model.layers if layer.name.endswith("_weights")]
    found = {}
    for block in blocks:
        layer = model.get_layer(f"{block}_weights")
        queries = layer.output.shape[1]
        sizes = [model.get_layer(name).output.shape[1:3] for name in (block, f"{block}_key")]
        shares = [enlarge(lesions.astype(np.float32), size).reshape(len(lesions), -1) for size in sizes]
        reader, rows = keras.Model(model.input, layer.output), []
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            weights = ops.convert_to_numpy(reader(np.asarray(images[part], np.float32)[..., None], training=False))
            for attention, own, key in zip(weights, shares[0][part], shares[1][part], strict=True):
                asked = own >= TENTH if queries > 1 else np.array([own.max() >= TENTH])
                told = asked.any() and key.mean() > 0
                rows.append({
                    "hit": np.mean(key[attention[asked].argmax(axis=1)] >= TENTH) if told else np.nan,
                    "chance": np.mean(key >= TENTH) if told else np.nan,
                    "enrichment": (attention[asked] @ key).mean() / key.mean() if told else np.nan})
        found[block] = pd.DataFrame(rows)
    return found


def randomised(model):
    """A copy of `model` whose every layer has random weights: a map that stays the same does not tell of the network.

    Adebayo et al., https://arxiv.org/abs/1810.03292.
    """
    import keras

    from covidlib.models.weights import initialise

    copy = keras.models.clone_model(model)
    initialise(copy, seed=1)
    return copy


def measure(model, images, classes, lesions, lungs):
    """`on_lesions` of every level, trained and with random weights, and of attention: long, a row per slice and map.

    Columns: row, map, weights ("trained" or "random"), hit, chance, enrichment, outside, expected, similarity: rank
    correlation of the map with the one of random weights.
    """
    from scipy.stats import spearmanr

    networks = {"trained": model, "random": randomised(model)}
    trained, random = (class_maps(one, images, classes) for one in networks.values())
    parts = []
    for name in trained:
        like = [spearmanr(a.ravel(), b.ravel()).statistic if np.ptp(a) and np.ptp(b) else np.nan
                for a, b in zip(trained[name], random[name], strict=True)]
        for weights, maps in (("trained", trained), ("random", random)):
            table = on_lesions(maps[name], lesions, lungs)
            parts.append(table.assign(row=np.arange(len(images)), map=name, weights=weights, similarity=like))
    for weights, network in networks.items():
        for name, table in attention_on_lesions(network, images, lesions).items():
            parts.append(table.assign(row=np.arange(len(images)), map=name, weights=weights))
    return pd.concat(parts, ignore_index=True)


def measure_run(run, name, manifest, images, lesions, lungs):
    """`measure` of a runs.Run: path, slice_index, patient, label, slices (`name`) and variant before its columns.

    manifest: the rows of `images`; each slice is explained for its true class.
    """
    table = measure(run.model, images, manifest["label"].map(run.classes.index).to_numpy(), lesions, lungs)
    facts = manifest[["path", "slice_index", "patient", "label"]].iloc[table.pop("row")].reset_index(drop=True)
    return facts.assign(slices=name, variant=run.variant).join(table)


def summarise(table):
    """How maps meet lesions and lungs: a row per set, network, map and weights, and `improved` less the others.

    table: `measure_run`'s, of several runs; means with 95 % intervals over patients.
    """
    rows = []
    table = table.rename(columns=FORMER)
    for keys, part in table.groupby(["slices", "variant", "map", "weights"], sort=False):
        names = dict(zip(("slices", "variant", "map", "weights"), keys, strict=True))
        rows.append(names | _means(part, part["patient"]))
    whole = table[(table["map"] == ALL) & (table["weights"] == "trained")]
    for slices, part in whole.groupby("slices", sort=False):
        own = {name: one.set_index(["path", "slice_index"]) for name, one in part.groupby("variant")}
        improved = own.pop("improved", None)
        for name, other in own.items() if improved is not None else ():
            gap = improved[MEASURES] - other[MEASURES]
            rows.append({"slices": slices, "variant": f"improved - {name}", "map": ALL, "weights": "trained"}
                        | _means(gap, improved["patient"]))
    return pd.DataFrame(rows)


def _means(rows, patients):
    found = {"n": len(rows)}
    for name in MEASURES:
        known = rows[name].notna().to_numpy()
        values, own = rows[name].to_numpy()[known], patients.fillna("").to_numpy()[known]
        low, high = statistics.cluster_bootstrap(values, statistics.fill_unknown(own)) if len(values) else (np.nan,) * 2
        found |= {name: values.mean() if len(values) else np.nan, f"{name}_low": low, f"{name}_high": high}
    return found


def phantoms(home, per_class, image_size):
    """(manifest, images, lesions, lungs) of diseased phantoms that no training draws, as a network sees them.

    home: folder that they are drawn into; per_class: slices of covid and of viral. uint8 and bool (N, S, S).
    """
    source = datasets.load("phantom", Path(home), [per_class, per_class, 1], SEED)
    manifest = source.manifest[source.manifest.label != "normal"].reset_index(drop=True)
    source = datasets.replace(source, manifest=manifest, classes=("covid", "viral"))
    images = np.array(decode.load_images(source, image_size, Path(home) / "cache"))
    lesions = joblib.Parallel(-1)(joblib.delayed(decode.lesion_map)(source.root, path, image_size)
                                  for path in manifest.path)
    return manifest, images, np.stack(lesions), lungs_seen(source, image_size)


def lungs_seen(source, image_size):
    """bool (N, S, S): the lungs of every slice of a datasets.Source where the network sees them."""
    manifest = source.manifest
    rows = zip(manifest.path, decode.slice_indices(manifest), decode.masks(source), strict=True)
    return np.stack(joblib.Parallel(-1)(joblib.delayed(_lungs)(source.root / path, index, mask, image_size)
                                        for path, index, mask in rows))


def _lungs(path, index, mask, image_size):
    picture, _, lung = decode.read(path, index, mask)
    return crop.crop_to_lungs(picture, image_size, lung)[1]
