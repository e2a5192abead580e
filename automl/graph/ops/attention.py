"""Products of two activations: attention scores, attention outputs, and the fused operator."""

from __future__ import annotations

import math

from torch import Tensor

from automl.graph.labels import always, varies, varying_dims
from automl.graph.ops.linear import contract
from automl.graph.ops.step import Labels, Layer, Length, Step, handles


@handles("matmul", "bmm", "mm")
def matmul(step: Step) -> Labels:
    """``a @ b``; heads are a batch dimension of both."""
    left, right = ("self", "mat2") if "mat2" in step.args else ("self", "other")
    name = step.weight(right)
    if name is not None and len(step.shape(right)) == 2:
        return contract(step, left, name, read_dim=0, bias=None)
    a, b = step.labels(left), step.labels(right)
    if a.dim() < 2 or b.dim() < 2:
        return step.give_up("a matrix product with a vector")
    return product(step, a, b, "matmul")


@handles("scaled_dot_product_attention")
def attention(step: Step) -> Labels:
    """``softmax(q k^T / sqrt(d)) v``; the scale keeps the dense network's d."""
    if step.args.get("enable_gqa"):
        return step.give_up("grouped-query attention")
    query, key, value = (step.labels(name) for name in ("query", "key", "value"))
    scores_shape = (*query.shape[:-1], key.shape[-2])
    scores = product(step, query, key.transpose(-2, -1), "qk", shape=scores_shape)
    if not isinstance(scores, Tensor):
        return scores
    if step.args.get("attn_mask") is not None:
        step.space.tie(step.labels("attn_mask"), scores, step.where)
    return product(step, scores, value, "av")


def product(
    step: Step, a: Tensor, b: Tensor, suffix: str, shape: tuple[int, ...] | None = None
) -> Labels:
    """Labels of ``a @ b`` for data that varies along at most one batch dimension (the heads).

    Args:
        step: The operator.
        a: Labels (..., M, K).
        b: Labels (..., K, N).
        suffix: Name of this product within its module.
        shape: Shape of the result, the operator's own by default.
    """
    shape = step.out_shape if shape is None else shape
    heads_a, heads_b = ([d - x.dim() for d in varying_dims(x) if d < x.dim() - 2] for x in (a, b))
    heads = sorted(set(heads_a) | set(heads_b))
    if len(heads) > 1 or (varies(a, -2) and varies(b, -1)):
        return step.give_up("a product of two activations that vary in too many dimensions")
    head = heads[0] if heads else -3
    rows_a, reads_a = _split(step, a, head, -1, -2)
    rows_b, reads_b = _split(step, b, head, -2, -1)
    step.space.tie(reads_a[0], reads_b[0], step.where)
    rows = _rows(step, rows_a, rows_b)
    out = _result(step, rows, head, reads_a[1], reads_b[1], shape)
    _record(step, suffix, out, reads_a[0], a.shape[-1])
    return out


def _split(
    step: Step, labels: Tensor, head: int, read: int, write: int
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """(labels of heads or None, (labels of the contracted dim, labels of the other dim))."""
    place = read if varies(labels, read) else write
    rows, columns = None, always((labels.shape[place],))
    if labels.dim() >= -head and varies(labels, head):
        rows, columns = step.space.factor(labels, head, place)
    elif varies(labels, place):
        columns = step.space.channels(labels, place, step.where)
    elif bool((labels >= 0).any()):  # one label for everything: as good as frozen
        step.space.freeze(labels, step.where, "a single channel that attention reads")
    there = always((labels.shape[write if place == read else read],))
    return rows, (columns, there) if place == read else (there, columns)


def _rows(step: Step, one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is not None and other is not None:
        step.space.tie(one, other, step.where)
    return one if one is not None else other


def _result(
    step: Step,
    rows: Tensor | None,
    head: int,
    left: Tensor,
    right: Tensor,
    shape: tuple[int, ...],
) -> Tensor:
    columns, dim = (left, -2) if bool((left >= 0).any()) else (right, -1)
    labelled = bool((columns >= 0).any())
    view = [1] * len(shape)
    if rows is None or not bool((rows >= 0).any()):
        view[dim] = shape[dim]
        return columns.reshape(view).expand(shape) if labelled else always(shape)
    view[head] = shape[head]
    if not labelled:
        return rows.reshape(view).expand(shape)
    cells = step.space.product(rows[:, None], columns[None])
    view[dim] = shape[dim]
    return cells.reshape(view).expand(shape)


def _record(step: Step, suffix: str, out: Tensor, reads: Tensor, depth: int) -> None:
    factors = [Length(out, dim) for dim in varying_dims(out)]
    tokens = tuple(out.shape[-2:-1])
    step.record.layers.append(
        Layer(
            name=f"{step.where}.{suffix}",
            kind="matmul",
            node=step.node,
            weight=None,
            bias=None,
            reads=Length(reads, 0),
            writes=Length(out, out.dim() - 1),
            factors=(*factors, Length(reads, 0)),
            macs=math.prod(out.shape) * depth,
            geometry={
                "kernel_size": (),
                "stride": (),
                "groups": 1,
                "in_map": tokens,
                "out_map": tokens,
            },
        )
    )


@handles("softmax", "log_softmax", "_softmax")
def softmax(step: Step) -> Labels:
    """Normalises along a dimension, which must therefore stay whole."""
    labels = step.labels("self")
    if varies(labels, int(step.value("dim"))):
        step.space.freeze(labels, step.where, "a softmax runs over these channels")
    return labels
