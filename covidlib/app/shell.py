"""The app's pages under one heading."""

from pathlib import Path

import ipywidgets as widgets

from covidlib.app.explorer import Explorer
from covidlib.app.playground import Playground
from covidlib.app.viewer import Viewer
from covidlib.app.widgets import STATIC, set_visible, sweep
from covidlib.predict import predict


class App:
    """The app as one widget, `app.view`.

    home: folder of runs; phantoms: folder of phantom slices; published: reports/published, whose runs are shown, too.
    """

    def __init__(self, home, phantoms, published):
        sweep()
        self.viewer = Viewer(home, phantoms)
        self.pages = {"Scan": self.viewer, "Augmentation": Playground(self._slice),
                      "Results": Explorer([Path(home), Path(published, "runs")])}
        self.page = widgets.ToggleButtons(options=list(self.pages), description="Page", style={"button_width": "auto"})
        self.page.observe(lambda change: self._turn(change["new"]), "value")
        style = widgets.HTML(f"<style>{(STATIC / 'app.css').read_text(encoding='utf-8')}</style>")
        notice = widgets.HTML(f'<p class="covidlib-notice" role="note"><strong>{predict.NOTICE}</strong> Uploads '
                              "stay on this machine and are deleted when the page's kernel ends.</p>")
        notice.add_class("covidlib-top")
        self.view = widgets.VBox([style, notice, self.page, *(page.view for page in self.pages.values())])
        self.view.add_class("covidlib-app")
        self._turn(self.page.value)

    def _turn(self, name):
        for title, page in self.pages.items():
            set_visible(title == name, page.view)
        if name != "Scan":
            self.pages[name].refresh()

    def _slice(self):
        scan = self.viewer.scan
        return None if scan is None else scan.picture(min(self.viewer.position.value, len(scan)) - 1)
