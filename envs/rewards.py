"""Rewards of a finished episode, as functions of its trial.

The *error* of a network is 1 - top1 where trials are scored by top1, as in AMC. Where they are
scored by minus the loss or minus the divergence to the dense network (``loss``, ``kl``), it is that
loss or divergence in nats: 0 is a perfect network, or one that answers as the dense one does, and 1
nat of divergence may move the probability of a class by up to .71 (Pinsker: sqrt(kl / 2)). For a
score of the user's own, such as minus a loss that goes below 0, it is 1 - score where the dense
network scores 1 or less. Beyond that (per cent, decibels) nobody knows what the best score is: it
is taken to be a tenth above the dense network's, so that errors stay positive and say something
about networks as good as that. Should a trial score more still, the best is a tenth above it from
then on; rewards given before stand.

``error``      R_err    = -error                     (AMC, equation 3: compression by the wall)
``macs``       R_FLOPs  = -error * log(MACs)         (equation 4)
``params``     R_Param  = -error * log(parameters)   (the same for model size)
``latency_ms`` -error * log(latency in nanoseconds), ``energy_mj`` in nanojoules,
``size_bytes`` in bytes: units in which any network's logarithm is positive.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from automl.hints import did_you_mean
from automl.problem import Problem, Trial
from automl.types import RESOURCES, InputError

REWARDS: tuple[str, ...] = ("error", *RESOURCES)

#: How far above the best network known, as a part of its score, scores beyond 1 are thought to end.
_HEADROOM = 0.1

#: So far a loss may be below 0 by rounding.
_ROUNDED = 1e-9

_SCALE = {"latency_ms": 1e6, "energy_mj": 1e6}

Reward = Callable[[Trial], float]


def make_reward(name: str, problem: Problem) -> Reward:
    """The reward called ``name``.

    A failed trial is as bad as the worst error seen so far, and at least 1.

    Scores but top1 are compared with the dense network's, which is scored for it unless it was
    already.

    Raises:
        InputError: There is none of that name, or the problem has no cost model for it.
    """
    if name not in REWARDS:
        raise InputError(f"no reward is called {name!r}; {did_you_mean(name, REWARDS)}")
    if name != "error" and name not in problem.dense_costs:
        known = ", ".join(["error", *problem.dense_costs])
        raise InputError(f"reward {name!r} needs a cost model for it; here there are {known}")
    error = ErrorOf(problem)

    def reward(trial: Trial) -> float:
        if name == "error":
            return -error(trial)
        cost = problem.cost(trial.policy)[name] * _SCALE.get(name, 1.0)
        return -error(trial) * math.log(max(cost, 1.0))

    return reward


class ErrorOf:
    """The error of trials; see the module's docstring."""

    def __init__(self, problem: Problem) -> None:
        """Nothing failed yet, and the best score is not known."""
        self._problem = problem
        self._worst = 1.0
        self._limit: float | None = None
        self._goes_below: bool | None = None

    def __call__(self, trial: Trial) -> float:
        """The trial's error; of a failed one the worst so far.

        Raises:
            InputError: The dense network has to be scored for it, and cannot be.
        """
        found = trial.measurement
        if found is None:
            return self._worst
        losses = [found.metrics[name] for name in ("loss", "kl") if name in found.metrics]
        by_top1 = found.metrics.get("top1") == found.score
        if not by_top1 and -found.score in losses and not self._passes_zero(found.score):
            error = -found.score
        elif by_top1 and losses and found.score <= 1 and self._limit is None:
            error = 1 - found.score  # as ``automl.scoring`` has it
        else:
            error = self._best(found.score) - found.score
        self._worst = max(self._worst, error)
        return error

    def _passes_zero(self, score: float) -> bool:
        """Whether what is called a loss went below 0, of the dense network or of a trial so far."""
        if self._goes_below is None:
            self._goes_below = self._problem.dense.score > _ROUNDED
        self._goes_below = self._goes_below or score > _ROUNDED
        return self._goes_below

    def _best(self, score: float) -> float:
        """The score that no network exceeds, as far as is known."""
        if self._limit is None:
            self._limit = _limit(self._problem.dense.score)
        if score > self._limit:
            self._limit = _limit(score)
        return self._limit


def _limit(score: float) -> float:
    return 1.0 if score <= 1 else (1 + _HEADROOM) * score
