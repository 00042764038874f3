"""Figures 2 and 3: structure diagrams read off a built classifier, its layer names and shapes."""

import matplotlib.pyplot as plt
import seaborn as sns

STAGES = ("conv2", "conv3", "conv4", "conv5")


def figure2_fpn(model):
    """Figure 2 (§2.2): how the pyramid is rebuilt from four stages of `model` (a variant with FPN)."""
    present = _layers(model)
    if "fpn_p2_output" not in present:
        raise ValueError(f"Figure 2 needs a variant with a pyramid. Received: model={model.name!r}")
    blue, orange, green, grey = _colors()
    figure, axis = _canvas(12, 5.6)
    for row, stage in enumerate(STAGES):
        y, level, end = 1.35 * row, f"fpn_p{row + 2}", f"{_last_block(model, stage)}_out"
        attends = "\nwith attention" if f"attention_{stage}" in present else ""
        _box(axis, 0, y, f"{end}\n{_shape(model, end)}{attends}", blue)
        _box(axis, 3, y, f"1x1 convolution\n{_shape(model, level + '_lateral')}", grey)
        _arrow(axis, (1, y), (2, y))
        if row < 3:
            _box(axis, 5.4, y, "+", orange, width=0.7)
            _arrow(axis, (4, y), (5.05, y))
            _arrow(axis, (0, y + 0.45), (0, y + 0.9))
            _arrow(axis, (5.4, y + 0.9), (5.4, y + 0.45), "nearest\n× 2")
        else:
            _line(axis, (4, y), (5.4, y), (5.4, y - 0.45))
        _box(axis, 7.8, y, f"P{row + 2}: 3x3 convolution\n{_shape(model, level + '_output')}", green)
        _arrow(axis, (5.4 if row == 3 else 5.75, y), (6.8, y))
        _arrow(axis, (8.8, y), (9.5, y))
    _box(axis, 10.2, 2.03, "mean over\nspace of\neach level,\njoined,\ndropout,\nsoftmax", orange, 1.4, 5)
    _arrow(axis, (0, -1), (0, -0.45), f"input {_join(model.input_shape[1:])}, conv1, pooling")
    _arrow(axis, (10.9, 2.03), (11.5, 2.03))
    axis.text(11.55, 2.03, f"{model.output_shape[-1]}\nclasses", va="center", fontsize=9)
    width = model.get_layer("fpn_p2_output").output.shape[-1]
    axis.set(xlim=(-1.1, 12.3), ylim=(-1.1, 4.7),
             title=f"Four stages of ResNet-50 become a pyramid of {width} channels each")
    return figure


def figure3_attention(model, stage="conv4"):
    """Figure 3 (§2.3): the last residual block of `stage` with attention, and the attention's inside."""
    name = f"attention_{stage}"
    if name not in _layers(model):
        raise ValueError(f"Figure 3 needs attention in {stage}. Received: model={model.name!r}")
    figure, axis = _canvas(12, 5.2)
    placement = _residual_block(axis, model, stage)
    (_non_local if f"{name}_query" in _layers(model) else _global_context)(axis, model, name)
    axis.set(xlim=(-1.2, 11.9), ylim=(-0.9, 5.3),
             title=f"{name}: {_shape(model, name)} goes in and comes out; placed {placement}")
    return figure


def _layers(model) -> set[str]:
    return {layer.name for layer in model.layers}


def _last_block(model, stage) -> str:
    ends = [name for name in _layers(model) if name.startswith(f"{stage}_block") and name.endswith("_out")]
    return max(ends).removesuffix("_out")


def _residual_block(axis, model, stage) -> str:
    """Where the attention stands in the last block of `stage`, found by what feeds its sum; draws the block."""
    blue, orange, _, grey = _colors()
    block = _last_block(model, stage)
    source = model.get_layer(f"attention_{stage}").input[0]._keras_history.operation.name
    placement, index = {f"{block}_3_bn": ("inside the branch", 3), f"{block}_out": ("after the block", 4)}.get(
        source, ("before the block", 0))
    parts = [(f"{size} convolution\n{_shape(model, f'{block}_{i}_conv')}", blue)
             for i, size in ((1, "1x1"), (2, "3x3"), (3, "1x1"))] + [("+ skip, ReLU", grey)]
    parts.insert(index, ("attention", orange))
    bottom = -0.05 if index else 0.95
    top = 3.5 if index == 4 else 4.5  # of the skip
    for i, (text, color) in enumerate(parts):
        _box(axis, 0.6, 0.5 + i, text, color, 2, 0.62)
        _arrow(axis, (0.6, i - 0.19), (0.6, i + 0.19))
    _line(axis, (0.6, bottom), (-0.75, bottom), (-0.75, top))
    _arrow(axis, (-0.75, top), (-0.4, top))
    _arrow(axis, (0.6, 4.81), (0.6, 5.15))
    axis.text(0.6, -0.25, f"{block}, the last block of {stage}", ha="center", va="top", fontsize=9)
    return placement


