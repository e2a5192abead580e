"""Indexing with tensors: replayed where the index is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automl.graph.labels import varies, varying_dims
from automl.graph.ops.step import Labels, Step, handles


@handles("index")
def index(step: Step) -> Labels:
    """``x[i, j]``: the indexed dimensions are addressed by number and must stay whole."""
    labels = step.labels("self")
    nodes = step.args["indices"]
    indexed = [dim for dim, node in enumerate(nodes) if node is not None]
    touched = [dim for dim in indexed if varies(labels, dim)]
    if not touched:
        return _positions_free(step, labels, nodes, indexed)
    values = [None if node is None else step.constant(node) for node in nodes]
    if any(v is None for v, node in zip(values, nodes, strict=True) if node is not None):
        return step.give_up("an index that depends on the data")
    for dim in touched:
        reason = "its positions are looked up by number"
        step.pin(labels, dim, reason)
    taken: Tensor = step.node.target(labels, values)  # type: ignore[operator]
    return taken


def _positions_free(step: Step, labels: Tensor, nodes: list[Any], indexed: list[int]) -> Labels:
    """Which position is taken does not matter: nothing varies along the indexed dimensions."""
    if not varying_dims(labels):
        there = bool((labels >= 0).any())
        if there:
            step.space.freeze(labels, step.where, "a single channel that is indexed")
        return torch.tensor(-1).expand(step.out_shape)
    zeros = [
        None if node is None else torch.zeros(_shape(node), dtype=torch.int64) for node in nodes
    ]
    taken: Tensor = step.node.target(labels, zeros)  # type: ignore[operator]
    return taken


def _shape(node: Any) -> tuple[int, ...]:
    from automl.graph.export import shape_of

    return shape_of(node)


@handles("index_select")
def index_select(step: Step) -> Labels:
    """Positions along one dimension."""
    labels, dim = step.labels("self"), int(step.value("dim"))
    positions = step.constant(step.args["index"])
    if varies(labels, dim):
        if positions is None:
            return step.give_up("an index that depends on the data")
        reason = "its positions are looked up by number"
        step.pin(labels, dim, reason)
        return labels.index_select(dim, positions)
    narrow = labels.narrow(dim, 0, 1)
    return narrow.expand(step.out_shape)
