"""RigL: single weights are dropped and others regrown while training (arXiv 1911.11134)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from automl.pruning.schedules import Session, require_count, require_epochs
from automl.types import InputError


@dataclass(frozen=True)
class RigL:
    """Prunes at once, then moves the zeros to better places during training.

    Every ``every`` steps, ``updates`` times, each layer drops a fraction of its weights, those of
    least magnitude, and grows as many with the largest gradients from 0: update t of T moves
    ``drop / 2 (1 + cos(pi t / T))`` (section 3, "update schedule"). The number of zeros never
    changes.

    Deviations: starts from a trained network pruned by the criterion, not at random; the gradient
    is that of a batch of training images in eval mode.

    Attributes:
        every: Steps between updates, >= 1.
        drop: Fraction moved by the first update, in (0, 1).
        updates: How many updates, >= 1; training goes on without after the last.

    Raises:
        InputError: A setting is off.
    """

    every: int = 20
    drop: float = 0.3
    updates: int = 10
    name: ClassVar[str] = "rigl"

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_count("schedule.every", self.every, 1)
        require_count("schedule.updates", self.updates, 1)
        fine = isinstance(self.drop, float) and 0 < self.drop < 1
        if not fine:
            raise InputError(f"schedule.drop must be a number in (0, 1), got {self.drop!r}")

    def fraction(self, update: int) -> float:
        """What the update of this number (from 0) moves."""
        return self.drop / 2 * (1 + math.cos(math.pi * update / self.updates))

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Needs single weights, and training."""
        if list(grains) != ["unstructured"]:
            raise InputError(
                f"schedule rigl moves single weights, not {' and '.join(grains)}; use "
                "granularity=unstructured, or schedule=progressive"
            )
        require_epochs(self.name, 1, epochs)

    def run(self, session: Session, epochs: int) -> nn.Module:
        """Prunes, then trains with updates, then keeps the best epoch of the rest."""
        session.prune(lambda final: final)

        def update(steps: int) -> None:
            number, rest = divmod(steps, self.every)
            if rest == 0 and 1 <= number <= self.updates:
                session.regrow(self.fraction(number - 1), number)

        session.train(epochs, last=True, after_step=update)
        return session.finish()
