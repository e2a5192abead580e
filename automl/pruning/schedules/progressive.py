"""Masks that grow toward a structured target while the network trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from automl.pruning.schedules import Session, require_count, require_epochs, share_epochs


@dataclass(frozen=True)
class Progressive:
    """Chooses what goes at the start, and takes it weight by weight.

    The units that the final policy removes (channels, kernels, blocks, ...) are fixed by the first
    scores. At stage t of n the t / n of their weights with the least magnitude are zero, wherever
    in the doomed units they are, so that the network leaves them behind bit by bit; at the last
    stage they are all zero, and the structure is there, to be trained once more. The idea is the
    progressive sparse masks of Intel Neural Compressor, between unstructured and the target
    pattern.

    Attributes:
        stages: How many masks, the target included, >= 2.

    Raises:
        InputError: There are fewer than two stages.
    """

    stages: int = 4
    name: ClassVar[str] = "progressive"

    def __post_init__(self) -> None:
        """Checks the number of stages."""
        require_count("schedule.stages", self.stages, 2)

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Needs an epoch for every stage."""
        require_epochs(self.name, self.stages, epochs)

    def run(self, session: Session, epochs: int) -> nn.Module:
        """Blends and trains in turn."""
        for stage, share in enumerate(share_epochs(epochs, self.stages), 1):
            session.blend(stage / self.stages)
            session.train(share, last=stage == self.stages)
        return session.finish()
