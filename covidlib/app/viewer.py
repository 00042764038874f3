"""A scan, slice by slice, and what two trained networks say of it."""

import html
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image

from covidlib import readers
from covidlib.app import networks
from covidlib.app.widgets import Files, Picture, fill
from covidlib.app.work import Job, Latest, sentence
from covidlib.evaluation import explain
from covidlib.predict import explained, predict, scans
from covidlib.preprocessing import crop, lungs, quality
from covidlib.utils import provenance

WINDOWS = {"lung": (-600, 1500), "mediastinum": (40, 400), "bone": (400, 1800), "of my own": None}
SIDE = 512  # of a picture that is shown, pixels
ALONE = "the slice alone"
MOST = 20  # suspicious slices that are listed
ROW = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
WIDE = widgets.Layout(width="100%", min_width="0")


class Viewer:
    """The page "Scan" as one widget, `viewer.view`.

    home: folder of runs, whose networks can be asked; phantoms: folder of drawn slices that can be looked at, and that
    a first pair of networks is trained on; both may be missing. Uploads lie in a temporary folder of this process.
    """

    def __init__(self, home, phantoms):
        self.home, self.phantoms = Path(home), Path(phantoms)
        self.scan, self.found, self.asked, self.file_warnings, self._scans = None, {}, [], {}, []
        self.series, self._job, self._loading, self._reading = None, None, None, None
        self._filling, self._paint_failed = False, False
        self._painter = Latest(self._paint, self._not_painted)
        self._build()
        self._refresh_networks()

    # the page

    def _build(self):
        self.files = Files(self._on_upload, self._say, label="Open files (PNG, JPEG, TIFF, DICOM, NIfTI, or a zip) ")
        self.gallery = self._dropdown("Or a phantom", [("", None)])
        self.chosen = self._dropdown("Scan", [("", None)])
        self.network = self._dropdown("Networks", [("", None)])
        self.position = widgets.IntSlider(min=1, max=1, description="Slice", layout=WIDE)
        self.window = self._dropdown("Window", [(_window_name(name), name) for name in WINDOWS])
        self.centre = widgets.IntText(-600, description="Centre, HU", layout=WIDE)
        self.width = widgets.BoundedIntText(1500, min=1, max=8000, description="Width, HU", layout=WIDE)
        self.overlay = self._dropdown("Overlay", [ALONE])
        self.explained = self._dropdown("Speaking for", [""])
        self.opacity = widgets.FloatSlider(0.6, min=0, max=1, step=0.05, description="Opacity", layout=WIDE)
        self.message, self.status, self.facts = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.panels = [Panel(self._on_place), Panel(self._on_place)]
        self.first = widgets.Button(description="Make two networks from phantoms", layout=widgets.Layout(width="auto"))
        self.ask = widgets.Button(description="Ask about every slice", layout=widgets.Layout(width="auto"))
        self.cancel = widgets.Button(description="Cancel", layout=widgets.Layout(display="none"))
        self.progress = widgets.FloatProgress(max=1, layout=widgets.Layout(width="100%", display="none"))
        self.patient = widgets.HTML()
        self.suspicious = widgets.Select(options=[], rows=8, description="Slices", layout=_hidden())
        self.save_table = widgets.Button(description="Save the table (CSV)", layout=_hidden())
        self.save_picture = widgets.Button(description="Save the pictures (PNG)", layout=widgets.Layout(width="auto"))
        for control in (self.position, self.centre, self.width, self.overlay, self.explained, self.opacity):
            control.observe(lambda _: self._painter.request(), "value")
        self.window.observe(self._on_window, "value")
        self.gallery.observe(self._on_gallery, "value")
        self.chosen.observe(self._on_chosen, "value")
        self.network.observe(self._on_network, "value")
        self.suspicious.observe(self._on_suspicious, "value")
        self.first.on_click(lambda _: self._start(self._make_first))
        self.ask.on_click(lambda _: self._start(self._ask_series))
        self.cancel.on_click(lambda _: self._job and self._job.cancel())
        self.save_table.on_click(self._on_save_table)
        self.save_picture.on_click(self._on_save_picture)
        source = widgets.VBox([self.files, self.gallery, self.chosen, self.network, self.position])
        pictures = widgets.HBox([panel.view for panel in self.panels], layout=widgets.Layout(flex_flow="row wrap"))
        controls = widgets.VBox([self.window, self.centre, self.width, self.overlay, self.explained, self.opacity,
                                 self.facts])
        grid = widgets.Box([source, pictures, controls])
        for box, name in ((grid, "scan"), (source, "source"), (pictures, "pictures"), (controls, "controls")):
            box.add_class(f"covidlib-{name}")
        series = widgets.VBox([widgets.HTML("<h2>The whole scan</h2>"),
                               widgets.HBox([self.ask, self.save_table, self.save_picture], layout=ROW),
                               self.patient, self.suspicious])
        self.view = widgets.VBox([
            self.message, widgets.HBox([self.status, self.first, self.cancel], layout=ROW), self.progress,
            grid, series])
        self._fill_gallery()

    @staticmethod
    def _dropdown(description, options):
        return widgets.Dropdown(options=options, description=description, layout=WIDE)

    def _fill_gallery(self):
        files = sorted(self.phantoms.rglob("*.dcm"))
        some = files[:: max(1, len(files) // 30)]
        fill(self.gallery, [("", None), *((path.relative_to(self.phantoms).as_posix(), path) for path in some)], None)

    def _say(self, text):
        self.message.value = f'<p role="alert">{html.escape(text)}</p>' if text else ""

    def _tell(self, text):
        self.status.value = f'<p role="status">{html.escape(text)}</p>' if text else ""

    def _failed(self, error):
        self._say(sentence(error))

    def _not_painted(self, error):
        self._paint_failed = True
        for panel in self.panels:
            panel.clear()
        self._failed(error)

    # networks

    def _refresh_networks(self):
        self.found = networks.find(self.home)
        self.first.layout.display = "none" if self.found else ""
        made = [name for name, run_dirs in self.found.items() if all(map(explained.is_made, run_dirs))]
        self._filling = True  # options choose their first by themselves
        fill(self.network, [(name, name) for name in self.found] or [("none yet", None)],
             next(iter([*made, *self.found]), None))
        self._filling = False
        self._on_network(None)
        if not self.found:
            self._tell("No trained network yet, and nothing is answered without one. Two can be made here from "
                       "phantoms, in about ten minutes; they will know phantoms and nothing of patients.")

    def _on_network(self, _):
        run_dirs = self.found.get(self.network.value)
        if run_dirs and not self._filling:
            self.asked = []
            self._forget_series()
            self._painter.request()
            self._loading = Job(lambda job: self._load(run_dirs), self._failed)

    def _load(self, run_dirs):
        self._tell("Making the networks ready (half a minute, the first time) ...")
        try:
            loaded = [networks.load(run_dir) for run_dir in run_dirs]
        finally:
            self._tell("")
        if run_dirs != self.found.get(self.network.value):
            return  # another choice was made meanwhile
        self.asked = loaded
        levels = dict.fromkeys(level for network in loaded for level in network.levels)
        blocks = dict.fromkeys(block["name"] for network in loaded for block in network.blocks)
        overlays = [(ALONE, ALONE), ("Grad-CAM, all levels", explain.ALL), *((_level_name(one), one) for one in levels),
                    *((f"attention of {one.removeprefix('attention_')}, from the place chosen", one)
                      for one in blocks)]
        known = [value for _, value in overlays]
        fill(self.overlay, overlays, self.overlay.value if self.overlay.value in known else ALONE)
        fill(self.explained, [("the answer", ""), *((name, name) for name in loaded[0].classes)], "")
        self._painter.request()

    def _make_first(self, job):
        def progress(share, what):
            self.progress.value = share
            self._tell(f"{what}: {share:.0%} of the way")

        done = networks.make_first(self.home, self.phantoms / "app", job, progress)
        self._tell("" if done else "Cancelled; begun again it goes on where it was.")
        self._fill_gallery()
        if done:
            self._refresh_networks()

    def _start(self, work):
        if self._job and self._job.running:
            self._say("Something is still at work. Wait for it, or cancel it.")
            return
        self._say("")
        for widget in (self.cancel, self.progress):
            widget.layout.display = ""
        self.progress.value = 0

        def run(job):
            try:
                work(job)
            finally:
                for widget in (self.cancel, self.progress):
                    widget.layout.display = "none"

        self._job = Job(run, self._failed)

    # scans

    def open(self, path, title=None):
        """Look at a file or folder: its first scan, the others in `chosen`; a message where none can be read."""
        path = Path(path)
        try:
            if path.is_dir():
                self._take(*scans.find(path))
            else:
                scan = scans.of_file(path)
                scan.title = title or scan.title
                self._take([scan], [])
        except (readers.ReadError, FileNotFoundError, ValueError) as error:
            self._failed(error)

    def _on_upload(self, folder):
        self._reading = Job(lambda job: self._read_upload(folder), self._failed)

    def _read_upload(self, folder):
        self._tell("Reading ...")
        taken = False
        try:
            left = scans.MAX_BYTES
            for number, archive in enumerate(sorted(folder.iterdir())):
                if archive.suffix.lower() == ".zip":
                    target = folder / f"{archive.stem} (unpacked)"
                    left = scans.unpack(archive, target if not target.exists() else folder / f"{number}-{target.name}",
                                        left)
                    archive.unlink()
            taken = self._take(*scans.find(folder))
        finally:
            (self.files.keep if taken else self.files.drop)()
            self._tell("")
        self._painter.request()

    def _take(self, found, problems):
        """Whether there is a scan among them to look at; the first is."""
        told = [sentence(one) for one in problems[:5]]
        more = f" And {len(problems) - 5} more." if len(problems) > 5 else ""
        self._say(f"{len(problems)} files cannot be used. " + " ".join(told) + more if problems else "")
        if not found:
            if not problems:
                self._say("There is no file in it.")
            return False
        for scan in found[:1]:
            scan.is_hu  # noqa: B018  raises where it cannot be read, before anything changes
        self._scans = found
        fill(self.chosen, [(f"{scan.title} ({len(scan)})", number) for number, scan in enumerate(found)], 0)
        return True

    def _on_gallery(self, change):
        if change["new"]:
            self.open(change["new"], change["new"].relative_to(self.phantoms).as_posix())
            self.gallery.value = None  # so that the same can be chosen again

    def _on_chosen(self, change):
        if change["new"] is not None and self._scans[change["new"]] is not self.scan:
            self._choose(self._scans[change["new"]])

    def _choose(self, scan):
        try:
            is_hu = scan.is_hu
        except (readers.ReadError, OSError) as error:
            self._failed(error)
            return
        before, self.scan, self.file_warnings = self.scan, scan, {}
        if before is not None:
            before.forget()
        for control in (self.window, self.centre, self.width):
            control.disabled = not is_hu
        self._forget_series()
        facts = "".join(f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(value[:200])}</td></tr>"
                        for name, value in scan.facts.items())
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in scan.notes)
        self.facts.value = f'<table class="covidlib-facts">{facts}</table>{notes}'
        with self.position.hold_trait_notifications():
            self.position.max = len(scan)
            self.position.value = len(scan) // 2 + 1
        self._painter.request()

    def _forget_series(self):
        self.series, self.patient.value = None, ""
        self.suspicious.layout.display = self.save_table.layout.display = "none"

    # a slice

    def _on_window(self, change):
        if WINDOWS[change["new"]]:
            self.centre.value, self.width.value = WINDOWS[change["new"]]

    def _on_place(self, place):
        for panel in self.panels:
            panel.picture.place = place
        self._painter.request()

    def _paint(self):
        scan, index, asked = self.scan, self.position.value - 1, list(self.asked)
        overlay, k, opacity = self.overlay.value or ALONE, self.explained.value or "", self.opacity.value
        if scan is None or index >= len(scan):
            return
        shown = scan.picture(index, (self.centre.value, self.width.value))
        seen = Seen(scan.picture(index))
        about = f"slice {index + 1} of {len(scan)} of {scan.title}"
        known = self.file_warnings
        if index not in known:
            known[index] = scan.quality_warnings(index)
        for panel, network in zip(self.panels, [*asked, None, None], strict=False):
            if network is None and (asked or panel is not self.panels[0]):
                panel.hide()
            else:
                panel.show(index, shown, seen, network, about, known[index], overlay, k, opacity)
        if self._paint_failed:
            self._paint_failed = False
            self._say("")

    # the whole scan

    def _ask_series(self, job):
        scan, asked = self.scan, list(self.asked)
        if scan is None or not asked:
            self._say("Open a scan first." if asked else "There is no network to ask.")
            return
        sizes = sorted({network.image_size for network in asked})
        pictures, kept, problems = {size: [] for size in sizes}, [], []
        pool = ThreadPoolExecutor(provenance.threads())  # finding lungs is most of the work, and SciPy's
        try:
            for index, seen in enumerate([pool.submit(_slice_views, scan, index, sizes) for index in range(len(scan))]):
                if job.cancelled:
                    self._tell("Cancelled.")
                    return
                try:
                    found, lung = seen.result()
                except (readers.ReadError, OSError) as error:
                    problems.append(error)
                    continue
                for size in sizes:
                    pictures[size].append(found[size])
                kept.append((index, lung))
                self.progress.value = 0.8 * (index + 1) / len(scan)
                self._tell(f"{index + 1} of {len(scan)} slices read")
        finally:
            pool.shutdown(cancel_futures=True)
        tables = {}
        for number, network in enumerate(asked):
            if job.cancelled:
                self._tell("Cancelled.")
                return
            scores = network.probabilities(np.stack(pictures[network.image_size])) if kept else np.zeros((0, 2))
            tables[network.variant] = scores
            self.progress.value = 0.8 + 0.2 * (number + 1) / len(asked)
        self._tell("")
        if problems:
            self._say(f"{len(problems)} slices could not be read. {sentence(problems[0])}")
        if kept and scan is self.scan and asked == self.asked:
            self._show_series(scan, asked, tables, kept)

    def _show_series(self, scan, asked, tables, kept):
        main = asked[-1]
        names = [f"{Path(scan.slices[index][0]).name}{'' if lung else ', no lung found'}" for index, lung in kept]
        table = scans.summary(tables[main.variant], [index + 1 for index, _ in kept], names, main.classes)
        with_lung = np.array([lung for _, lung in kept])
        used = with_lung if with_lung.any() else np.ones(len(kept), bool)
        rows = []
        for network in asked:
            mean = tables[network.variant][used].mean(axis=0)
            rows.append(f"<tr><th scope=row>{html.escape(network.variant)}</th>"
                        + "".join(f"<td>{value:.2f}</td>" for value in mean) + "</tr>")
        heads = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in main.classes)
        left = len(kept) - used.sum()
        self.patient.value = (
            f"<table><caption>Mean over {used.sum()} slices"
            + (f", {left} without lung left out" if left else "")
            + f"</caption><tr><th scope=col>network</th>{heads}</tr>{''.join(rows)}</table>"
            f"<p>By {html.escape(main.variant)}, those first that it calls least {html.escape(main.classes[-1])}:</p>")
        rows = {index + 1: row for row, (index, _) in enumerate(kept)}
        for network in asked[:-1]:
            others = tables[network.variant][[rows[number] for number in table["slice"]]]
            table[[f"p_{name} ({network.variant})" for name in network.classes]] = others
        self.series = table
        self.suspicious.options = [
            (f"slice {row['slice']}: {row['predicted']}, {row['suspicion']:.2f} not {main.classes[-1]} ({row['name']})",
             row["slice"]) for row in table.head(MOST).to_dict("records")]
        self.suspicious.layout.display = self.save_table.layout.display = ""

    def _on_suspicious(self, change):
        if change["new"]:
            self.position.value = int(change["new"])

    def _on_save_table(self, _):
        if self.series is not None:
            text = f"# {predict.NOTICE}\n" + self.series.to_csv(index=False)
            self.files.save("slices.csv", text.encode(), "text/csv")

    def _on_save_picture(self, _):
        for panel in self.panels:
            if panel.index is not None:
                self.files.save(f"slice-{panel.index + 1}-{panel.name}.png", bytes(panel.picture.png), "image/png")


