"""Figures 2 and 3: structure diagrams read off a built classifier, its layer names and shapes."""

import matplotlib.pyplot as plt
import seaborn as sns

STAGES = ("conv2", "conv3", "conv4", "conv5")


def figure2_fpn(model):
    """Figure 2 (§2.2): how the pyramid is rebuilt from four stages of `model` (a variant with FPN)."""
    present = {layer.name for layer in model.layers}
    if "fpn_p2_output" not in present:
        raise ValueError(f"Figure 2 needs a variant with a pyramid. Received: model={model.name!r}")
    blue, orange, green, grey = _colors()
    figure, axis = _canvas(12, 5.6)
    ends = [f"{_last_block(model, stage)}_out" for stage in STAGES]
    for row, (stage, end) in enumerate(zip(STAGES, ends, strict=True)):
        y, level = 1.35 * row, f"fpn_p{row + 2}"
        attends = f"attention_{stage}" in present
        _box(axis, 0, y, f"{end}\n{_shape(model, end)}" + ("\nwith attention" if attends else ""), blue)
        _box(axis, 3, y, f"1x1 convolution\n{_shape(model, level + '_lateral')}", grey)
        _arrow(axis, (1, y), (2, y))
        if row < 3:
            _box(axis, 5.4, y, "+", orange, width=0.7)
            _arrow(axis, (4, y), (5.05, y))
            _arrow(axis, (0, y + 0.45), (0, y + 0.9))
            _arrow(axis, (5.4, y + 0.9), (5.4, y + 0.45), "nearest\n× 2")
        else:
            axis.plot([4, 5.4], [y, y], color="0.3", lw=1.2)
            axis.plot([5.4, 5.4], [y, y - 0.45], color="0.3", lw=1.2)
        _box(axis, 7.8, y, f"P{row + 2}: 3x3 convolution\n{_shape(model, level + '_output')}", green)
        _arrow(axis, (5.4 if row == 3 else 5.75, y), (6.8, y))
        _arrow(axis, (8.8, y), (9.5, y))
    _box(axis, 10.2, 2.03, "mean over\nspace of\neach level,\njoined,\ndropout,\nsoftmax", orange, 1.4, 5)
    _arrow(axis, (0, -1), (0, -0.45), f"input {_join(model.input_shape[1:])}, conv1, pooling")
    _arrow(axis, (10.9, 2.03), (11.5, 2.03))
    classes = model.output_shape[-1]
    axis.text(11.55, 2.03, f"{classes}\nclasses", va="center", fontsize=9)
    axis.set(xlim=(-1.1, 12.3), ylim=(-1.1, 4.7))
    width = model.get_layer("fpn_p2_output").output.shape[-1]
    axis.set_title(f"Four stages of ResNet-50 become a pyramid of {width} channels each")
    return figure


def figure3_attention(model, stage="conv4"):
    """Figure 3 (§2.3): the last residual block of `stage` with attention, and the attention's inside."""
    name = f"attention_{stage}"
    present = {layer.name for layer in model.layers}
    if name not in present:
        raise ValueError(f"Figure 3 needs attention in {stage}. Received: model={model.name!r}")
    figure, axis = _canvas(12, 5.2)
    placement = _placement(model, stage)
    _residual_block(axis, model, stage, placement)
    (_non_local if f"{name}_query" in present else _global_context)(axis, model, name)
    axis.set(xlim=(-1.2, 11.9), ylim=(-0.9, 5.3))
    where = {"branch": "inside the branch", "after": "after the block", "before": "before the block"}
    axis.set_title(f"{name}: {_shape(model, name)} goes in and comes out; placed {where[placement]}")
    return figure


def _last_block(model, stage) -> str:
    names = [layer.name for layer in model.layers]
    return max(name for name in names if name.startswith(f"{stage}_block") and name.endswith("_out"))[:-4]


def _placement(model, stage) -> str:
    """`branch`, `after` or `before`, found by what feeds the attention's sum."""
    block = _last_block(model, stage)
    source = model.get_layer(f"attention_{stage}").input[0]._keras_history.operation.name
    return {f"{block}_3_bn": "branch", f"{block}_out": "after"}.get(source, "before")


def _residual_block(axis, model, stage, placement):
    blue, orange, _, grey = _colors()
    block = _last_block(model, stage)
    attention = ("attention", orange)
    convolutions = [(f"{size} convolution\n{_shape(model, f'{block}_{i}_conv')}", blue)
                    for i, size in ((1, "1x1"), (2, "3x3"), (3, "1x1"))]
    tail = [("+ skip, ReLU", grey)]
    parts = {"branch": convolutions + [attention] + tail, "after": convolutions + tail + [attention],
             "before": [attention] + convolutions + tail}[placement]
    bottom = 1.5 if placement == "before" else 0.5
    top = 0.5 + next(i for i, part in enumerate(parts) if part is tail[0])
    for i, (text, color) in enumerate(parts):
        _box(axis, 0.6, 0.5 + i, text, color, 2, 0.62)
        _arrow(axis, (0.6, i - 0.19), (0.6, i + 0.19))
    start = bottom - 0.5
    axis.plot([0.6, -0.75, -0.75], [start - 0.05, start - 0.05, top], color="0.3", lw=1.2)
    _arrow(axis, (-0.75, top), (-0.4, top))
    _arrow(axis, (0.6, 4.81), (0.6, 5.15))
    axis.text(0.6, -0.25, f"{block}, the last block of {stage}", ha="center", va="top",
              fontsize=9)


