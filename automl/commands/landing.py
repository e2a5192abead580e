"""Brings what was found under a latency budget onto the budget, by timing it.

Predictions are corrected near the budget before a search (``latency_aim``), but on networks of
random directions. What a search finds lies in one direction, and may take some percent more or
less than networks of the same sum elsewhere. So the networks that a search ends with are timed
beside the dense one; where one misses the budget, the line from sums to latencies is laid through
it, and all of its targets grow or shrink towards the budget by that line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from automl.commands.latency import latency_limit
from automl.commands.settings import flag, number
from automl.cost.latency import LatencyCost
from automl.problem import Problem, Trial
from automl.runs import LANDING, RunFolder
from automl.types import InputError, Kept

if TYPE_CHECKING:
    from automl.commands.build import Bench
    from automl.executors.latency_table import NetworkTable

#: Times that a network is timed, at most: changed twice.
_ROUNDS = 3
#: Error of the budget, as a share of it, that is left alone.
_NEAR = 0.01

#: The problem of the last round, with latency by another line.
Remake = Callable[[LatencyCost], Problem]


@dataclass(frozen=True, slots=True)
class Landed:
    """A network on the budget.

    Attributes:
        trial: Its trial, scored as in the last round.
        measured_ms: Its latency beside the dense network, at the speed of the calibration.
        cost: Latency by a line through it; None where there is no such line.
    """

    trial: Trial
    measured_ms: float
    cost: LatencyCost | None


def lands(bench: Bench, problem: Problem) -> bool:
    """Whether networks are brought onto the budget: it is one of latency, and can be timed."""
    settings = {"land": False} | bench.config["latency"]  # runs from before have no such setting
    if not flag(settings, "latency.land") or "latency_ms" not in problem.limits:
        return False
    table = bench.latency_table
    return table.can_measure and table.calibration is not None


class Landing:
    """Lands the networks of one search.

    What was timed once is kept in the run folder, so that a run that was cut ends with the same
    networks.
    """

    def __init__(self, bench: Bench, folder: RunFolder) -> None:
        """Reads what was timed before.

        Args:
            bench: What the search worked with; its budget limits latency.
            folder: The run folder.
        """
        limit = latency_limit(bench.config["budget"])
        if limit is None:
            raise ValueError("Landing.bench must have a budget of latency, got none")
        self._table: NetworkTable = bench.latency_table
        self._seconds = number(bench.config["latency"], "latency.budget_s", 0)
        self._targets = bench.plan.targets
        # Of the dense network as it was measured, which a calibration's line may miss.
        self._limit_ms = limit.value * (self._table.dense_ms if limit.relative else 1.0)
        self._folder = folder
        self._times = _read(folder)

    def __call__(self, name: str, trial: Trial, remake: Remake) -> Landed:
        """The best network on the budget that timing leads to from a trial's.

        Args:
            name: What the network is called in messages.
            trial: Scored as in the last round; within the budget as predicted.
            remake: Makes the problem of the last round with another line.
        """
        tried = self._towards(trial, remake)
        most = (1 + _NEAR) * self._limit_ms
        within = [one for one in tried if one.measured_ms <= most]
        if within:
            found = max(within, key=lambda one: (one.trial.score, one.measured_ms))
        else:
            found = min(tried, key=lambda one: one.measured_ms)
        if found.trial is not trial:
            first = tried[0].measured_ms
            print(
                f"latency of {name}: timed, it takes {100 * first / self._limit_ms:.1f} % of the "
                f"budget; brought to {100 * found.measured_ms / self._limit_ms:.1f} %",
                file=sys.stderr,
            )
        return found

    def _towards(self, trial: Trial, remake: Remake) -> list[Landed]:
        """What was tried, the given network first."""
        tried: list[Landed] = []
        while True:
            kept = trial.policy.kept(self._targets)
            measured_ms = self._measured(trial.policy.key, kept)
            line = self._table.line_through(kept, measured_ms)
            tried.append(Landed(trial, measured_ms, line))
            near = abs(measured_ms / self._limit_ms - 1) <= _NEAR
            if near or line is None or len(tried) == _ROUNDS:
                return tried
            try:
                problem = remake(line)
            except InputError:  # by this line no network meets the budget: what is there counts
                return tried
            policy = problem.policy(problem.fit(kept / problem.space.units))
            if policy.key in {one.trial.policy.key for one in tried}:
                return tried
            trial = problem.evaluate(policy)
            if trial.status != "ok":
                return tried

    def _measured(self, key: str, kept: Kept) -> float:
        if key not in self._times:
            self._times[key] = self._table.beside_dense(kept, self._seconds)
            self._folder.write_json(LANDING, {"measured_ms": self._times})
        return self._times[key]


def _read(folder: RunFolder) -> dict[str, float]:
    """Policy key -> ms; nothing where the file cannot be read, so that all is timed again."""
    try:
        document: Any = json.loads(folder.file(LANDING).read_text(encoding="utf-8"))
        times = document["measured_ms"] if isinstance(document, Mapping) else {}
        found = {str(key): float(value) for key, value in times.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if 0 < value < float("inf")}
