"""The paper's network (§2.2 to §2.4), its ablations, and the networks beside it."""

from covidlib.models.attention import attention_map
from covidlib.models.classifier import VARIANTS, build_classifier
from covidlib.models.layers import BatchNormalization
from covidlib.models.precision import resolve_precision

__all__ = ["VARIANTS", "BatchNormalization", "attention_map", "build_classifier", "resolve_precision"]
