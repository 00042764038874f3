"""Parameters and multiply-accumulates (MACs) of a model, counted on its functional graph by formula.

A convolution costs (output positions) x (kernel area) x (input channels per group) x (output channels),
a dense layer or a matrix product (rows) x (inner size) x (columns); additions, normalisation,
activation and pooling are left out, as is usual. One MAC is two floating-point operations.
"""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Complexity:
    """Totals for one image, and the rows they are the sums of: dicts of layer, kind, output, parameters, macs."""

    parameters: int
    macs: int
    layers: list[dict]


def count(model) -> Complexity:
    """Count one forward pass of a built functional model for a single image.

    ValueError for a layer that multiplies in a way not known here, or that hides layers of its own.
    """
    rows, counted = [], set()
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            layer = node.operation
            stored = 0 if layer.name in counted else getattr(layer, "count_params", int)()  # shared: stored once
            counted.add(layer.name)
            rows.append({
                "layer": layer.name, "kind": type(layer).__name__,
                "output": "x".join(map(str, node.output_tensors[0].shape[1:])),
                "parameters": stored, "macs": _macs(layer, node)})
    return Complexity(int(model.count_params()), sum(row["macs"] for row in rows), rows)


def _macs(layer, node) -> int:
    kind, output = type(layer).__name__, node.output_tensors[0].shape[1:]
    if kind in ("Conv2D", "Dense"):
        each = prod(layer.kernel.shape[:-1])
    elif kind == "DepthwiseConv2D":
        each = prod(layer.kernel.shape[:2])
    elif kind == "Dot":
        each = node.input_tensors[0].shape[layer.axes if isinstance(layer.axes, int) else layer.axes[0]]
    elif kind in ("Matmul", "Einsum") or hasattr(layer, "kernel") or getattr(layer, "_layers", None):
        raise ValueError(f"no formula for the MACs of a {kind}. Received: layer={layer.name!r}")
    else:
        return 0
    if None in output:
        raise ValueError(f"MACs need a fixed input size; build the model with one. Received: shape={output}")
    return prod(output) * each
