"""Rewards of a finished episode, as functions of its trial.

The *error* of a network is the dense network's error plus what the score has lost::

    error = base + (dense score - score),    base = 1 - top1 of the dense network

With ``score=top1`` this is 1 - top1, AMC's error. With ``loss`` and ``kl`` the loss of score is in
nats; one nat counts as an error of 1 (a divergence bounds the change of any class's probability:
Pinsker, |dp| <= sqrt(kl / 2)). Where the dense network has no top-1, base is 0.

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

_SCALE = {"latency_ms": 1e6, "energy_mj": 1e6}

Reward = Callable[[Trial], float]


def make_reward(name: str, problem: Problem) -> Reward:
    """The reward called ``name``.

    A failed trial is as bad as the worst error seen so far, and at least 1.

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
        """Scores nothing yet: the dense network is measured at the first call."""
        self._problem = problem
        self._worst = 1.0

    def __call__(self, trial: Trial) -> float:
        """The trial's error; of a failed one the worst so far."""
        if trial.measurement is None:
            return self._worst
        dense = self._problem.dense
        base = 1 - dense.metrics["top1"] if "top1" in dense.metrics else 0.0
        error = base + dense.score - trial.score
        self._worst = max(self._worst, error)
        return error
