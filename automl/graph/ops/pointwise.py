"""Element-wise operators: with one tensor labels pass, with several they are tied."""

from __future__ import annotations

import torch
from torch import Tensor

from automl.graph.labels import squeeze_free, varies, varying_dims
from automl.graph.ops.step import Labels, Step, handles

#: Composite operators that carry no pointwise tag.
_PASSING = (
    "relu6 selu celu dropout dropout_ feature_dropout alpha_dropout to contiguous clone detach "
    "alias type_as softplus mish softsign hardsigmoid hardswish hardtanh logsigmoid _to_copy "
    "lift_fresh_copy dropout2d dropout3d stochastic_depth float half identity"
).split()


def is_pointwise(target: object) -> bool:
    """Whether PyTorch itself tags the operator as element-wise."""
    return torch.Tag.pointwise in getattr(target, "tags", ())


@handles(*_PASSING)
def pointwise(step: Step) -> Labels:
    """Ties what meets; a size-1 dimension that is broadcast over channels ties nothing."""
    nodes = step.tensor_args()
    shape = step.out_shape
    padded = []
    for node in nodes:
        labels = step.labels_of(node)
        view = labels.reshape([1] * (len(shape) - labels.dim()) + list(labels.shape))
        padded.append((step.is_named_tensor(node), view))
    return _tie_all(step, padded, shape)


def _tie_all(step: Step, operands: list[tuple[bool, Tensor]], shape: tuple[int, ...]) -> Tensor:
    varying = {d for _, labels in operands for d in varying_dims(labels)}
    usable = [
        (named, labels)
        for named, labels in operands
        if not _is_broadcast_over(step, labels, varying, shape)
    ]
    if not usable:
        return torch.tensor(-1).expand(shape)
    # The simplest labelling goes on: activations before parameters, fewer varying dims first.
    labelled = [entry for entry in usable if bool((squeeze_free(entry[1]) >= 0).any())] or usable
    ranked = sorted(labelled, key=lambda e: (len(varying_dims(e[1])) or 9, e[0]))
    best = ranked[0][1].expand(shape)
    for _, labels in usable:
        if labels is not ranked[0][1]:
            step.space.tie(best, labels.expand(shape), step.where)
    return best


def _is_broadcast_over(
    step: Step, labels: Tensor, varying: set[int], shape: tuple[int, ...]
) -> bool:
    over = [d for d in varying if labels.shape[d] == 1 and shape[d] > 1]
    if not over:
        return False
    if bool((labels >= 0).any()):
        if varying_dims(labels):
            return _frozen(step, labels)
        step.space.freeze(labels, step.where, "one channel is broadcast over others")
    return True


def _frozen(step: Step, labels: Tensor) -> bool:
    step.space.freeze(labels, step.where, "channels are broadcast against other channels")
    return True


@handles("prelu", "_prelu_kernel")
def prelu(step: Step) -> Labels:
    """A slope per channel, or one for all."""
    labels = step.labels("self")
    slope = step.labels("weight")
    if slope.numel() > 1 and varies(slope.reshape(-1), 0):
        channels = step.columns(labels, 1)
        step.space.tie(slope.reshape(-1), channels, step.where)
    return labels


@handles("new_zeros", "new_ones", "new_full", "new_empty", "sym_size", "arange", "zeros", "ones",
         "full", "empty", "scalar_tensor", "eye", "linspace", "tril_indices", "triu_indices")
def create(step: Step) -> Labels:
    """New data of a fixed size: it reads no values, and where it meets channels it fixes them."""
    return torch.tensor(-1).expand(step.out_shape)
