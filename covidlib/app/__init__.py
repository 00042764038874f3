"""The app of notebooks/app.ipynb: ipywidgets views over the library, no algorithm of their own."""

from covidlib.app.shell import App

__all__ = ["App"]
