"""The app's pages under one heading."""

import html
from pathlib import Path

import ipywidgets as widgets

from covidlib.app.explorer import Explorer
from covidlib.app.playground import Playground
from covidlib.app.viewer import Viewer
from covidlib.app.widgets import STATIC, sweep
from covidlib.predict import predict

PAGES = ("Scan", "Augmentation", "Results")


class App:
    """The app as one widget, `app.view`.

    home: folder of runs; phantoms: folder of drawn slices; published: reports/published, whose runs are shown, too.
    """

    def __init__(self, home, phantoms, published):
        sweep()
        self.viewer = Viewer(home, phantoms)
        self.playground = Playground(self._slice)
        self.explorer = Explorer([Path(home), Path(published, "runs")])
        self.pages = dict(zip(PAGES, (self.viewer, self.playground, self.explorer), strict=True))
        self.page = widgets.ToggleButtons(options=PAGES, description="Page", style={"button_width": "auto"})
        self.page.observe(lambda change: self._turn(change["new"]), "value")
        look = (STATIC / "app.css").read_text(encoding="utf-8")
        style = widgets.HTML(f"<style>{look}</style>")
        notice = widgets.HTML(f'<p class="covidlib-notice" role="note"><strong>{html.escape(predict.NOTICE)}</strong> '
                              "What is opened stays on this machine and goes with the page's kernel.</p>")
        notice.add_class("covidlib-top")
        self.view = widgets.VBox([style, notice, self.page, *(page.view for page in self.pages.values())])
        self.view.add_class("covidlib-app")
        self._turn(PAGES[0])

    def _turn(self, name):
        for title, page in self.pages.items():
            page.view.layout.display = "" if title == name else "none"
        if hasattr(self.pages[name], "refresh"):
            self.pages[name].refresh()

    def _slice(self):
        scan = self.viewer.scan
        return None if scan is None else scan.picture(min(self.viewer.position.value, len(scan)) - 1)
