"""Exact counts out of scores: ties are broken by rank, never by a threshold."""

from __future__ import annotations

import torch
from torch import Tensor


def top(scores: Tensor, kept: int) -> Tensor:
    """Marks exactly the ``kept`` highest entries along the last dimension, the first of equals.

    A threshold would keep all of equal scores or none, which for N:M is three of four or one.

    Args:
        scores: Shape (..., n).
        kept: In [0, n].

    Returns:
        Booleans of the same shape.

    Raises:
        ValueError: A score is NaN, which has no rank.
    """
    if bool(scores.isnan().any()):
        raise ValueError("ranking.scores must be numbers, got NaN")
    if kept >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    return mask.scatter_(-1, order[..., :kept], True)
