"""Building blocks that several families of the zoo share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch norm, then ReLU (or ReLU6); keys ``0``, ``1``, ``2``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        """Builds the layers.

        Args:
            in_channels: Channels read.
            out_channels: Channels written.
            kernel_size: Odd; the map keeps its size at stride 1.
            stride: Spatial stride.
            groups: Convolution groups.
            activation: Class of the activation.
        """
        padding = (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            activation(),
        )


def global_pool(x: Tensor) -> Tensor:
    """Mean over the map: (batch, channels, height, width) gives (batch, channels)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def init_kaiming(model: nn.Module) -> None:
    """He initialisation for ReLU networks (He et al., 2015, arXiv:1502.01852), in place.

    Convolutions preserve the variance of the gradient (fan out), linear layers start near zero,
    so that the first outputs are close to uniform.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
