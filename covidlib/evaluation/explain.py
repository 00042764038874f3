"""Maps of what a network uses (Grad-CAM, attention, occlusion), and whether they lie on the lesions.

Every network here ends in average pooling and one dense layer. There Grad-CAM (Selvaraju et al.,
https://arxiv.org/abs/1610.02391) needs no gradient: it is the class activation map (Zhou et al.,
https://arxiv.org/abs/1512.04150), and the maps of all pooled levels add up to the logit exactly. Softmax ignores what
all logits share, so that is taken off: a map shows what speaks for a class rather than for the others.
"""

from itertools import chain
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy import ndimage, stats
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
SEED = 2000  # of the phantoms on which maps are measured: no training draws it
TENTH = 0.1  # share of lesion from which a position counts as lesion
NEAR = 3 / 96  # of the side: how far from a lesion a hit may lie; maps are coarser than that


def explains(variant):
    """Whether maps are computed for a variant: for those on ResNet-50; the others are there for their accuracy."""
    from covidlib.models import VARIANTS

    return VARIANTS[variant]["backbone"] == "resnet50"


def levels(model):
    """Names of the layers whose maps are pooled into the features, in the order of the features."""
    layers = {layer.name for layer in model.layers}
    return [model.get_layer(name).input._keras_history.operation.name
            for name in ("avg_pool", *(f"fpn_p{n}_pool" for n in (2, 3, 4, 5))) if name in layers]


def map_outputs(model):
    """Grad-CAM as a part of the network: level -> symbolic tensor (B, h, w, C), what each place adds to each logit.

    Over all levels and places the maps sum to the logits less their mean, bias left out.
    """
    from keras import ops

    kernel = ops.convert_to_numpy(model.get_layer("logits").kernel)  # (channels of all levels, C)
    kernel, maps = kernel - kernel.mean(axis=1, keepdims=True), {}
    for name in levels(model):
        feature = model.get_layer(name).output
        height, width, channels = feature.shape[1:]
        own, kernel = kernel[:channels], kernel[channels:]
        maps[name] = ops.matmul(ops.cast(feature, "float32"), own / (height * width))
    return maps


def attention_blocks(model):
    """Attention block -> sizes (h, w) of the grids of its queries and of its keys."""
    names = [layer.name.removesuffix("_weights") for layer in model.layers if layer.name.endswith("_weights")]
    return {name: [model.get_layer(own).output.shape[1:3] for own in (name, f"{name}_key")] for name in names}


def class_maps(model, images, classes):
    """Grad-CAM on every pooled level: level -> float32 (N, h, w), what each place adds to the logit.

    images: uint8 (N, S, S); classes: int (N,), the class to explain for each. ALL is the sum of all levels at the
    finest size.
    """
    import keras

    parts = list(_batches(keras.Model(model.input, map_outputs(model)), images))
    maps = {name: np.concatenate([part[name] for part in parts])[np.arange(len(images)), :, :, classes]
            for name in parts[0]}
    return maps | {ALL: combine(maps.values(), max((one.shape[1:] for one in maps.values()), key=np.prod))}


def _batches(model, images):
    """Outputs of a network for uint8 (N, S, S), NumPy arrays of BATCH rows at a time."""
    import keras

    for start in range(0, len(images), BATCH):
        pictures = np.asarray(images[start : start + BATCH], np.float32)[..., None]
        yield keras.tree.map_structure(keras.ops.convert_to_numpy, model(pictures, training=False))


def combine(maps, size):
    """Sum (N, *size) of maps (N, h, w) of several sizes, each enlarged so that its total stays."""
    return sum(enlarge(one, size) * (np.prod(one.shape[1:]) / np.prod(size)) for one in maps)


def enlarge(maps, size):
    """(N, h, w) -> (N, *size), bilinear."""
    return resize(maps, (len(maps), *size), order=1, mode="edge", anti_aliasing=False).astype(np.float32)


