"""Initial weights: seeded by name, or read from a file.

Files are read as arrays, by layer name, and checked as a whole before the first one is assigned. Only what lies in the
file itself is read, and nothing that is larger than the layer it is for.
"""

import io
import json
import math
import os
import zipfile
import zlib
from pathlib import Path

import h5py
import keras
import numpy as np

DOWNLOADS = "https://storage.googleapis.com/tensorflow/keras-applications/"
IMAGENET = {  # backbone: (file, MD5 where keras.applications has one)
    "resnet50": ("resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626"),
    "mobilenet_v2": ("mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", None),
    "densenet169": ("densenet/densenet169_weights_tf_dim_ordering_tf_kernels_notop.h5",
                    "b8c4d4c20dd625c148057b9ff1c1176b"),
}
OPTIONS = "covidlib_backbone"  # an attribute of a .weights.h5 file
HEADS = ("logits", "predictions", "fc1000", "probs", "Logits")
OWN = ("fpn_", "attention_")
MAX_BYTES = 2 * 10**9  # of the weights in a .keras archive, unpacked


def initialise(model, seed):
    """Draw every kernel of `model` from Glorot's uniform distribution, by (seed, its path).

    So layers of the same name start equal in all variants and on all backends. Kernels that are zero stay so.
    """
    for variable in model.trainable_variables:
        if not variable.name.endswith("kernel") or not np.any(keras.ops.convert_to_numpy(variable)):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(variable.path.encode())])
        field = math.prod(variable.shape[:-2])
        limit = math.sqrt(6 / (field * sum(variable.shape[-2:])))
        variable.assign(np.float32(limit) * (2 * rng.random(variable.shape, dtype="float32") - 1))


def resolve(weights, backbone):
    """The file that `weights` means: of "imagenet" the published one of `backbone`, downloaded where it is missing."""
    return _download(backbone) if weights == "imagenet" else Path(weights)


def in_backbone(layer):
    """Whether a layer has weights and belongs to the backbone: to neither pyramid, attention nor head."""
    return bool(layer.weights) and layer.name not in HEADS and not layer.name.startswith(OWN)


def backbone_options(weights):
    """Options of a ResNet-50 that the weights of a file expect: {"stride": ..., "normalisation": ...}.

    {} where the file says nothing, as those of keras.applications, and where there is none.
    """
    if weights in (None, "none", "imagenet") or not Path(weights).is_file():
        return {}
    try:
        if zipfile.is_zipfile(weights):
            with zipfile.ZipFile(weights) as archive:
                return _options_of_graph(json.loads(_read(archive, "config.json")))
        with h5py.File(weights, "r") as file:
            return json.loads(file.attrs.get(OPTIONS, "{}"))
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return {}  # `load_weights` says what is wrong with the file


def save_weights(model, path):
    """`model.save_weights`, with the options of its backbone for `backbone_options`."""
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        file.attrs[OPTIONS] = json.dumps(_options_of_graph({"config": model.get_config()}))


def _options_of_graph(content):
    """From the configuration of a classifier on ResNet-50; {} for other networks."""
    layers = {layer["config"]["name"]: layer["config"] for layer in content["config"]["layers"]}
    if "conv3_block1_2_conv" not in layers:
        return {}
    stride = "3x3" if tuple(layers["conv3_block1_2_conv"]["strides"]) == (2, 2) else "1x1"
    return {"stride": stride, "normalisation": "unit" if layers["normalisation"]["offset"] == 0 else "caffe"}


