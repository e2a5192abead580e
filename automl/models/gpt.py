"""A tiny GPT (Radford et al., 2019, GPT-2): a decoder that predicts the next token.

Pre-norm blocks with causal attention, learned positions, GELU, and a head that shares its weights
with the token embedding. Deviation: no dropout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from automl.models.transformer import PreNormBlock, initialise, require_heads


class GPT(nn.Module):
    """Logits of the next token after every token of a sequence.

    Attributes:
        vocab_size: Size of the vocabulary; inputs are ids below it.
    """

    def __init__(
        self, *, vocab_size: int, length: int, dim: int, depth: int, num_heads: int, hidden: int
    ) -> None:
        """Builds the layers.

        Args:
            vocab_size: Size of the vocabulary.
            length: Tokens in a sequence.
            dim: Width of a token.
            depth: Blocks.
            num_heads: Heads of every attention; must divide ``dim``.
            hidden: Hidden width of the MLPs.

        Raises:
            ValueError: Heads do not divide the width.
        """
        super().__init__()
        require_heads("GPT", dim, num_heads)
        self.vocab_size = vocab_size
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(length, dim)
        self.register_buffer("places", torch.arange(length), persistent=False)
        blocks = (PreNormBlock(dim, num_heads, hidden, causal=True) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        self.apply(initialise)
        self.head.weight = self.tokens.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """Ids (batch, length), int64, to what the head reads, (batch, length, dim)."""
        x = self.tokens(tokens) + self.positions(self.places)
        out: Tensor = self.norm(self.blocks(x))
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (batch, length), int64, to logits (batch, length, vocab_size)."""
        logits: Tensor = self.head(self.hidden(tokens))
        return logits


class NextToken(GPT):
    """The same network, asked only for the token after the last one."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (batch, length), int64, to logits (batch, vocab_size)."""
        logits: Tensor = self.head(self.hidden(tokens)[:, -1])
        return logits


def gpt_tiny(
    vocab_size: int = 16,
    length: int = 24,
    dim: int = 48,
    depth: int = 4,
    num_heads: int = 4,
    hidden: int = 96,
) -> GPT:
    """A decoder that trains in seconds: 24 tokens of 48, four blocks of four heads."""
    return GPT(
        vocab_size=vocab_size,
        length=length,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        hidden=hidden,
    )


def next_token_tiny(
    vocab_size: int = 16,
    length: int = 24,
    dim: int = 48,
    depth: int = 4,
    num_heads: int = 4,
    hidden: int = 96,
) -> NextToken:
    """As :func:`gpt_tiny`, with logits of the last position alone: a classifier of contexts."""
    return NextToken(
        vocab_size=vocab_size,
        length=length,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        hidden=hidden,
    )
