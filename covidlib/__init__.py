"""Reproducible companion to the COVID-19 CT classification paper by Chen et al. (CEUR-WS Vol-3351, paper 07)."""

import os

__version__ = "0.2.0"

# TensorFlow reads these once, when it is imported. Its start-up lines would stand in every notebook, and it leaves
# oneDNN off on processors without AVX-512, where a training step then takes two to three times as long.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
