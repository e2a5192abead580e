"""ResNets and a plain network for 32 x 32 images (He et al., 2016, arXiv:1512.03385, section 4.2).

Shortcuts are the paper's option A: no parameters, every second pixel, missing channels zero.
Parameter names are those of akamaster/pytorch_resnet_cifar10, so its published checkpoints load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from automl.models.layers import global_pool, init_kaiming

#: Channels of the three stages.
WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Option A: keeps every ``stride``-th pixel and pads with zero channels."""

    def __init__(self, stride: int, before: int, after: int) -> None:
        """Builds the layers.

        Args:
            stride: Spatial stride.
            before: Zero channels put before those of the input.
            after: Zero channels put after them.
        """
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c, h, w) to (batch, before + c + after, h / stride, w / stride)."""
        # A strided slice costs half of a 1x1 pooling that does the same.
        x = x[..., :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """What ``print`` shows of this module."""
        return f"stride={self.stride}, before={self.before}, after={self.after}"


class PlainBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU, no shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class BasicBlock(PlainBlock):
    """A plain block whose input is added before the last ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Builds the layers."""
        super().__init__(in_channels, out_channels, stride)
        self.shortcut: nn.Module = nn.Identity()
        missing = out_channels - in_channels
        if stride != 1 or missing:
            self.shortcut = PadShortcut(stride, missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarNet(nn.Module):
    """Stem, three stages of 16, 32 and 64 channels, global pooling, one linear layer."""

    def __init__(self, block: type[PlainBlock], depth: int, num_classes: int) -> None:
        """Builds the layers.

        Args:
            block: ``BasicBlock`` for a ResNet, ``PlainBlock`` for a plain network.
            depth: Weight layers, 6n + 2 for n blocks a stage.
            num_classes: Outputs.
        """
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"CifarNet.depth must be 6n + 2 with n at least 1, got {depth}")
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(block, WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(block, WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(block, WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) to (batch, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(global_pool(x))
        return logits


def _stage(
    block: type[PlainBlock], in_channels: int, channels: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> CifarNet:
    """ResNet-20: 0.27 M parameters, 41 M MACs."""
    return CifarNet(BasicBlock, 20, num_classes)


def resnet32(num_classes: int = 10) -> CifarNet:
    """ResNet-32: 0.46 M parameters, 69 M MACs."""
    return CifarNet(BasicBlock, 32, num_classes)


def resnet44(num_classes: int = 10) -> CifarNet:
    """ResNet-44: 0.66 M parameters, 97 M MACs."""
    return CifarNet(BasicBlock, 44, num_classes)


def resnet56(num_classes: int = 10) -> CifarNet:
    """ResNet-56: 0.85 M parameters, 125 M MACs."""
    return CifarNet(BasicBlock, 56, num_classes)


def resnet110(num_classes: int = 10) -> CifarNet:
    """ResNet-110: 1.7 M parameters, 253 M MACs."""
    return CifarNet(BasicBlock, 110, num_classes)


def plain20(num_classes: int = 10) -> CifarNet:
    """Plain-20: ResNet-20 without shortcuts, the network of AMC's first comparison."""
    return CifarNet(PlainBlock, 20, num_classes)
