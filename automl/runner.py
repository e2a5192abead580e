"""How a trial is run: a function of the policy and of what all trials share, wherever it runs."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from automl.engines.errors import one_line
from automl.policy import Policy
from automl.racing import Bar, Examined, Floats
from automl.seeding import own_random_numbers
from automl.signals import behind


@runtime_checkable
class _Preparable(Protocol):
    def prepare(self) -> None:
        """Computes what does not depend on a policy."""


@runtime_checkable
class Examiner(Protocol):
    """A scorer that knows the loss of every example; ``automl.scoring.ClassifierScorer``."""

    def examine(self, model: Any, key: str, bar: Bar | None = None) -> Examined:
        """Scores a network, in the order that ``key`` draws, as long as it does not fall behind."""


class Continuing(Protocol):
    """Scores policies from where they differ from another; ``automl.pruning.continuation``."""

    def score(self, policy: Policy, near: Policy) -> tuple[float, Mapping[str, float]] | None:
        """Score and metrics; None where nothing is shared."""

    def forget(self) -> None:
        """Gives memory back."""


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

    @cached_property
    def continuation(self) -> Continuing | None:
        """What lets trials begin where another network was; None where there is no such thing."""
        make = getattr(self.pruner, "continuation", None)
        found: Continuing | None = None if make is None else make(self.scorer, self.fold)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what other networks have computed: every process has its own."""
        return {name: value for name, value in self.__dict__.items() if name != "continuation"}

    def scored(self, policy: Policy, near: Policy | None = None) -> tuple[Any, Mapping[str, Any]]:
        """Score and metrics of a policy.

        Args:
            policy: What to score.
            near: A policy that others share their beginning with; it changes no result.
        """
        if self.continuation is not None:
            if near is None:
                self.forget()
            else:
                found = self.continuation.score(policy, near)
                if found is not None:
                    return found
        score, metrics = self.scorer(self.network(policy))
        return score, metrics

    def forget(self) -> None:
        """Gives back the memory of what other networks have computed."""
        if self.continuation is not None:
            self.continuation.forget()

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
        near: A policy of whose network it may use what was computed before they differ; where
            losses are wanted, it uses nothing, but what there is is kept for others.
    """

    key: str
    policy: Policy
    index: int = 0
    examined: bool = False
    bar: Bar | None = None
    near: Policy | None = None


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
        raised: Of the dense network, in this process, the error itself; of others it would keep
            the network in memory.
    """

    score: float | None
    metrics: Mapping[str, float]
    error: str | None
    detail: str
    seconds: float
    time: str
    losses: Floats | None = None
    discarded: bool = False
    raised: BaseException | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> list[Any]:
        """Leaves out what was raised, which other processes may not know."""
        return [*(getattr(self, one.name) for one in fields(self)[:-1]), None]

    def __setstate__(self, state: list[Any]) -> None:
        """What :meth:`__getstate__` gave."""
        for one, value in zip(fields(self), state, strict=True):
            object.__setattr__(self, one.name, value)


def run_trial(runner: Runner, job: Job) -> Outcome:
    """Prunes and scores a policy; what is raised becomes a failed outcome."""
    started = time.perf_counter()
    score, metrics, error, detail, found, kept = None, {}, None, "", None, None
    try:
        with own_random_numbers(job.key):
            found = _examined(runner, job)
        score = _finite(found.score)
        metrics = {str(name): float(value) for name, value in found.metrics.items()}
    except Exception as raised:
        if (stop := behind(raised)) is not None:  # Ctrl-C, which somebody's code made an error of
            raise stop from None
        error, detail, found = one_line(raised), traceback.format_exc(), None
        kept = raised if job.index < 0 else None
    seconds = round(time.perf_counter() - started, 6)
    losses = None if found is None else found.losses
    discarded = found is not None and job.examined and losses is None
    return Outcome(score, metrics, error, detail, seconds, now(), losses, discarded, kept)


def _examined(runner: Runner, job: Job) -> Examined:
    if job.examined:
        if job.near is None:
            runner.forget()
        network = runner.network(job.policy)
        examined: Examined = runner.scorer.examine(network, job.key, job.bar)
        return examined
    score, metrics = runner.scored(job.policy, job.near)
    return Examined(score, metrics, None)


def now() -> str:
    """The time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _finite(score: Any) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise ValueError(f"the score is {number}")
    return number
