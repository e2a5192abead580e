"""Reductions: over space they pass channels on, over channels they take those that remain.

To a sum or a norm over channels an absent one contributes what a zero would. A mean or variance is
taken over the channels that remain, as in the normalisation layers that are built from them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from automl.graph.export import concrete
from automl.graph.labels import always, varies
from automl.graph.ops.pointwise import pointwise
from automl.graph.ops.step import Labels, Step, handles

_OVER_CHANNELS = ("sum", "linalg_vector_norm", "norm", "mean", "var", "std")


@handles("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp")
def reduce(step: Step) -> Labels:
    """Drops or narrows the reduced dimensions."""
    labels = step.labels("self")
    dims = _dims(step.args.get("dim"), labels.dim())
    over = [dim for dim in dims if varies(labels, dim)]
    if over and step.name not in _OVER_CHANNELS:
        return step.give_up(f"a {step.name} runs over these channels")
    if over:
        labels = _without(step, labels, over)
    keep = bool(step.args.get("keepdim", False))
    for dim in sorted(dims, reverse=True):
        labels = labels.narrow(dim, 0, 1) if keep else labels.select(dim, 0)
    return labels


@handles("max", "min")
def extremum(step: Step) -> Labels:
    """Of two tensors, or along a dimension with the indices where it was found."""
    if "other" in step.args:
        return pointwise(step)
    if "dim" not in step.args:
        return step.give_up(f"a {step.name} runs over these channels")
    return along(step)


@handles("argmax", "argmin", "cumsum", "cumprod", "sort", "argsort", "topk")
def along(step: Step) -> Labels:
    """Operators along a dimension that must hold no channels; others work channel by channel."""
    labels, dim = step.labels("self"), step.args.get("dim")
    if dim is None or varies(labels, int(dim)):
        return step.give_up(f"a {step.name} runs over these channels")
    value = step.node.meta["val"]
    shape = concrete(tuple((value if isinstance(value, Tensor) else value[0]).shape))
    thin = labels.narrow(int(dim), 0, 1)
    out = (thin if len(shape) == labels.dim() else thin.squeeze(int(dim))).expand(shape)
    return out if isinstance(value, Tensor) else [out for _ in value]


def _without(step: Step, labels: Tensor, over: list[int]) -> Tensor:
    """Labels of the one dimension that is not reduced, of cells the rows (heads)."""
    others = [d for d in range(labels.dim()) if d not in over and varies(labels, d)]
    if not others:
        return always(labels.shape)
    if len(others) == len(over) == 1:
        shape = [1] * labels.dim()
        shape[others[0]] = -1
        return step.columns(labels, others[0]).view(shape).expand(labels.shape)
    step.space.freeze(labels, step.where, f"a {step.name} runs over some of several dimensions")
    return always(labels.shape)


def _dims(dim: Any, rank: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(rank))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % rank for d in dims]
