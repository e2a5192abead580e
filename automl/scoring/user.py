"""Scores by a function of the user's."""

from __future__ import annotations

import contextlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from automl.hashing import digest
from automl.scoring.errors import ScoreError
from automl.training.state import evaluating
from automl.types import SIGNS, InputError


class UserScorer:
    """Scores with a function of the user's: ``evaluate(model) -> float | {name: float}``.

    The network is in eval mode during the call and gets its modes back.

    Attributes:
        fingerprint: Identifies the function in a journal; by default SHA-256 over its name and
            source. What the source does not show (data, constants elsewhere) it cannot see: pass
            your own where such things change between runs.
    """

    fingerprint: str

    def __init__(
        self,
        evaluate: Callable[[nn.Module], float | Mapping[str, float]],
        score_key: str | None = None,
        fingerprint: str | None = None,
    ) -> None:
        """Holds the function.

        Args:
            evaluate: Higher is better; a mapping holds the score under ``score_key``.
            score_key: Which entry of a mapping is the score; by default ``"score"``. Not one of
                which less is better, as ``"loss"`` or ``"kl"``.
            fingerprint: Replaces the one made from the function's source.

        Raises:
            InputError: Of the score that is named, less is better.
            TypeError: ``evaluate`` cannot be called.
        """
        if not callable(evaluate):
            raise TypeError(f"UserScorer.evaluate must be callable, got {evaluate!r}")
        if SIGNS.get(score_key or "", 1.0) < 0:
            raise InputError(
                f"score_key={score_key!r} would be maximised, and of a {score_key} less is better: "
                "let evaluate return its negative as 'score'"
            )
        self.evaluate = evaluate
        self.score_key = score_key
        self.fingerprint = fingerprint or digest("user-scorer-1", score_key, *_source(evaluate))

    def __call__(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Scores ``model``.

        Returns:
            (score, metrics): the metrics are the mapping's entries, or empty for a number.

        Raises:
            ScoreError: The score is NaN or infinite.
            InputError: ``evaluate`` returned something else, or no score.
        """
        with evaluating(model):
            result = self.evaluate(model)
        if not isinstance(result, Mapping):
            return self._finite(_number(result, "evaluate(model)"), "evaluate(model)", {}), {}
        metrics = {str(k): _number(v, f"evaluate(model)[{k!r}]") for k, v in result.items()}
        key = self.score_key or "score"
        if key not in metrics:
            raise InputError(
                f"evaluate(model) returned {', '.join(metrics) or 'nothing'}, but no {key!r}: "
                "return the number to maximise under that name, or name it by score_key"
            )
        return self._finite(metrics[key], f"evaluate(model)[{key!r}]", metrics), metrics

    def _finite(self, score: float, what: str, metrics: Mapping[str, float]) -> float:
        if not math.isfinite(score):
            raise ScoreError(f"{what} is {score}", metrics)
        return score


def _number(value: object, what: str) -> float:
    plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(plain, bool) or not isinstance(plain, numbers.Real):
        raise InputError(
            f"{what} must be a number (or evaluate(model) a mapping of names to numbers), "
            f"got {type(value).__name__}"
        )
    return float(plain)


def _source(function: Callable[..., Any]) -> list[str]:
    """What can be known of a function: its full name and, where there is one, its source."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    parts = [str(getattr(named, "__module__", "")), str(named.__qualname__)]
    with contextlib.suppress(OSError, TypeError):
        parts.append(inspect.getsource(named))
    return parts