def load_weights(model, weights, backbone, backbone_layers):
    """Load the layers of `model` that the file has, matched by name; the head is left as it is.

    Args:
        weights: "imagenet" or the path of a file: `.h5` of keras.applications (with or without top), `.weights.h5` or
            `.keras` of a classifier of this library.
        backbone: "resnet50", "mobilenet_v2" or "densenet169".
        backbone_layers: names of the layers that the file must have.

    Raises FileNotFoundError: no such file, or no network to download it; ValueError: not a weight file, damaged, or of
    another architecture. The model is as before.
    """
    path = resolve(weights, backbone)
    if not path.is_file():
        raise FileNotFoundError(
            f'no weight file {path}. Give "none", "imagenet" or the path of a .h5, .weights.h5 or .keras file'
        )
    layers = {layer.name: layer for layer in model.layers if layer.weights and layer.name not in HEADS}
    try:
        with _open(path) as file:
            found = _layers_by_name(file) if "layers" in file else _layers_by_attribute(file)
            problems = _differences(layers, found, backbone_layers)
            fitting = [] if problems else layers.keys() & found.keys()
            arrays = {name: [dataset[()] for dataset in found[name]] for name in fitting}
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no weight file, or damaged or cut short: {error}") from error
    if problems:
        raise ValueError(
            f"{path} does not fit the architecture of {model.name!r} ({len(problems)} differences: "
            f"{'; '.join(sorted(problems)[:3])}, ...). Give weights of {backbone}. "
            f"Received: weights={str(weights)!r}"
        )
    for name, values in arrays.items():
        layers[name].set_weights(values)


def _differences(layers, found, backbone_layers):
    problems = [f"{name} is missing" for name in backbone_layers if name in layers and name not in found]
    known = {*layers, *HEADS}
    problems += [f"{name} is unknown" for name in found if name not in known and not name.startswith(OWN)]
    for name in layers.keys() & found.keys():
        want = [tuple(variable.shape) for variable in layers[name].weights]
        have = [dataset.shape for dataset in found[name]]
        if want != have:
            problems.append(f"{name} has shapes {have} instead of {want}")
        elif any(dataset.dtype.kind not in "fiu" for dataset in found[name]):
            problems.append(f"{name} does not consist of numbers")
    return problems


def _download(backbone):
    file, md5 = IMAGENET[backbone]
    address, name = DOWNLOADS + file, Path(file).name
    try:
        return Path(keras.utils.get_file(name, address, cache_subdir="models", file_hash=md5))
    except Exception as error:
        target = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models" / name
        raise FileNotFoundError(
            f"could not download the ImageNet weights of {backbone} ({error}). Fetch {address} on a machine "
            f'with a network and put it at {target}, or use weights="none". Received: weights=\'imagenet\''
        ) from error


def _open(path):
    """The HDF5 file, or the one in a .keras archive."""
    if not zipfile.is_zipfile(path):
        return h5py.File(path, "r")
    with zipfile.ZipFile(path) as archive:
        return h5py.File(io.BytesIO(_read(archive, "model.weights.h5")), "r")


def _read(archive, name):
    size = archive.getinfo(name).file_size
    if size > MAX_BYTES:
        raise ValueError(f"its {name} would unpack to {size} bytes; at most {MAX_BYTES} are read")
    return archive.read(name)


def _layers_by_attribute(file):
    """The layout of Keras 2 and keras.applications: names in the attributes of each group. {layer: its datasets}."""
    file, found = _within(file, "model_weights") if "model_weights" in file else file, {}
    for name in map(_text, file.attrs["layer_names"]):
        group = _within(file, name)
        found[name] = [_within(group, key) for key in map(_text, group.attrs["weight_names"])]
    return {name: datasets for name, datasets in found.items() if datasets}


def _layers_by_name(file):
    """The layout of Keras 3: groups named by class, the layer's name in an attribute of its variables."""
    found, layers = {}, _within(file, "layers")
    for group in (_within(layers, key) for key in layers):
        if isinstance(group, h5py.Group) and "vars" in group and len(variables := _within(group, "vars")):
            found[_text(variables.attrs["name"])] = [_within(variables, key) for key in sorted(variables, key=int)]
    return found


def _within(group, path):
    """The object at `path` in this very file; links and external data would show any file that the user may read."""
    for name in path.split("/"):
        link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise KeyError(path)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path} is a link")
        group = group[name]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError(f"{path} is kept in another file")
    return group


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)
