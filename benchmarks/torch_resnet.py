"""ResNet-50 and a training step in PyTorch, the peer of benchmarks/training.py (extra `bench`).

Layers, widths and parameters are those of `covidlib.models.resnet` (strides in the first convolution of a stage, as
in keras.applications), a bias-free convolution before each normalisation as PyTorch's users write it.
"""

import torch
from torch import nn

from covidlib.utils import provenance

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class Block(nn.Module):
    """Bottleneck block: (B, c, h, w) -> (B, 4 width, h/stride, w/stride)."""

    def __init__(self, channels, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            *_conv_norm(channels, width, 1, stride), nn.ReLU(inplace=True),
            *_conv_norm(width, width, 3, 1), nn.ReLU(inplace=True),
            *_conv_norm(width, 4 * width, 1, 1),
        )
        changes = stride > 1 or channels != 4 * width
        self.shortcut = nn.Sequential(*_conv_norm(channels, 4 * width, 1, stride)) if changes else nn.Identity()

    def forward(self, x):
        return torch.relu_(self.branch(x) + self.shortcut(x))


def resnet50(classes):
    """nn.Module from (B, 3, H, W) to logits (B, classes)."""
    layers = [*_conv_norm(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, blocks) in enumerate(STAGES):
        for number in range(blocks):
            layers.append(Block(channels, width, 2 if number == 0 and stage else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, classes))


def training_step(batch, image_size, classes, precision):
    """A function that trains one batch of random slices: channels_last, autocast if bfloat16, fused AdamW."""
    torch.set_num_threads(provenance.threads())
    model = resnet50(classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    images = torch.rand(batch, 3, image_size, image_size).to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,))

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(images)
        loss = nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _conv_norm(channels, width, size, stride):
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=False), nn.BatchNorm2d(width)
