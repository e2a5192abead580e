"""Greedy channel selection by the reconstruction error of the layers behind.

Sources: choosing channels by what the next layer loses is He et al., "Channel Pruning for
Accelerating Very Deep Neural Networks" (arXiv 1707.06168), section 3.1, which does it by LASSO,
and Luo et al., "ThiNet" (arXiv 1707.06342), section 3.2, which does it greedily without refitting.

Here it is greedy with refitting: starting from all channels, the one whose loss is least after the
layers' best refit goes next. Errors and refits are the closed forms of Optimal Brain Surgeon for
a block c of inputs, with ``H`` their covariance: removing c costs ``tr(W_c [H^-1]_cc^-1 W_c^T)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automl.plan_axes import Axis
from automl.pruning.criteria import Context, Need, Scores, UnitCriterion
from automl.pruning.criteria.activations import (
    LayerUse,
    as_matrices,
    input_grams,
    layer_uses,
)
from automl.pruning.criteria.checks import OnInputs, require_counts, require_positive
from automl.pruning.criteria.obs import damped, inverse
from automl.types import InputError


@dataclass(frozen=True)
class Regression(OnInputs, UnitCriterion):
    """``score(u)``: error of the layers that read u when u's turn to go has come.

    The error is the mean squared change of their outputs, after refitting, with u and all units
    that went before it removed, as a share of the outputs' power; so scores order a target's
    units, lie in about [0, 1] and can be compared between targets. Outputs may shift by a
    constant, which a bias or batch norm takes up. Needs inputs, no labels; costs a forward pass
    (several for large layers) and for every reading layer about the cube of its inputs.

    Attributes:
        images: Calibration inputs used.
        points: Output positions per input and layer, drawn at random.
        damping: Pull of the refit towards the old weights, as a fraction of the inputs' power.

    Raises:
        ValueError: A field breaks its rule.
    """

    title: ClassVar[str] = "regression"

    points: int = 16
    damping: float = 1e-2

    def __post_init__(self) -> None:
        """Checks the fields."""
        super().__post_init__()
        require_counts(self, "points")
        require_positive(self, "damping")

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs, and a seed for the positions."""
        return frozenset({"data", "seed"})

    def score_units(self, context: Context) -> Scores:
        """Scores of all units.

        Raises:
            InputError: No linear layer or convolution reads a target.
        """
        uses = {u.weight: u for u in layer_uses(context.model, context.plan) if _reads(u)}
        readings: list[list[_Reading]] = [[] for _ in context.plan.targets]
        for name, gram in input_grams(
            context, self.images, self.points, list(uses.values()), centred=True
        ):
            gram = damped(gram, self.damping)
            matrices = as_matrices(context.parameter(name).double(), uses[name])
            for target, found in _readings(context, uses[name], gram, matrices):
                readings[target].append(found)
        self._require_readers(context, readings)
        return [
            eliminate(target.units, found)
            for target, found in zip(context.plan.targets, readings, strict=True)
        ]

    def _require_readers(self, context: Context, readings: Sequence[Sequence[_Reading]]) -> None:
        unread = [t.name for t, r in zip(context.plan.targets, readings, strict=True) if not r]
        if unread:
            raise InputError(
                "criterion regression refits the linear layers and convolutions behind, and "
                f"{', '.join(unread[:3])} has none; exclude it, or choose a criterion such as l2"
            )


def _reads(use: LayerUse) -> bool:
    # A depthwise filter loses its output together with its input: nothing is left to refit.
    return use.layer.in_axis is not None and not use.layer.depthwise


@dataclass(frozen=True, eq=False)
class _Reading:
    """One matrix that reads a target's units.

    Attributes:
        weight: Shape (outputs, features), float64.
        gram: Damped covariance of the features, shape (features, features).
        places: The features of every unit, shape (units, features of a unit).
    """

    weight: Tensor
    gram: Tensor
    places: Tensor


def _readings(
    context: Context, use: LayerUse, gram: Tensor, matrices: Tensor
) -> list[tuple[int, _Reading]]:
    """The matrices of one layer, each with the index of the target that it reads."""
    plan = context.plan
    assert use.layer.in_axis is not None
    axis = plan.axes[use.layer.in_axis]
    found = []
    for target in sorted(plan.counts[use.layer.in_axis].targets):
        owners = _owners(axis, int(plan.offsets[target]), int(plan.offsets[target + 1]))
        taps = gram.shape[1] * use.groups // len(owners)
        by_group = np.repeat(owners, taps).reshape(use.groups, -1)
        for group in range(use.groups):
            places = _places(by_group[group], plan.targets[target].units)
            if places is not None:
                found.append(
                    (target, _Reading(matrices[group], gram[group], places.to(gram.device)))
                )
    return found


def _owners(axis: Axis, start: int, stop: int) -> NDArray[np.int64]:
    """Unit within the target of every position of an axis, -1 for none; shape (positions,)."""
    owners = np.full(len(axis), -1, np.int64)
    for units in (axis.first, axis.second):
        mine = (units >= start) & (units < stop)
        owners[mine] = units[mine] - start
    return owners


def _places(owners: NDArray[np.int64], units: int) -> Tensor | None:
    """Features of every unit, shape (units, features of a unit); None where it has none here."""
    order = np.argsort(owners, kind="stable")
    mine = order[np.searchsorted(owners[order], 0) :]
    return torch.from_numpy(mine.reshape(units, -1)) if len(mine) else None


def eliminate(units: int, readings: Sequence[_Reading]) -> NDArray[np.float64]:
    """Removes one unit after the other, always the one that costs least.

    Returns:
        Error, as a share of the outputs' power, at which each unit went; shape (units,).
    """
    work = [_Elimination(reading) for reading in readings]
    power = sum(one.power for one in work)
    alive = np.ones(units, np.bool_)
    scores, error = np.zeros(units), 0.0
    for _ in range(units):
        costs = np.where(alive, sum(one.costs(alive) for one in work), np.inf)
        unit = int(np.argmin(costs))
        error += max(float(costs[unit]), 0.0)  # rounding may leave a little less than nothing
        scores[unit] = error / power if power > 0 else 0.0
        alive[unit] = False
        for one in work:
            one.remove(unit)
    return scores


class _Elimination:
    """One matrix as its inputs are taken away; the weights are refitted after every one."""

    def __init__(self, reading: _Reading) -> None:
        self._weight = reading.weight.clone()
        self._inverse = inverse(reading.gram[None])[0]
        self._places = reading.places
        self.power = float(((reading.weight @ reading.gram) * reading.weight).sum())

    def costs(self, alive: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Error of removing each unit next, 0 for those that are gone; shape (units,)."""
        which = torch.from_numpy(np.flatnonzero(alive)).to(self._places.device)
        at = self._places[which]
        blocks = self._inverse[at[:, :, None], at[:, None, :]]  # (alive, features, features)
        weights = self._weight[:, at].permute(1, 2, 0)  # (alive, features, outputs)
        solved = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), weights, upper=False)
        costs = np.zeros(len(alive))
        costs[alive] = solved.square().sum((1, 2)).cpu().numpy()
        return costs

    def remove(self, unit: int) -> None:
        """Takes a unit away and refits the rest."""
        at = self._places[unit]
        column = self._inverse[:, at]
        block = column[at]
        coupling = torch.linalg.solve(block, column.T)  # (features of the unit, features)
        self._weight -= self._weight[:, at] @ coupling
        self._inverse -= column @ coupling
