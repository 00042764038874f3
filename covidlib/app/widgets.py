"""What ipywidgets lacks: clickable pictures, uploads of any size, messages with a role; and shorthands."""

import html
import io
import shutil
import tempfile
from pathlib import Path

import anywidget
import ipywidgets
import jinja2
import numpy as np
import traitlets
from PIL import Image

from covidlib.app.work import sentence
from covidlib.predict import scans
from covidlib.utils.files import orphans, owned

STATIC = Path(__file__).parent / "static"
PREFIX = "covidlib-app-"  # of temporary folders; the process that they belong to follows
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("covidlib.app"), autoescape=True, trim_blocks=True,
                               lstrip_blocks=True)


def render(name, **values):
    """HTML of templates/<name>.html, all values escaped."""
    return TEMPLATES.get_template(f"{name}.html").render(values)


def dropdown(description, options=(("", None),)):
    return ipywidgets.Dropdown(options=options, description=description)


def button(description, on_click, visible=True):
    """on_click: called without arguments."""
    made = ipywidgets.Button(description=description)
    made.on_click(lambda _: on_click())
    set_visible(visible, made)
    return made


def section(*children, title="", basis=330, most=680):
    """A column of widgets under a heading; columns share a row's width, each `basis` to `most` pixels wide."""
    heading = [ipywidgets.HTML(f"<h2>{html.escape(title)}</h2>")] if title else []
    layout = ipywidgets.Layout(flex=f"1 1 {basis}px", min_width="0", max_width=f"{most}px")
    return ipywidgets.VBox([*heading, *children], layout=layout)


def set_visible(visible, *widgets):
    for widget in widgets:
        widget.layout.display = "" if visible else "none"


def fill(dropdown, options, value):
    """Give a dropdown its options, (text, value) each, and choose one of them.

    Via None: a page shows nothing where the options change and the index of the choice does not.
    """
    dropdown.options = options
    dropdown.value = None
    dropdown.value = value


class Message(ipywidgets.HTML):
    """A paragraph of plain text with an ARIA role, `alert` or `status`; nothing where the text is empty."""

    def __init__(self, role):
        super().__init__()
        self.role = role

    def show(self, text):
        self.value = f'<p role="{self.role}">{html.escape(text)}</p>' if text else ""

    def show_error(self, error):
        self.show(sentence(error))


class Picture(anywidget.AnyWidget):
    """A PNG as wide as its place, with an alternative text; where `clickable`, `place` is (row, column) in 0..1."""

    _esm = STATIC / "picture.js"
    png = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    hint = traitlets.Unicode("Arrow keys move the selected point.").tag(sync=True)
    clickable = traitlets.Bool(False).tag(sync=True)
    place = traitlets.List(traitlets.Float()).tag(sync=True)

    def show(self, image, alt):
        """uint8 (H, W) or (H, W, 3)."""
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png", compress_level=1)
        self.alt = alt
        self.png = buffer.getvalue()

    def show_grid(self, images, columns, alt):
        """uint8 (N, H, W) in rows of `columns`, black where there are no more."""
        images = np.pad(images, ((0, -len(images) % columns), (0, 0), (0, 0)))
        height, width = images.shape[1:]
        self.show(images.reshape(-1, columns, height, width).swapaxes(1, 2).reshape(-1, columns * width), alt)


class Files(anywidget.AnyWidget):
    """Uploads into a temporary folder, at most scans.MAX_FILES files and scans.MAX_BYTES; downloads by `save`.

    on_files: called with the folder of an upload, each file under its own name; it calls `keep`, which removes the
    upload before, or `drop`. on_problem: called with a sentence. The last folder is removed with the process.
    """

    _esm = STATIC / "files.js"
    label = traitlets.Unicode("Open a scan").tag(sync=True)

    def __init__(self, on_files, on_problem, **options):
        super().__init__(**options)
        self._on_files, self._on_problem = on_files, on_problem
        self._kept, self._coming, self._reading, self._names, self._left = None, None, False, [], 0
        self.on_msg(self._on_message)

    def save(self, name, content, kind):
        """Let the browser save `content`, bytes of the MIME type `kind`."""
        self.send({"kind": "save", "name": name, "type": kind}, [content])

    def keep(self):
        """Keep the folder that on_files was called with, and remove the one before."""
        before, self._kept, self._coming, self._reading = self._kept, self._coming, None, False
        _remove(before)

    def drop(self):
        """Remove the folder that on_files was called with, or what has come of it so far."""
        coming, self._coming, self._reading = self._coming, None, False
        _remove(coming)

    def close(self):
        self.drop()
        self.keep()
        super().close()

    def _on_message(self, _, message, buffers):
        try:
            match message.get("kind"):
                case "start":
                    self._start(message["files"])
                case "part" if self._coming:
                    self._append(int(message["file"]), buffers[0])
                case "end" if self._coming:
                    self._reading = True
                    self._on_files(Path(self._coming.name))
                case "failed":
                    self._refuse(f"{message.get('name')} could not be read by the browser ({message.get('error')}).")
                case "cancel":
                    self._refuse("The upload was cancelled.")
        except (OSError, ValueError) as error:
            self._refuse(getattr(error, "strerror", None) or str(error))

    def _start(self, files):
        if self._reading:
            raise ValueError("The previous files are still being read. Wait until they are shown.")
        size = sum(int(file["size"]) for file in files)
        if len(files) > scans.MAX_FILES or size > scans.MAX_BYTES:
            raise ValueError(f"{len(files)} files of {size / 1e6:,.0f} MB are too much: at most {scans.MAX_FILES:,} "
                             f"files and {scans.MAX_BYTES / 1e6:,.0f} MB can be opened together. Open some of them.")
        self.drop()
        self._coming = tempfile.TemporaryDirectory(prefix=owned(PREFIX))
        self._names, self._left = _distinct([str(file["name"]) for file in files]), scans.MAX_BYTES
        for name in self._names:
            Path(self._coming.name, name).touch()
        self.send({"kind": "more"})

    def _append(self, number, content):
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("The upload is larger than was announced; nothing of it is kept.")
        with open(Path(self._coming.name, self._names[number]), "ab") as file:
            file.write(content)
        self.send({"kind": "more"})

    def _refuse(self, text):
        if not self._reading:
            self.drop()
        self.send({"kind": "stop"})
        self._on_problem(text)


def _remove(folder):
    if folder is not None:
        folder.cleanup()


def _distinct(names):
    """File names without folders, no two alike; as they were where that is possible."""
    kept = []
    for number, name in enumerate(names):
        name = name.replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "") or "file"
        name = name.encode()[-180:].decode(errors="ignore")
        while name in (".", "..") or name in kept:
            name = f"{number}-{name}"
        kept.append(name)
    return kept


def sweep():
    """Remove the temporary folders of processes that were killed."""
    for folder in orphans(tempfile.gettempdir(), PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