def occlusion(model, images, classes):
    """Log probability lost where a patch hides a part of the slice: float32 (N, rows, columns).

    Zeiler and Fergus, https://arxiv.org/abs/1311.2901. images: uint8 (N, S, S); classes: int (N,). (S / STRIDE)^2
    pictures are classified for each slice.
    """
    starts = np.arange(0, images.shape[1] - PATCH + 1, STRIDE)
    lost = []
    for image, k in zip(images, classes, strict=True):
        hidden = np.repeat(image[None].astype(np.float32), len(starts) ** 2 + 1, axis=0)
        for place, (row, column) in enumerate((row, column) for row in starts for column in starts):
            hidden[place, row : row + PATCH, column : column + PATCH] = 0
        scores = np.log(np.maximum(model.predict(hidden[..., None], batch_size=BATCH, verbose=0)[:, k], 1e-12))
        lost.append((scores[-1] - scores[:-1]).reshape(len(starts), -1))
    return np.array(lost, np.float32)


def on_lesions(maps, lesions, lungs):
    """Maps of one level against lesions: DataFrame hit, chance, enrichment, outside, expected, a row per slice.

    maps: (N, h, w), of which the positive part counts; lesions, lungs: bool (N, S, S). hit: the largest value lies on a
    lesion or within NEAR of one (the pointing game, https://doi.org/10.1007/s11263-017-1059-x); chance: the share of
    the lungs that would be a hit; enrichment: mean relevance on lesions over that on the lungs; outside: share of the
    relevance outside of the lungs, lesions counted as lung; expected: the same of a uniform map. NaN where nothing is
    positive, or without a lesion.
    """
    size = lesions.shape[1]
    relevance = np.maximum(enlarge(maps, (size, size)), 0)
    rows = []
    for values, lesion, lung in zip(relevance, lesions, lungs | lesions, strict=True):
        near = lesion
        if known := lesion.any():
            near = ndimage.distance_transform_edt(~lesion) <= max(1, round(NEAR * size))
        positive, mean = values.sum() > 0, values[lung].mean() if lung.any() else 0
        rows.append({
            "hit": float(near.ravel()[values.argmax()]) if positive and known else np.nan,
            "chance": float(near[lung].mean()) if known else np.nan,
            "enrichment": float(values[lesion].mean() / mean) if known and mean > 0 else np.nan,
            "outside": float(values[~lung].sum() / values.sum()) if positive and lung.any() else np.nan,
            "expected": float((~lung).mean()) if lung.any() else np.nan,
        })
    return pd.DataFrame(rows)


def attention_on_lesions(model, images, lesions):
    """How much lesions attend to lesions: block -> DataFrame hit, chance, enrichment, a row per slice; NaN without one.

    Of the queries whose position is at least a TENTH lesion. hit: their share whose strongest key is at such a
    position; chance: the share of such keys; enrichment: their attention on keys, weighted by the keys' share of
    lesion, over the mean share of all keys (1: uniform attention).
    """
    import keras

    found = {}
    for block, sizes in attention_blocks(model).items():
        shares = [enlarge(lesions.astype(np.float32), size).reshape(len(lesions), -1) for size in sizes]
        reader, rows = keras.Model(model.input, model.get_layer(f"{block}_weights").output), []
        for attention, query, key in zip(chain.from_iterable(_batches(reader, images)), *shares, strict=True):
            chosen = query >= TENTH if len(attention) > 1 else np.array([query.max() >= TENTH])
            known = chosen.any() and key.mean() > 0
            rows.append({
                "hit": np.mean(key[attention[chosen].argmax(axis=1)] >= TENTH) if known else np.nan,
                "chance": np.mean(key >= TENTH) if known else np.nan,
                "enrichment": (attention[chosen] @ key).mean() / key.mean() if known else np.nan})
        found[block] = pd.DataFrame(rows)
    return found


