"""The page "Scan": a scan, slice by slice, and the predictions of two trained networks."""

from pathlib import Path

import ipywidgets as widgets

from covidlib import readers
from covidlib.app import networks, series
from covidlib.app.panel import NO_OVERLAY, Panel, ShownSlice, level_name
from covidlib.app.widgets import Files, Message, button, dropdown, fill, render, set_visible
from covidlib.app.work import Job, Latest, sentence
from covidlib.evaluation import explain
from covidlib.predict import explained, predict, scans

WINDOWS = {"lung": (-600, 1500), "mediastinum": (40, 400), "bone": (400, 1800), "custom": None}
MAX_LISTED, MAX_PHANTOMS, MAX_PROBLEMS = 20, 30, 5


class Viewer:
    """The page as one widget, `view`.

    home: folder of runs, whose networks can be chosen; phantoms: folder of phantom slices, on which a first pair of
    networks is trained; both may be missing. Uploads lie in a temporary folder of this process.
    """

    def __init__(self, home, phantoms):
        self.home, self.phantoms = Path(home), Path(phantoms)
        self.scan, self.run_dirs, self.networks, self.file_warnings = None, {}, [], {}
        self.series, self._job, self._loading, self._reading = None, None, None, None
        self._painter = Latest(self._paint, self._on_paint_error)
        self._create()
        self._arrange()
        self._connect()
        self._list_phantoms()
        self._list_networks()

    def _create(self):
        self.message, self.paint_message, self.status = Message("alert"), Message("alert"), Message("status")
        self.files = Files(self._on_upload, self.message.show,
                           label="Open files (PNG, JPEG, TIFF, DICOM, NIfTI or a zip) ")
        self.gallery, self.chosen, self.network = map(dropdown, ("Phantom", "Scan", "Networks"))
        self.position = widgets.IntSlider(min=1, max=1, description="Slice")
        self.window = dropdown("Window", [(f"{name} {window}" if window else name, name)
                                          for name, window in WINDOWS.items()])
        self.centre = widgets.IntText(-600, description="Centre, HU")
        self.width = widgets.BoundedIntText(1500, min=1, max=8000, description="Width, HU")
        self.overlay = dropdown("Overlay", [NO_OVERLAY])
        self.explained = dropdown("Class", [""])
        self.opacity = widgets.FloatSlider(0.6, min=0, max=1, step=0.05, description="Opacity")
        self.facts, self.patient = widgets.HTML(), widgets.HTML()
        self.panels = [Panel(), Panel()]
        self.first = button("Train two networks on phantoms", lambda: self._start(self._train_first))
        self.classify = button("Classify all slices", lambda: self._start(self._classify))
        self.cancel = button("Cancel", lambda: self._job.cancelled.set(), visible=False)
        self.progress = widgets.FloatProgress(max=1)
        self.suspicious = widgets.Select(options=[], rows=8, description="Slices")
        self.save_table = button("Save the table (CSV)", self._save_table)
        self.save_pictures = button("Save the pictures (PNG)", self._save_pictures)
        set_visible(False, self.progress, self.suspicious, self.save_table)

    def _connect(self):
        for control in (self.position, self.centre, self.width, self.overlay, self.explained, self.opacity):
            control.observe(lambda _: self._painter.request(), "value")
        first, second = (panel.picture for panel in self.panels)
        widgets.link((first, "place"), (second, "place"))
        first.observe(lambda _: self._painter.request(), "place")
        widgets.dlink((self.suspicious, "value"), (self.position, "value"), lambda n: n or self.position.value)
        self.window.observe(self._on_window, "value")
        self.gallery.observe(self._on_gallery, "value")
        self.chosen.observe(self._on_chosen, "value")
        self.network.observe(self._on_network, "value")

    def _arrange(self):
        source = widgets.VBox([self.files, self.gallery, self.chosen, self.network, self.position])
        pictures = widgets.HBox([panel.view for panel in self.panels])
        controls = widgets.VBox([self.window, self.centre, self.width, self.overlay, self.explained, self.opacity,
                                 self.facts])
        grid = widgets.Box([source, pictures, controls])
        for box, name in ((grid, "scan"), (source, "source"), (pictures, "pictures"), (controls, "controls")):
            box.add_class(f"covidlib-{name}")
        self.view = widgets.VBox([
            self.message, self.paint_message, widgets.HBox([self.status, self.first, self.cancel]), self.progress, grid,
            widgets.HTML("<h2>The whole scan</h2>"),
            widgets.HBox([self.classify, self.save_table, self.save_pictures]), self.patient, self.suspicious])

    def _start(self, work):
        """work(job) in the background, one at a time, with progress and a button to cancel it."""
        if self._job and self._job.is_alive():
            self.message.show("Another task is running. Wait for it, or cancel it.")
            return
        self.message.show("")
        self.progress.value = 0
        set_visible(True, self.cancel, self.progress)

        def run(job):
            try:
                work(job)
            finally:
                set_visible(False, self.cancel, self.progress)

        self._job = Job(run, self.message.show_error)

    def _show_progress(self, share, text):
        self.progress.value = share
        self.status.show(text)

    # networks

    def _list_networks(self):
        self.run_dirs = networks.find(self.home)
        set_visible(not self.run_dirs, self.first)
        ready = [name for name, run_dirs in self.run_dirs.items() if all(map(explained.is_made, run_dirs))]
        self.network.unobserve(self._on_network, "value")  # new options first choose one by themselves
        fill(self.network, [(name, name) for name in self.run_dirs] or [("none yet", None)],
             next(iter([*ready, *self.run_dirs]), None))
        self.network.observe(self._on_network, "value")
        self._on_network(None)
        if not self.run_dirs:
            self.status.show("No trained network yet, so there are no predictions. Two can be trained here on "
                             "phantoms, in about ten minutes; they know phantoms and nothing of patients.")

    def _on_network(self, _):
        if run_dirs := self.run_dirs.get(self.network.value):
            self.networks = []
            self._forget_series()
            self._painter.request()
            self._loading = Job(lambda job: self._load(run_dirs), self.message.show_error)

    def _load(self, run_dirs):
        self.status.show("Loading the networks (half a minute the first time) ...")
        try:
            loaded = [networks.load(run_dir) for run_dir in run_dirs]
        finally:
            self.status.show("")
        if run_dirs != self.run_dirs.get(self.network.value):
            return  # another choice was made meanwhile
        self.networks = loaded
        levels = dict.fromkeys(level for network in loaded for level in network.levels)
        blocks = dict.fromkeys(block["name"] for network in loaded for block in network.blocks)
        overlays = {NO_OVERLAY: NO_OVERLAY} | {level: level_name(level) for level in (explain.ALL, *levels)} | {
            block: f"attention of {block.removeprefix('attention_')}, at the selected point" for block in blocks}
        fill(self.overlay, [(text, value) for value, text in overlays.items()],
             self.overlay.value if self.overlay.value in overlays else NO_OVERLAY)
        fill(self.explained, [("predicted", ""), *((name, name) for name in loaded[0].classes)], "")
        self._painter.request()

    def _train_first(self, job):
        done = networks.train_first(self.home, self.phantoms / "app", job.cancelled, self._show_progress)
        self.status.show("" if done else "Cancelled. The next start continues after the last finished epoch.")
        self._list_phantoms()
        if done:
            self._list_networks()

    # scans

    def open(self, path, title=None):
        """Show the first scan of a file or folder, and list the others; a message where none can be read."""
        path = Path(path)
        try:
            if path.is_dir():
                self._take(*scans.find(path, scans.MAX_FILES))
            else:
                scan = scans.of_file(path)
                scan.title = title or scan.title
                self._take([scan], [])
        except (readers.ReadError, FileNotFoundError, ValueError) as error:
            self.message.show_error(error)

    def _list_phantoms(self):
        files = sorted(self.phantoms.rglob("*.dcm"))
        fill(self.gallery, [("", None), *((path.relative_to(self.phantoms).as_posix(), path)
                                          for path in files[:: max(1, len(files) // MAX_PHANTOMS)])], None)

    def _on_gallery(self, change):
        if change["new"]:
            self.open(change["new"], change["new"].relative_to(self.phantoms).as_posix())
            self.gallery.value = None  # so that the same can be chosen again

    def _on_upload(self, folder):
        self._reading = Job(lambda job: self._read_upload(folder), self.message.show_error)

    def _read_upload(self, folder):
        self.status.show("Reading ...")
        taken, left = False, scans.MAX_BYTES
        try:
            for number, archive in enumerate(sorted(folder.glob("*.[zZ][iI][pP]"))):
                target = folder / f"{archive.stem} (unpacked)"
                left = scans.unpack(archive, folder / f"{number}-{target.name}" if target.exists() else target, left)
                archive.unlink()
            taken = self._take(*scans.find(folder, scans.MAX_FILES))
        finally:
            (self.files.keep if taken else self.files.drop)()
            self.status.show("")
        self._painter.request()

    def _take(self, found, problems):
        """Whether there is a scan; the first is shown."""
        texts = [f"{len(problems)} files cannot be used.", *map(sentence, problems[:MAX_PROBLEMS])] if problems else []
        if len(problems) > MAX_PROBLEMS:
            texts.append(f"And {len(problems) - MAX_PROBLEMS} more.")
        self.message.show(" ".join(texts) or ("" if found else "There is no file in it."))
        if found:
            found[0].is_hu  # noqa: B018  raises where it cannot be read, before anything changes
            fill(self.chosen, [(f"{scan.title} ({len(scan)})", scan) for scan in found], found[0])
        return bool(found)

    def _on_chosen(self, change):
        scan = change["new"]
        if scan is None or scan is self.scan:
            return
        try:
            is_hu = scan.is_hu
        except (readers.ReadError, OSError) as error:
            self.message.show_error(error)
            return
        if self.scan is not None:
            self.scan.forget()
        self.scan, self.file_warnings = scan, {}
        for control in (self.window, self.centre, self.width):
            control.disabled = not is_hu
        self._forget_series()
        self.facts.value = render("facts", facts=scan.facts, notes=scan.notes)
        with self.position.hold_trait_notifications():
            self.position.max = len(scan)
            self.position.value = len(scan) // 2 + 1
        self._painter.request()

    # a slice

    def _on_window(self, change):
        if WINDOWS[change["new"]]:
            self.centre.value, self.width.value = WINDOWS[change["new"]]

    def _paint(self):
        scan, index, pair = self.scan, self.position.value - 1, list(self.networks)
        how = self.overlay.value or NO_OVERLAY, self.explained.value or "", self.opacity.value
        if scan is None or index >= len(scan):
            return
        shown = scan.picture(index, (self.centre.value, self.width.value))
        warnings = self.file_warnings
        if index not in warnings:
            warnings[index] = scan.quality_warnings(index)
        slice_ = ShownSlice(index, f"slice {index + 1} of {len(scan)} of {scan.title}", shown, scan.picture(index),
                            warnings[index])
        for panel, network in zip(self.panels, [*pair, None, None], strict=False):
            if network:
                panel.show(slice_, network, *how)
            elif pair or panel is not self.panels[0]:
                panel.clear(visible=False)
            else:
                panel.show_slice(slice_)
        self.paint_message.show("")

    def _on_paint_error(self, error):
        for panel in self.panels:
            panel.clear()
        self.paint_message.show_error(error)

    # the whole scan

    def _forget_series(self):
        self.series, self.patient.value = None, ""
        set_visible(False, self.suspicious, self.save_table)

    def _classify(self, job):
        scan, pair = self.scan, list(self.networks)
        if scan is None or not pair:
            self.message.show("Open a scan first." if pair else "There is no trained network.")
            return
        found = series.classify(scan, pair, job.cancelled, self._show_progress)
        self.status.show("Cancelled." if found is None else "")
        if found is None:
            return
        slices, scores, problems = found
        if problems:
            self.message.show(f"{len(problems)} slices could not be read. {sentence(problems[0])}")
        if scores and scan is self.scan and pair == self.networks:
            self._show_series(slices, pair, *series.summarise(slices, scores, pair))

    def _show_series(self, slices, pair, table, means, used):
        main = pair[-1]
        self.series = table
        self.patient.value = render("means", means=means, used=used, left_out=len(slices) - used, classes=main.classes,
                                    variant=main.variant)
        self.suspicious.options = [
            (f"slice {row['slice']}: {row['predicted']}, {row['suspicion']:.2f} ({row['name']})",
             row["slice"]) for row in table.head(MAX_LISTED).to_dict("records")]
        set_visible(True, self.suspicious, self.save_table)

    def _save_table(self):
        text = f"# {predict.NOTICE}\n" + self.series.to_csv(index=False)
        self.files.save("slices.csv", text.encode(), "text/csv")

    def _save_pictures(self):
        for panel in self.panels:
            if panel.index is not None:
                self.files.save(f"slice-{panel.index + 1}-{panel.name}.png", bytes(panel.picture.png), "image/png")
