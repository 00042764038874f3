"""Results of finished runs: curves, matrix, threshold, confidence, and what speed costs."""

import html
from itertools import cycle
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd

from covidlib.app.widgets import Picture, fill
from covidlib.app.work import Latest, sentence
from covidlib.training import runs
from covidlib.utils import provenance

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, for all eyes
SHOWN, TILE, ACROSS = 24, 96, 8  # slices behind a cell of the matrix
WIDE = widgets.Layout(width="100%", min_width="0")
HALF = widgets.Layout(flex="1 1 330px", min_width="0", max_width="680px")


class Explorer:
    """The page "Results" as one widget, `view`. homes: folders that hold <dataset>/<profile>/<variant>/seed-<k>/."""

    def __init__(self, homes):
        self.homes, self.run, self.built, self.read = homes, None, False, []
        self.view = widgets.VBox()
        self._reader = Latest(self._update, lambda error: setattr(self.message, "value", _alert(sentence(error))))

    def refresh(self):
        """Build the page when it is first looked at, and look for runs."""
        self.found = self._find()
        if not self.built:
            self._build()
            self.built = True
        self.chosen.options = list(self.found)
        if self.found and not self.chosen.value:
            self.chosen.value = list(self.found)[:2]

    def _find(self):
        found = {}
        for home in self.homes:
            for path in sorted(Path(home).glob("*/*/*/seed-*/run.json")):
                if (path.parent / "predictions.csv").is_file():
                    found.setdefault(" / ".join(path.parts[-5:-1]), path.parent)
        return found

    def _build(self):
        import plotly.graph_objects as go

        self._go = go
        empty = _alert("No finished run yet: train networks on the page Scan, or with make reproduce.")
        self.message = widgets.HTML("" if self.found else empty)
        self.chosen = widgets.SelectMultiple(options=[], rows=6, description="Runs", layout=WIDE)
        self.quantity = widgets.Dropdown(options=["loss", "accuracy"], description="Curve", layout=WIDE)
        self.cell = widgets.Dropdown(options=[("", None)], description="Cell", layout=WIDE)
        self.positive = widgets.Dropdown(options=[("", None)], description="Class", layout=WIDE)
        self.threshold = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="Threshold", layout=WIDE)
        self.figures = {name: go.FigureWidget(layout=_layout()) for name in
                        ("curves", "matrix", "roc", "reliability", "frontier")}
        self.slices, self.behind, self.rates = Picture(), widgets.HTML(), widgets.HTML()
        self.chosen.observe(lambda _: self._reader.request(), "value")
        self.quantity.observe(lambda _: self._draw_curves(), "value")
        self._shower = Latest(self._show_cell, lambda error: setattr(self.behind, "value", _alert(sentence(error))))
        self.cell.observe(lambda _: self._shower.request(), "value")
        for control in (self.positive, self.threshold):
            control.observe(lambda _: self._draw_threshold(), "value")
        self._draw_frontier()
        boxes = [
            ("Learning curves", [self.quantity, self.figures["curves"]]),
            ("Confusion matrix: a cell opens its slices",
             [self.cell, self.figures["matrix"], self.behind, self.slices]),
            ("Where to draw the line", [self.positive, self.threshold, self.rates, self.figures["roc"]]),
            ("Can its confidence be believed?", [self.figures["reliability"]]),
            ("Accuracy and speed", [self.figures["frontier"]]),
        ]
        parts = [widgets.VBox([widgets.HTML(f"<h2>{title}</h2>"), *content], layout=HALF) for title, content in boxes]
        self.view.children = [self.message, self.chosen,
                              widgets.HBox(parts, layout=widgets.Layout(flex_flow="row wrap"))]

    def _update(self):
        from covidlib.evaluation import metrics

        self.read = [(name, runs.read_run(self.found[name])) for name in self.chosen.value]
        if not self.read:
            self.run = None
            for name in ("curves", "matrix", "roc", "reliability"):
                self.figures[name].data = []
            fill(self.cell, [("", None)], None)
            return
        self.run = self.read[0][1]
        self.test = self.run.predictions[self.run.predictions["split"] == "test"].reset_index(drop=True)
        self.truth, self.predicted, self.scores = metrics.decide(self.test, self.run.classes)
        self.message.value = _caution(self.read[0][0], self.run, self.test)
        self._draw_curves()
        self._draw_matrix()
        self._draw_reliability()
        fill(self.positive, [(name, name) for name in self.run.classes], self.run.classes[0])

    def _draw_curves(self):
        traces, quantity = [], self.quantity.value
        for colour, (name, run) in zip(cycle(COLOURS), self.read, strict=False):
            history = run.history
            for column, dash in ((quantity, "solid"), (f"val_{quantity}", "dot")):
                if history[column].notna().any():
                    part = "training" if dash == "solid" else "validation"
                    traces.append(self._go.Scatter(x=history["epoch"], y=history[column], mode="lines+markers",
                                                   name=f"{name}, {part}",
                                                   line={"color": colour, "dash": dash}, marker={"size": 4}))
        unit = "cross-entropy, nats" if quantity == "loss" else "fraction correct"
        self._replace("curves", traces, f"{len(self.read)} runs", "epoch", f"{quantity} ({unit})",
                      legend={"orientation": "h", "y": -0.3, "font": {"size": 10}})

    def _draw_matrix(self):
        from covidlib.evaluation import metrics

        classes = list(self.run.classes)
        counts = metrics.confusion(self.test, classes).to_numpy()
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        heat = self._go.Heatmap(z=share, x=classes, y=classes, text=counts, texttemplate="%{text}", zmin=0, zmax=1,
                                colorscale="Blues", colorbar={"title": "recall"},
                                hovertemplate="true %{y}, answered %{x}: %{text} slices, %{z:.0%}<extra></extra>")
        right = int(np.trace(counts))
        self._replace("matrix", [heat], f"{right} of {counts.sum()} test slices right", "answered", "true",
                      yaxis={"autorange": "reversed", "title": {"text": "true"}})
        self.figures["matrix"].data[0].on_click(self._on_cell)
        fill(self.cell, [("", None), *((f"true {classes[i]}, answered {classes[j]} ({counts[i, j]})", (i, j))
                                       for i in range(len(classes)) for j in range(len(classes)))], None)

    def _on_cell(self, _, points, __):
        if points.point_inds:
            self.cell.value = tuple(int(n) for n in points.point_inds[0])

    def _show_cell(self):
        self.behind.value, self.slices.png = "", b""
        if self.cell.value is None:
            return
        i, j = self.cell.value
        rows = self.test[(self.truth == i) & (self.predicted == j)]
        column = f"p_{self.run.classes[j]}"
        rows = rows.sort_values(column, ascending=False)
        images = _images(self.run, rows.head(SHOWN))
        more = f", {SHOWN} shown" if len(rows) > SHOWN else ""
        absent = "" if images is not None or rows.empty else ". Their images are not at hand here: run notebook 00_data"
        listed = "".join(f"<li>{html.escape(str(row['path']))}: {row[column]:.2f}</li>"
                         for row in rows.head(5).to_dict("records"))
        self.behind.value = f"<p>{len(rows)} slices; the surest of them first{more}{absent}.</p><ol>{listed}</ol>"
        if images is not None and len(images):
            tiles = np.zeros((-(-len(images) // ACROSS) * ACROSS, TILE, TILE), np.uint8)
            tiles[: len(images)] = images
            sheet = tiles.reshape(-1, ACROSS, TILE, TILE).swapaxes(1, 2).reshape(-1, ACROSS * TILE)
            self.slices.show(sheet, f"{len(images)} slices, true {self.run.classes[i]}, answered {self.run.classes[j]}")

    def _draw_threshold(self):
        from covidlib.evaluation import metrics, statistics

        if self.run is None or self.positive.value not in self.run.classes:
            return
        k = self.run.classes.index(self.positive.value)
        ill, called = self.truth == k, self.scores[:, k] >= self.threshold.value
        patients = metrics.patient_names(self.test)
        lines, point = [], {}
        for name, part, values in (("sensitivity", ill, called), ("specificity", ~ill, ~called)):
            point[name] = values[part].mean() if part.any() else np.nan
            low, high = statistics.proportion_interval(values[part].astype(float), patients[part])
            lines.append(f"<tr><th scope=row>{name}</th><td>{point[name]:.3f}</td><td>{low:.3f} to {high:.3f}</td>"
                         f"<td>{int(values[part].sum())} of {int(part.sum())}</td></tr>")
        self.rates.value = "<table><caption>95 % intervals over patients</caption>" + "".join(lines) + "</table>"
        curve = metrics.roc(self.test, self.run.classes)
        curve = curve[curve["class"] == self.positive.value]
        traces = [
            self._diagonal("chance"),
            self._go.Scatter(x=curve["fpr"], y=curve["tpr"], mode="lines", line={"color": COLOURS[0]}, name="ROC",
                             text=curve["threshold"], hovertemplate="threshold %{text:.2f}<extra></extra>"),
            self._go.Scatter(x=[1 - point["specificity"]], y=[point["sensitivity"]], mode="markers", name="here",
                             marker={"color": COLOURS[1], "size": 13, "symbol": "x"})]
        area = np.trapezoid(curve["tpr"], curve["fpr"]) if len(curve) else np.nan
        self._replace("roc", traces, f"{self.positive.value}: area {area:.3f}, n = {len(self.test)} slices",
                      "1 - specificity", "sensitivity")

    def _draw_reliability(self):
        from covidlib.evaluation import calibration

        temperature = self.run.temperature
        views = {"as trained": self.scores}
        if np.isfinite(temperature):
            views[f"temperature {temperature:.2f}"] = calibration.scale(self.scores, temperature)
        traces = [self._diagonal("even")]
        errors = []
        for colour, (name, scores) in zip(COLOURS, views.items(), strict=False):
            bins = calibration.reliability(self.truth, scores)
            bins = bins[bins["n"] > 0]
            errors.append(f"{calibration.expected_error(self.truth, scores):.3f} {name}")
            traces.append(self._go.Scatter(x=bins["confidence"], y=bins["accuracy"], mode="lines+markers", name=name,
                                           line={"color": colour}, text=bins["n"], hovertemplate="%{text} slices: "
                                           "confidence %{x:.2f}, right %{y:.2f}<extra></extra>"))
        self._replace("reliability", traces, f"off by {', '.join(errors)}", "confidence", "fraction right")

    def _draw_frontier(self):
        files = sorted((provenance.ROOT / "benchmarks" / "results").glob("frontier_*.csv"))
        if not files:
            return
        table = pd.read_csv(files[-1])
        traces = []
        for colour, (variant, part) in zip(cycle(COLOURS), table.groupby("variant"), strict=False):
            spread = {"type": "data", "symmetric": False, "array": part["high"] - part["accuracy"],
                      "arrayminus": part["accuracy"] - part["low"]}
            traces.append(self._go.Scatter(
                x=part["images_per_second"], y=part["accuracy"], error_y=spread, mode="markers", name=variant,
                marker={"color": colour, "size": 10}, text=[f"{variant}, {size} px" for size in part["image_size"]],
                hovertemplate="%{text}: %{x:.0f} images/s, accuracy %{y:.3f}<extra></extra>"))
        self._replace("frontier", traces, f"n = {int(table['slices'].iloc[0])} slices, exported, one slice a call",
                      "images per second", "accuracy, 95 % interval", legend={"orientation": "h", "y": -0.3})

    def _diagonal(self, name):
        return self._go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "grey", "dash": "dot"}, name=name)

    def _replace(self, name, traces, title, x, y, **more):
        figure = self.figures[name]
        with figure.batch_update():
            figure.data = []
            figure.add_traces(traces)
            figure.update_layout({"title": {"text": title, "font": {"size": 13}}, "xaxis": {"title": {"text": x}},
                                  "yaxis": {"title": {"text": y}}} | more)


def _layout():
    return {"autosize": True, "height": 330, "margin": {"l": 55, "r": 10, "t": 40, "b": 45}, "template": "plotly_white"}


def _caution(name, run, test):
    """How figures of a run may be read, where that is not as they stand."""
    from covidlib.evaluation import metrics

    level = metrics.evidence_level(run.parameters.get("dataset"), test)
    return "" if level == metrics.AS_MEASURED else _alert(f"{name}: {level}. Its figures support no medical statement.")


def _alert(text):
    return f'<p role="alert">{html.escape(str(text))}</p>'


def _images(run, rows):
    """uint8 (N, TILE, TILE) of rows of predictions, as the network saw them; None where they are not at hand."""
    from PIL import Image

    from covidlib.datasets import decode
    from covidlib.predict import explained

    found = explained.slices_of(run)
    if found is None:
        return None
    source, images = found
    keys = zip(source.manifest["path"], decode.slice_indices(source.manifest), strict=True)
    places = {key: n for n, key in enumerate(keys)}
    known = [places[key] for key in zip(rows["path"], rows["slice_index"], strict=True) if key in places]
    tiles = [np.asarray(Image.fromarray(np.asarray(images[n])).resize((TILE, TILE))) for n in known]
    return np.stack(tiles) if tiles else None
