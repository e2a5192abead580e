"""Group lasso, over rows, columns, channels or groups of coupled channels, and growing L2.

Sources: group lasso is Yuan and Lin, "Model selection and estimation in regression with grouped
variables" (2006), equation 2.1, whose groups count by the square root of their size; on filters
and channels it is Wen et al., "Learning Structured Sparsity in Deep Neural Networks" (arXiv
1608.03665), equation 3. Its proximal step is block soft thresholding (Parikh and Boyd, "Proximal
Algorithms", 2014, section 6.5.1). Growing regularisation is Wang et al., "Neural Pruning via
Growing Regularization" (arXiv 2012.09243), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl.plan import IndexPlan
from automl.pruning.criteria import writing_dims
from automl.training.regularizers.checks import require_strength
from automl.training.regularizers.elements import weight_names
from automl.types import InputError

#: What weights are grouped by.
By = Literal["rows", "columns", "channels", "coupled"]
_BY = ("rows", "columns", "channels", "coupled")


@dataclass(frozen=True)
class GroupLasso:
    """``strength * sum over groups g of sqrt(size(g)) * ||w_g||``.

    Attributes:
        strength: Per step of gradient descent, > 0.
        by: ``rows``: what one output of a layer is made from; ``columns``: what is made from one
            of its inputs; ``channels``: what writes one prunable unit, in every layer on its own;
            ``coupled``: the same, over all coupled layers together. Channels of attention belong
            to two groups, their head and their place within heads.
        proximal: Shrink the groups' norms by ``lr * strength * sqrt(size)`` after every step
            instead, which makes whole groups exactly zero.

    Raises:
        ValueError: A field breaks its rule.
    """

    strength: float = 1e-4
    by: By = "coupled"
    proximal: bool = False

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_strength(self)
        if self.by not in _BY:
            raise ValueError(f"GroupLasso.by must be one of {', '.join(_BY)}, got {self.by!r}")

    @property
    def name(self) -> str:
        """``group_lasso`` and its settings."""
        return f"group_lasso({self.strength:g}, {self.by}, {self.proximal})"

    def bind(self, model: nn.Module, plan: IndexPlan) -> GroupPenalty:
        """On the network's groups.

        Raises:
            InputError: There is nothing to prune, for channels and coupled groups.
        """
        return GroupPenalty(
            self.name, groups_by(model, plan, self.by), self.strength, self.proximal
        )


@dataclass(frozen=True)
class Growing:
    """``lambda(n) / 2 * sum over groups of ||w_g|| ** 2``, lambda growing with the step n.

    ``lambda(n) = min(ceiling, growth * floor(n / every))`` on groups of coupled channels. With a
    ratio, on the units of every target that the L1 norm would remove (GReg-1): they fade while the
    rest learns to do without. Without one, on all units (GReg-2): those that the loss holds on to
    most shrink least, so that their norms, afterwards, tell curvature.

    Attributes:
        growth: What lambda grows by, > 0.
        every: Steps between.
        ceiling: Where lambda stops, > 0.
        ratio: Share of every target's units that is pushed, in (0, 1); None for all.

    Raises:
        ValueError: A field breaks its rule.
    """

    growth: float = 1e-4
    every: int = 10
    ceiling: float = 1.0
    ratio: float | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        require_strength(self, "growth")
        require_strength(self, "ceiling")
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ValueError(f"Growing.every must be a whole number >= 1, got {self.every!r}")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ValueError(f"Growing.ratio must be null or in (0, 1), got {self.ratio!r}")

    @property
    def name(self) -> str:
        """``growing`` and its settings."""
        return f"growing({self.growth:g}, {self.every}, {self.ceiling:g}, {self.ratio})"

    def bind(self, model: nn.Module, plan: IndexPlan) -> GrowingPenalty:
        """On the network's groups; which ones are pushed is settled now.

        Raises:
            InputError: There is nothing to prune.
        """
        groups = groups_by(model, plan, "coupled")
        pushed = torch.ones(len(groups.sizes))
        if self.ratio is not None:
            pushed = _least(groups.sums(model, torch.abs).detach().cpu(), plan, self.ratio)
        return GrowingPenalty(self, groups, pushed)


def _least(norms: Tensor, plan: IndexPlan, ratio: float) -> Tensor:
    """1 for the given share of every target's units with the least norms, else 0."""
    pushed = torch.zeros(len(norms))
    for start, target in zip(plan.offsets.tolist(), plan.targets, strict=False):
        mine = norms[start : start + target.units]
        pushed[start + mine.argsort(stable=True)[: round(ratio * target.units)]] = 1.0
    return pushed


# ---- groups


