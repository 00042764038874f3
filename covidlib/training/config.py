"""The options of a training."""

from dataclasses import asdict, dataclass

from covidlib.models import resolve_precision
from covidlib.preprocessing import crop
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training.devices import strategy

# A network without a start, or with one from drawings, has everything to learn; one that was pre-trained on pictures
# keeps its batch statistics and changes slowly. reports/published/PROTOCOL.md says what FINE_TUNING is compared with.
SCRATCH = {"learning_rate": 1e-3, "backbone_rate": 1.0, "frozen_statistics": False, "frozen_stages": 0,
           "label_smoothing": 0.0, "weight_decay": 0.05}
FINE_TUNING = {"learning_rate": 1e-3, "backbone_rate": 0.1, "frozen_statistics": True, "frozen_stages": 0,
               "label_smoothing": 0.05, "weight_decay": 0.02}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of a training. Raises ValueError for a value that does not fit.

    What SCRATCH names and is None is taken from there without weights and with those of phantoms, and from FINE_TUNING
    with others.

    variant: one of `models.VARIANTS`.
    weights: None or "none" (random), "imagenet", "ct" (see `ct_weights`), "phantom" (see `pretraining`) or a path.
    image_size: side of the square slices, pixels.
    preparation: "whole" or "lungs", see `crop.prepare`; the slices are given prepared.
    epochs: passes over the training slices.
    batch_size: slices to a step, of all devices together; a multiple of `devices`.
    seed: of the initial weights, order, augmentation and dropout.
    precision: "auto", "float32" or "mixed_bfloat16"; see `models.resolve_precision`.
    learning_rate: its peak.
    backbone_rate: what it is multiplied by for the layers of the backbone.
    frozen_statistics: whether the backbone's batch normalisation keeps the mean and variance that it starts with.
    frozen_stages: how many of conv1 to conv5, from the first on, do not learn.
    label_smoothing: share of the label that is spread over all classes.
    weight_decay: of AdamW, on kernels alone.
    class_weights: weigh the loss of a class by the inverse of its share.
    early_stopping: None, or epochs without a lower val_loss after which to stop.
    augmentation: "paper", "mild", "none", or a dict for `augmentation.Augmenter`.
    deterministic: same seed and machine, same weights byte for byte. On TensorFlow this stays switched on for the
        rest of the process.
    devices: GPUs, or CPU devices where there is no GPU, that share every batch; see `training.devices`. Of training
        slices that do not divide, up to devices - 1 are left out, others in each epoch; validation and prediction run
        on one device and see every slice once.
    checkpoint_every: seconds between two checkpoints; 0: one after each epoch. On a GPU an epoch of a small set is
        shorter than the writing of its checkpoint.
    """

    variant: str
    weights: str | None = None
    image_size: int
    preparation: str = "whole"
    epochs: int
    batch_size: int
    seed: int
    precision: str = "auto"
    learning_rate: float | None = None
    backbone_rate: float | None = None
    frozen_statistics: bool | None = None
    frozen_stages: int | None = None
    label_smoothing: float | None = None
    weight_decay: float | None = None
    class_weights: bool = False
    early_stopping: int | None = None
    augmentation: str | dict = "paper"
    deterministic: bool = True
    devices: int = 1
    checkpoint_every: float = 0

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("devices", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up. Received: {name}={value!r}")
        object.__setattr__(self, "weights", None if self.weights in (None, "none") else str(self.weights))
        for name, value in (SCRATCH if self.weights in (None, "phantom") else FINE_TUNING).items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0. Received: learning_rate={self.learning_rate!r}")
        strategy(self.devices)
        if self.batch_size % self.devices:
            raise ValueError("batch_size is that of all devices and must be a multiple of them. "
                             f"Received: batch_size={self.batch_size}, devices={self.devices}")
        crop.check(self.preparation)
        Augmenter(self.augmentation, self.seed)
        patience = self.early_stopping
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError("early_stopping must be None or epochs, 1 or more. "
                             f"Received: early_stopping={patience!r}")
        object.__setattr__(self, "precision", resolve_precision(self.precision))

    def parameters(self):
        """What the result depends on, as run.json keeps it: runs with the same are the same run."""
        ignored = ("checkpoint_every", "devices") if self.devices == 1 else ("checkpoint_every",)
        return {name: value for name, value in asdict(self).items() if name not in ignored}
