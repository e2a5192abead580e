"""MobileNetV1 and MobileNetV2, for 224 x 224 images and, with smaller strides, for 32 x 32.

V1: Howard et al., 2017 (arXiv:1704.04861), parameter names of mit-han-lab/amc-models, so that
AMC's published checkpoints load. V2: Sandler et al., 2018 (arXiv:1801.04381), parameter names of
torchvision, so that its ImageNet weights load.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from automl.models.layers import ConvBNReLU, global_pool, init_kaiming

#: V1: (channels, stride) of each separable convolution.
V1_LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)

#: V2: (expansion, channels, blocks) of each stage, table 2 of the paper.
V2_STAGES = (
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)
V2_STRIDES = (1, 2, 2, 2, 1, 2, 1)


class MobileNetV1(nn.Module):
    """A 3x3 stem, separable convolutions (depthwise 3x3, pointwise 1x1), pooling, linear."""

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        stem_stride: int = 2,
        dropout: float = 0.2,
    ) -> None:
        """Builds the layers.

        Args:
            num_classes: Outputs.
            width: Multiplies the channels of every layer.
            stem_stride: Stride of the stem: 2 for 224 x 224 images, 1 for 32 x 32.
            dropout: Probability before the linear layer, in training.
        """
        super().__init__()
        channels = int(32 * width)
        self.conv1 = ConvBNReLU(3, channels, stride=stem_stride)
        layers: list[nn.Module] = []
        for base, stride in V1_LAYERS:
            out_channels = int(base * width)
            layers.append(_separable(channels, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, num_classes)."""
        x = self.features(self.conv1(x))
        logits: Tensor = self.classifier(global_pool(x))
        return logits


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *ConvBNReLU(in_channels, in_channels, stride=stride, groups=in_channels),
        *ConvBNReLU(in_channels, out_channels, kernel_size=1),
    )


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1); the input is added if it fits."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        """Builds the layers.

        Args:
            in_channels: Channels read.
            out_channels: Channels written.
            stride: Spatial stride of the depthwise convolution.
            expansion: Hidden channels over ``in_channels``; 1 leaves the first convolution out.
        """
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvBNReLU(in_channels, hidden, kernel_size=1, activation=nn.ReLU6))
        layers += [
            ConvBNReLU(hidden, hidden, stride=stride, groups=hidden, activation=nn.ReLU6),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in, h, w) to (batch, out, h / stride, w / stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


class MobileNetV2(nn.Module):
    """A 3x3 stem, seven stages of inverted residuals, a 1x1 convolution, pooling, linear."""

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        stem_stride: int = 2,
        stage_strides: Sequence[int] = V2_STRIDES,
        dropout: float = 0.2,
    ) -> None:
        """Builds the layers.

        Args:
            num_classes: Outputs.
            width: Multiplies the channels of every layer to multiples of 8; the last
                only above 1.
            stem_stride: Stride of the stem: 2 for 224 x 224 images, 1 for 32 x 32.
            stage_strides: Stride of the first block of each of the seven stages.
            dropout: Probability before the linear layer, in training.
        """
        super().__init__()
        if len(stage_strides) != len(V2_STAGES):
            raise ValueError(
                f"MobileNetV2.stage_strides must name {len(V2_STAGES)} strides, "
                f"got {list(stage_strides)}"
            )
        channels = _divisible(32 * width)
        last = _divisible(1280 * max(1.0, width))
        layers: list[nn.Module] = [ConvBNReLU(3, channels, stride=stem_stride, activation=nn.ReLU6)]
        for (expansion, base, blocks), first in zip(V2_STAGES, stage_strides, strict=True):
            out_channels = _divisible(base * width)
            for stride in (first, *[1] * (blocks - 1)):
                layers.append(InvertedResidual(channels, out_channels, stride, expansion))
                channels = out_channels
        layers.append(ConvBNReLU(channels, last, kernel_size=1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, num_classes)."""
        logits: Tensor = self.classifier(global_pool(self.features(x)))
        return logits


def _divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor``, never less than 90 % of ``channels`` (the paper's)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def mobilenet_v1(
    num_classes: int = 1000, width: float = 1.0, stem_stride: int = 2, dropout: float = 0.2
) -> MobileNetV1:
    """MobileNetV1: 4.2 M parameters, 569 M MACs at 224 x 224."""
    return MobileNetV1(num_classes, width, stem_stride, dropout)


def mobilenet_v2(
    num_classes: int = 1000,
    width: float = 1.0,
    stem_stride: int = 2,
    stage_strides: Sequence[int] = V2_STRIDES,
    dropout: float = 0.2,
) -> MobileNetV2:
    """MobileNetV2: 3.5 M parameters, 301 M MACs at 224 x 224."""
    return MobileNetV2(num_classes, width, stem_stride, stage_strides, dropout)
