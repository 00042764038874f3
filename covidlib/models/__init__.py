"""The paper's network, its ablations and other networks to compare with. Which file is which section:

- resnet: ResNet-50, whose stages conv2_3, conv3_4, conv4_6 and conv5_3 the paper builds on
- fpn: the feature pyramid on these stages (§2.2)
- attention: attention in the last block of conv3, conv4 and conv5 (§2.3)
- classifier: the variants as data, and their head with its softmax (§2.4)
- layers, precision: batch normalisation through a faster kernel; bfloat16 where it pays
- weights: initial weights, by seed or from a file (§4: "pre-training model")
"""

from covidlib.models.attention import attention_map
from covidlib.models.classifier import VARIANTS, build_classifier
from covidlib.models.layers import BatchNormalization
from covidlib.models.precision import resolve_precision

__all__ = ["VARIANTS", "BatchNormalization", "attention_map", "build_classifier", "resolve_precision"]
