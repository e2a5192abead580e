"""VGG-16 with batch norm for 32 x 32 images.

The thirteen convolutions of Simonyan and Zisserman, 2015 (arXiv:1409.1556), with the one hidden
linear layer of 512 that pruning papers use on CIFAR-10 (Li et al., 2017, arXiv:1608.08710).
"""

from __future__ import annotations

from torch import Tensor, nn

from automl.models.layers import init_kaiming

#: Channels of the convolutions of each stage; a max pooling that halves the map ends each.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Five stages of 3x3 convolutions and a classifier with one hidden layer of 512."""

    def __init__(self, num_classes: int) -> None:
        """Builds the layers.

        Args:
            num_classes: Outputs.
        """
        super().__init__()
        self.features = nn.Sequential(*_features())
        # The fifth pooling leaves one pixel of a 32 x 32 image, so flattening keeps 512 features.
        self.classifier = nn.Sequential(
            nn.Linear(512, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, 32, 32) to (batch, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _features() -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 3
    for stage in STAGES:
        for width in stage:
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def vgg16_bn(num_classes: int = 10) -> VGG:
    """VGG-16-BN for CIFAR: 15.0 M parameters, 313 M MACs."""
    return VGG(num_classes)
