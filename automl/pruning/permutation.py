"""Reorders channels so that N:M patterns lose less, and leaves what the network computes as it is.

An N:M pattern looks at neighbouring inputs, and which inputs are neighbours is an accident: the
units of a coupled group can be put in any order, if everything that makes or reads them follows.
A good order spreads the large weights over the groups of M (Pool and Yu, "Channel Permutations
for N:M Sparsity", NeurIPS 2021).

Found greedily: of all exchanges of two channels between two groups the best ones are made, no group
in two of them, until none gains. What a group of M keeps after an exchange follows from its other
M - 1 channels, so that the gains of all exchanges are one sum over rows for every pair of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from automl.plan import IndexPlan
from automl.plan_axes import Axis, IntArray
from automl.pruning.granularities.layout import as_rows
from automl.pruning.granularities.nm import NM
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masked_weight import MaskedWeight
from automl.training.state import evaluating

#: Rows of weights that a group's order is found on; more are thinned out evenly.
_MOST_ROWS = 8192
#: Elements of an intermediate result.
_MOST_ELEMENTS = 1 << 25
#: Exchanges must gain more than this fraction of all magnitude.
_LEAST_GAIN = 1e-6
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Reordered:
    """What became of one coupled group.

    Attributes:
        target: Its name.
        before: Magnitude that N:M keeps of the layers that read it, as a fraction of all, with the
            channels as they were.
        after: The same in the new order.
    """

    target: str
    before: float
    after: float


@torch.no_grad()
def permute(model: nn.Module, plan: MaskedPlan, inputs: Sequence[Tensor]) -> list[Reordered]:
    """Reorders the channels of all groups that N:M layers read, in place.

    Every layer is taken to keep N = M // 2. A group whose channels are not interchangeable (the
    network's outputs on ``inputs`` would change beyond rounding) stays as it is.

    Args:
        model: The dense network that ``plan`` is of, in float32.
        plan: Its plan, with the layers that N:M prunes.
        inputs: Example inputs, on the model's device.

    Returns:
        One entry per group that was reordered.
    """
    done = []
    with evaluating(model):
        expected = _outputs(model, inputs)
        for index, target in enumerate(plan.base.targets):
            rows = list(_rows(model, plan, index))
            if not rows:
                continue
            m = rows[0][0]
            matrix = _thinned(torch.cat([matrix for _, matrix in rows]))
            order = best_order(matrix, m, m // 2)
            before, after = (
                _kept(matrix[:, columns], m, m // 2) / float(matrix.sum().clamp(min=1e-30))
                for columns in (torch.arange(len(order)), order)
            )
            if after <= before:
                continue
            _reorder(model, plan.base, index, order)
            if _close(expected, _outputs(model, inputs)):
                done.append(Reordered(target.name, before, after))
            else:
                _reorder(model, plan.base, index, order.argsort())
    return done


def best_order(magnitudes: Tensor, m: int, n: int) -> Tensor:
    """An order of columns of which N:M keeps more.

    Args:
        magnitudes: Not negative, shape (rows, columns).
        m: Columns of a group.
        n: How many of them stay in every row.

    Returns:
        Indices of columns, shape (columns,). Columns behind the last whole group stay there.
    """
    columns = magnitudes.shape[1]
    order = torch.arange(columns)
    whole = columns // m * m
    if whole < 2 * m or not 0 < n < m:
        return order
    work = magnitudes.t()[:whole].double().contiguous()  # (columns, rows)
    least = _LEAST_GAIN * float(work.sum())
    swapped = work.new_empty(whole, whole)
    stale = torch.arange(whole)
    while len(stale):
        swapped[stale] = _with_another(work, stale, m, n)
        own = swapped.diagonal()
        gains = swapped + swapped.t() - own[:, None] - own[None, :]
        group = torch.arange(whole) // m
        gains[group[:, None] == group[None, :]] = 0.0
        touched: set[int] = set()
        for a, b in _exchanges(gains, group, least):
            work[[a, b]], order[[a, b]] = work[[b, a]], order[[b, a]]
            swapped[:, [a, b]] = swapped[:, [b, a]]
            touched |= {a // m, b // m}
        stale = torch.tensor(
            [g * m + i for g in sorted(touched) for i in range(m)], dtype=torch.long
        )
    return order


def _with_another(work: Tensor, which: Tensor, m: int, n: int) -> Tensor:
    """What a column's group keeps if another column stands in its place.

    Args:
        work: Magnitudes, shape (columns, rows).
        which: Columns that are replaced, shape (some,).
        m: Columns of a group.
        n: How many of them stay.

    Returns:
        Shape (some, columns): sums over the rows.
    """
    members = work.view(-1, m, work.shape[1])
    rest = torch.stack([torch.tensor([j for j in range(m) if j != i]) for i in range(m)])
    others = members[which // m][torch.arange(len(which))[:, None], rest[which % m]]
    top = others.topk(n, dim=1).values  # (some, n, rows)
    threshold = top[:, -1]
    # Where the other column is larger than the N-th largest of the rest, it takes its place.
    gained = work.new_empty(len(which), len(work))
    step = max(1, _MOST_ELEMENTS // work.numel())
    for start in range(0, len(which), step):
        part = slice(start, start + step)
        gained[part] = (work[None] - threshold[part, None]).clamp_(min=0).sum(2)
    return top.sum((1, 2))[:, None] + gained


def _exchanges(gains: Tensor, group: Tensor, least: float) -> Iterator[tuple[int, int]]:
    """The best exchanges, no group in two of them."""
    upper = gains.triu()
    values, places = upper.flatten().topk(min(upper.numel(), 4 * len(group)))
    used: set[int] = set()
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if value <= least:
            return
        a, b = divmod(place, len(group))
        pair = {int(group[a]), int(group[b])}
        if not pair & used:
            used |= pair
            yield a, b


def _kept(matrix: Tensor, m: int, n: int) -> float:
    """Magnitude that N:M keeps of a matrix; a last group is filled up with zeros."""
    filled = nn.functional.pad(matrix, (0, -matrix.shape[1] % m))
    return float(filled.view(len(filled), -1, m).topk(n, dim=2).values.sum())


def _rows(model: nn.Module, plan: MaskedPlan, target: int) -> Iterator[tuple[int, Tensor]]:
    """M and the magnitudes, shape (rows, units), of all N:M weights that read a group."""
    first, last = plan.base.offsets[target : target + 2]
    for weight in plan.weights:
        if not isinstance(weight.granularity, NM) or weight.in_axis is None:
            continue
        units = plan.base.axes[weight.in_axis].first
        if len(units) == last - first and sorted(units) == list(range(first, last)):
            order = torch.from_numpy(units.argsort())
            yield weight.granularity.m, _magnitudes(model, weight)[:, order]


def _magnitudes(model: nn.Module, weight: MaskedWeight) -> Tensor:
    values = weight.canonical(model.get_parameter(weight.name)).abs().float().cpu()
    return as_rows(values).flatten(0, 1)


def _thinned(matrix: Tensor) -> Tensor:
    return matrix[:: -(-len(matrix) // _MOST_ROWS)]


def _reorder(model: nn.Module, plan: IndexPlan, target: int, order: Tensor) -> None:
    """Gives unit ``i`` of a target the values of its unit ``order[i]``, in all tensors."""
    first, last = (int(n) for n in plan.offsets[target : target + 2])
    units = torch.arange(int(plan.offsets[-1]))
    units[first:last] = first + order
    sources = [_source(axis, units.numpy(), first, last) for axis in plan.axes]
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for planned in plan.tensors:
        tensor = tensors.get(planned.name)
        for dim, number in enumerate(planned.axes):
            source = None if number is None else sources[number]
            if tensor is not None and source is not None:
                index = torch.from_numpy(source).to(tensor.device)
                tensor.copy_(tensor.index_select(dim, index))


def _source(axis: Axis, units: IntArray, first: int, last: int) -> IntArray | None:
    """For each position the one whose values it takes; None where nothing moves."""
    here = (axis.first >= first) & (axis.first < last)
    if not here.any():
        return None
    # The n-th position of a unit takes the values of the n-th position of its new unit.
    seen: dict[int, list[int]] = {}
    for place in here.nonzero()[0].tolist():
        seen.setdefault(int(axis.first[place]), []).append(place)
    source = torch.arange(len(axis)).numpy()
    for unit, places in seen.items():
        source[places] = seen[int(units[unit])]
    return source


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = model(*inputs)
    leaves = torch.utils._pytree.tree_leaves(found)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _close(expected: list[Tensor], found: list[Tensor]) -> bool:
    return all(
        float((a - b).abs().max()) <= _TOLERANCE * float(a.abs().max().clamp(min=1e-6))
        for a, b in zip(expected, found, strict=True)
        if a.numel()
    )
