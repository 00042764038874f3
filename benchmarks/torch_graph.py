"""A covidlib classifier as a PyTorch module with the same weights: PyTorch's side in benchmarks/inference.py.

Keras's own PyTorch backend would be timed with Keras's overhead for every layer. Here the graph is walked once and
rebuilt of PyTorch's own modules, as its users write and serve a network: channels_last, every normalisation folded
into the convolution before it, under torch.inference_mode.
"""

import warnings

import keras
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
        if dtype == torch.float32:
            network = torch.jit.optimize_for_inference(network)

    def call(images):
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return call


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
