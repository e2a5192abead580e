"""Products of two activations: attention scores, attention outputs, and the fused operator."""

from __future__ import annotations

import math

from torch import Tensor
from torch.fx import Node

from automl.graph.export import shape_of
from automl.graph.labels import always, varies, varying_dims
from automl.graph.ops.linear import contract
from automl.graph.ops.pointwise import tie_operands
from automl.graph.ops.step import Labels, Layer, Length, Step, handles

_TOO_MANY = "a product of two activations that vary in too many dimensions"


@handles("matmul", "bmm", "mm")
def matmul(step: Step) -> Labels:
    """``a @ b``; heads are a batch dimension of both."""
    left, right = ("self", "mat2") if "mat2" in step.args else ("self", "other")
    name = step.weight(right)
    if name is not None and len(step.shape(right)) == 2:
        return contract(step, left, name, read_dim=0, bias=None)
    a, b = step.labels(left), step.labels(right)
    if a.dim() < 2 or b.dim() < 2:
        return _with_vector(step, a, b)
    out = product(step, a, b, "matmul", step.out_shape)
    return step.give_up(_TOO_MANY) if out is None else out


@handles("baddbmm")
def baddbmm(step: Step) -> Labels:
    """``input + a @ b``."""
    a, b = step.labels("batch1"), step.labels("batch2")
    out = product(step, a, b, "matmul", step.out_shape)
    if out is None:
        return step.give_up(_TOO_MANY)
    return tie_operands(step, [out, step.labels("self")])


@handles("scaled_dot_product_attention")
def attention(step: Step) -> Labels:
    """``softmax(q k^T / sqrt(d)) v``; the scale keeps the dense network's d."""
    query, key, value = (step.labels(name) for name in ("query", "key", "value"))
    if step.args.get("enable_gqa") and query.shape[-3] != key.shape[-3]:
        key, value = (_shared_heads(step, part, query.shape[-3]) for part in (key, value))
    scores_shape = (*step.out_shape[:-1], key.shape[-2])
    scores = product(step, query, key.transpose(-2, -1), "qk", scores_shape)
    if scores is not None and step.args.get("attn_mask") is not None:
        scores = tie_operands(step, [scores, step.labels("attn_mask")], scores_shape)
    if scores is None:
        scores = always(scores_shape)
        step.give_up(_TOO_MANY)
    out = product(step, scores, value, "av", step.out_shape)
    return step.give_up(_TOO_MANY) if out is None else out


