"""Training-time augmentation on whole batches, on the device the images are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class PadCropFlip:
    """Shifts every image by up to ``pad`` pixels each way and mirrors half of them.

    With the defaults the standard augmentation for CIFAR (Lee et al., 2015, arXiv:1409.5185):
    pad by 4 with zeros, crop at random, flip at random.

    Attributes:
        pad: Largest shift in pixels.
        flip: Whether to mirror left and right.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        """Checks the fields."""
        if self.pad < 0:
            raise ValueError(f"PadCropFlip.pad must be at least 0, got {self.pad}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented copies of ``images``.

        Args:
            images: (batch, channels, height, width), not yet normalised, so that the padding is
                black.
            generator: Source of randomness on the device of ``images``.
        """
        batch, _, height, width = images.shape
        device = images.device
        if self.pad:
            padded = F.pad(images, (self.pad,) * 4)
            # Every crop as a view: (batch, channels, 2 pad + 1, 2 pad + 1, height, width).
            crops = padded.unfold(2, height, 1).unfold(3, width, 1)
            size = (2, batch)
            shift = torch.randint(2 * self.pad + 1, size, generator=generator, device=device)
            images = crops[torch.arange(batch, device=device), :, shift[0], shift[1]]
        if self.flip:
            mirror = torch.rand(batch, 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(mirror, images.flip(-1), images)
        return images
