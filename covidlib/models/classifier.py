"""The networks of the paper and those to compare with, as data and one function that builds them (§2.4).

Multiply-accumulates at 224 px: `resnet50` 3.86 G, `resnet50_fpn` 1.065 times as many, `improved` 1.12 (attention on the
output of the branch, an eighth of its channels for queries, keys and values), `improved_faithful` 2.15 (widths of the
original publications, keys not pooled).
"""

import keras
from keras import layers

from covidlib.models import weights as starting_weights
from covidlib.models.attention import global_context, non_local
from covidlib.models.fpn import build_fpn
from covidlib.models.precision import dtype_policy, resolve_precision
from covidlib.models.resnet import PLACEMENTS, STRIDES, build_resnet50
from covidlib.utils.text import nearest

PLAIN = {
    "backbone": "resnet50",
    "normalisation": "caffe",  # of the three channels, see NORMALISATION
    "stride": "1x1",  # the convolution of a stage's first block that halves height and width: 1x1 or 3x3
    "fpn_width": 0,  # channels of each level, 0: no pyramid
    "attention": "none",  # none, non_local or global_context
    "placement": "branch",  # in the last residual block of conv3 to conv5: branch, after or before
    "reduction": 8,  # channels of the features by channels of the attention
    "pooled_keys": True,  # keys and values from 2x2-pooled features
}
IMPROVED = {**PLAIN, "fpn_width": 64, "attention": "non_local"}
VARIANTS = {
    "resnet50": PLAIN,
    "improved": IMPROVED,
    "resnet50_fpn": {**PLAIN, "fpn_width": 64},
    "resnet50_attention": {**PLAIN, "attention": "non_local"},
    "improved_before": {**IMPROVED, "placement": "before"},
    "improved_after": {**IMPROVED, "placement": "after"},
    "improved_global_context": {**IMPROVED, "attention": "global_context", "reduction": 16},
    "improved_faithful": {**IMPROVED, "fpn_width": 256, "reduction": 2, "pooled_keys": False},
    "mobilenet_v2": {"backbone": "mobilenet_v2", "normalisation": "tf"},
    "densenet169": {"backbone": "densenet169", "normalisation": "torch"},
}
OTHERS = {"mobilenet_v2": keras.applications.MobileNetV2, "densenet169": keras.applications.DenseNet169}
NORMALISATION = {  # scale and offset of the three channels; the names are those of keras.applications, and "unit"
    "caffe": (1.0, [-103.939, -116.779, -123.68]),  # BGR, ImageNet's means
    "tf": (1 / 127.5, -1.0),
    "torch": (  # RGB, ImageNet's means and deviations
        [1 / (255 * deviation) for deviation in (0.229, 0.224, 0.225)],
        [-mean / deviation for mean, deviation in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))],
    ),
    "unit": (1 / 255, 0.0),
}
SMALLEST = 32


def build_classifier(variant, classes, image_size, weights=None, precision="auto", seed=0, dropout=0.2, **overrides):
    """A classifier of CT slices as one flat graph (§2.2 to §2.4).

    It takes slices (B, image_size, image_size, 1), grey values 0..255, and gives float32 probabilities (B, classes).
    Layers of the same name start with the same weights in all variants.

    Args:
        variant: one of `VARIANTS`.
        classes: names of the classes, two or more.
        image_size: pixels, 32 or more, odd ones too.
        weights: None or "none" (random), "imagenet", or a path; see `weights.load_weights`.
        precision: "auto", "float32" or "mixed_bfloat16"; see `resolve_precision`.
        seed: of the random weights and of the dropout.
        dropout: share of the features left out in training, 0 <= dropout < 1.
        overrides: options of the variant with other values, e.g. `fpn_width=128`. Without one, `stride` and
            `normalisation` are those that the weights were trained with (`weights.backbone_options`).

    Raises ValueError for an argument that does not fit; FileNotFoundError: no such weight file, or no network to
    download it.
    """
    expected = starting_weights.backbone_options(weights) if backbone_of(variant) == "resnet50" else {}
    options = _options(variant, expected | overrides)
    _check(classes, image_size, dropout)
    with dtype_policy(resolve_precision(precision)):
        inputs = layers.Input((image_size, image_size, 1), name="slice", dtype="float32")  # (B, H, W, 1)
        x = layers.Concatenate(dtype="float32", name="three_channels")([inputs] * 3)  # (B, H, W, 3)
        x = layers.Rescaling(*NORMALISATION[options["normalisation"]], dtype="float32", name="normalisation")(x)
        x, backbone_layers = _features(x, inputs, options)  # (B, F), of resnet50 2048, of improved 4 x 64
        x = layers.Dropout(dropout, seed=seed, dtype="float32", name="dropout")(x)
        x = layers.Dense(len(classes), dtype="float32", name="logits")(x)  # (B, classes)
        outputs = layers.Softmax(dtype="float32", name="probabilities")(x)  # (B, classes)
        model = keras.Model(inputs, outputs, name=variant)
    starting_weights.initialise(model, seed)
    if weights not in (None, "none"):
        starting_weights.load_weights(model, weights, options["backbone"], backbone_layers)
    return model


