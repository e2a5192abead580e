"""A small recommender: embeddings of categories, joined, and an MLP that predicts the click.

The form of He et al., 2017 (neural collaborative filtering, arXiv:1708.05031) and of the dense half
of DLRM (Naumov et al., 2019, arXiv:1906.00091): one table per field, their rows put side by side.
Every table has a width of its own, so that pruning finds how many numbers each field deserves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Recommender(nn.Module):
    """Tables, one per field, and an MLP over what they hold.

    Attributes:
        vocab_size: Categories of every field; inputs are ids below it.
    """

    def __init__(
        self, *, fields: int, vocab_size: int, dim: int, hidden: Sequence[int], num_classes: int
    ) -> None:
        """Builds the layers.

        Args:
            fields: Categorical fields of an example: user, item, hour, ...
            vocab_size: Categories of every field.
            dim: Width of every table.
            hidden: Widths of the MLP's hidden layers.
            num_classes: Outputs; 2 for clicked or not.

        Raises:
            ValueError: There is no field.
        """
        super().__init__()
        if fields < 1:
            raise ValueError(f"Recommender.fields must be at least 1, got {fields}")
        self.vocab_size = vocab_size
        tables = [nn.Embedding(vocab_size, dim) for _ in range(fields)]
        for table in tables:
            nn.init.normal_(table.weight, std=dim**-0.5)
        self.tables = nn.ModuleList(tables)
        widths = [fields * dim, *hidden]
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (batch, fields), int64, to logits (batch, num_classes)."""
        x = torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        for layer in self.layers:
            x = F.relu(layer(x))
        logits: Tensor = self.head(x)
        return logits


def recommender_tiny(
    fields: int = 4,
    vocab_size: int = 32,
    dim: int = 16,
    hidden: Sequence[int] = (64, 32),
    num_classes: int = 2,
) -> Recommender:
    """Four fields of 32 categories, tables of 16, an MLP of 64 and 32."""
    return Recommender(
        fields=fields, vocab_size=vocab_size, dim=dim, hidden=hidden, num_classes=num_classes
    )
