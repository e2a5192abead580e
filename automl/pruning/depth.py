"""Depth pruning: leaves out whole residual blocks, those first whose removal costs least.

A block that adds something to its input can go without any other layer changing: the input then
passes unchanged. Which to leave out is measured: the network is scored without each block, and the
one that is missed least goes; then again, until enough are gone. The shorter network is an ordinary
one, which can be traced and pruned in width next.

Source: Kim et al., "Shortened LLaMA" (arXiv:2402.02834), who rank blocks by the perplexity without
them, and Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation"
(arXiv:2407.14679), who combine depth and width. Deviation: costs are measured anew after every
removal, because two blocks that can each be spared may not be spared together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from automl.models.shorter import blocks_of, without_blocks
from automl.types import InputError, Scorer


@dataclass(frozen=True, eq=False)
class Shortened:
    """A network with fewer blocks.

    Attributes:
        model: The network; the dense one is not touched.
        removed: Positions of the blocks left out in the dense network, in the order they went.
        scores: Score after each removal, higher is better.
    """

    model: nn.Module
    removed: tuple[int, ...]
    scores: tuple[float, ...]


def shorten(model: nn.Module, blocks: str, scorer: Scorer, remove: int) -> Shortened:
    """Leaves out ``remove`` blocks, one after the other, each the one that is missed least.

    Scores the network once for every block that is left, at every removal.

    Args:
        model: The dense network.
        blocks: Path of the ``nn.Sequential`` or ``nn.ModuleList`` of residual blocks.
        scorer: On held-out data, for example ``ClassifierScorer`` with ``score="kl"``.
        remove: How many blocks to leave out.

    Raises:
        InputError: There are no such blocks, not more than ``remove``, or one of them cannot be
            left out because it changes the shape of its input.
    """
    left = list(range(len(blocks_of(model, blocks))))
    if not 0 <= remove < len(left):
        raise InputError(f"remove must be 0 to {len(left) - 1} of {blocks}, got {remove}")
    removed: list[int] = []
    scores: list[float] = []
    for _ in range(remove):
        found = removal_scores(model, blocks, scorer, removed)
        missed_least = max(found, key=lambda block: (found[block], block))
        removed.append(missed_least)
        scores.append(found[missed_least])
    return Shortened(without_blocks(model, blocks, removed), tuple(removed), tuple(scores))


def removal_scores(
    model: nn.Module, blocks: str, scorer: Scorer, removed: Sequence[int] = ()
) -> dict[int, float]:
    """The score without each block that is left, by its position in the dense network.

    Args:
        model: The dense network.
        blocks: Path of the blocks.
        scorer: On held-out data.
        removed: Blocks that are gone already.

    Raises:
        InputError: There are no such blocks, or one changes the shape of its input.
    """
    found = {}
    for block in range(len(blocks_of(model, blocks))):
        if block in removed:
            continue
        shorter = without_blocks(model, blocks, [*removed, block])
        try:
            found[block] = scorer(shorter)[0]
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            raise InputError(f"{blocks}.{block} cannot be left out: {first}") from error
    return found
