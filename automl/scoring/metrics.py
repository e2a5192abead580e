"""The metrics of classifiers, example by example, and what a score is made of."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Score = Literal["top1", "loss", "kl"]
SCORES: tuple[Score, ...] = get_args(Score)

#: The columns of ``of_examples``.
TOP1, TOP5, LOSS, KL, BROKEN = range(5)
COLUMNS = 5

_TOP5_CLASSES = 6  # with five classes or fewer, top-5 is 1 by definition


def of_examples(logits: Tensor, labels: Tensor | None, reference: Tensor | None) -> Tensor:
    """The metrics of every example of a batch.

    Args:
        logits: Shape (batch, classes).
        labels: Shape (batch,), or None.
        reference: Log-probabilities of the dense network, shape (batch, classes), or None.

    Returns:
        Shape (batch, 5), float64: top-1 hit, top-5 hit (NaN below six classes), cross entropy, KL
        divergence, and whether some output is not finite. 0 where an input is missing.
    """
    found = logits.new_zeros((len(logits), COLUMNS), dtype=torch.float64)
    log_q = torch.log_softmax(logits.double(), dim=1)
    if labels is not None:
        rank = _rank(logits, labels)
        found[:, TOP1] = (rank < 1).double()
        found[:, TOP5] = (rank < 5).double() if logits.shape[1] >= _TOP5_CLASSES else math.nan
        found[:, LOSS] = -log_q.gather(1, labels[:, None])[:, 0]
    if reference is not None:
        # Not below 0 but for rounding; clamp passes NaN on.
        found[:, KL] = (reference.exp() * (reference - log_q)).sum(dim=1).clamp_min(0)
    found[:, BROKEN] = (~logits.isfinite()).any(dim=1).double()
    return found


def losses(values: Tensor, score: Score) -> Tensor:
    """What a score counts against every example, >= 0, shape (batch,).

    Args:
        values: From ``of_examples``.
        score: Which metric it is made of; for ``top1`` the loss is 1 where the class is wrong.
    """
    if score == "top1":
        return 1 - values[:, TOP1]
    # Cross entropy too is below 0 by rounding alone.
    return values[:, LOSS if score == "loss" else KL].clamp_min(0)


def _rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one, shape (batch,); ties go to the lower index.

    Counting is exact and deterministic on every device, which argmax and topk are not in ties
    (frequent in half types).
    """
    true = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    return ((logits > true) | ((logits == true) & lower)).sum(dim=1)