def backbone_of(variant):
    """Name of a variant's backbone. Raises ValueError for an unknown variant."""
    return _options(variant, {})["backbone"]


def _features(x, inputs, options):
    """Pooled features (B, F) in float32 and the names of the backbone's layers."""
    if options["backbone"] in OTHERS:
        stages = [OTHERS[options["backbone"]](include_top=False, weights=None, input_tensor=x).output]
    else:
        stages = list(build_resnet50(x, _attention(options), options["placement"], options["stride"]).values())
    backbone_layers = [layer.name for layer in keras.Model(inputs, stages[-1]).layers
                       if not layer.name.startswith("attention_")]
    if not options.get("fpn_width"):
        return layers.GlobalAveragePooling2D(dtype="float32", name="avg_pool")(stages[-1]), backbone_layers
    pooled = [  # four times (B, fpn_width)
        layers.GlobalAveragePooling2D(dtype="float32", name=f"fpn_p{number}_pool")(level)
        for number, level in enumerate(build_fpn(stages, options["fpn_width"]), start=2)
    ]
    return layers.Concatenate(dtype="float32", name="fpn_features")(pooled), backbone_layers


def _attention(options):
    """The function (tensor, name) -> tensor that `build_resnet50` takes, or None."""
    if options["attention"] == "none":
        return None

    def attend(x, name):
        width = max(1, x.shape[-1] // options["reduction"])
        if options["attention"] == "global_context":
            return global_context(x, name, width)
        return non_local(x, name, width, options["pooled_keys"])

    return attend


def _options(variant, overrides):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant{_suggest(variant, VARIANTS)}. Received: variant={variant!r}")
    options = dict(VARIANTS[variant])
    for name, value in overrides.items():
        if name == "backbone" or name not in options:
            hint = _suggest(name, [option for option in options if option != "backbone"])
            raise ValueError(f"{variant!r} has no such option{hint}. Received: {name}={value!r}")
        options[name] = value
    for name, values in {"attention": ("none", "non_local", "global_context"), "placement": PLACEMENTS,
                         "stride": STRIDES, "normalisation": tuple(NORMALISATION)}.items():
        if name in options and options[name] not in values:
            raise ValueError(f"{name} must be one of {values}. Received: {name}={options[name]!r}")
    for name, least in {"fpn_width": 0, "reduction": 1}.items():
        if name in options and options[name] < least:
            raise ValueError(f"{name} must be at least {least}. Received: {name}={options[name]!r}")
    return options


def _check(classes, image_size, dropout):
    if isinstance(classes, str) or len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be two or more different names. Received: classes={classes!r}")
    if not isinstance(image_size, int) or image_size < SMALLEST:
        raise ValueError(f"image_size must be {SMALLEST} pixels or more. Received: image_size={image_size!r}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1. Received: dropout={dropout!r}")


def _suggest(name, known):
    near = nearest(name, known)
    return (f"; did you mean {near!r}?" if near else "") + f" Known: {', '.join(known)}"