def _non_local(axis, model, name):
    key = "2x2 max-pool, " if f"{name}_pool" in _layers(model) else ""
    for y, part, text in ((4, "query", ""), (2.75, "key", key), (1.25, "value", key)):
        _box(axis, 4.3, y, f"{part}: {text}1x1\n{_shape(model, f'{name}_{part}')}", _colors()[0], 2.3)
        _arrow(axis, (2.75, y), (3.15, y))
    _weigh(axis, model, name, "of query · key", "value",
           f"1x1, norm starting at 0\n{_shape(model, f'{name}_output')}")
    _line(axis, (2.75, 0.3), (2.75, 4))
    axis.text(2.7, 2.2, f"x  {_shape(model, name)}", rotation=90, ha="right", va="center", fontsize=9)
    for start, end in (((5.45, 4), (5.9, 3.5)), ((5.45, 2.75), (5.9, 3.3)), ((5.45, 1.25), (5.9, 1.75))):
        _arrow(axis, start, end)


def _global_context(axis, model, name):
    _box(axis, 4.3, 3.4, f"key: 1x1\n{_shape(model, f'{name}_key')}", _colors()[0], 2.3)
    _weigh(axis, model, name, "over places", "x", f"dense {_shape(model, f'{name}_squeeze')},\nnorm, ReLU,\n"
           f"dense {_shape(model, f'{name}_output')} starting at 0")
    _line(axis, (2.75, 0.3), (2.75, 3.4))
    axis.text(2.7, 1.9, f"x  {_shape(model, name)}", rotation=90, ha="right", va="center", fontsize=9)
    for start, end in (((2.75, 3.4), (3.15, 3.4)), ((5.45, 3.4), (5.9, 3.4)), ((2.75, 1.9), (5.9, 1.9))):
        _arrow(axis, start, end)


def _weigh(axis, model, name, keys, values, output):
    """What both attentions share: weights, weighted sum, last layer, and the block's own skip, which adds x."""
    blue, orange, green, _ = _colors()
    _box(axis, 7, 3.4, f"softmax {keys}\n{_shape(model, f'{name}_weights')}", green, 2.2)
    _box(axis, 7, 1.9, f"weights · {values}\n{_shape(model, f'{name}_context')}", green, 2.2)
    _box(axis, 10.2, 1.9, output, blue, 2.2)
    _box(axis, 10.2, 0.3, "+", orange, 0.7, 0.6)
    for start, end in (((7, 2.95), (7, 2.35)), ((8.1, 1.9), (9.1, 1.9)), ((2.75, 0.3), (9.85, 0.3)),
                       ((10.2, 1.45), (10.2, 0.6)), ((10.55, 0.3), (11.4, 0.3))):
        _arrow(axis, start, end)


def _canvas(width, height):
    figure, axis = plt.subplots(figsize=(width, height))
    plt.close(figure)
    axis.set_axis_off()
    return figure, axis


def _colors():
    return [sns.light_palette(color, 5)[1] for color in sns.color_palette("colorblind")[:3]] + ["0.92"]


def _box(axis, x, y, text, color, width=2.0, height=0.9):
    axis.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=color, edgecolor="0.3"))
    axis.text(x, y, text, ha="center", va="center", fontsize=8)


def _line(axis, *points):
    axis.plot(*zip(*points, strict=True), color="0.3", lw=1.2)


def _arrow(axis, start, end, text=""):
    style = {"arrowstyle": "-|>", "color": "0.3", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)
    if text:
        axis.text((start[0] + end[0]) / 2 + 0.12, (start[1] + end[1]) / 2, text, va="center", fontsize=8)


def _shape(model, layer) -> str:
    return _join(model.get_layer(layer).output.shape[1:])


def _join(shape) -> str:
    return " × ".join(str(size) for size in shape)
