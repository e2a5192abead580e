"""Convolutions, transposed ones too: plain, grouped, depthwise, with channel multiplier."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from automl.graph.labels import always
from automl.graph.ops.step import Labels, Layer, Length, Step, handles


@handles("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(step: Step) -> Labels:
    """Ties input channels to the weight's input dimension; the output is the other's."""
    name = step.weight("weight")
    if name is None:
        return _computed(step)
    shape, groups = step.shape("weight"), int(step.value("groups"))
    transposed = step.name.startswith("conv_transpose")
    zero, one = (step.parameters.vector(name, shape, dim) for dim in (0, 1))
    if len(step.shape("input")) != len(shape):
        return step.give_up("a convolution without a batch dimension")
    data = step.only_channels(step.labels("input"), 1)
    if transposed:
        written = _transposed(step, data, zero, one, groups)
    else:
        written = _forward(step, data, zero, one, groups)
    if step.args.get("bias") is not None:
        step.space.tie(step.labels("bias"), written, step.where)
    _record(step, name, data, written, one if not transposed else zero)
    return step.output_like(written, 1)


def _forward(step: Step, data: Tensor, zero: Tensor, one: Tensor, groups: int) -> Tensor:
    space, where, channels = step.space, step.where, len(data)
    if groups == 1:
        space.tie(data, one, where)
        return zero
    if channels == groups:  # depthwise: each input channel owns its outputs
        step.rewrite(("groups",), data, 0)
        space.freeze(one, where, "single input channel of a depthwise filter")
        space.tie(data.view(groups, 1), zero.view(groups, -1), where)
        return zero
    # Whole rectangles: the same places are cut from every group, on both sides.
    space.tie(data.view(groups, -1), one.view(1, -1), where)
    outputs = zero.view(groups, -1)
    space.tie(outputs, outputs[:1], where)
    return zero


def _transposed(step: Step, data: Tensor, zero: Tensor, one: Tensor, groups: int) -> Tensor:
    space, where = step.space, step.where
    space.tie(data, zero, where)
    if groups == 1:
        return one
    if len(data) == groups:
        step.rewrite(("groups",), data, 0)
        written = zero.view(groups, 1).expand(groups, len(one)).reshape(-1)
        space.freeze(one, where, "outputs of a depthwise filter's channel")
        return written
    inputs = zero.view(groups, -1)
    space.tie(inputs, inputs[:1], where)
    return one.view(1, -1).expand(groups, len(one)).reshape(-1)


def _computed(step: Step) -> Labels:
    reason = "its weight is computed"
    writes = Length(always(step.out_shape[1:2]), 0)
    reads = Length(always(step.shape("input")[1:2]), 0)
    step.count_opaque(
        step.where, "conv", _macs(step), reason, reads=reads, writes=writes, **_geometry(step)
    )
    return step.give_up("read by a convolution whose weight is computed")


def _macs(step: Step) -> int:
    """Every weight is used once per position, of the input where the convolution is transposed."""
    shape = step.shape("input") if step.name.startswith("conv_transpose") else step.out_shape
    return shape[0] * math.prod(shape[2:]) * math.prod(step.shape("weight"))


def _geometry(step: Step) -> dict[str, Any]:
    return {
        "kernel_size": step.shape("weight")[2:],
        "stride": tuple(step.value("stride")),
        "groups": int(step.value("groups")),
        "in_map": step.shape("input")[2:],
        "out_map": step.out_shape[2:],
    }


def _record(step: Step, weight: str, data: Tensor, written: Tensor, contracted: Tensor) -> None:
    other = 1 if step.name.startswith("conv_transpose") else 0
    rows = step.parameters.vectors[weight][other]
    step.record.layers.append(
        Layer(
            name=step.layer_name(weight),
            kind="conv",
            node=step.node,
            weight=weight,
            bias=step.tensor_name("bias"),
            reads=Length(data, 0),
            writes=Length(written, 0),
            factors=(Length(rows, 0), Length(contracted, 0)),
            macs=_macs(step),
            geometry=_geometry(step),
        )
    )
