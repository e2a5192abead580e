"""What goes wrong while a network is scored."""

from __future__ import annotations

from collections.abc import Mapping

from automl.types import FailedError


class ScoreError(FailedError):
    """A network could not be scored: its outputs, or the score, are not finite.

    Attributes:
        metrics: Every metric that was to be reported, NaN where it could not be computed.
    """

    def __init__(self, message: str, metrics: Mapping[str, float]) -> None:
        """Keeps ``metrics`` beside the message."""
        super().__init__(message, dict(metrics))
        self.metrics = dict(metrics)

    def __str__(self) -> str:
        """The message alone, one line."""
        return str(self.args[0])
