"""Augmentation by hand: every operation of §2.1 with its slider, and what a seed draws."""

import html

import ipywidgets as widgets
import numpy as np

from covidlib import readers
from covidlib.app.widgets import Picture
from covidlib.app.work import Latest, sentence
from covidlib.preprocessing import augmentation

SIDE, SMALL, GRID = 320, 112, (3, 4)
ROW = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
SPAN = 2  # a slider reaches this many times as far as the range that training draws from
LABELS = {"horizontal_flip": "Flip left, right", "vertical_flip": "Flip up, down", "shear": "Shear (stagger)"}


class Playground:
    """The page "Augmentation" as one widget, `view`.

    get_slice: gives the slice to work on, uint8 (H, W), or None, in which case a drawn one is taken.
    """

    def __init__(self, get_slice):
        self._get_slice, self._drawn = get_slice, None
        self.controls = {name: _control(operation) for name, operation in augmentation.OPERATIONS.items()}
        self.names = widgets.Dropdown(options=list(augmentation.SETS)[:2], description="Drawn as in",
                                      layout=widgets.Layout(width="100%"))
        self.seed = widgets.BoundedIntText(0, min=0, max=10**6, description="Seed", layout=widgets.Layout(width="100%"))
        self.reset = widgets.Button(description="Reset", layout=widgets.Layout(width="auto"))
        self.picture, self.grid, self.told = Picture(), Picture(), widgets.HTML()
        self._painter = Latest(self._paint, lambda error: setattr(self.told, "value", html.escape(sentence(error))))
        for control in (*self.controls.values(), self.names, self.seed):
            control.observe(lambda _: self._painter.request(), "value")
        self.reset.on_click(lambda _: self._reset())
        sliders = widgets.VBox([*self.controls.values(), self.reset],
                               layout=widgets.Layout(flex="1 1 280px", max_width="420px", min_width="0"))
        one = widgets.VBox([widgets.HTML("<h2>One operation after another</h2>"), self.picture, self.told],
                           layout=widgets.Layout(flex="1 1 280px", max_width=f"{SIDE + 20}px", min_width="0"))
        many = widgets.VBox([widgets.HTML("<h2>What training draws</h2>"), self.names, self.seed, self.grid],
                            layout=widgets.Layout(flex="1 1 280px", max_width="520px", min_width="0"))
        self.view = widgets.HBox([sliders, one, many], layout=ROW)

    def refresh(self):
        """Draw anew, of the slice that is looked at now."""
        self._painter.request()

    def _reset(self):
        for name, control in self.controls.items():
            control.value = _neutral(augmentation.OPERATIONS[name])

    def _slice(self):
        image = self._get_slice()
        if image is not None:
            return image
        if self._drawn is None:
            from covidlib import phantom

            self._drawn = readers.apply_window(phantom.render("covid", np.random.default_rng(0)).hu)
        return self._drawn

    def _paint(self):
        image = readers.fit_square(self._slice(), SIDE)
        changed, done = image, []
        for name, control in self.controls.items():
            if not np.isclose(control.value, _neutral(augmentation.OPERATIONS[name])):  # sliders round to their step
                changed = augmentation.apply(name, changed, control.value)
                done.append(name.replace("_", " "))
        self.picture.show(changed, f"the slice after {', '.join(done) or 'no operation'}")
        grey = [name for name in ("hue", "saturation") if name in done]
        self.told.value = f"<p>{' and '.join(grey)} change nothing on a grey slice.</p>" if grey else ""
        small, (rows, columns) = readers.fit_square(image, SMALL), GRID
        augmenter = augmentation.Augmenter(self.names.value, self.seed.value)
        drawn = [augmenter(small, 0, index) for index in range(rows * columns)]
        sheet = np.block([drawn[row * columns : (row + 1) * columns] for row in range(rows)])
        self.grid.show(sheet, f"{rows * columns} slices as training draws them, augmentation {self.names.value}, "
                              f"seed {self.seed.value}")


def _neutral(operation):
    return False if operation.name.endswith("_flip") else float(operation.identity)


def _control(operation):
    label = LABELS.get(operation.name, operation.name.capitalize())
    wide = widgets.Layout(width="100%")
    if operation.name.endswith("_flip"):
        return widgets.Checkbox(False, description=label, indent=False, layout=wide)
    low, high = operation.default
    low, high = (operation.identity + SPAN * (limit - operation.identity) for limit in (low, high))
    unit = f", {operation.unit}" if operation.unit else ""
    return widgets.FloatSlider(operation.identity, min=round(low, 3), max=round(high, 3), step=(high - low) / 100,
                               description=f"{label}{unit}", style={"description_width": "55%"}, layout=wide)
