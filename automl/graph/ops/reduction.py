"""Reductions: over space they pass channels on; over channels only a sum stays right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from automl.graph.labels import always, varies
from automl.graph.ops.step import Labels, Step, handles

#: Reductions to which an absent channel contributes what a zero would.
_SUMS = ("sum", "linalg_vector_norm", "norm")


@handles("mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp")
def reduce(step: Step) -> Labels:
    """Drops or narrows the reduced dimensions."""
    labels = step.labels("self")
    dims = _dims(step.args.get("dim"), labels.dim())
    over = [dim for dim in dims if varies(labels, dim)]
    if over and step.name not in _SUMS:
        return step.give_up(f"a {step.name} runs over these channels")
    if over:
        labels = _sum_out(step, labels, over)
    keep = bool(step.args.get("keepdim", False))
    for dim in sorted(dims, reverse=True):
        labels = labels.narrow(dim, 0, 1) if keep else labels.select(dim, 0)
    return labels


def _sum_out(step: Step, labels: Tensor, over: list[int]) -> Tensor:
    others = [d for d in range(labels.dim()) if d not in over and varies(labels, d)]
    if others:
        step.space.freeze(labels, step.where, "a sum runs over one of two varying dimensions")
    return always(labels.shape)


def _dims(dim: Any, rank: int) -> list[int]:
    if dim is None or dim == []:
        return list(range(rank))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [d % rank for d in dims]
