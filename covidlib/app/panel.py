"""One network's picture and prediction of a slice."""

from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
from PIL import Image, ImageDraw

from covidlib import readers
from covidlib.app.widgets import Picture, render, section, set_visible
from covidlib.evaluation import calibration, explain
from covidlib.predict import explained
from covidlib.preprocessing import crop, lungs, quality

SIDE = 512  # of a picture that is shown, pixels
NO_OVERLAY = "none"


@dataclass
class ShownSlice:
    """Slice `index` of a scan: uint8 (H, W) in the chosen window (shown) and in the lung window (picture).

    title: for alternative texts; file_warnings: sentences on its file.
    """

    index: int
    title: str
    shown: np.ndarray
    picture: np.ndarray
    file_warnings: list[str]

    def __post_init__(self):
        self.body, self.lungs = lungs.segment(self.picture)

    def prepared(self, network):
        return crop.prepare(self.picture, network.image_size, network.preparation, self.lungs)[0]

    def box(self, network):
        return square_box(self.picture, network.preparation, self.lungs)

    def quality_warnings(self, image, typical):
        return [*self.file_warnings, *quality.slice_warnings(self.picture, self.lungs, self.body, image, typical)]


class Panel:
    """A picture and, below it, the prediction of network `name`; index: of the slice shown, None for none."""

    def __init__(self):
        self.picture, self.prediction = Picture(), widgets.HTML()
        self.view = section(self.picture, self.prediction, most=SIDE + 20)
        self.name, self.index = "", None

    def clear(self, visible=True):
        self.index, self.picture.png, self.prediction.value = None, b"", ""
        set_visible(visible, self.view)

    def show_slice(self, slice_):
        """Without a network."""
        self.picture.clickable = False
        self._show(slice_, "slice", readers.fit_square(slice_.shown, SIDE), slice_.title, "")

    def show(self, slice_, network, overlay, class_name, opacity):
        """network: an Answerer; overlay: a level, a block or NO_OVERLAY; class_name: "" for the predicted class."""
        self.picture.clickable = overlay.startswith("attention")
        image, box = slice_.prepared(network), slice_.box(network)
        answer = network(image)
        predicted = network.classes[int(answer.probabilities.argmax())]
        point, inside = self._point(box)
        class_name = class_name if class_name in network.classes else predicted
        heat, description = _heat(answer, overlay, class_name, point, len(image))
        if self.picture.clickable and not inside:
            description += "; it lies outside the network's input, so that the nearest edge is used"
        picture = readers.fit_square(slice_.shown, SIDE)
        if heat is not None and box is not None:
            picture = blend(picture, box, heat, opacity)
        alt = [slice_.title, description, f"{network.variant} predicts {predicted}"]
        self._show(slice_, network.variant, picture, ", ".join(filter(None, alt)), render(
            "prediction", network=network, overlay=description, probabilities=answer.probabilities, predicted=predicted,
            warnings=slice_.quality_warnings(image, network.typical), description=explained.describe(network),
            calibrated=network.temperature and calibration.describe(network.temperature)))

    def _show(self, slice_, name, picture, alt, prediction):
        set_visible(True, self.view)
        self.index, self.name, self.prediction.value = slice_.index, name, prediction
        self.picture.show(picture, alt)

    def _point(self, box):
        """((row, column) in 0..1 of the network's input, whether the selected point lies in it); the middle if none."""
        if len(self.picture.place) != 2 or box is None:
            return (0.5, 0.5), True
        point = [(share - start) / box[2] for share, start in zip(self.picture.place, box[:2], strict=True)]
        return tuple(float(np.clip(share, 0, 0.999)) for share in point), all(0 <= share <= 1 for share in point)


def square_box(picture, preparation, lung):
    """crop.kept_square as fractions (top, left, side) of the square that readers.fit_square makes of a slice."""
    box = crop.kept_square(picture, preparation, lung)
    if box is None:
        return None
    side, (height, width) = max(picture.shape), picture.shape
    return (box[0] + (side - height) // 2) / side, (box[1] + (side - width) // 2) / side, box[2] / side


def blend(picture, box, heat, opacity):
    """uint8 (SIDE, SIDE, 3): `heat` in 0..1 over the `square_box` of a picture uint8 (SIDE, SIDE), with its outline."""
    from matplotlib import colormaps

    top, left, side = (round(share * SIDE) for share in box)
    side = max(1, side)
    layer = Image.new("F", (SIDE, SIDE))
    heat = Image.fromarray(heat.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR)
    layer.paste(heat, (left, top))
    values = np.clip(np.asarray(layer), 0, 1)
    share = opacity * np.sqrt(values)[..., None]
    mixed = (1 - share) * picture[..., None] + share * 255 * colormaps["inferno"](values)[..., :3]
    mixed = Image.fromarray(mixed.astype(np.uint8))
    corners = [max(0, left), max(0, top), min(SIDE, left + side) - 1, min(SIDE, top + side) - 1]
    ImageDraw.Draw(mixed).rectangle(corners, outline=(120, 170, 255))
    return np.asarray(mixed)


def _heat(answer, overlay, class_name, point, size):
    """(float32 (size, size) in 0..1 or None, its description)."""
    if overlay == NO_OVERLAY:
        return None, ""
    if overlay.startswith("attention"):
        if overlay not in answer.attention:
            return None, "no attention in this network"
        values = answer.related(overlay, point, size)
        description = f"attention of {overlay.removeprefix('attention_')} at the selected point"
    elif overlay == explain.ALL or overlay in answer.maps:
        values = np.maximum(answer.heat(overlay, answer.answerer.classes.index(class_name), size), 0)
        description = f"evidence for {class_name} ({level_name(overlay)})"
    else:
        return None, "no such level in this network"
    return values / max(values.max(), 1e-9), description


def level_name(level):
    if level == explain.ALL:
        return "Grad-CAM, all levels"
    if level.startswith("fpn_p"):
        return f"Grad-CAM, pyramid level {level[4:6].upper()}"
    return f"Grad-CAM, {level.split('_')[0]}"
