"""How a trial is run: a function of the policy and of what all trials share, wherever it runs."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

from automl.engines.errors import one_line
from automl.policy import Policy
from automl.seeding import own_random_numbers


@runtime_checkable
class _Preparable(Protocol):
    def prepare(self) -> None:
        """Computes what does not depend on a policy."""


@dataclass(frozen=True, eq=False)
class Runner:
    """What all trials of a problem share; equal where its parts are the same objects.

    Attributes:
        pruner: Makes slim networks.
        scorer: Scores them.
        fold: What is done to a slim network before it is scored and changes no output; None
            scores it as it is.
    """

    pruner: Any
    scorer: Any
    fold: Callable[[Any], Any] | None = None

    def __eq__(self, other: object) -> bool:
        """Whether two problems can share one copy in other processes."""
        return isinstance(other, Runner) and self._parts == other._parts

    def __hash__(self) -> int:
        """Equal for equal runners."""
        return hash(self._parts)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return (id(self.pruner), id(self.scorer), self.fold)

    def network(self, policy: Policy) -> Any:
        """The network of a policy, as it is scored."""
        network = self.pruner.prune(policy)
        return network if self.fold is None else self.fold(network)

    def prepare(self, dense: Policy) -> None:
        """Computes here, once, what no policy changes, so that all processes have the same.

        Args:
            dense: The policy that prunes nothing. On its network, a scorer measures what depends
                on the machine (batch size).
        """
        with suppress(Exception):  # raised again by the trials, which say so
            if isinstance(self.pruner, _Preparable):
                self.pruner.prepare()
            if hasattr(self.scorer, "prepare"):
                self.scorer.prepare(self.network(dense))


@dataclass(frozen=True, slots=True)
class Job:
    """One trial to run.

    Attributes:
        key: Seeds its random numbers.
        policy: What to try.
    """

    key: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it.

    Attributes:
        score: A finite number; None where the trial failed.
        metrics: What the scorer reported.
        error: Why it failed, one line.
        detail: The traceback.
        seconds: How long it took.
        time: When it was done, UTC, in ISO 8601.
    """

    score: float | None
    metrics: Mapping[str, float]
    error: str | None
    detail: str
    seconds: float
    time: str


def run_trial(runner: Runner, job: Job) -> Outcome:
    """Prunes and scores a policy; what is raised becomes a failed outcome."""
    started = time.perf_counter()
    score, metrics, error, detail = None, {}, None, ""
    try:
        with own_random_numbers(job.key):
            found, reported = runner.scorer(runner.network(job.policy))
        score, metrics = _finite(found), {str(name): float(v) for name, v in reported.items()}
    except Exception as raised:
        score, error, detail = None, one_line(raised), traceback.format_exc()
    seconds = round(time.perf_counter() - started, 6)
    return Outcome(score, metrics, error, detail, seconds, now())


def now() -> str:
    """The time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _finite(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number
