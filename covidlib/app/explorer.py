"""The page "Results": finished runs, their curves, confusion matrix, threshold, calibration and speed."""

from pathlib import Path

import ipywidgets as widgets
import numpy as np
import pandas as pd
from PIL import Image

from covidlib.app.widgets import Message, Picture, dropdown, fill, render, section
from covidlib.app.work import Latest
from covidlib.datasets import decode
from covidlib.evaluation import calibration, metrics, statistics
from covidlib.predict import explained
from covidlib.training import runs
from covidlib.utils import provenance

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # Okabe and Ito, for colour-blind readers
MAX_TILES, TILE, COLUMNS = 24, 96, 8  # slices of a cell of the matrix
LEGEND = {"orientation": "h", "y": -0.3, "font": {"size": 10}, "title": None}


class Explorer:
    """The page as one widget, `view`. homes: folders that hold <dataset>/<profile>/<variant>/seed-<k>/."""

    def __init__(self, homes):
        self.homes, self.run, self.chosen, self.read = homes, None, None, []
        self.view = widgets.VBox()

    def refresh(self):
        """Build the page when it is first shown, and look for runs."""
        found = {}
        for home in self.homes:
            for path in sorted(Path(home).glob("*/*/*/seed-*/run.json")):
                if (path.parent / "predictions.csv").is_file():
                    found.setdefault(" / ".join(path.parts[-5:-1]), path.parent)
        self.found = found
        if self.chosen is None:
            self._build()
        if not found:
            self.message.show("No finished run yet: train networks on the page Scan, or with make reproduce.")
        self.chosen.options = list(found)
        if not self.chosen.value:
            self.chosen.value = list(found)[:2]

    def _build(self):
        import plotly.express
        from plotly.graph_objects import FigureWidget

        self._px = plotly.express
        self.message, self.cell_message = Message("alert"), Message("alert")
        self.chosen = widgets.SelectMultiple(options=[], rows=6, description="Runs")
        self.quantity = dropdown("Curve", ["loss", "accuracy"])
        self.cell, self.positive = dropdown("Cell"), dropdown("Class")
        self.threshold = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="Threshold")
        layout = {"autosize": True, "height": 330, "margin": {"l": 55, "r": 10, "t": 40, "b": 45},
                  "template": "plotly_white"}
        self.figures = {name: FigureWidget(layout=layout)
                        for name in ("curves", "matrix", "roc", "reliability", "frontier")}
        self.slices, self.listed, self.rates = Picture(), widgets.HTML(), widgets.HTML()
        self._reader = Latest(self._update, self.message.show_error)
        self._shower = Latest(self._show_cell, self.cell_message.show_error)
        self.chosen.observe(lambda _: self._reader.request(), "value")
        self.quantity.observe(lambda _: self._draw_curves(), "value")
        self.cell.observe(lambda _: self._shower.request(), "value")
        for control in (self.positive, self.threshold):
            control.observe(lambda _: self._draw_threshold(), "value")
        self._draw_frontier()
        figures = self.figures
        self.view.children = [self.message, self.chosen, widgets.HBox([
            section(self.quantity, figures["curves"], title="Learning curves"),
            section(self.cell, figures["matrix"], self.cell_message, self.listed, self.slices,
                    title="Confusion matrix: a cell shows its slices"),
            section(self.positive, self.threshold, self.rates, figures["roc"], title="Decision threshold"),
            section(figures["reliability"], title="Calibration"),
            section(figures["frontier"], title="Accuracy and speed")])]

    def _update(self):
        self.read = [(name, runs.read_run(self.found[name])) for name in self.chosen.value]
        if not self.read:
            self.run = None
            for name in ("curves", "matrix", "roc", "reliability"):
                self.figures[name].data = []
            fill(self.cell, [("", None)], None)
            return
        name, self.run = self.read[0]
        self.test = self.run.predictions[self.run.predictions["split"] == "test"].reset_index(drop=True)
        self.truth, self.predicted, self.scores = metrics.decide(self.test, self.run.classes)
        level = metrics.evidence_level(self.run.parameters.get("dataset"), self.test)
        self.message.show("" if level == metrics.AS_MEASURED
                          else f"{name}: {level}. Its figures support no medical statement.")
        self._draw_curves()
        self._draw_matrix()
        self._draw_reliability()
        fill(self.positive, [(name, name) for name in self.run.classes], self.run.classes[0])

    def _draw_curves(self):
        quantity = self.quantity.value
        columns = {quantity: "training", f"val_{quantity}": "validation"}
        table = pd.concat([run.history.rename(columns=columns).melt("epoch", list(columns.values()), "part", "value")
                           .assign(run=name)
                           for name, run in self.read]).dropna()
        unit = "cross-entropy, nats" if quantity == "loss" else "fraction correct"
        self._draw("curves", f"{len(self.read)} runs", self._px.line(
            table, x="epoch", y="value", color="run", line_dash="part", markers=True, color_discrete_sequence=COLOURS,
            line_dash_map={"training": "solid", "validation": "dot"}, labels={"value": f"{quantity} ({unit})"}),
            legend=LEGEND)

    def _draw_matrix(self):
        classes = list(self.run.classes)
        counts = metrics.confusion(self.test, classes).to_numpy()
        recall = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        figure = self._px.imshow(recall, x=classes, y=classes, zmin=0, zmax=1, aspect="auto",
                                 color_continuous_scale="Blues", labels=dict(x="predicted", y="true", color="recall"))
        figure.update_traces(text=counts, texttemplate="%{text}",
                             hovertemplate="true %{y}, predicted %{x}: %{text} slices, %{z:.0%}<extra></extra>")
        self._draw("matrix", f"{np.trace(counts)} of {counts.sum()} test slices correct", figure)
        self.figures["matrix"].data[0].on_click(self._on_cell)
        fill(self.cell, [("", None), *((f"true {true}, predicted {predicted} ({counts[i, j]})", (i, j))
                                       for i, true in enumerate(classes) for j, predicted in enumerate(classes))], None)

    def _on_cell(self, _, points, __):
        if points.point_inds:
            self.cell.value = tuple(int(n) for n in points.point_inds[0])

    def _show_cell(self):
        self.listed.value, self.slices.png = "", b""
        self.cell_message.show("")
        if self.cell.value is None:
            return
        true, predicted = (self.run.classes[k] for k in self.cell.value)
        rows = self.test[(self.truth == self.cell.value[0]) & (self.predicted == self.cell.value[1])]
        rows = rows.sort_values(f"p_{predicted}", ascending=False)
        images = _images(self.run, rows.head(MAX_TILES))
        self.listed.value = render("cell", count=len(rows), shown=MAX_TILES, missing=images is None and len(rows),
                                   rows=rows[["path", f"p_{predicted}"]].head(5).to_numpy())
        if images:
            alt = f"{len(images)} slices, true {true}, predicted {predicted}"
            self.slices.show_grid(np.stack(images), COLUMNS, alt)

    def _draw_threshold(self):
        name = self.positive.value
        if self.run is None or name not in self.run.classes:
            return
        k, patients, rows = self.run.classes.index(name), metrics.patient_names(self.test), []
        ill, positive = self.truth == k, self.scores[:, k] >= self.threshold.value
        for rate, part, right in (("sensitivity", ill, positive), ("specificity", ~ill, ~positive)):
            own = right[part].astype(float)
            rows.append((rate, own.mean() if len(own) else np.nan, *statistics.proportion_interval(own, patients[part]),
                         int(own.sum()), len(own)))
        self.rates.value = render("rates", rows=rows)
        curve = metrics.roc(self.test, self.run.classes)
        curve = curve[curve["class"] == name]
        area = np.trapezoid(curve["tpr"], curve["fpr"]) if len(curve) else np.nan
        figure = self._px.line(curve, x="fpr", y="tpr", hover_data=["threshold"], color_discrete_sequence=COLOURS,
                               labels={"fpr": "1 - specificity", "tpr": "sensitivity"})
        figure.update_traces(name="ROC", showlegend=True)
        figure.add_scatter(x=[1 - rows[1][1]], y=[rows[0][1]], mode="markers", name="threshold",
                           marker={"color": COLOURS[1], "size": 13, "symbol": "x"})
        self._draw("roc", f"{name}: area {area:.3f}, n = {len(self.test)} slices", _with_diagonal(figure, "chance"))

    def _draw_reliability(self):
        temperature = self.run.temperature
        views = {"uncalibrated": self.scores}
        if np.isfinite(temperature):
            views[calibration.describe(temperature)] = calibration.scale(self.scores, temperature)
        bins = pd.concat([calibration.reliability(self.truth, scores).assign(scores=name)
                          for name, scores in views.items()])
        errors = [f"{calibration.expected_error(self.truth, scores):.3f} {name}" for name, scores in views.items()]
        figure = self._px.line(bins[bins["n"] > 0], x="confidence", y="accuracy", color="scores", hover_data=["n"],
                               markers=True, color_discrete_sequence=COLOURS, labels={"accuracy": "fraction correct"})
        self._draw("reliability", f"Expected calibration error: {', '.join(errors)}",
                   _with_diagonal(figure, "perfect"), legend={"title": None})

    def _draw_frontier(self):
        files = sorted((provenance.ROOT / "benchmarks" / "results").glob("frontier_*.csv"))
        if not files:
            return
        table = pd.read_csv(files[-1])
        figure = self._px.scatter(
            table.assign(above=table["high"] - table["accuracy"], below=table["accuracy"] - table["low"]),
            x="images_per_second", y="accuracy", error_y="above", error_y_minus="below", color="variant",
            hover_data=["image_size"], color_discrete_sequence=COLOURS,
            labels={"images_per_second": "images/s", "accuracy": "accuracy, 95 % interval"})
        self._draw("frontier", f"n = {int(table['slices'].iloc[0])} slices, exported, batch size 1",
                   figure.update_traces(marker_size=10), legend=LEGEND)

    def _draw(self, name, title, figure, **layout):
        """Replace what a FigureWidget shows by a figure of plotly.express."""
        figure.update_layout(title={"text": title, "font": {"size": 13}}, template=None, margin=None, **layout)
        shown = self.figures[name]
        with shown.batch_update():
            shown.data = []
            shown.add_traces(figure.data)
            shown.update_layout(figure.layout.to_plotly_json())


def _with_diagonal(figure, name):
    return figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "grey", "dash": "dot"}, name=name)


def _images(run, rows):
    """List of uint8 (TILE, TILE) of rows of predictions, as the network got them; None where they are not available."""
    found = explained.slices_of(run)
    if found is None:
        return None
    source, images = found
    places = {key: n for n, key in enumerate(zip(source.manifest["path"], decode.slice_indices(source.manifest),
                                                 strict=True))}
    known = [places[key] for key in zip(rows["path"], rows["slice_index"], strict=True) if key in places]
    return [np.asarray(Image.fromarray(np.asarray(images[n])).resize((TILE, TILE))) for n in known] or None
