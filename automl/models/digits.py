"""A small residual network for scikit-learn's 8 x 8 digits: real data, no download.

Its trained weights ship with the package (``weights/digits.safetensors``, made by
``scripts/train_digits.py``), so that a first search needs nothing but the installation.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from automl.models.layers import global_pool, init_kaiming


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected by a 1x1 convolution where shapes differ.

    The basic block of He et al., 2016 (arXiv:1512.03385), with option-B shortcuts.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        """Builds the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """Stem, stages of residual blocks, global pooling, one linear layer."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], num_classes: int) -> None:
        """Builds the layers.

        Args:
            widths: Channels of each stage; every stage after the first halves the map.
            blocks: Residual blocks in each stage.
            num_classes: Outputs.
        """
        super().__init__()
        if not widths or len(widths) != len(blocks):
            raise ValueError(
                f"DigitsNet.blocks must name one count per width, got {list(blocks)} for "
                f"widths {list(widths)}"
            )
        self.conv1 = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(channels, width, stride))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, num_classes)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 1, 8, 8) to (batch, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.linear(global_pool(self.blocks(x)))
        return logits


def digits_cnn(
    widths: Sequence[int] = (32, 48, 64), blocks: Sequence[int] = (2, 2, 1), num_classes: int = 10
) -> DigitsNet:
    """The digits network; the shipped weights fit the default arguments."""
    return DigitsNet(widths, blocks, num_classes)