@dataclass(frozen=True, eq=False)
class Part:
    """A dimension of a weight whose positions belong to groups.

    Attributes:
        name: The weight.
        dim: The dimension.
        group: Group of every position, the number of groups for none; shape (positions,).
    """

    name: str
    dim: int
    group: Tensor

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Values of the groups, shape (groups + 1,), to the weight's dimensions."""
        shape = [1] * like.dim()
        shape[self.dim] = len(self.group)
        return values.to(like)[self.group.to(like.device)].view(shape)


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of weights.

    Attributes:
        parts: Which positions of which weights belong to which.
        sizes: Weights in every group, shape (groups,).
    """

    parts: Sequence[Part]
    sizes: Tensor

    @classmethod
    def of(cls, model: nn.Module, parts: Sequence[Part], count: int) -> Groups:
        """Counts the weights of ``count`` groups."""
        sizes = torch.zeros(count + 1)
        for part in parts:
            weight = model.get_parameter(part.name)
            each = weight.numel() // weight.shape[part.dim]
            sizes.index_add_(0, part.group, torch.full((len(part.group),), float(each)))
        return cls(parts, sizes[:-1])

    def sums(self, model: nn.Module, of_element: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum of a function of the weights of every group, differentiable; shape (groups,)."""
        total: Tensor | None = None
        for part in self.parts:
            values = of_element(model.get_parameter(part.name)).movedim(part.dim, 0)
            sums = values.flatten(1).sum(1)
            if total is None:
                total = sums.new_zeros(len(self.sizes) + 1)
            total = total.index_add(0, part.group.to(sums.device), sums)
        assert total is not None  # there is a part, or making the groups would have raised
        return total[:-1]


def groups_by(model: nn.Module, plan: IndexPlan, by: By) -> Groups:
    """The groups of a network.

    Raises:
        InputError: It has none.
    """
    if by in ("rows", "columns"):
        return _slices(model, outputs=by == "rows")
    if not plan.targets:
        raise InputError("nothing in this network can be pruned; `trace` says why")
    return _units(model, plan, apart=by == "channels")


def _slices(model: nn.Module, outputs: bool) -> Groups:
    """Every output's weights, or every input's."""
    inputs_first = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.modules.conv._ConvTransposeNd)
    }
    parts, count = [], 0
    for name in weight_names(model):
        weight = model.get_parameter(name)
        dim = int(outputs == (id(weight) in inputs_first))
        group = torch.arange(weight.shape[dim]) + count
        parts.append(Part(name, dim, group))
        count += weight.shape[dim]
    return Groups.of(model, parts, count)


def _units(model: nn.Module, plan: IndexPlan, apart: bool) -> Groups:
    units, count = int(plan.offsets[-1]), 0
    found: list[tuple[str, int, np.ndarray[tuple[int], np.dtype[np.int64]]]] = []
    for name, dim, axis_index in writing_dims(plan):
        axis = plan.axes[axis_index]
        for owner in (axis.first, axis.second):
            if (owner >= 0).any():
                found.append((name, dim, np.where(owner >= 0, owner + count, -1)))
        if apart:
            count += units
    total = count if apart else units
    parts = [
        Part(name, dim, torch.from_numpy(np.where(owner >= 0, owner, total)))
        for name, dim, owner in found
    ]
    return Groups.of(model, parts, total)


# ---- penalties


@dataclass(frozen=True, eq=False)
class GroupPenalty:
    """Group lasso of one network.

    Attributes:
        name: Of the regulariser.
        groups: Its groups.
        strength: See the regulariser.
        proximal: See the regulariser.
    """

    name: str
    groups: Groups
    strength: float
    proximal: bool

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """The sum of norms, unless steps are proximal."""
        if self.proximal:
            return None
        squares = self.groups.sums(model, torch.square)
        # The root's slope at zero is infinite; a group that is zero has nothing to lose.
        norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        return self.strength * (self.groups.sizes.to(norms).sqrt() * norms).sum()

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Block soft thresholding, if steps are proximal."""
        if not self.proximal:
            return
        with torch.no_grad():
            norms = self.groups.sums(model, torch.square).sqrt()
            by = lr * self.strength * self.groups.sizes.to(norms).sqrt()
            left = torch.where(norms > by, 1 - by / norms, torch.zeros_like(norms))
            left = torch.cat([left, left.new_ones(1)])  # what belongs to no group stays
            for part in self.groups.parts:
                weight = model.get_parameter(part.name)
                weight.mul_(part.spread(left, weight))


@dataclass(frozen=True, eq=False)
class GrowingPenalty:
    """Growing regularisation of one network.

    Attributes:
        settings: The regulariser.
        groups: Groups of coupled channels.
        pushed: 1 for the groups that are regularised, else 0; shape (groups,).
    """

    settings: Growing
    groups: Groups
    pushed: Tensor

    @property
    def name(self) -> str:
        """Of the regulariser."""
        return self.settings.name

    def weight(self, step: int) -> float:
        """The strength at a step."""
        return min(self.settings.ceiling, self.settings.growth * (step // self.settings.every))

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """Half the weighted squares."""
        weight = self.weight(step)
        if weight == 0:
            return None
        squares = self.groups.sums(model, torch.square)
        return weight / 2 * (self.pushed.to(squares) * squares).sum()

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Nothing."""
