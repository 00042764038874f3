"""Figures 2 and 3: structure diagrams drawn from the layer names and shapes of a built classifier."""

import matplotlib.pyplot as plt
import seaborn as sns

from covidlib.report.figures import new

STAGES = ("conv2", "conv3", "conv4", "conv5")


class _Diagram:
    """Boxes, lines and arrows on an empty canvas, and the shapes of the layers of `model`."""

    def __init__(self, model, width, height):
        self.model, self.layers = model, {layer.name for layer in model.layers}
        self.figure, (self.axis,) = new(width, height)
        self.axis.set_axis_off()
        self.blue, self.orange, self.green = (sns.light_palette(color, 5)[1]
                                              for color in sns.color_palette("colorblind")[:3])
        self.grey = "0.92"

    def shape(self, layer) -> str:
        return " × ".join(map(str, self.model.get_layer(layer).output.shape[1:]))

    def last_block(self, stage) -> str:
        ends = [name for name in self.layers if name.startswith(f"{stage}_block") and name.endswith("_out")]
        return max(ends).removesuffix("_out")

    def box(self, x, y, text, color, width=2.0, height=0.9):
        self.axis.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=color,
                                          edgecolor="0.3"))
        self.text(x, y, text, ha="center", fontsize=8)

    def line(self, *points):
        self.axis.plot(*zip(*points, strict=True), color="0.3", lw=1.2)

    def arrow(self, start, end, text=""):
        style = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        self.axis.annotate("", end, start, arrowprops=style)
        if text:
            self.text((start[0] + end[0]) / 2 + 0.12, (start[1] + end[1]) / 2, text, fontsize=8)

    def text(self, x, y, text, **options):
        self.axis.text(x, y, text, **{"va": "center", "fontsize": 9, **options})


def figure2_fpn(model):
    """Figure 2 (§2.2): how the pyramid is rebuilt from four stages of `model` (a variant with FPN)."""
    draw = _Diagram(model, 9.4, 4.7)
    if "fpn_p2_output" not in draw.layers:
        raise ValueError(f"Figure 2 needs a variant with a pyramid. Received: model={model.name!r}")
    for row, stage in enumerate(STAGES):
        y, level, end = 1.35 * row, f"fpn_p{row + 2}", f"{draw.last_block(stage)}_out"
        attends = "\nwith attention" if f"attention_{stage}" in draw.layers else ""
        draw.box(0, y, f"{end}\n{draw.shape(end)}{attends}", draw.blue)
        draw.box(3, y, f"1x1 convolution\n{draw.shape(level + '_lateral')}", draw.grey)
        draw.arrow((1, y), (2, y))
        if row < 3:
            draw.box(5.4, y, "+", draw.orange, width=0.7)
            draw.arrow((4, y), (5.05, y))
            draw.arrow((0, y + 0.45), (0, y + 0.9))
            draw.arrow((5.4, y + 0.9), (5.4, y + 0.45), "nearest\n× 2")
        else:
            draw.line((4, y), (5.4, y), (5.4, y - 0.45))
        draw.box(7.8, y, f"P{row + 2}: 3x3 convolution\n{draw.shape(level + '_output')}", draw.green)
        draw.arrow((5.4 if row == 3 else 5.75, y), (6.8, y))
        draw.arrow((8.8, y), (9.5, y))
    draw.box(10.2, 2.03, "mean over\nspace of\neach level,\njoined,\ndropout,\nsoftmax", draw.orange, 1.4, 5)
    draw.arrow((0, -1), (0, -0.45), f"input {' × '.join(map(str, model.input_shape[1:]))}, conv1, pooling")
    draw.arrow((10.9, 2.03), (11.5, 2.03))
    draw.text(11.55, 2.03, f"{model.output_shape[-1]}\nclasses")
    width = model.get_layer("fpn_p2_output").output.shape[-1]
    draw.axis.set(xlim=(-1.1, 12.3), ylim=(-1.1, 4.7),
                  title=f"Four stages of ResNet-50 become a pyramid of {width} channels each")
    return draw.figure


