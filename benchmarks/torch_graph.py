"""A covidlib classifier as a PyTorch module with the same weights: PyTorch's side in benchmarks/inference.py.

Keras's own PyTorch backend would be timed with Keras's overhead for every layer. Here the graph is walked once and
rebuilt of PyTorch's own modules, as its users write and serve a network: channels_last, every normalisation folded
into the convolution before it, traced and frozen, under torch.inference_mode.

    KERAS_BACKEND=torch python -m benchmarks.torch_graph model.keras bfloat16 images.npy

answers one line for every line it reads, after one more call of the network: in a process of its own no other
framework's threads stand in PyTorch's way, and it takes turns all the same (`Elsewhere`). Its threads wait by spinning:
on a machine that is busy otherwise a call takes up to 200 times as long, so that only quiet runs are fair to it.
"""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

import covidlib.models  # noqa: F401  registers the layers that a file names


class Network(nn.Module):
    """From uint8 (B, H, W, 1) to float32 probabilities (B, classes). `dtype` is that of weights and features.

    Raises ValueError for a layer it does not know.
    """

    def __init__(self, model, dtype=torch.float32):
        super().__init__()
        self.dtype, self.steps, self.parts = dtype, [], nn.ModuleList()
        self.start, self.end = id(model.inputs[0]), id(model.outputs[0])
        folded = {}
        for node in _nodes(model):
            layer, sources = node.operation, [id(tensor) for tensor in node.input_tensors]
            target = id(node.output_tensors[0])
            if isinstance(layer, keras.layers.BatchNormalization) and sources[0] in folded:
                place = folded[sources[0]]
                self.parts[place] = fuse_conv_bn_eval(self.parts[place], _normalisation(layer))
                self.steps.append((None, sources, target))
                continue
            function = _translate(layer, node)
            if isinstance(function, nn.Module):
                self.parts.append(function)
                if isinstance(function, nn.Conv2d):
                    folded[target] = len(self.parts) - 1
                function = len(self.parts) - 1
            self.steps.append((function, sources, target))
        self.eval().to(dtype).to(memory_format=torch.channels_last)

    def forward(self, images):
        values = {self.start: images.permute(0, 3, 1, 2).to(torch.float32)}
        for function, sources, target in self.steps:
            inputs = [values[source] for source in sources]
            if function is None:
                values[target] = inputs[0]
            elif isinstance(function, int):
                values[target] = self.parts[function](inputs[0].to(self.dtype))
            else:
                values[target] = function(*inputs)
        return values[self.end].float()


def answer(model, dtype, images):
    """A function from numpy uint8 (B, H, W, 1) to numpy probabilities, traced and frozen for the shape of `images`."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # shapes become constants, as is wanted
        network = torch.jit.freeze(torch.jit.trace(Network(model, dtype), torch.from_numpy(images)))

    def call(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return call


class Elsewhere:
    """PyTorch in a process of its own: an object to call, each time for one batch. Ended by `close`."""

    def __init__(self, model_path, dtype, images_path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.torch_graph", model_path, dtype, images_path],
            env={**os.environ, "KERAS_BACKEND": "torch"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.probabilities = np.array(self._answer().split(), float)

    def __call__(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process with PyTorch ended. Received: returncode={self.process.wait()}")
        return line

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main(model_path, dtype, images_path):
    from covidlib.utils import provenance

    torch.set_num_threads(provenance.threads())
    images = np.load(images_path)
    model = keras.models.load_model(model_path, compile=False)
    call = answer(model, getattr(torch, dtype), images)
    print(*call(images).ravel(), flush=True)
    for _ in sys.stdin:
        call(images)
        print("done", flush=True)


def _nodes(model):
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _normalisation(layer):
    gamma, beta, mean, variance = (torch.from_numpy(np.array(array)) for array in layer.get_weights())
    module = nn.BatchNorm2d(len(mean), eps=layer.epsilon).eval()
    module.load_state_dict({"weight": gamma, "bias": beta, "running_mean": mean, "running_var": variance},
                           strict=False)
    return module


def _convolution(layer):
    kernel, *bias = (torch.from_numpy(np.array(array)) for array in layer.get_weights())
    size, outputs = kernel.shape[:2], kernel.shape[3]
    padding = [side // 2 for side in size] if layer.padding == "same" else 0
    module = nn.Conv2d(kernel.shape[2], outputs, tuple(size), layer.strides, padding, bias=bool(bias)).eval()
    module.load_state_dict({"weight": kernel.permute(3, 2, 0, 1)} | ({"bias": bias[0]} if bias else {}))
    return module


def _dense(layer):
    kernel, bias = (torch.from_numpy(np.array(array)) for array in layer.get_weights())
    module = nn.Linear(*kernel.shape)
    module.load_state_dict({"weight": kernel.T, "bias": bias})
    return module


def _scaling(layer):
    scale, offset = (torch.tensor(value, dtype=torch.float32) for value in (layer.scale, layer.offset))
    if offset.ndim == 0:
        return lambda x: x * scale
    return lambda x: x * scale + offset.reshape(1, -1, 1, 1)


def _reshape(x, shape):
    """As Keras sees it, channels last: (B, c, h, w) or (B, n, c) to either."""
    x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    x = x.reshape(len(x), *shape)
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def _pooling(layer):
    def pool(x):
        padding = (0, x.shape[3] % 2, 0, x.shape[2] % 2) if layer.padding == "same" else (0, 0, 0, 0)
        return functional.max_pool2d(functional.pad(x, padding, value=-torch.inf) if any(padding) else x,
                                     layer.pool_size, layer.strides)
    return pool


def _translate(layer, node):
    shape = tuple(node.output_tensors[0].shape[1:])
    kind = type(layer).__name__
    if kind == "Dot":
        one, two = (layer.axes,) * 2 if isinstance(layer.axes, int) else layer.axes
        return lambda a, b: (a if one == 2 else a.mT) @ (b if two == 1 else b.mT)
    known = {
        "Conv2D": lambda: _convolution(layer),
        "BatchNormalization": lambda: _normalisation(layer),
        "Dense": lambda: _dense(layer),
        "Rescaling": lambda: _scaling(layer),
        "Activation": lambda: torch.relu,
        "Add": lambda: torch.add,
        "Concatenate": lambda: lambda *parts: torch.cat(parts, 1),
        "Dropout": lambda: lambda x: x,
        "GlobalAveragePooling2D": lambda: lambda x: x.mean((2, 3), dtype=torch.float32),
        "MaxPooling2D": lambda: _pooling(layer),
        "Reshape": lambda: lambda x: _reshape(x, shape),
        "Softmax": lambda: lambda x: torch.softmax(x, -1, dtype=torch.float32).to(x.dtype),
        "UpSampling2D": lambda: lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
        "Cropping2D": lambda: lambda x: x[:, :, :shape[0], :shape[1]],
        "ZeroPadding2D": lambda: lambda x: functional.pad(x, [n for pair in layer.padding[::-1] for n in pair]),
    }
    if kind not in known:
        raise ValueError(f"no PyTorch equivalent is known. Received: layer={layer.name!r}, a {kind}")
    return known[kind]()


if __name__ == "__main__":
    main(*sys.argv[1:])
