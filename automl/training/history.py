"""What fine-tuning reports: a row per epoch, and the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from automl.types import FailedError

if TYPE_CHECKING:
    import pandas as pd


class FinetuneError(FailedError):
    """Training ran and failed: the loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One line of a fine-tuning run's history.

    Attributes:
        epoch: From 1; 0 is the network as it came, scored before any training.
        lr: Learning rate of the epoch's first step; 0 for epoch 0.
        train_loss: Mean over the examples, each as it was when trained on; None for epoch 0.
        score: Of the validation scorer, higher is better; None without one.
        metrics: Of the validation scorer; empty without one.
        seconds: Wall time of training and scoring.
    """

    epoch: int
    lr: float
    train_loss: float | None
    score: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What came of a fine-tuning run; the weights are in the network.

    Attributes:
        history: One row per epoch, after epoch 0 where there is a validation scorer.
        best_epoch: The epoch whose weights the network has now: the best by validation score
            (the first of equals), or the last one without a scorer.
        best_score: Its validation score; None without a scorer.
        stopped_early: Whether early stopping ended the run.
    """

    history: tuple[EpochRow, ...]
    best_epoch: int
    best_score: float | None
    stopped_early: bool

    def to_frame(self) -> pd.DataFrame:
        """The history as a table, one column per metric."""
        import pandas as pd

        rows = [dataclasses.asdict(row) for row in self.history]
        metrics = [row.pop("metrics") for row in rows]
        return pd.DataFrame([row | more for row, more in zip(rows, metrics, strict=True)])