def randomised(model):
    """A copy of `model` with random weights in every layer: a map that stays the same does not show the network.

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
    networks = {"trained": model, "random": randomised(model)}
    maps = {weights: class_maps(network, images, classes) for weights, network in networks.items()}
    parts, rows = [], np.arange(len(images))
    for name in maps["trained"]:
        similarity = [stats.spearmanr(a.ravel(), b.ravel()).statistic if np.ptp(a) and np.ptp(b) else np.nan
                      for a, b in zip(maps["trained"][name], maps["random"][name], strict=True)]
        parts += [on_lesions(own[name], lesions, lungs).assign(row=rows, map=name, weights=weights,
                                                               similarity=similarity) for weights, own in maps.items()]
    parts += [table.assign(row=rows, map=name, weights=weights) for weights, network in networks.items()
              for name, table in attention_on_lesions(network, images, lesions).items()]
    return pd.concat(parts, ignore_index=True)


def measure_run(run, name, manifest, images, lesions, lungs):
    """`measure` of a runs.Run: path, slice_index, patient, label, slices (`name`) and variant before its columns.

    manifest: the rows of `images`; each slice is explained for its true class.
    """
    table = measure(run.model, images, manifest["label"].map(run.classes.index).to_numpy(), lesions, lungs)
    facts = manifest[["path", "slice_index", "patient", "label"]].iloc[table.pop("row")].reset_index(drop=True)
    return facts.assign(slices=name, variant=run.variant).join(table)


def summarise(table):
    """Means of MEASURES: a row per set, network, map and weights, and `improved` less the other networks.

    table: `measure_run`'s, of several runs; means with 95 % intervals over patients.
    """
    table, rows, keys = table.rename(columns=FORMER), [], ["slices", "variant", "map", "weights"]
    for names, part in table.groupby(keys, sort=False):
        rows.append(dict(zip(keys, names, strict=True)) | _means(part, part["patient"]))
    whole = table[(table["map"] == ALL) & (table["weights"] == "trained")]
    for slices, part in whole.groupby("slices", sort=False):
        own = {name: one.set_index(["path", "slice_index"]) for name, one in part.groupby("variant")}
        improved = own.pop("improved", None)
        for name, other in own.items() if improved is not None else ():
            names = dict(zip(keys, (slices, f"improved - {name}", ALL, "trained"), strict=True))
            rows.append(names | _means(improved[MEASURES] - other[MEASURES], improved["patient"]))
    return pd.DataFrame(rows)


def _means(rows, patients):
    found = {"n": len(rows)}
    for name in MEASURES:
        known = rows[name].notna().to_numpy()
        clusters = statistics.fill_unknown(patients.fillna("")[known])
        low, high = statistics.cluster_bootstrap(rows[name][known], clusters)
        found |= {name: rows[name].mean(), f"{name}_low": low, f"{name}_high": high}
    return found


def phantoms(home, per_class, image_size, preparation):
    """(manifest, images, lesions, lungs) of diseased phantoms that no training draws, prepared for a network.

    home: folder that they are drawn into; per_class: slices of covid and of viral. uint8 and bool (N, S, S).
    """
    source = datasets.load("phantom", Path(home), [per_class, per_class, 1], SEED)
    manifest = source.manifest[source.manifest.label != "normal"].reset_index(drop=True)
    source = datasets.replace(source, manifest=manifest, classes=("covid", "viral"))
    images = np.array(decode.load_images(source, image_size, preparation, Path(home) / "cache"))
    lesions = joblib.Parallel(-1)(joblib.delayed(decode.lesion_map)(source.root, path, image_size, preparation)
                                  for path in manifest.path)
    return manifest, images, np.stack(lesions), lung_masks(source, image_size, preparation)


def lung_masks(source, image_size, preparation):
    """bool (N, S, S): the lungs of every slice of a datasets.Source, prepared as the slices are for a network."""
    rows = zip(source.manifest.path, decode.slice_indices(source.manifest), decode.masks(source), strict=True)
    return np.stack(joblib.Parallel(-1)(joblib.delayed(_lungs)(source.root / path, index, mask, image_size, preparation)
                                        for path, index, mask in rows))


def _lungs(path, index, mask, image_size, preparation):
    picture, _, lung = decode.read(path, index, mask)
    return crop.prepare(picture, image_size, preparation, lung)[1]
