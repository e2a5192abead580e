"""Importance criteria: how much is lost when a weight or a unit goes; one file each.

A criterion gives every weight a *saliency*, higher is more worth keeping. Saliencies add up:
kernels, vectors, blocks and rows are scored by the sum over their weights, and a unit (channel,
head) by the sum over everything that writes it, over all coupled layers. Criteria that only make
sense for whole units score those alone and refuse finer grains by name.

The registry is conf/criterion: one YAML per criterion with its class as ``_target_``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automl import registry
from automl.plan import IndexPlan
from automl.pruning.criteria.context import Context, Loss, Need, cross_entropy, in_words, require
from automl.types import InputError

__all__ = [
    "Context",
    "Criterion",
    "ElementCriterion",
    "Loss",
    "Need",
    "Scores",
    "UnitCriterion",
    "cross_entropy",
    "load",
    "names",
    "require",
    "unit_sums",
    "writing_dims",
    "writing_weights",
]

#: One array of shape (units,) per target, float64, higher is more important.
Scores = list[NDArray[np.float64]]


class Criterion(Protocol):
    """Scores weights, units or both; :class:`ElementCriterion` and :class:`UnitCriterion`."""

    @property
    def name(self) -> str:
        """Identifies the criterion and its settings; part of the journal's key."""

    @property
    def needs(self) -> frozenset[Need]:
        """What it needs beside the weights: ``data``, ``labels``, ``loss``, ``seed``, ..."""

    def __call__(self, context: Context) -> Scores:
        """Scores of the units of every target.

        Raises:
            InputError: The context lacks what the criterion needs, or a target has nothing that
                the criterion could look at.
        """

    def saliency(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Scores of single weights, which add up over any grain.

        Args:
            context: The network and its data.
            weights: Names of weight tensors, as in ``model.named_parameters()``.

        Returns:
            Name -> saliency of the tensor's shape, float32 or float64, detached.

        Raises:
            InputError: The context lacks what the criterion needs, the criterion scores whole
                units only, or it cannot score one of these weights.
        """


class ElementCriterion(ABC):
    """A criterion with a saliency per weight; units are scored by the sum."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Identifies the criterion and its settings."""

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing, unless a subclass says so."""
        return frozenset()

    @abstractmethod
    def score_weights(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Name -> saliency, for a context that has been checked; see :meth:`saliency`.

        It may score more weights than asked for, where one pass over the data serves them all.
        """

    def saliency(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Scores of single weights; see :meth:`Criterion.saliency`."""
        require(self, context)
        if not self.needs:
            return self._finite(self.score_weights(context, weights))
        known: dict[str, Tensor] = context.cache.setdefault(f"saliency of {self!r}", {})
        missing = [name for name in weights if name not in known]
        if missing:
            known.update(self._finite(self.score_weights(context, missing)))
        return {name: known[name] for name in weights}

    def _finite(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        for weight, values in found.items():
            if not bool(values.isfinite().all()):
                name = in_words(self.name)
                raise InputError(f"criterion {name} is not finite for {weight!r}{_CAUSES}")
        return found

    def __call__(self, context: Context) -> Scores:
        """Scores of units: sums over all weights that write them."""
        weights = list(dict.fromkeys(writing_weights(context.plan)))
        return unit_sums(context.plan, self.saliency(context, weights))


class UnitCriterion(ABC):
    """A criterion of whole units, such as the statistics of a channel's activations."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Identifies the criterion and its settings."""

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing, unless a subclass says so."""
        return frozenset()

    @abstractmethod
    def score_units(self, context: Context) -> Scores:
        """Scores of all units, for a context that has been checked."""

    def saliency(self, context: Context, weights: Sequence[str]) -> dict[str, Tensor]:
        """Refuses.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"criterion {in_words(self.name)} scores whole channels and heads, not single weights; "
            "with a finer granularity choose one that does, such as l1, wanda or taylor"
        )

    def __call__(self, context: Context) -> Scores:
        """Scores of the units of every target; see :meth:`Criterion.__call__`."""
        require(self, context)
        scores = self.score_units(context)
        for values, target in zip(scores, context.plan.targets, strict=True):
            if not np.isfinite(values).all():
                raise InputError(
                    f"criterion {in_words(self.name)} is not finite for {target.name!r}{_CAUSES}"
                )
        return scores


_CAUSES = "; look for NaN or huge values in the calibration data"


# ---- from weights to units


def writing_weights(plan: IndexPlan) -> list[str]:
    """Names of the weights that write prunable units, in network order.

    A weight that several layers share comes once for each of them.
    """
    return [name for name, _, _ in writing_dims(plan)]


def unit_sums(plan: IndexPlan, values: Mapping[str, Tensor]) -> Scores:
    """Adds up values of weights over the units that they write, over all coupled layers.

    Args:
        plan: The network's plan.
        values: Name of each of ``writing_weights(plan)`` -> values of the weight's shape.

    Returns:
        One array of shape (units,) per target, in float64.
    """
    totals = np.zeros(int(plan.offsets[-1]) + 1)
    for name, dim, axis_index in writing_dims(plan):
        tensor = values[name]
        others = [d for d in range(tensor.dim()) if d != dim]
        sums = tensor.sum(others, dtype=torch.float64) if others else tensor.double()
        axis = plan.axes[axis_index]
        for units in (axis.first, axis.second):
            np.add.at(totals, units, sums.cpu().numpy())  # -1 lands in the spare last entry
    return by_target(plan, totals)


def by_target(plan: IndexPlan, totals: NDArray[np.float64]) -> Scores:
    """Cuts values per global unit, shape (units, ...), into one array per target."""
    return [
        totals[start : start + target.units]
        for start, target in zip(plan.offsets, plan.targets, strict=False)
    ]


def writing_dims(plan: IndexPlan) -> Iterable[tuple[str, int, int]]:
    """Every weight that writes units, its dimension that is written, and that dimension's axis."""
    tensors = {tensor.name: tensor for tensor in plan.tensors}
    for layer in plan.layers_plan:
        if not layer.tensors or layer.out_axis is None:
            continue
        tensor = tensors.get(layer.tensors[0])
        if tensor is not None and layer.out_axis in tensor.axes:
            yield tensor.name, tensor.axes.index(layer.out_axis), layer.out_axis


# ---- the registry


def names() -> list[str]:
    """The criteria that conf/criterion knows, in alphabetical order."""
    return registry.names("criterion")


def load(name: str, **settings: Any) -> Criterion:
    """The criterion that conf/criterion calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such criterion, or it does not take these settings.
    """
    criterion: Criterion = registry.load("criterion", name, settings)
    return criterion
