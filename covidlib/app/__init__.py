"""The scan viewer of notebooks/app.ipynb: ipywidgets views over the library, no algorithm of their own."""

from covidlib.app.viewer import Viewer

__all__ = ["Viewer"]
