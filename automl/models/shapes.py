"""A small network on point clouds: sparse convolutions, then the mean of every cloud.

The form of SparseConvNet (Graham et al., 2018, arXiv 1711.10275): submanifold convolutions at one
resolution with a residual sum, strided ones between resolutions, batch norm and ReLU on the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.executors.spconv3d import SparseConv3d, SparseTensor, SubmanifoldConv3d, cloud_mean


class Block(nn.Module):
    """Adds a convolution of a resolution to what it reads."""

    def __init__(self, channels: int) -> None:
        """A submanifold convolution and its batch norm."""
        super().__init__()
        self.conv = SubmanifoldConv3d(channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features (voxels, channels) to the same."""
        return x.with_features(F.relu(x.features + self.norm(self.conv(x).features)))


class Shapes(nn.Module):
    """Classifies clouds.

    Attributes:
        vocab_size: Voxels of the grid; inputs are numbers below it.
    """

    def __init__(self, *, grid: int, widths: Sequence[int], num_classes: int) -> None:
        """Builds the layers.

        Args:
            grid: Voxels in x, in y and in z.
            widths: Channels of every resolution, each half of the one before.
            num_classes: Outputs.

        Raises:
            ValueError: There is no resolution.
        """
        super().__init__()
        if not widths:
            raise ValueError("Shapes.widths must name at least one resolution, got none")
        self.grid, self.vocab_size = grid, grid**3
        self.stem = SubmanifoldConv3d(1, widths[0], bias=False)
        self.stem_norm = nn.BatchNorm1d(widths[0])
        self.blocks = nn.ModuleList(Block(width) for width in widths)
        self.downs = nn.ModuleList(SparseConv3d(a, b, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Numbers of voxels (batch, points), int64, to logits (batch, num_classes)."""
        x = self.stem(self._voxels(ids))
        x = self.blocks[0](x.with_features(F.relu(self.stem_norm(x.features))))
        for down, norm, block in zip(self.downs, self.norms, self.blocks[1:], strict=True):
            x = down(x)
            x = block(x.with_features(F.relu(norm(x.features))))
        logits: Tensor = self.head(cloud_mean(x.features, x.coordinates, ids.shape[0]))
        return logits

    def _voxels(self, ids: Tensor) -> SparseTensor:
        """Every voxel once, with the feature 1."""
        size, cloud = self.grid, torch.arange(ids.shape[0], device=ids.device)[:, None]
        places = torch.unique(ids + cloud * size**3)
        x, y, z = places // size**2 % size, places // size % size, places % size
        coordinates = torch.stack([places // size**3, x, y, z], 1).int()
        return SparseTensor(coordinates, self.head.weight.new_ones(places.shape[0], 1))


def shapes_tiny(
    grid: int = 16, widths: Sequence[int] = (16, 32, 48), num_classes: int = 5
) -> Shapes:
    """Three resolutions of a grid of 16, with 16, 32 and 48 channels."""
    return Shapes(grid=grid, widths=widths, num_classes=num_classes)
