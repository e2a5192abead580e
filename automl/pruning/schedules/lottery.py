"""Lottery tickets: train, prune, rewind (Frankle and Carbin, arXiv 1803.03635)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from automl.pruning.schedules import (
    Session,
    require_count,
    require_epochs,
    share_epochs,
)
from automl.pruning.schedules.gradual import Gradual


@dataclass(frozen=True)
class Lottery:
    """Draws a subnetwork that trains well from its first weights.

    Trains from the untrained network; every round removes the same fraction of what is left (by
    the weights as trained) and gives the rest back the weights that they had at the rewinding
    point, the start or a few epochs after it (Frankle et al., arXiv 1912.05671). The last ticket
    is trained once more. Everything trains anew: a checkpoint's weights only say what is not used,
    and epochs are needed as for training from scratch.

    Attributes:
        stages: Rounds of pruning, >= 1.
        rewind_epochs: Epochs of training before the rewinding point; 0 is the start.

    Raises:
        InputError: A setting is off.
    """

    stages: int = 3
    rewind_epochs: int = 0
    name: ClassVar[str] = "lottery"

    def __post_init__(self) -> None:
        """Checks the settings."""
        require_count("schedule.stages", self.stages, 1)
        require_count("schedule.rewind_epochs", self.rewind_epochs, 0)

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Needs an epoch for every round, one for the last ticket, and those to rewind to."""
        require_epochs(self.name, self.stages + 1 + self.rewind_epochs, epochs)

    def run(self, session: Session, epochs: int) -> nn.Module:
        """Draws tickets and trains the last one."""
        session.start_anew()
        if self.rewind_epochs:
            session.train(self.rewind_epochs)
        session.remember()
        ramp = Gradual("exponential", self.stages)
        *rounds, final = share_epochs(epochs - self.rewind_epochs, self.stages + 1)
        for stage, share in enumerate(rounds, 1):
            session.train(share)
            session.prune(lambda last, stage=stage: ramp.ratio(stage, last))  # type: ignore[misc]
            session.rewind()
        session.train(final, last=True)
        return session.finish()