def _non_local(axis, model, name):
    blue, orange, green, _ = _colors()
    pooled = any(layer.name == f"{name}_pool" for layer in model.layers)
    key = "2x2 max-pool, " if pooled else ""
    for y, part, text in ((4, "query", ""), (2.75, "key", key), (1.25, "value", key)):
        shape = _shape(model, f"{name}_{part}")
        _box(axis, 4.3, y, f"{part}: {text}1x1\n{shape}", blue, 2.3)
        _arrow(axis, (2.75, y), (3.15, y))
    axis.plot([2.75, 2.75], [1.9, 4], color="0.3", lw=1.2)
    axis.text(2.7, 2.2, f"x  {_shape(model, name)}", rotation=90, ha="right", va="center", fontsize=9)
    _box(axis, 7, 3.4, f"softmax of query · key\n{_shape(model, f'{name}_weights')}", green, 2.2)
    _box(axis, 7, 1.9, f"weights · value\n{_shape(model, f'{name}_context')}", green, 2.2)
    _box(axis, 10.2, 1.9, f"1x1, norm starting at 0\n{_shape(model, f'{name}_output')}", blue, 2.2)
    _finish(axis, orange)
    for start, end in (((5.45, 4), (5.9, 3.5)), ((5.45, 2.75), (5.9, 3.3)), ((7, 2.95), (7, 2.35)),
                       ((5.45, 1.25), (5.9, 1.75)), ((8.1, 1.9), (9.1, 1.9))):
        _arrow(axis, start, end)


def _global_context(axis, model, name):
    blue, orange, green, _ = _colors()
    _box(axis, 4.3, 3.4, f"key: 1x1\n{_shape(model, f'{name}_key')}", blue, 2.3)
    _box(axis, 7, 3.4, f"softmax over places\n{_shape(model, f'{name}_weights')}", green, 2.2)
    _box(axis, 7, 1.9, f"weights · x\n{_shape(model, f'{name}_context')}", green, 2.2)
    _box(axis, 10.2, 1.9, f"dense {_shape(model, f'{name}_squeeze')},\nnorm, ReLU,\n"
         f"dense {_shape(model, f'{name}_output')} starting at 0", blue, 2.2)
    axis.plot([2.75, 2.75], [1.9, 3.4], color="0.3", lw=1.2)
    axis.text(2.7, 1.9, f"x  {_shape(model, name)}", rotation=90, ha="right", va="center", fontsize=9)
    _finish(axis, orange)
    for start, end in (((2.75, 3.4), (3.15, 3.4)), ((5.45, 3.4), (5.9, 3.4)), ((7, 2.95), (7, 2.35)),
                       ((2.75, 1.9), (5.9, 1.9)), ((8.1, 1.9), (9.1, 1.9))):
        _arrow(axis, start, end)


def _finish(axis, color):
    """The block's own skip: x is added to what the attention gives."""
    _box(axis, 10.2, 0.3, "+", color, 0.7, 0.6)
    axis.plot([2.75, 2.75], [0.3, 1.9], color="0.3", lw=1.2)
    _arrow(axis, (2.75, 0.3), (9.85, 0.3))
    _arrow(axis, (10.2, 1.45), (10.2, 0.6))
    _arrow(axis, (10.55, 0.3), (11.4, 0.3))


def _canvas(width, height):
    figure, axis = plt.subplots(figsize=(width, height))
    plt.close(figure)
    axis.set_axis_off()
    return figure, axis


def _colors():
    return [sns.light_palette(color, 5)[1] for color in sns.color_palette("colorblind")[:3]] + ["0.92"]


def _box(axis, x, y, text, color, width=2.0, height=0.9):
    corner = (x - width / 2, y - height / 2)
    axis.add_patch(plt.Rectangle(corner, width, height, facecolor=color, edgecolor="0.3"))
    axis.text(x, y, text, ha="center", va="center", fontsize=8)


def _arrow(axis, start, end, text=""):
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.3", "lw": 1.2,
                                              "shrinkA": 0, "shrinkB": 0})
    if text:
        axis.text((start[0] + end[0]) / 2 + 0.12, (start[1] + end[1]) / 2, text, va="center", fontsize=8)


def _shape(model, layer) -> str:
    return _join(model.get_layer(layer).output.shape[1:])


def _join(shape) -> str:
    return " × ".join(str(size) for size in shape)
