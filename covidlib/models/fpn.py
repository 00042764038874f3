"""Feature pyramid (§2.2; Lin et al., https://arxiv.org/abs/1612.03144).

Two things differ from the original, which is for detection. Each level ends in normalisation and ReLU: followed by
average pooling, an all-linear pyramid would be one matrix on the pooled stages. And coarse maps whose doubled size
exceeds the lateral's by one (odd sizes) are cropped at the far edge, which keeps every pixel on the one it came from.
"""

from keras import layers

from covidlib.models.layers import BatchNormalization
from covidlib.models.resnet import MOMENTUM


def build_fpn(stages, width):
    """Pyramid on the four stages of a ResNet.

    Args:
        stages: tensors from fine to coarse, each half the size of the one before (rounded up).
        width: channels of every level.

    Returns:
        list of tensors (B, h, w, width), the levels P2 (H/4) to P5 (H/32).
    """
    levels, above = [], None
    for number, stage in reversed(list(enumerate(stages, start=2))):
        name = f"fpn_p{number}"
        x = layers.Conv2D(width, 1, name=f"{name}_lateral")(stage)  # (B, h, w, width)
        if above is not None:
            x = layers.Add(name=f"{name}_sum")([x, _enlarge(above, x.shape[1:3], name)])
        above = x  # (B, h, w, width), not normalised
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_output")(x)
        x = BatchNormalization(momentum=MOMENTUM, epsilon=1.001e-5, name=f"{name}_bn")(x)
        levels.append(layers.Activation("relu", name=f"{name}_relu")(x))  # (B, h, w, width)
    return levels[::-1]


def _enlarge(x, size, name):
    """Nearest neighbour from (h, w) to `size`, either of which is twice as large or one less."""
    x = layers.UpSampling2D(2, interpolation="nearest", name=f"{name}_upsampling")(x)  # (B, 2 h, 2 w, width)
    excess = [have - want for have, want in zip(x.shape[1:3], size, strict=True)]
    if any(excess):
        x = layers.Cropping2D([(0, pixels) for pixels in excess], name=f"{name}_crop")(x)
    return x