def figure3_attention(model, stage="conv4"):
    """Figure 3 (§2.3): the last residual block of `stage` with attention, and the attention's inside."""
    draw, name = _Diagram(model, 9.4, 4.4), f"attention_{stage}"
    if name not in draw.layers:
        raise ValueError(f"Figure 3 needs attention in {stage}. Received: model={model.name!r}")
    placement = _residual_block(draw, stage)
    _attention(draw, name)
    draw.axis.set(xlim=(-1.2, 11.9), ylim=(-0.9, 5.3),
                  title=f"{name}: {draw.shape(name)} goes in and comes out; placed {placement}")
    return draw.figure


def _residual_block(draw, stage) -> str:
    """Draw the last block of `stage`; where its attention stands follows from what feeds it."""
    block = draw.last_block(stage)
    source = draw.model.get_layer(f"attention_{stage}").input[0]._keras_history.operation.name
    placement, index = {f"{block}_3_bn": ("inside the branch", 3), f"{block}_out": ("after the block", 4)}.get(
        source, ("before the block", 0))
    parts = [(f"{size} convolution\n{draw.shape(f'{block}_{i}_conv')}", draw.blue)
             for i, size in ((1, "1x1"), (2, "3x3"), (3, "1x1"))] + [("+ skip, ReLU", draw.grey)]
    parts.insert(index, ("attention", draw.orange))
    for i, (text, color) in enumerate(parts):
        draw.box(0.6, 0.5 + i, text, color, 2, 0.62)
        draw.arrow((0.6, i - 0.19), (0.6, i + 0.19))
    bottom, top = -0.05 if index else 0.95, 3.5 if index == 4 else 4.5  # of the skip
    draw.line((0.6, bottom), (-0.75, bottom), (-0.75, top))
    draw.arrow((-0.75, top), (-0.4, top))
    draw.arrow((0.6, 4.81), (0.6, 5.15))
    draw.text(0.6, -0.25, f"{block}, the last block of {stage}", ha="center", va="top")
    return placement


def _attention(draw, name):
    """Inputs, weights, weighted sum and last layer of either attention, and its own skip, which adds x."""
    if f"{name}_query" in draw.layers:
        pool = "2x2 max-pool, " if f"{name}_pool" in draw.layers else ""
        inputs = [(4, 3.5, "query: 1x1"), (2.75, 3.3, f"key: {pool}1x1"), (1.25, 1.75, f"value: {pool}1x1")]
        over, weighted, output = "of query · key", "value", f"1x1, norm starting at 0\n{draw.shape(f'{name}_output')}"
    else:  # global context
        inputs = [(3.4, 3.4, "key: 1x1")]
        over, weighted = "over positions", "x"
        output = (f"dense {draw.shape(f'{name}_squeeze')},\nnorm, ReLU,\n"
                  f"dense {draw.shape(f'{name}_output')}\nstarting at 0")
        draw.arrow((2.75, 1.9), (5.9, 1.9))
    for y, end, text in inputs:
        draw.box(4.3, y, f"{text}\n{draw.shape(f'{name}_' + text.split(':')[0])}", draw.blue, 2.3)
        draw.arrow((2.75, y), (3.15, y))
        draw.arrow((5.45, y), (5.9, end))
    draw.line((2.75, 0.3), (2.75, inputs[0][0]))
    draw.text(2.7, 2.0, f"x  {draw.shape(name)}", rotation=90, ha="right")
    draw.box(7, 3.4, f"softmax {over}\n{draw.shape(f'{name}_weights')}", draw.green, 2.2)
    draw.box(7, 1.9, f"weights · {weighted}\n{draw.shape(f'{name}_context')}", draw.green, 2.2)
    draw.box(10.2, 1.9, output, draw.blue, 2.2)
    draw.box(10.2, 0.3, "+", draw.orange, 0.7, 0.6)
    for start, end in (((7, 2.95), (7, 2.35)), ((8.1, 1.9), (9.1, 1.9)), ((2.75, 0.3), (9.85, 0.3)),
                       ((10.2, 1.45), (10.2, 0.6)), ((10.55, 0.3), (11.4, 0.3))):
        draw.arrow(start, end)
