"""Reproducible companion to the COVID-19 CT classification paper by Chen et al. (CEUR-WS Vol-3351, paper 07)."""

import os

__version__ = "0.1.0"

# TensorFlow reads this once, when it is imported; its start-up lines would stand in every notebook.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
