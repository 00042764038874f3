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

    Raises ValueError for a layer that multiplies in a way not known here, or that hides layers
    of its own, rather than counting it as nothing.
    """
    rows, counted = [], set()
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            operation = node.operation
            new = id(operation) not in counted  # a shared layer is run twice but stored once
            counted.add(id(operation))
            rows.append(
                {
                    "layer": operation.name,
                    "kind": type(operation).__name__,
                    "output": "x".join(str(size) for size in node.output_tensors[0].shape[1:]),
                    "parameters": operation.count_params() if new and hasattr(operation, "weights") else 0,
                    "macs": _macs(operation, node),
                }
            )
    return Complexity(int(model.count_params()), sum(row["macs"] for row in rows), rows)


def _macs(operation, node) -> int:
    output = tuple(node.output_tensors[0].shape)
    kind = type(operation).__name__
    if kind in ("Conv2D", "Dense"):
        return _size(output) * prod(operation.kernel.shape[:-1])
    if kind == "DepthwiseConv2D":
        return _size(output) * prod(operation.kernel.shape[:2])
    if kind == "Dot":
        axis = operation.axes if isinstance(operation.axes, int) else operation.axes[0]
        return _size(output) * node.input_tensors[0].shape[axis]
    if kind in ("Matmul", "Einsum") or hasattr(operation, "kernel") or getattr(operation, "_layers", None):
        raise ValueError(f"no formula for the MACs of a {kind}. Received: layer={operation.name!r}")
    return 0


def _size(shape) -> int:
    """Elements for one image: the first axis is the batch."""
    if None in shape[1:]:
        raise ValueError(f"MACs need a fixed input size; build the model with one. Received: shape={shape}")
    return prod(shape[1:])
