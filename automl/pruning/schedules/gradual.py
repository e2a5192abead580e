"""Iterative pruning: prune a little, train, prune more (Han et al., 2015, arXiv 1506.02626)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from automl.pruning.schedules import Session, require_count, require_epochs, share_epochs
from automl.types import InputError

Ramp = Literal["linear", "cubic", "exponential"]
RAMPS: tuple[Ramp, ...] = ("linear", "cubic", "exponential")


@dataclass(frozen=True)
class Gradual:
    """Raises the pruning ratio from 0 to its final value f over t = 1 .. n stages.

    - linear: ``f t / n``
    - cubic: ``f (1 - (1 - t / n)^3)``, Zhu and Gupta (arXiv 1710.01878), equation 1, with
      s_i = 0: much while the network has much to spare, little at the end
    - exponential: ``1 - (1 - f)^(t / n)``: every stage removes the same fraction of what is left,
      as lottery tickets are drawn (arXiv 1803.03635)

    Scores are computed anew at every stage, on the weights as trained so far; what is pruned stays
    so. Zhu and Gupta raise the ratio every few hundred steps under one learning-rate schedule;
    here every stage is a training run of its own, with the learning rate rewound (Renda et al.,
    arXiv 2003.02389).

    Attributes:
        ramp: Which curve.
        stages: How often the network is pruned, >= 1.

    Raises:
        InputError: A setting is off.
    """

    ramp: Ramp = "cubic"
    stages: int = 4

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.ramp not in RAMPS:
            raise InputError(f"schedule.ramp must be one of {', '.join(RAMPS)}, got {self.ramp!r}")
        require_count("schedule.stages", self.stages, 1)

    @property
    def name(self) -> str:
        """Name of the curve."""
        return self.ramp

    def ratio(self, stage: int, final: float) -> float:
        """The ratio of stage 1 .. stages."""
        if stage >= self.stages:
            return final
        part = stage / self.stages
        if self.ramp == "linear":
            return final * part
        if self.ramp == "cubic":
            return final * float(1 - (1 - part) ** 3)
        return float(1 - (1 - final) ** part)

    def check(self, grains: Sequence[str], epochs: int) -> None:
        """Needs an epoch for every stage."""
        require_epochs(self.name, self.stages, epochs)

    def run(self, session: Session, epochs: int) -> nn.Module:
        """Prunes and trains in turn."""
        for stage, share in enumerate(share_epochs(epochs, self.stages), 1):
            session.prune(lambda final, stage=stage: self.ratio(stage, final))  # type: ignore[misc]
            session.train(share, last=stage == self.stages)
        return session.finish()
