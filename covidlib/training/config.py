"""The options of a training."""

from dataclasses import asdict, dataclass

from covidlib.models import resolve_precision
from covidlib.preprocessing.augmentation import Augmenter
from covidlib.training.devices import strategy


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The options of a training. Raises ValueError for a value that does not fit.

    variant: one of `models.VARIANTS`.
    weights: None or "none" (random), "imagenet", "phantom" (see `pretraining`) or a path.
    image_size: side of the square slices, pixels.
    epochs: passes over the training slices.
    batch_size: slices to a step, of all devices together; a multiple of `devices`.
    seed: of the initial weights, order, augmentation and dropout.
    precision: "auto", "float32" or "mixed_bfloat16"; see `models.resolve_precision`.
    learning_rate: its peak.
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
    epochs: int
    batch_size: int
    seed: int
    precision: str = "auto"
    learning_rate: float = 1e-3
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
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0. Received: learning_rate={self.learning_rate!r}")
        strategy(self.devices)
        if self.batch_size % self.devices:
            raise ValueError("batch_size is that of all devices and must be a multiple of them. "
                             f"Received: batch_size={self.batch_size}, devices={self.devices}")
        Augmenter(self.augmentation, self.seed)
        patience = self.early_stopping
        if patience is not None and (not isinstance(patience, int) or patience < 1):
            raise ValueError("early_stopping must be None or epochs, 1 or more. "
                             f"Received: early_stopping={patience!r}")
        object.__setattr__(self, "weights", None if self.weights in (None, "none") else str(self.weights))
        object.__setattr__(self, "precision", resolve_precision(self.precision))

    def parameters(self):
        """What the result depends on, as run.json keeps it: runs with the same are the same run."""
        ignored = ("checkpoint_every", "devices") if self.devices == 1 else ("checkpoint_every",)
        return {name: value for name, value in asdict(self).items() if name not in ignored}
