"""A small network as pure arithmetic: exact costs, a pruner that cuts nothing, a smooth score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from automl.policy import Policy
from automl.problem import Problem
from automl.types import Kept, Resource, Target


def targets(*units: int, kind: str = "channel") -> tuple[Target, ...]:
    return tuple(Target(f"layer{i}", i, kind, n, (f"layer{i}",), ()) for i, n in enumerate(units))


@dataclass(frozen=True)
class Products:
    """Sum over layers of coefficient * channels read * channels written, as convolutions cost.

    Each layer is (coefficient, reads, writes); -1 reads or writes one fixed channel.
    """

    resource: Resource
    layers: tuple[tuple[float, int, int], ...]

    def __call__(self, kept: Kept) -> np.ndarray:
        one = np.ones((*np.shape(kept)[:-1], 1), np.int64)
        lengths = np.concatenate([kept, one], axis=-1).astype(np.float64)
        return sum(c * lengths[..., i] * lengths[..., o] for c, i, o in self.layers)


def chain(resource: Resource, coefficients: Sequence[float]) -> Products:
    """A plain chain of layers, from a fixed input over every target to a fixed output."""
    n = len(coefficients) - 1
    ends = [-1, *range(n), -1]
    return Products(resource, tuple(zip(coefficients, ends[:-1], ends[1:], strict=True)))


@dataclass(frozen=True)
class Plan:
    targets: tuple[Target, ...]


@dataclass
class Pruner:
    """Keeps the first units; the "network" is the policy itself."""

    targets: tuple[Target, ...]
    fingerprint: str = "toy pruner"
    model_hash: str = "toy weights"

    def policy(self, kept: Kept) -> Policy:
        indices = [range(count) for count in kept]
        return Policy.from_kept(self.targets, kept, indices=indices, model_hash=self.model_hash)

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> list[np.ndarray]:
        return [np.linspace(1.0, 0.1 * (target.index + 1), target.units) for target in self.targets]

    def prune(self, policy: Policy) -> Policy:
        return policy


@dataclass
class Scorer:
    """1 minus weighted squares of what is removed; ``faults`` maps a call's number to a result."""

    weights: np.ndarray
    fingerprint: str = "toy scorer"
    faults: Mapping[int, Any] = field(default_factory=dict)
    every: Callable[[int], Any] | None = None
    seen: list[Policy] = field(default_factory=list)

    def __call__(self, model: Policy) -> tuple[float, Mapping[str, float]]:
        call = len(self.seen)
        self.seen.append(model)
        fault = self.faults.get(call) if self.every is None else self.every(call)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            return fault, {}
        removed = np.array([decision.removed for decision in model.decisions])
        score = 1 - float(self.weights @ removed**2)
        return score, {"top1": score, "loss": -score}


def problem(
    units: Sequence[int] = (16, 16, 32, 64),
    budget: Mapping[str, Any] | None = None,
    *,
    scorer: Scorer | None = None,
    pruner: Mapping[str, str] | None = None,
    **settings: Any,
) -> Problem:
    """A chain with maps that shrink with depth, so early layers cost MACs, late ones params."""
    all_targets = targets(*units)
    n = len(units)
    areas = [1024.0 / 4 ** (3 * i // (n + 1)) for i in range(n + 1)]
    costs = {
        "macs": chain("macs", [9 * area for area in areas]),
        "params": chain("params", [9.0] * (n + 1)),
    }
    return Problem(
        Plan(all_targets),
        Pruner(all_targets, **(pruner or {})),
        Scorer(np.linspace(1, 2, n)) if scorer is None else scorer,
        {"macs": 0.5} if budget is None else budget,
        costs,
        **settings,
    )
