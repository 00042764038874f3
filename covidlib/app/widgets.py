"""What ipywidgets lacks: a picture one can point at, and files of any number and size in and out."""

import io
import shutil
import tempfile
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image

from covidlib.predict import scans
from covidlib.utils.files import orphans, owned

STATIC = Path(__file__).parent / "static"
PREFIX = "covidlib-app-"  # of temporary folders; the process that they belong to follows


def fill(dropdown, options, value):
    """Give a dropdown its options, (text, value) each, and choose one of them.

    By way of none: a page whose choice keeps its number shows nothing after the options change.
    """
    dropdown.options = options
    dropdown.value = None
    dropdown.value = value


class Picture(anywidget.AnyWidget):
    """A PNG as wide as its place, with an alternative text; where `clickable`, `place` is (row, column) in 0..1."""

    _esm = STATIC / "picture.js"
    png = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    hint = traitlets.Unicode("Arrow keys move the place that is asked about.").tag(sync=True)
    clickable = traitlets.Bool(False).tag(sync=True)
    place = traitlets.List(traitlets.Float()).tag(sync=True)

    def show(self, image, alt):
        """uint8 (H, W) or (H, W, 3)."""
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "png", compress_level=1)
        self.alt = alt
        self.png = buffer.getvalue()


class Files(anywidget.AnyWidget):
    """Uploads into a temporary folder, at most scans.MAX_FILES files and scans.MAX_BYTES; downloads by `save`.

    on_files: called with a folder that holds what was uploaded, each file under its own name, and answers by `keep` or
    `drop`; on_problem: called with a sentence. What was kept before goes with `keep`, the last with the process.
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
        """The folder that on_files was called with takes the place of the one before."""
        before, self._kept, self._coming, self._reading = self._kept, self._coming, None, False
        _remove(before)

    def drop(self):
        """Remove the folder that on_files was called with, or what came of it so far."""
        coming, self._coming, self._reading = self._coming, None, False
        _remove(coming)

    def close(self):
        for folder in (self._kept, self._coming):
            _remove(folder)
        self._kept = self._coming = None
        super().close()

    def _on_message(self, _, message, buffers):
        answer = {"start": self._start, "part": self._part, "end": self._end, "failed": self._failed,
                  "cancel": self._cancel}.get(message.get("kind"))
        if answer:
            try:
                answer(message, buffers)
            except (OSError, ValueError) as error:
                self._refuse(getattr(error, "strerror", None) or str(error))

    def _start(self, message, _):
        if self._reading:
            raise ValueError("The files before are still being read. Wait until they are shown.")
        files = message["files"]
        size = sum(int(file["size"]) for file in files)
        if len(files) > scans.MAX_FILES or size > scans.MAX_BYTES:
            raise ValueError(f"{len(files)} files of {size / 1e6:,.0f} MB are too much: at most {scans.MAX_FILES:,} "
                             f"files and {scans.MAX_BYTES / 1e6:,.0f} MB can be looked at together. Open some of them.")
        self.drop()
        self._coming = tempfile.TemporaryDirectory(prefix=owned(PREFIX))
        self._names, self._left = _distinct([str(file["name"]) for file in files]), scans.MAX_BYTES
        for name in self._names:
            Path(self._coming.name, name).touch()
        self.send({"kind": "more"})

    def _part(self, message, buffers):
        if self._coming is None:
            return
        self._left -= len(buffers[0])
        if self._left < 0:
            raise ValueError("more came than was announced; nothing of it is kept.")
        with open(Path(self._coming.name, self._names[int(message["file"])]), "ab") as file:
            file.write(buffers[0])
        self.send({"kind": "more"})

    def _end(self, *_):
        if self._coming is not None:
            self._reading = True
            self._on_files(Path(self._coming.name))

    def _failed(self, message, _):
        self._refuse(f"{message.get('name')} could not be read by the browser ({message.get('error')}).")

    def _cancel(self, *_):
        self._refuse("The upload was cancelled.")

    def _refuse(self, text):
        if not self._reading:
            self.drop()
        self.send({"kind": "stop"})
        self._on_problem(text)


def _remove(folder):
    if folder is not None:
        folder.cleanup()


def _distinct(names):
    """File names that cannot lead anywhere, no two alike; as they were where that can be."""
    kept = []
    for number, name in enumerate(names):
        name = name.replace("\\", "/").rsplit("/", 1)[-1].replace("\0", "") or "file"
        name = name.encode()[-180:].decode(errors="ignore")
        while name in (".", "..") or name in kept:
            name = f"{number}-{name}"
        kept.append(name)
    return kept


def sweep():
    """Remove what processes left behind that were killed before they could tidy up."""
    for folder in orphans(tempfile.gettempdir(), PREFIX):
        shutil.rmtree(folder, ignore_errors=True)
