"""Linear layers, products with a parameter, and embeddings."""

from __future__ import annotations

import math

from torch import Tensor

from automl.graph.labels import always, varies, varying_dims
from automl.graph.ops.step import Labels, Layer, Length, Step, handles


@handles("linear")
def linear(step: Step) -> Labels:
    """``y = x W^T``: reads the last dimension, writes a new one."""
    name = step.weight("weight")
    if name is None or len(step.shape("weight")) != 2:
        _count_computed(step, "input", "weight")
        return step.give_up("read by a linear layer whose weight is computed")
    return contract(step, "input", name, read_dim=1)


def _count_computed(step: Step, data: str, weight: str) -> None:
    read = step.shape(data)[-1]
    size = math.prod(step.shape(data)) * math.prod(step.shape(weight)) // max(read, 1)
    reason = "its weight is computed"
    reads = Length(always((read,)), 0)
    step.count_opaque(step.where, "linear", size, reason, reads=reads)


@handles("addmm")
def addmm(step: Step) -> Labels:
    """``b + x W`` with a parameter W of shape (in, out)."""
    name = step.weight("mat2")
    if name is None:
        _count_computed(step, "mat1", "mat2")
        return step.give_up("read by an addmm of two activations")
    return contract(step, "mat1", name, read_dim=0, bias="self")


def contract(
    step: Step, data: str, weight: str, read_dim: int, bias: str | None = "bias"
) -> Labels:
    """Contracts the last dimension of ``data`` with one dimension of a matrix parameter.

    Rows that vary along another dimension (token mixing: channels stay while tokens are mixed)
    live on in the output as cells of row and output feature.
    """
    node = step.args["weight" if read_dim == 1 else "mat2" if "mat2" in step.args else "other"]
    shape = tuple(node.meta["val"].shape)
    reads = step.parameters.vector(weight, shape, read_dim)
    writes = step.parameters.vector(weight, shape, 1 - read_dim)
    labels = step.labels(data)
    others = [dim for dim in varying_dims(labels) if dim != labels.dim() - 1]
    if len(others) > 1:  # nobody prunes rows of several dimensions: they stay
        others = []
    if others and varies(labels, labels.dim() - 1):
        rows, columns = step.space.factor(labels, others[0], -1)
    elif others:
        rows, columns = (
            step.space.channels(labels, others[0], step.where),
            labels.new_full((labels.shape[-1],), -1),
        )
    else:
        rows, columns = None, step.space.channels(labels, -1, step.where)
    step.space.tie(columns, reads, step.where)
    if bias is not None and step.args.get(bias) is not None:
        step.space.tie(step.labels(bias), writes, step.where)
    out = _output(step, rows, others[0] if others else 0, writes)
    _record(step, weight, reads, columns, writes, out, bias)
    return out


def _output(step: Step, rows: Tensor | None, row_dim: int, writes: Tensor) -> Tensor:
    if rows is None or not bool((rows >= 0).any()):
        return step.output_like(writes, -1)
    cells = step.space.product(rows[:, None], writes[None])
    shape = [1] * len(step.out_shape)
    shape[row_dim], shape[-1] = len(rows), len(writes)
    return cells.view(shape).expand(step.out_shape)


def _record(
    step: Step,
    weight: str,
    reads: Tensor,
    columns: Tensor,
    writes: Tensor,
    out: Tensor,
    bias: str | None,
) -> None:
    factors = [Length(out, dim) for dim in varying_dims(out)]
    tokens = out.shape[1:-1]
    step.record.layers.append(
        Layer(
            name=step.layer_name(weight),
            kind="linear",
            node=step.node,
            weight=weight,
            bias=None if bias is None else step.tensor_name(bias),
            reads=Length(columns, 0),
            writes=Length(writes, 0),
            factors=(*factors, Length(reads, 0)),
            macs=math.prod(out.shape) * len(reads),
            geometry={
                "kernel_size": (),
                "stride": (),
                "groups": 1,
                "in_map": tokens,
                "out_map": tokens,
            },
        )
    )


@handles("embedding")
def embedding(step: Step) -> Labels:
    """Looks up rows: the output carries the labels of the table's columns."""
    name = step.weight("weight")
    if name is None:
        return step.give_up("an embedding whose table is computed")
    rows, columns = (step.parameters.vector(name, step.shape("weight"), dim) for dim in (0, 1))
    step.pin(rows, 0, "rows are looked up by number")  # a linear layer may share the table
    out = step.output_like(columns, -1)
    tokens = out.shape[1:-1]
    step.record.layers.append(
        Layer(
            name=step.layer_name(name),
            kind="embedding",
            node=step.node,
            weight=name,
            bias=None,
            reads=Length(columns.new_full((step.shape("weight")[0],), -1), 0),
            writes=Length(columns, 0),
            factors=(),
            macs=0,
            geometry={
                "kernel_size": (),
                "stride": (),
                "groups": 1,
                "in_map": tokens,
                "out_map": tokens,
            },
        )
    )
    return out
