"""What the agent sees: the features of one decision, each in [0, 1].

AMC's state (section 3.2) is ``(t, n, c, h, w, stride, k, FLOPs[t], reduced, rest, a[t-1])``. All
eleven are here, with the kind of target and of layer, the size of the coupled group, the budget
itself, how much of what can still be saved must be saved, and where the wall stands. Scales are
fixed, not fitted to one network, so that an agent can be taken to another.

Costs are those of the problem's own cost models: a network's cost is the mean, over the resources
in the budget, of its share of the dense network's. Coupled layers therefore count where their
target is decided, and once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.fitting import Floats
from automl.problem import Problem
from automl.types import RESOURCES, Kept, LayerSpec, Target
from envs.actions import to_actions

#: Agents trained on other observations cannot be used.
OBSERVATION_VERSION = 1

#: Name -> meaning and scale; the order of the observation. Geometry is that of the first layer
#: that writes the target (0 where the plan does not say).
FEATURES: dict[str, str] = {
    "index": "t, position of the target / number of targets; 1 once all are decided",
    "out_channels": "n, log2(1 + channels written) / 13",
    "in_channels": "c, log2(1 + channels read) / 13",
    "height": "h, log2(1 + rows of the input map) / 9",
    "width": "w, log2(1 + columns of the input map) / 9",
    "stride": "stride / 4, at most 1",
    "kernel": "k, kernel size / 7, at most 1",
    "cost": "FLOPs[t]: share of the dense cost that pruning this target alone can save",
    "reduced": "share of the dense cost saved by the decisions so far, the others dense",
    "rest": "share of the dense cost that this and the later targets can still save",
    "last_action": "a[t-1] as executed; 1 before the first decision",
    "units": "log2(1 + units of the target) / 13",
    "layers": "log2(1 + layers that write or read the target) / 6",
    "is_head": "1 for attention heads",
    "is_head_dim": "1 for dimensions within heads",
    "is_linear": "1 where the first writer is linear",
    "is_depthwise": "1 where a writer of the target is depthwise",
    **{
        f"budget_{name}": f"limit on {name} / dense, at most 1; 1 for no limit"
        for name in RESOURCES
    },
    "duty": "of what can still be saved, the part that must be (largest over the resources)",
    "least": "lowest action that the wall allows",
    "most": "highest action that the wall allows",
}

_STATIC = (
    "out_channels in_channels height width stride kernel cost units layers is_head is_head_dim "
    "is_linear is_depthwise"
).split()
_COLUMN = {name: column for column, name in enumerate(FEATURES)}


@dataclass(frozen=True)
class Featurizer:
    """Computes observations of a problem; batched over episodes."""

    problem: Problem
    static: NDArray[np.float64]
    budget: Floats

    @classmethod
    def of(cls, problem: Problem) -> Featurizer:
        """Computes once what no decision changes."""
        layers = {spec.name: spec for spec in getattr(problem.plan, "layers", ())}
        static = np.stack([_static(target, layers) for target in problem.targets])
        dense, low = problem.space.high, problem.space.low
        alone = np.where(np.eye(len(low), dtype=bool), low, dense)
        static[:, _STATIC.index("cost")] = _share(problem, dense[None]) - _share(problem, alone)
        fraction = [
            min(
                problem.limits.get(name, np.inf) / max(problem.dense_costs.get(name, 1.0), 1e-12), 1
            )
            for name in RESOURCES
        ]
        return cls(problem, np.clip(static, 0, 1), np.array(fraction))

    def __call__(self, kept: Kept, target: int, least: Floats, most: Floats) -> NDArray[np.float32]:
        """Observations before the decision on ``target``.

        Args:
            kept: Decided counts of the targets before, shape (episodes, targets).
            target: Index of the next target; the number of targets once all are decided.
            least: Lowest action that the wall allows, shape (episodes,).
            most: Highest action that it allows, shape (episodes,).

        Returns:
            Shape (episodes, len(FEATURES)).
        """
        problem, count = self.problem, len(self.problem.targets)
        full, tight = kept.copy(), kept.copy()
        full[:, target:] = problem.space.high[target:]
        tight[:, target:] = problem.space.low[target:]
        rows = {
            name: problem.cost_of(name, np.concatenate([full, tight])) for name in problem.limits
        }
        shares = np.mean([c / problem.dense_costs[name] for name, c in rows.items()], axis=0)
        at_most, at_least = shares[: len(kept)], shares[len(kept) :]
        observation = np.zeros((len(kept), len(FEATURES)))
        observation[:, _COLUMN["index"]] = target / count
        if target < count:
            observation[:, [_COLUMN[name] for name in _STATIC]] = self.static[target]
        observation[:, _COLUMN["reduced"]] = 1 - at_most
        observation[:, _COLUMN["rest"]] = at_most - at_least
        last = to_actions(kept, problem.space)[:, target - 1] if target else 1.0
        observation[:, _COLUMN["last_action"]] = last
        start = _COLUMN[f"budget_{RESOURCES[0]}"]
        observation[:, start : start + len(RESOURCES)] = self.budget
        observation[:, _COLUMN["duty"]] = self._duty(rows, len(kept))
        observation[:, _COLUMN["least"]] = least
        observation[:, _COLUMN["most"]] = most
        return np.clip(observation, 0, 1).astype(np.float32)

    def _duty(self, rows: dict[Any, Floats], episodes: int) -> Floats:
        duty = np.zeros(episodes)
        for name, limit in self.problem.limits.items():
            full, tight = rows[name][:episodes], rows[name][episodes:]
            must, can = full - limit, full - tight
            part = np.where(can > 0, must / np.maximum(can, 1e-12), (must > 0).astype(float))
            duty = np.maximum(duty, part)
        return duty


def _share(problem: Problem, kept: Kept) -> Floats:
    """Mean share of the dense costs over the budget's resources; batched."""
    shares = [problem.cost_of(name, kept) / problem.dense_costs[name] for name in problem.limits]
    return np.asarray(np.mean(shares, axis=0))


def _static(target: Target, layers: dict[str, LayerSpec]) -> Floats:
    """The columns of ``_STATIC``; ``cost`` is left 0."""
    writers = [layers[name] for name in target.producers if name in layers]
    values = dict.fromkeys(_STATIC, 0.0)
    values["units"] = np.log2(1 + target.units) / 13
    values["layers"] = np.log2(1 + len(target.producers) + len(target.readers)) / 6
    values["is_head"] = target.kind == "head"
    values["is_head_dim"] = target.kind == "head_dim"
    if writers:
        layer = writers[0]
        values["out_channels"] = np.log2(1 + layer.out_channels) / 13
        values["in_channels"] = np.log2(1 + layer.in_channels) / 13
        # Tokens that lie in the batch, as attention has them, count as rows too.
        rows = layer.positions / layer.in_width if layer.kind == "linear" else layer.in_height
        values["height"] = np.log2(1 + rows) / 9
        values["width"] = np.log2(1 + layer.in_width) / 9
        values["stride"] = max(layer.stride, default=1) / 4
        values["kernel"] = max(layer.kernel_size, default=1) / 7
        values["is_linear"] = layer.kind == "linear"
        values["is_depthwise"] = any(1 < one.groups == one.in_channels for one in writers)
    return np.array([float(values[name]) for name in _STATIC])
