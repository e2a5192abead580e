"""Normalisation layers: statistics per channel pass, statistics over channels couple nothing more.

LayerNorm and GroupNorm take their statistics over the channels that remain, so pruning changes
them: the slim network is a well-defined network, but no longer equal to the zero-masked one.
"""

from __future__ import annotations

from automl.graph.export import module_path
from automl.graph.ops.step import Labels, Length, NamedSize, Step, handles


@handles("batch_norm", "instance_norm")
def batch_norm(step: Step) -> Labels:
    """Every channel for itself."""
    labels = step.labels("input")
    channels = step.columns(labels, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if step.args.get(name) is not None:
            step.space.tie(step.labels(name), channels, step.where)
    if step.name == "instance_norm":  # which has no argument or tensor that shows its size
        size = NamedSize(module_path(step.node), "num_features", Length(channels, 0))
        step.record.sizes.append(size)
    return labels


@handles("layer_norm", "rms_norm")
def layer_norm(step: Step) -> Labels:
    """Statistics over the last dimension, whose remaining channels are renormalised."""
    labels = step.labels("input")
    if len(step.args["normalized_shape"]) != 1:
        return step.give_up("a layer norm over several dimensions")
    columns = step.columns(labels, -1)
    for name in ("weight", "bias"):
        if step.args.get(name) is not None:
            step.space.tie(step.labels(name), columns, step.where)
    step.rewrite(("normalized_shape", 0), labels, labels.dim() - 1)
    return labels


@handles("group_norm")
def group_norm(step: Step) -> Labels:
    """The same places are cut from every group, so that groups stay of one size."""
    labels = step.labels("input")
    channels = step.columns(labels, 1)
    for name in ("weight", "bias"):
        if step.args.get(name) is not None:
            step.space.tie(step.labels(name), channels, step.where)
    grouped = channels.view(int(step.value("num_groups")), -1)
    step.space.tie(grouped, grouped[:1], step.where)
    return labels
