"""Element-wise operators: with one tensor labels pass, with several they are tied."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from automl.graph.labels import squeeze_free, varies, varying_dims
from automl.graph.ops.step import Labels, Step, handles

#: Composite operators that carry no pointwise tag.
_PASSING = (
    "relu6 selu celu dropout dropout_ feature_dropout alpha_dropout contiguous clone detach "
    "alias softplus mish softsign hardsigmoid hardswish hardtanh logsigmoid _to_copy "
    "lift_fresh_copy dropout2d dropout3d stochastic_depth float half identity zero_ fill_ copy_"
).split()


def is_pointwise(target: object) -> bool:
    """Whether PyTorch itself tags the operator as element-wise."""
    return torch.Tag.pointwise in getattr(target, "tags", ())


@handles(*_PASSING)
def pointwise(step: Step) -> Labels:
    """Ties what meets; a size-1 dimension that is broadcast over channels ties nothing."""
    nodes = step.tensor_args()
    named = [step.is_named_tensor(node) for node in nodes]
    return tie_operands(step, [step.labels_of(node) for node in nodes], named=named)


def tie_operands(
    step: Step,
    labels: Sequence[Tensor],
    shape: tuple[int, ...] | None = None,
    named: Sequence[bool] = (),
) -> Tensor:
    """Labels of what broadcasting operands meet in.

    Args:
        step: The operator.
        labels: Labels of the operands, in their shapes.
        shape: Shape of the result, the operator's own by default.
        named: Which operands are parameters; their labels are not passed on where others' can be.
    """
    shape = step.out_shape if shape is None else shape
    padded = [part.reshape([1] * (len(shape) - part.dim()) + list(part.shape)) for part in labels]
    return _tie_all(step, list(zip(named or [False] * len(padded), padded, strict=True)), shape)


def _tie_all(step: Step, operands: list[tuple[bool, Tensor]], shape: tuple[int, ...]) -> Tensor:
    varying = {d for _, labels in operands for d in varying_dims(labels)}
    usable, spread = [], []
    for named, labels in operands:
        over = [d for d in varying if labels.shape[d] == 1 and shape[d] > 1]
        if not over:
            usable.append((named, labels))
        elif bool((labels >= 0).any()):
            spread.append((labels, over))
    if not usable:
        for labels, _ in spread:
            step.space.freeze(labels, step.where, "channels are broadcast against other channels")
        return torch.tensor(-1).expand(shape)
    # What is always there goes on: it freezes the others. Else the simplest labelling: activations
    # before parameters, fewer varying dims first.
    there = [entry for entry in usable if not bool((squeeze_free(entry[1]) >= 0).any())]
    ranked = sorted(there or usable, key=lambda e: (len(varying_dims(e[1])) or 9, e[0]))
    best = ranked[0][1].expand(shape)
    for _, labels in usable:
        if labels is not ranked[0][1]:
            step.space.tie(best, labels.expand(shape), step.where)
    for labels, over in spread:
        _tie_spread(step, labels, over, best)
    return best


def _tie_spread(step: Step, labels: Tensor, over: list[int], onto: Tensor) -> None:
    """Ties an operand that is broadcast over channels to the dimension it does vary along."""
    own = varying_dims(labels)
    if len(own) == 1 and set(varying_dims(onto)) == {*own, *over} and len(over) == 1:
        vector = step.space.channels(labels, own[0], step.where)
        step.space.tie(vector, step.columns(onto, own[0]), step.where)
    else:
        reason = (
            "channels are broadcast against other channels"
            if own
            else ("one channel is broadcast over others")
        )
        step.space.freeze(labels, step.where, reason)


@handles("to", "type_as")
def cast(step: Step) -> Labels:
    """Takes no more than dtype and device of a second tensor."""
    return step.labels("self")


@handles("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def like(step: Step) -> Labels:
    """New data that is there for as many channels as ``self`` is."""
    return step.labels("self")


@handles("prelu", "_prelu_kernel")
def prelu(step: Step) -> Labels:
    """A slope per channel, or one for all."""
    labels = step.labels("self")
    slope = step.labels("weight")
    if slope.numel() > 1 and varies(slope.reshape(-1), 0):
        channels = step.columns(labels, 1)
        step.space.tie(slope.reshape(-1), channels, step.where)
    return labels


@handles(
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "sym_size",
    "arange",
    "zeros",
    "ones",
    "full",
    "empty",
    "scalar_tensor",
    "eye",
    "linspace",
    "tril_indices",
    "triu_indices",
)
def create(step: Step) -> Labels:
    """New data of a fixed size: it reads no values, and where it meets channels it fixes them."""
    return torch.tensor(-1).expand(step.out_shape)
