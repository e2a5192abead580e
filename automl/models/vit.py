"""A tiny vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929), plain and readable.

Pre-norm blocks, learned positions, a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from automl.models.transformer import PreNormBlock, require_heads


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and maps each to one token."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        """Builds the layers.

        Args:
            in_channels: Channels of the image.
            dim: Width of a token.
            patch_size: Height and width of a patch in pixels.
        """
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to (batch, patches, dim)."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Patches, class token, positions, blocks; the class token's final value is classified."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        in_channels: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        num_classes: int,
    ) -> None:
        """Builds the layers.

        Args:
            image_size: Height and width of the images in pixels.
            patch_size: Height and width of a patch; must divide ``image_size``.
            in_channels: Channels of the images.
            dim: Width of a token.
            depth: Blocks.
            num_heads: Heads of every attention; must divide ``dim``.
            mlp_ratio: Hidden width of the MLPs over ``dim``.
            num_classes: Outputs.

        Raises:
            ValueError: Patches do not tile the image, or heads do not divide the width.
        """
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"VisionTransformer.patch_size must divide image_size {image_size}, "
                f"got {patch_size}"
            )
        require_heads("VisionTransformer", dim, num_heads)
        patches = (image_size // patch_size) ** 2
        self.patch_embedding = PatchEmbedding(in_channels, dim, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, dim))
        hidden = int(dim * mlp_ratio)
        self.blocks = nn.Sequential(*(PreNormBlock(dim, num_heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, image_size, image_size) to (batch, num_classes)."""
        x = self.patch_embedding(x)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = torch.cat((token, x), dim=1) + self.positions
        x = self.norm(self.blocks(x))
        logits: Tensor = self.head(x[:, 0])
        return logits


def vit_tiny(
    image_size: int = 32,
    patch_size: int = 4,
    in_channels: int = 3,
    dim: int = 192,
    depth: int = 6,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    num_classes: int = 10,
) -> VisionTransformer:
    """A ViT for 32 x 32 images: 65 tokens of 192, six blocks of six heads, 2.7 M parameters."""
    return VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        in_channels=in_channels,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        num_classes=num_classes,
    )
