"""Operators that only move data: they are replayed on the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from automl.graph.export import concrete
from automl.graph.labels import Split, compact, varies, varying_dims
from automl.graph.ops.pointwise import tie_operands
from automl.graph.ops.step import Labels, Step, handles


def _replay(step: Step, labels: Tensor) -> Any:
    arguments = {k: concrete(v) for k, v in step.args.items() if k != "self"}
    return step.node.target(labels, **arguments)  # type: ignore[operator]


@handles(
    "permute", "transpose", "t", "unsqueeze", "squeeze", "flatten", "movedim", "swapaxes",
    "repeat", "flip", "numpy_T", "mT", "mH", "T", "adjoint", "repeat_interleave", "ravel", "tile",
)  # fmt: skip
def move(step: Step) -> Labels:
    """No integer argument depends on how many channels there are."""
    labels: Tensor = _replay(step, step.labels("self"))
    return labels


@handles("view", "reshape", "_unsafe_view", "view_as", "reshape_as")
def view(step: Step) -> Labels:
    """Sizes of dimensions that hold channels follow them."""
    before = step.labels("self")
    after = compact(before.reshape(step.out_shape))
    _note_split(step, before, after)
    if "other" in step.args:
        step.space.tie(after, step.labels("other"), step.where)
    sizes = step.args.get("size", step.args.get("shape"))
    if isinstance(sizes, (list, tuple)):
        for dim, size in enumerate(sizes):
            if size != -1:
                step.rewrite(("size" if "size" in step.args else "shape", dim), after, dim)
    return after


@handles("unflatten")
def unflatten(step: Step) -> Labels:
    """Splits one dimension."""
    before = step.labels("self")
    after = compact(before.reshape(step.out_shape))
    _note_split(step, before, after)
    start = int(step.value("dim")) % before.dim()
    for place, size in enumerate(step.args["sizes"]):
        if size != -1:
            step.rewrite(("sizes", place), after, start + place)
    return after


def _note_split(step: Step, before: Tensor, after: Tensor) -> None:
    dims = varying_dims(after)
    if len(dims) > max(1, len(varying_dims(before))):
        step.space.splits.append(Split(after, tuple(dims)))


@handles("expand_as")
def expand_as(step: Step) -> Labels:
    """Meets the other operand, as an element-wise operator would."""
    return tie_operands(step, [step.labels("other"), step.labels("self")])


@handles("expand", "broadcast_to")
def expand(step: Step) -> Labels:
    """Sizes of dimensions that hold channels follow them."""
    labels = step.labels("self").expand(step.out_shape)
    sizes = step.args.get("size")
    if isinstance(sizes, (list, tuple)):
        for dim, size in enumerate(sizes):
            if size != -1:
                step.rewrite(("size", dim), labels, dim)
    return labels


@handles("select")
def select(step: Step) -> Labels:
    """Takes one position; a dimension addressed by number must stay whole."""
    labels, dim = step.labels("self"), int(step.value("dim"))
    step.pin(labels, dim, "a single position of it is selected")
    taken: Tensor = _replay(step, labels)
    return taken


@handles("unbind")
def unbind(step: Step) -> Labels:
    """Takes a dimension apart; it must stay whole."""
    labels = step.labels("self")
    step.pin(labels, int(step.value("dim")), "it is unbound")
    return list(_replay(step, labels))


@handles("roll")
def roll(step: Step) -> Labels:
    """Shifts; along channels the shift would change its meaning."""
    labels = step.labels("self")
    dims = step.value("dims") or list(range(labels.dim()))
    moved = [d for d in dims if varies(labels, d)]
    for dim in moved:
        step.pin(labels, dim, "it is rolled")
    rolled: Tensor = _replay(step, labels) if moved else labels
    return rolled


@handles("slice", "narrow")
def slice_(step: Step) -> Labels:
    """Start and end follow the channels before them."""
    labels, dim = step.labels("self"), int(step.value("dim")) % len(step.shape("self"))
    size = labels.shape[dim]
    taken: Tensor = _replay(step, labels)
    if not varies(labels, dim):
        return taken
    if step.name == "narrow" or step.value("step") != 1:
        step.pin(labels, dim, "it is sliced with a stride")
        return taken
    for name, otherwise in (("start", 0), ("end", size)):
        given = step.value(name)
        place = otherwise if given is None else _from_start(given, size)
        if place != otherwise:
            whole = labels if given < 0 else None
            step.rewrite((name,), labels.narrow(dim, 0, place), dim, whole)
    return taken


def _from_start(place: int, size: int) -> int:
    return max(0, place + size) if place < 0 else min(place, size)


@handles("pixel_shuffle", "channel_shuffle")
def shuffle(step: Step) -> Labels:
    """The channels of one output pixel block, or of one place in all groups, go together."""
    labels = step.labels("self")
    channels = step.only_channels(labels, 1)
    if step.name == "pixel_shuffle":
        block = int(step.value("upscale_factor")) ** 2
        grid, tied = channels.view(-1, block), 1
    else:
        grid, tied = channels.view(int(step.value("groups")), -1), 0
    grid = step.space.merge(grid, [tied], step.where)
    merged = grid.reshape(-1).view(1, -1, *[1] * (labels.dim() - 2)).expand(labels.shape)
    moved: Tensor = _replay(step, merged)
    return moved


@handles(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "upsample_bilinear2d", "upsample_nearest2d", "upsample_nearest1d",
    "upsample_bicubic2d", "upsample_trilinear3d", "upsample_nearest3d", "upsample_linear1d",
)  # fmt: skip
def pool(step: Step) -> Labels:
    """Works inside each channel; space is mixed, channels are not."""
    labels = step.labels("self" if "self" in step.args else "input")
    if labels.dim() < 3:
        return step.give_up("pooling without a channel dimension")
    channels = step.only_channels(labels, 1)
    value = step.node.meta["val"]
    if isinstance(value, torch.Tensor):
        return step.output_like(channels, 1)
    shapes = [concrete(tuple(part.shape)) for part in value]
    return [channels.view(1, -1, *[1] * (len(shape) - 2)).expand(shape) for shape in shapes]