class Seen:
    """A slice in the lung window, uint8 (H, W), its lungs and body, and the square of it that networks see."""

    def __init__(self, picture):
        self.picture = picture
        self.body, self.lungs = lungs.segment(picture)
        self.square = crop.crop_box(picture, self.lungs)

    def harmonised(self, size):
        return crop.crop_to_lungs(self.picture, size, self.lungs)[0]


class Panel:
    """One network's picture and answer."""

    def __init__(self, on_place):
        self.picture, self.answer, self.name, self.index = Picture(), widgets.HTML(), "alone", None
        self.picture.observe(lambda change: on_place(change["new"]), "place")
        self.view = widgets.VBox([self.picture, self.answer],
                                 layout=widgets.Layout(flex="1 1 300px", min_width="0", max_width=f"{SIDE + 20}px"))

    def clear(self):
        """Show nothing, rather than a slice that is not the one chosen."""
        self.index, self.picture.png, self.answer.value = None, b"", ""

    def hide(self):
        self.clear()
        self.view.layout.display = "none"

    def show(self, index, shown, seen, network, about, file_warnings, overlay, k, opacity):
        """shown: uint8 (H, W), slice `index` in the window chosen; seen: Seen; network: an Answerer, None for none."""
        self.view.layout.display = ""
        self.index, self.name = index, network.variant if network else "alone"
        self.picture.clickable = network is not None and overlay.startswith("attention")
        if network is None:
            self.answer.value = ""
            self.picture.show(readers.fit_square(shown, SIDE), about)
            return
        image = seen.harmonised(network.image_size)
        answer = network(image)
        best = int(answer.probabilities.argmax())
        k = network.classes.index(k) if k in network.classes else best
        place, inside = self._place(shown, seen)
        heat, told = _heat(answer, overlay, k, place, image.shape[0])
        if self.picture.clickable and not inside:
            told += ", or to the border next to it: it lies outside of what the network sees"
        picture = _blend(shown, seen.square, heat, opacity) if heat is not None else readers.fit_square(shown, SIDE)
        self.picture.show(picture, f"{about}, {told}, {network.variant} answers {network.classes[best]}")
        self.answer.value = _answer(network, answer, told, [*file_warnings, *quality.slice_warnings(
            seen.picture, seen.lungs, seen.body, image, network.typical)])

    def _place(self, shown, seen):
        """((row, column) in 0..1 of the network's square, whether the place chosen lies in it); else its middle."""
        if len(self.picture.place) != 2 or seen.square is None:
            return (0.5, 0.5), True
        height, width = shown.shape
        side, (top, left, own) = max(height, width), seen.square
        chosen = ((self.picture.place[0] * side - (side - height) // 2 - top) / own,
                  (self.picture.place[1] * side - (side - width) // 2 - left) / own)
        place = tuple(float(np.clip(share, 0, 0.999)) for share in chosen)
        return place, all(0 <= share <= 1 for share in chosen)


def _slice_views(scan, index, sizes):
    """({size: the slice as networks of that size see it}, whether lung was found). Raises ct.ReadError or OSError."""
    picture = scan.picture(index)
    lung = lungs.lung_mask(picture)
    return {size: crop.crop_to_lungs(picture, size, lung)[0] for size in sizes}, bool(lung.any())


def _heat(answer, overlay, k, place, size):
    """(float32 (size, size) in 0..1 or None, in words what it is)."""
    network = answer.answerer
    if overlay == ALONE:
        return None, "the slice alone"
    if overlay.startswith("attention"):
        if overlay not in answer.attention:
            return None, "no attention in this network"
        weights = answer.related(overlay, place, size)
        return weights / max(weights.max(), 1e-9), f"what {overlay} relates to the place chosen"
    if overlay != explain.ALL and overlay not in answer.maps:
        return None, "no such level in this network"
    values = np.maximum(answer.heat(overlay, k, size), 0)
    return values / max(values.max(), 1e-9), f"what speaks for {network.classes[k]} ({_level_name(overlay)})"


def _blend(shown, square, heat, opacity):
    """uint8 (SIDE, SIDE, 3): heat over the square of the slice that the network sees, its rim drawn."""
    from matplotlib import colormaps

    height, width = shown.shape
    side = max(height, width)
    grey = readers.fit_square(shown, SIDE).astype(np.float32)[..., None].repeat(3, axis=2)
    if square is None:
        return grey.astype(np.uint8)
    scale = SIDE / side
    top = (square[0] + (side - height) // 2) * scale
    left = (square[1] + (side - width) // 2) * scale
    own = max(1, round(square[2] * scale))
    values = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((own, own), Image.Resampling.BILINEAR))
    layer = np.zeros((SIDE, SIDE), np.float32)
    rows, columns = (slice(max(0, round(start)), min(SIDE, round(start) + own)) for start in (top, left))
    layer[rows, columns] = values[rows.start - round(top) : rows.stop - round(top),
                                  columns.start - round(left) : columns.stop - round(left)]
    layer = np.clip(layer, 0, 1)
    share = opacity * np.sqrt(layer)[..., None]
    mixed = (1 - share) * grey + share * 255 * colormaps["inferno"](layer)[..., :3]
    for line in ((rows.start, columns), (rows.stop - 1, columns), (rows, columns.start), (rows, columns.stop - 1)):
        mixed[line] = (120, 170, 255)
    return mixed.astype(np.uint8)


def _answer(network, answer, told, found):
    best = int(answer.probabilities.argmax())
    rows = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th><td><meter min=0 max=1 value={p:.3f} "
        f'aria-label="probability of {html.escape(name, quote=True)}">{p:.0%}</meter></td>'
        f"<td>{'<strong>' if k == best else ''}{p:.1%}{'</strong>' if k == best else ''}</td></tr>"
        for k, (name, p) in enumerate(zip(network.classes, answer.probabilities, strict=True)))
    known = network.calibration_error is not None
    error = f", off by {network.calibration_error:.2f} on its test slices" if known else ""
    how = f"after temperature {network.temperature:.2f}" if network.temperature else "as trained, not calibrated"
    trust = f"Confidence {how}{error}."
    warnings = "".join(f"<li>{html.escape(text)}</li>" for text in found)
    warned = f'<div class="covidlib-warnings" role="alert"><p>Unlike its training data:</p><ul>{warnings}</ul></div>' \
        if found else ""
    unknown = "" if network.typical else "<p>Its training slices are not at hand to compare with.</p>"
    return (f"<h3>{html.escape(network.variant)}</h3><p>{html.escape(told)}</p><table>{rows}</table>"
            f"<p>{html.escape(trust)}</p>{warned}{unknown}<p>{html.escape(explained.describe(network))}</p>")


def _level_name(level):
    if level == explain.ALL:
        return "all levels"
    if level.startswith("fpn_p"):
        return f"Grad-CAM, pyramid level {level[4:6].upper()}"
    return f"Grad-CAM, {level.split('_')[0]}"


def _window_name(name):
    return f"{name} ({WINDOWS[name][0]}, {WINDOWS[name][1]})" if WINDOWS[name] else name


def _hidden():
    return widgets.Layout(width="auto", display="none")
