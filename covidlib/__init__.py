"""Reproducible companion to the COVID-19 CT classification paper by Chen et al. (CEUR-WS Vol-3351, paper 07)."""

__version__ = "0.1.0"