def _shared_heads(step: Step, labels: Tensor, heads: int) -> Tensor:
    """Keys or values of grouped-query attention, whose heads each serve several queries' heads.

    Which queries a head serves follows from both counts, so heads stay; their places may go.
    """
    step.pin(labels, -3, "a head that several query heads share")
    return labels.repeat_interleave(heads // labels.shape[-3], -3)


@handles("einsum")
def einsum(step: Step) -> Labels:
    """Products of two operands, as a batched matrix product of rearranged ones."""
    equation, nodes = str(step.args["equation"]).replace(" ", ""), step.args["tensors"]
    terms, _, result = equation.partition("->")
    operands = terms.split(",")
    plain = "." not in equation and len(operands) == 2 and result
    if not plain or any(len(set(term)) < len(term) for term in operands):
        return _einsum_opaque(step, operands, nodes)
    one, other = (set(term) for term in operands)
    batch = [c for c in result if c in one & other]
    contracted = [c for c in operands[0] if c in other and c not in result]
    rows = [c for c in result if c in one - other]
    columns = [c for c in result if c in other - one]
    if len(batch + rows + contracted) < len(one) or len(batch + columns + contracted) < len(other):
        return _einsum_opaque(step, operands, nodes)
    a = _arranged(step.labels_of(nodes[0]), operands[0], batch, rows, contracted)
    b = _arranged(step.labels_of(nodes[1]), operands[1], batch, contracted, columns)
    shape = (*a.shape[:-1], b.shape[-1])
    out = product(step, a, b, "einsum", shape)
    if out is None:
        return step.give_up(_TOO_MANY)
    order = [*batch, *rows, *columns]
    sizes = [step.out_shape[result.index(c)] for c in order]
    return out.reshape(sizes).permute([order.index(c) for c in result])


def _arranged(
    labels: Tensor, term: str, batch: list[str], left: list[str], right: list[str]
) -> Tensor:
    """The operand as (batch..., left, right), each of the last two flattened to one dimension."""
    moved = labels.permute([term.index(c) for c in (*batch, *left, *right)])
    sizes = moved.shape[: len(batch)]
    width = math.prod(moved.shape[len(batch) + len(left) :])
    return moved.reshape(*sizes, -1, width)


def _einsum_opaque(step: Step, operands: list[str], nodes: list[Node]) -> Labels:
    reason = "read by an einsum that is not a product of two plain operands"
    if not any("." in term for term in operands):
        sizes = {
            letter: size
            for term, node in zip(operands, nodes, strict=True)
            for letter, size in zip(term, shape_of(node), strict=True)
        }
        step.count_opaque(f"{step.where}.einsum", "matmul", math.prod(sizes.values()), reason)
    return step.give_up(reason)


def _with_vector(step: Step, a: Tensor, b: Tensor) -> Labels:
    reason = "read by a matrix product with a vector"
    macs = max(a.numel(), b.numel())
    step.count_opaque(f"{step.where}.matmul", "matmul", macs, reason)
    return step.give_up(reason)


def product(step: Step, a: Tensor, b: Tensor, suffix: str, shape: tuple[int, ...]) -> Tensor | None:
    """Labels of ``a @ b`` for data that varies along at most one batch dimension (the heads).

    Args:
        step: The operator.
        a: Labels (..., M, K).
        b: Labels (..., K, N).
        suffix: Name of this product within its module.
        shape: Shape of the result.

    Returns:
        The labels, or None (only counted) if the operands vary along several batch dimensions.
    """
    heads_a, heads_b = ([d - x.dim() for d in varying_dims(x) if d < x.dim() - 2] for x in (a, b))
    heads = sorted(set(heads_a) | set(heads_b))
    if len(heads) > 1:
        macs = math.prod(shape) * a.shape[-1]
        step.count_opaque(f"{step.where}.{suffix}", "matmul", macs, _TOO_MANY)
        return None
    head = heads[0] if heads else -3
    rows_a, reads_a = _split(step, a, head, -1, -2)
    rows_b, reads_b = _split(step, b, head, -2, -1)
    step.space.tie(reads_a[0], reads_b[0], step.where)
    rows = _rows(step, rows_a, rows_b)
    left, right = reads_a[1], reads_b[1]
    if bool((left >= 0).any()) and bool((right >= 0).any()):  # of channels x channels heads remain
        for part in (left, right):
            step.space.freeze(part, step.where, "channels are multiplied with channels")
        left, right = always(left.shape), always(right.shape)
    out = _result(step, rows, head, left, right, shape)
    _record(step, suffix, out, reads_a[0], a.shape[-1])
    return out


def _split(
    step: Step, labels: Tensor, head: int, read: int, write: int
) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
    """(labels of heads or None, (labels of the contracted dim, labels of the other dim))."""
    place = read if varies(labels, read) else write
    rows, columns = None, always((labels.shape[place],))
    if labels.dim() >= -head and varies(labels, head):
        others = [d for d in varying_dims(labels) if d - labels.dim() not in (head, place)]
        labels = step.space.merge(labels, others, step.where)
        rows, columns = step.space.factor(labels, head, place)
        step.space.name_heads(rows, columns)
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
    labels, dim = step.labels("self"), int(step.value("dim")) % len(step.out_shape)
    if not varies(labels, dim):
        return labels
    if varying_dims(labels) == [dim]:
        step.space.freeze(labels, step.where, "a softmax runs over these channels")
        return labels
    return step.space.merge(labels, [dim], step.where)
