"""ResNet-50 (He et al., https://arxiv.org/abs/1512.03385) with the layer names of keras.applications.

Same names and shapes mean that its published weights load; the pyramid and the attention build on its named stages.
"""

from functools import partial

from keras import layers

from covidlib.models.layers import BatchNormalization

STAGES = {"conv2": (64, 3), "conv3": (128, 4), "conv4": (256, 6), "conv5": (512, 3)}  # width, blocks
PLACEMENTS = ("branch", "after", "before")
STRIDES = ("1x1", "3x3")

# keras.applications averages the moving statistics with momentum 0.99, meant for the many thousand steps
# of ImageNet. A training of a few hundred steps would validate on statistics that still lag behind.
MOMENTUM = 0.9


def build_resnet50(x, attention=None, placement="branch", stride="1x1"):
    """The convolutional part of ResNet-50.

    Args:
        x: (B, H, W, 3), normalised.
        attention: None or a function (tensor, name) -> tensor of the same shape, put into the last
            residual block of conv3, conv4 and conv5 under the name `attention_conv3` and so on (§2.3).
        placement: where in that block. `branch`: on the output of the branch, before the skip addition;
            `after`: on the output of the block; `before`: on its input, so that the skip carries it too.
        stride: the convolution that halves height and width in the first block of conv3, conv4 and conv5: "1x1", the
            first, as published and in keras.applications, or "3x3", as in torchvision ("v1.5").

    Returns:
        dict of the outputs of the stages, by layer name: `conv2_block3_out`, `conv3_block4_out`, `conv4_block6_out`
        and `conv5_block3_out`, the paper's conv2_3, conv3_4, conv4_6 and conv5_3.
    """
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = _conv_norm(x, 64, 7, "conv1", strides=2)  # (B, H/2, W/2, 64)
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)  # (B, H/4, W/4, 64)

    stages = {}
    for stage, (width, blocks) in STAGES.items():
        for number in range(1, blocks + 1):
            name, halves = f"{stage}_block{number}", number == 1 and stage != "conv2"
            strides = {place: 2 if halves and place in ("skip", stride) else 1 for place in ("skip", *STRIDES)}
            attends = attention is not None and stage != "conv2" and number == blocks
            attend = {placement: partial(attention, name=f"attention_{stage}")} if attends else {}
            x = _block(x, width, name, strides, project=number == 1, attend=attend)
        # conv2: (B, H/4, W/4, 256), conv3: (B, H/8, W/8, 512), conv4: (B, H/16, W/16, 1024),
        # conv5: (B, H/32, W/32, 2048)
        stages[f"{name}_out"] = x
    return stages


def _block(x, width, name, strides, project, attend):
    """Bottleneck block: (B, h, w, c) -> (B, h/s, w/s, 4 width), s: strides["skip"]. attend: {placement: function}."""
    if "before" in attend:
        x = attend["before"](x)
    shortcut = _conv_norm(x, 4 * width, 1, f"{name}_0", strides=strides["skip"]) if project else x
    x = _conv_norm(x, width, 1, f"{name}_1", strides=strides["1x1"])
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    if strides["3x3"] == 2:  # "same" would pad below and on the right alone
        x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = _conv_norm(x, width, 3, f"{name}_2", strides=strides["3x3"], padding="same" if strides["3x3"] == 1 else "valid")
    x = layers.Activation("relu", name=f"{name}_2_relu")(x)
    x = _conv_norm(x, 4 * width, 1, f"{name}_3")
    if "branch" in attend:
        x = attend["branch"](x)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    x = layers.Activation("relu", name=f"{name}_out")(x)
    return attend["after"](x) if "after" in attend else x


def _conv_norm(x, filters, size, name, **options):
    x = layers.Conv2D(filters, size, name=f"{name}_conv", **options)(x)
    return BatchNormalization(momentum=MOMENTUM, epsilon=1.001e-5, name=f"{name}_bn")(x)
