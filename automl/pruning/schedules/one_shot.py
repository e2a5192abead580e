"""Everything at once, then training, if any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from automl.pruning.schedules import Session


@dataclass(frozen=True)
class OneShot:
    """Prunes to the final policy, repairs, and spends all epochs on the result."""

    name: ClassVar[str] = "one_shot"

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Takes everything."""

    def run(self, session: Session, epochs: int) -> nn.Module:
        """One stage."""
        session.prune(lambda final: final)
        if epochs:
            session.train(epochs, last=True)
        return session.finish()
