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
from automl.racing import Bar, Examined, Floats
from automl.seeding import own_random_numbers


@runtime_checkable
class _Preparable(Protocol):
    def prepare(self) -> None:
        """Computes what does not depend on a policy."""


@runtime_checkable
class Examiner(Protocol):
    """A scorer that knows the loss of every example; ``automl.scoring.ClassifierScorer``."""

    def examine(self, model: Any, key: str, bar: Bar | None = None) -> Examined:
        """Scores a network, in the order that ``key`` draws, as long as it does not fall behind."""


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
        index: Of its trial.
        examined: Whether the losses of the examples are wanted.
        bar: What the network races against; None scores it on every example.
    """

    key: str
    policy: Policy
    index: int = 0
    examined: bool = False
    bar: Bar | None = None


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
        losses: Of every example, shape (examples,), where they were wanted.
        discarded: Whether it fell behind in a race; score and metrics are then estimates.
    """

    score: float | None
    metrics: Mapping[str, float]
    error: str | None
    detail: str
    seconds: float
    time: str
    losses: Floats | None = None
    discarded: bool = False


def run_trial(runner: Runner, job: Job) -> Outcome:
    """Prunes and scores a policy; what is raised becomes a failed outcome."""
    started = time.perf_counter()
    score, metrics, error, detail, found = None, {}, None, "", None
    try:
        with own_random_numbers(job.key):
            network = runner.network(job.policy)
            found = _examined(runner.scorer, network, job)
        score = _finite(found.score)
        metrics = {str(name): float(value) for name, value in found.metrics.items()}
    except Exception as raised:
        error, detail, found = one_line(raised), traceback.format_exc(), None
    seconds = round(time.perf_counter() - started, 6)
    losses = None if found is None else found.losses
    discarded = found is not None and job.examined and losses is None
    return Outcome(score, metrics, error, detail, seconds, now(), losses, discarded)


def _examined(scorer: Any, network: Any, job: Job) -> Examined:
    if job.examined:
        examined: Examined = scorer.examine(network, job.key, job.bar)
        return examined
    score, metrics = scorer(network)
    return Examined(score, metrics, None)


def now() -> str:
    """The time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _finite(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number
