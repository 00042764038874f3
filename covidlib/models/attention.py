"""Attention between distant positions of a feature map (§2.3). Neither block changes a shape.

Both consist of plain layers in the model's own graph: the layer `<name>_weights` gives the attention weights
(B, queries, keys), and `<name>` the block's output. `name` is the prefix of all their names.
"""

import keras
import numpy as np
from keras import layers, ops

from covidlib.models.layers import BatchNormalization
from covidlib.models.resnet import MOMENTUM


def non_local(x, name, width, pooled_keys=True):
    """Non-local block, embedded Gaussian (Wang et al., https://arxiv.org/abs/1711.07971).

    The logits are divided by sqrt(width), which the original does not do: at the widths used here the
    softmax would start saturated. The last normalisation starts at zero, so the block starts as identity.

    Args:
        x: (B, h, w, c).
        width: channels of queries, keys and values.
        pooled_keys: take keys and values from 2x2 max-pooled features, a quarter as many. Maps of 2x2 and
            less are not pooled: one key would be left.
    """
    height, breadth, channels = x.shape[1:]
    pooled = pooled_keys and max(height, breadth) > 2
    source = layers.MaxPooling2D(2, padding="same", name=f"{name}_pool")(x) if pooled else x
    query = _embed(x, width, f"{name}_query")  # (B, h w, width)
    key = _embed(source, width, f"{name}_key")  # (B, keys, width)
    value = _embed(source, width, f"{name}_value")  # (B, keys, width)
    query = layers.Rescaling(width**-0.5, dtype="float32", name=f"{name}_scale")(query)
    logits = layers.Dot(2, dtype="float32", name=f"{name}_logits")([query, key])  # (B, h w, keys)
    weights = layers.Softmax(dtype="float32", name=f"{name}_weights")(logits)  # (B, h w, keys)
    y = layers.Dot((2, 1), name=f"{name}_context")([weights, value])  # (B, h w, width)
    y = layers.Reshape((height, breadth, width), name=f"{name}_unflatten")(y)
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_output")(y)  # (B, h, w, c)
    y = BatchNormalization(momentum=MOMENTUM, epsilon=1.001e-5, gamma_initializer="zeros", name=f"{name}_bn")(y)
    return layers.Add(name=name)([x, y])


def global_context(x, name, width):
    """Global context block (Cao et al., https://arxiv.org/abs/1904.11492).

    One attention map for all queries; a small fraction of the cost of `non_local`. The last layer starts
    at zero, so the block starts as identity.

    Args:
        x: (B, h, w, c).
        width: channels between the two layers that transform the context.
    """
    height, breadth, channels = x.shape[1:]
    logits = layers.Conv2D(1, 1, name=f"{name}_key")(x)  # (B, h, w, 1)
    logits = layers.Reshape((1, height * breadth), name=f"{name}_logits")(logits)  # (B, 1, h w)
    weights = layers.Softmax(dtype="float32", name=f"{name}_weights")(logits)
    value = layers.Reshape((height * breadth, channels), name=f"{name}_value")(x)  # (B, h w, c)
    y = layers.Dot((2, 1), name=f"{name}_context")([weights, value])  # (B, 1, c)
    y = layers.Dense(width, name=f"{name}_squeeze")(y)  # (B, 1, width)
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm")(y)
    y = layers.Activation("relu", name=f"{name}_relu")(y)
    y = layers.Dense(channels, kernel_initializer="zeros", name=f"{name}_output")(y)  # (B, 1, c)
    y = layers.Reshape((1, 1, channels), name=f"{name}_unflatten")(y)
    return layers.Add(name=name)([x, y])


def attention_map(model, image, layer, position):
    """The attention weights of one query: float32 (h, w), the weight of each key; sums to 1.

    Where keys are pooled, h and w are half of the layer's (rounded up). With global context all positions have the
    same map.

    Args:
        model: a classifier with attention.
        image: (H, W) or (H, W, 1), 0..255, of the model's size.
        layer: name of the block: "attention_conv3", "attention_conv4" or "attention_conv5".
        position: (row, column) of the query in the layer's grid, which is H/8, H/16 or H/32 high.

    Raises ValueError: no such layer, position outside of the grid, image of another size.
    """
    blocks = [one.name.removesuffix("_weights") for one in model.layers if one.name.endswith("_weights")]
    if layer not in blocks:
        raise ValueError(f"layer must be one of {blocks} in model {model.name!r}. Received: layer={layer!r}")
    grid = model.get_layer(layer).output.shape[1:3]
    if not all(0 <= place < size for place, size in zip(position, grid, strict=True)):
        raise ValueError(f"position must lie in the {grid} grid of {layer}. Received: position={position}")
    batch = np.asarray(image, "float32").reshape((1, *np.shape(image)[:2], 1))
    if batch.shape[1:] != model.input_shape[1:]:
        raise ValueError(f"image must be {model.input_shape[1:]}. Received: image.shape={np.shape(image)}")

    reader = keras.Model(model.input, model.get_layer(f"{layer}_weights").output)
    weights = ops.convert_to_numpy(reader(batch, training=False))[0]  # (queries, keys)
    query = position[0] * grid[1] + position[1] if len(weights) > 1 else 0
    return weights[query].reshape(model.get_layer(f"{layer}_key").output.shape[1:3])


def _embed(x, width, name):
    x = layers.Conv2D(width, 1, name=name)(x)
    return layers.Reshape((-1, width), name=f"{name}_flat")(x)
