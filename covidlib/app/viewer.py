"""Look at a scan, and at what a trained network says of it."""

import html
import io
import tempfile
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image

from covidlib import ct, harmonise, predict, volumes

WINDOWS = {"lung (-600, 1500)": (-600, 1500), "mediastinum (40, 400)": (40, 400), "bone (400, 1800)": (400, 1800)}
SIDE = 384  # of the picture shown, pixels


class Viewer:
    """A scan viewer as one widget, `viewer.view`.

    models: name -> path of a run directory's model.keras, asked in turn by the user.
    gallery: name -> path of a file that can be looked at without uploading one.

    An upload is written to a temporary folder, read, and removed at once. Whatever window the picture is
    shown in, the network gets the lung window it was trained on.
    """

    def __init__(self, models, gallery):
        self.models, self.gallery, self._loaded = models, gallery, {}
        self.title, self.scan, self.slices = "", None, None
        self.upload = widgets.FileUpload(accept="", multiple=False, description="Open a scan")
        self.example = widgets.Dropdown(options=["", *gallery], description="Example")
        self.model = widgets.Dropdown(options=list(models), description="Network")
        self.position = widgets.IntSlider(min=0, max=0, description="Slice")
        self.window = widgets.Dropdown(options=list(WINDOWS), description="Window")
        self.picture = widgets.Image(format="png", width=SIDE, height=SIDE)
        self.answer = widgets.HTML()
        self.message = widgets.HTML()
        self.upload.observe(self._on_upload, "value")
        self.example.observe(self._on_example, "value")
        for control in (self.model, self.position, self.window):
            control.observe(lambda change: self.show(), "value")
        controls = widgets.VBox([self.upload, self.example, self.model, self.position, self.window, self.answer])
        notice = widgets.HTML(f"<strong>{predict.NOTICE}</strong>")
        self.view = widgets.VBox([notice, self.message, widgets.HBox([self.picture, controls])])
        if not models:
            self._say("No trained network yet: run notebook 03_training, then this notebook again.")

    def open(self, path, title=None):
        """Read a scan of one or several slices and show its middle one; a message where it cannot be read."""
        try:
            scan, holds_hu = self._read(path)
        except (ct.ReadError, FileNotFoundError) as error:
            self._say(str(error))
            return
        self.title, self.scan = title or Path(path).name, scan
        self.slices = ct.apply_window(scan) if holds_hu else scan
        self.window.disabled = not holds_hu
        self.message.value = ""
        self.position.max = len(scan) - 1
        self.position.value = len(scan) // 2
        self.show()

    def _read(self, path):
        """float32 HU or uint8 grey (D, H, W), and which of the two it is."""
        if ct.sniff(path) in ("dicom", "nifti"):
            try:
                return volumes.read_volume(path), True
            except ct.ReadError:  # some headers say nothing of HU: then grey values are shown as they are
                pass
        return np.stack([ct.read_slice(path, index) for index in range(ct.count_slices(path))]), False

    def show(self):
        """Draw the chosen slice in the chosen window, and the chosen network's answer to it."""
        if self.scan is None:
            return
        index = self.position.value
        if self.window.disabled:
            grey = self.slices[index]
        else:
            grey = ct.apply_window(self.scan[index], WINDOWS[self.window.value])
        buffer = io.BytesIO()
        Image.fromarray(ct.fit_square(grey, SIDE)).save(buffer, "png")
        self.picture.value = buffer.getvalue()
        self.picture.alt = f"slice {index + 1} of {len(self.scan)} of {self.title}"
        self.answer.value = self._answer(self.slices[index])

    def probabilities(self, image):
        """Class name -> probability of one uint8 slice (H, W) in the lung window, by the chosen network."""
        name = self.model.value
        if name not in self._loaded:
            self._loaded[name] = predict.load(self.models[name])
        model, classes = self._loaded[name]
        batch = harmonise.harmonise(image, model.input_shape[1])[0].astype("float32")[None, ..., None]
        return dict(zip(classes, np.asarray(model(batch, training=False))[0].tolist(), strict=True))

    def _answer(self, image):
        if not self.models:
            return ""
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td><meter min=0 max=1 value={p:.3f}></meter></td>"
                       f"<td>{p:.3f}</td></tr>" for name, p in self.probabilities(image).items())
        return f"<p>{html.escape(self.title)}, answered by {html.escape(self.model.value)}</p><table>{rows}</table>"

    def _on_example(self, change):
        if change["new"]:
            self.open(self.gallery[change["new"]], change["new"])

    def _on_upload(self, change):
        for file in change["new"]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "scan")
                path.write_bytes(file["content"])
                self.open(path, file["name"])

    def _say(self, text):
        self.message.value = f'<p role="alert">{html.escape(text)}</p>'
