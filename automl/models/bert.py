"""A tiny BERT (Devlin et al., 2019, arXiv:1810.04805) that classifies sequences of tokens.

Post-norm encoder blocks with separate projections for query, key and value, learned positions, and
the pooler that reads the first token. Deviations from the paper: no segment embeddings and no
padding, because its sequences are single and of one length; no dropout, because it is small.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.models.transformer import Attention, initialise, require_heads


class Embeddings(nn.Module):
    """Tokens and their positions, added and normalised."""

    def __init__(self, vocab_size: int, length: int, dim: int) -> None:
        """Builds the layers.

        Args:
            vocab_size: Size of the vocabulary.
            length: Tokens in a sequence.
            dim: Width of a token.
        """
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.empty(1, length, dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (batch, length) to (batch, length, dim)."""
        out: Tensor = self.norm(self.tokens(tokens) + self.positions)
        return out


class EncoderBlock(nn.Module):
    """Attention and MLP, each added to its input and normalised after."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        """Builds the layers.

        Args:
            dim: Width of a token.
            num_heads: Attention heads.
            hidden: Width of the MLP's hidden layer.
        """
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) to the same."""
        x = self.norm1(x + self.attention(x))
        out: Tensor = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class Bert(nn.Module):
    """Embeddings, encoder blocks, pooler, classifier.

    Attributes:
        vocab_size: Size of the vocabulary; inputs are ids below it.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        length: int,
        dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        num_classes: int,
    ) -> None:
        """Builds the layers.

        Args:
            vocab_size: Size of the vocabulary.
            length: Tokens in a sequence.
            dim: Width of a token.
            depth: Blocks.
            num_heads: Heads of every attention; must divide ``dim``.
            hidden: Hidden width of the MLPs.
            num_classes: Outputs.

        Raises:
            ValueError: Heads do not divide the width.
        """
        super().__init__()
        require_heads("Bert", dim, num_heads)
        self.vocab_size = vocab_size
        self.embeddings = Embeddings(vocab_size, length, dim)
        self.blocks = nn.Sequential(*(EncoderBlock(dim, num_heads, hidden) for _ in range(depth)))
        self.pooler = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, num_classes)
        self.apply(initialise)
        nn.init.trunc_normal_(self.embeddings.positions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (batch, length), int64, to logits (batch, num_classes)."""
        x = self.blocks(self.embeddings(tokens))
        logits: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return logits


def bert_tiny(
    vocab_size: int = 16,
    length: int = 24,
    dim: int = 48,
    depth: int = 2,
    num_heads: int = 4,
    hidden: int = 96,
    num_classes: int = 10,
) -> Bert:
    """An encoder that trains in seconds: 24 tokens of 48, two blocks of four heads."""
    return Bert(
        vocab_size=vocab_size,
        length=length,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        hidden=hidden,
        num_classes=num_classes,
    )
