"""Augmentation by hand: every operation of §2.1 with its slider, and what training draws."""

import ipywidgets as widgets
import numpy as np

from covidlib import readers
from covidlib.app.widgets import Message, Picture, button, dropdown, section
from covidlib.app.work import Latest
from covidlib.preprocessing import augmentation

SIDE, SMALL, ROWS, COLUMNS = 320, 112, 3, 4
SPAN = 2  # a slider reaches this many times as far as the range that training draws from
LABELS = {"horizontal_flip": "Flip left, right", "vertical_flip": "Flip up, down", "shear": "Shear (stagger)"}


class Playground:
    """The page "Augmentation" as one widget, `view`.

    get_slice: gives the slice to work on, uint8 (H, W), or None for a phantom.
    """

    def __init__(self, get_slice):
        self._get_slice, self._phantom = get_slice, None
        self.controls = {name: _control(operation) for name, operation in augmentation.OPERATIONS.items()}
        self.names = dropdown("Settings", list(augmentation.SETS)[:2])
        self.seed = widgets.BoundedIntText(0, min=0, max=10**6, description="Seed")
        self.reset = button("Reset", self._reset)
        self.picture, self.grid, self.message = Picture(), Picture(), Message("status")
        self._painter = Latest(self._paint, self.message.show_error)
        for control in (*self.controls.values(), self.names, self.seed):
            control.observe(lambda _: self._painter.request(), "value")
        self.view = widgets.HBox([
            section(*self.controls.values(), self.reset, basis=280, most=420),
            section(self.picture, self.message, title="Operations by hand", basis=280, most=SIDE + 20),
            section(self.names, self.seed, self.grid, title="Random augmentation in training", basis=280, most=520)])

    def refresh(self):
        """Draw again, from the slice that is shown on the page Scan."""
        self._painter.request()

    def _reset(self):
        for name, control in self.controls.items():
            control.value = _neutral(augmentation.OPERATIONS[name])

    def _slice(self):
        image = self._get_slice()
        if image is None and self._phantom is None:
            from covidlib import phantom

            self._phantom = readers.apply_window(phantom.render("covid", np.random.default_rng(0)).hu)
        return self._phantom if image is None else image

    def _paint(self):
        image = readers.fit_square(self._slice(), SIDE)
        changed, done = image, []
        for name, control in self.controls.items():
            if not np.isclose(control.value, _neutral(augmentation.OPERATIONS[name])):  # sliders round to their step
                changed = augmentation.apply(name, changed, control.value)
                done.append(name.replace("_", " "))
        self.picture.show(changed, f"the slice after {', '.join(done) or 'no operation'}")
        grey = [name for name in ("hue", "saturation") if name in done]
        self.message.show(f"{' and '.join(grey)} change nothing on a grey slice." if grey else "")
        small, count = readers.fit_square(image, SMALL), ROWS * COLUMNS
        augmenter = augmentation.Augmenter(self.names.value, self.seed.value)
        self.grid.show_grid(np.stack([augmenter(small, 0, index) for index in range(count)]), COLUMNS,
                            f"{count} augmented slices, settings {self.names.value}, seed {self.seed.value}")


def _neutral(operation):
    return False if operation.name.endswith("_flip") else float(operation.identity)


def _control(operation):
    label = LABELS.get(operation.name, operation.name.capitalize())
    if operation.name.endswith("_flip"):
        return widgets.Checkbox(False, description=label, indent=False)
    low, high = (operation.identity + SPAN * (limit - operation.identity) for limit in operation.default)
    unit = f", {operation.unit}" if operation.unit else ""
    return widgets.FloatSlider(operation.identity, min=round(low, 3), max=round(high, 3), step=(high - low) / 100,
                               description=f"{label}{unit}", style={"description_width": "55%"})
