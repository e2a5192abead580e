"""What layers read on calibration data: powers, Gram matrices and statistics of their inputs.

A layer with weight W sees, for every output position, a *row* of inputs; a linear layer the
features, a convolution the patch below its kernel. Rows have the order of
``weight.reshape(out, -1)``, so statistics line up with weights. Layers that are called as modules
and products with a parameter of the network are seen alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.graph.interpret import ProgramRun
from automl.hashing import digest
from automl.plan import IndexPlan, Instruction, LayerPlan
from automl.pruning.criteria.context import Context, in_words
from automl.pruning.geometry import Geometry, geometry_of
from automl.types import InputError

#: Inputs that run through the network at once.
BATCH = 64

#: Product with a parameter: operator -> (argument of the data, of the weight).
_PRODUCTS = {"aten.linear.default": (0, 1), "aten.addmm.default": (1, 2)}
_CONVOLUTIONS = ("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One place where a weight meets data.

    Attributes:
        layer: The layer.
        step: The instruction.
        data: Name of the value it reads.
        conv: Of a convolution, whose inputs lie (examples, channels, *positions); None for linear
            layers, whose inputs lie (..., features).
    """

    layer: LayerPlan
    step: Instruction
    data: str
    conv: Geometry | None

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return self.layer.tensors[0]

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 elsewhere."""
        return 1 if self.conv is None else self.conv.groups

    @property
    def transposed(self) -> bool:
        """Whether the weight is (in, out), as in ``addmm``."""
        return self.step.target == "aten.addmm.default"


Visit = Callable[[LayerUse, Tensor], None]

#: Weight, value read, geometry.
_Found = tuple[str, str, Geometry | None]


def layer_uses(model: nn.Module, plan: IndexPlan) -> list[LayerUse]:
    """Where the weights of linear layers and convolutions meet data, in program order.

    Transposed convolutions are left out.
    """
    sources = {i.name: i.target for i in plan.program if i.op == "get_attr"}
    by_weight = {layer.tensors[0]: layer for layer in plan.layers_plan if layer.tensors}
    uses = []
    for step in plan.program:
        found = _module_call(model, step) or _operator_call(model, step, sources)
        if found is None:
            continue
        weight, data, geometry = found
        layer = by_weight.get(plan.aliases.get(weight, weight))
        if layer is not None:
            uses.append(LayerUse(layer, step, data, geometry))
    return uses


def _module_call(model: nn.Module, step: Instruction) -> _Found | None:
    if step.op != "call_module":
        return None
    module = model.get_submodule(step.target)
    weight, data = f"{step.target}.weight", step.args[0].get("ref")
    if isinstance(module, nn.Linear):
        return weight, data, None
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    padding = tuple(module._reversed_padding_repeated_twice)
    if module.padding_mode != "zeros" and any(padding):
        return None  # exported as padding and a convolution, so this does not come up
    return weight, data, Geometry(
        module.kernel_size, module.stride, padding, module.dilation, module.groups
    )  # fmt: skip


def _operator_call(model: nn.Module, step: Instruction, sources: dict[str, str]) -> _Found | None:
    is_conv = step.target in _CONVOLUTIONS
    if not is_conv and step.target not in _PRODUCTS:
        return None
    at = (0, 1) if is_conv else _PRODUCTS[step.target]
    data, source = (_reference(step.args[i]) for i in at)
    if data is None or source not in sources:
        return None
    weight = sources[source]
    if not is_conv:
        return weight, data, None
    return weight, data, geometry_of(step, tuple(model.get_parameter(weight).shape[2:]))


def _reference(argument: Any) -> str | None:
    return argument.get("ref") if isinstance(argument, dict) else None


def observe(context: Context, images: int, uses: Sequence[LayerUse], visit: Visit) -> None:
    """Runs the network on calibration inputs and shows what every use reads.

    Args:
        context: The network and its data.
        images: How many inputs.
        uses: Where to look.
        visit: Called with the use and what it reads, batch by batch.
    """
    by_step: dict[str, list[LayerUse]] = {}
    for use in uses:
        by_step.setdefault(use.step.name, []).append(use)

    def before(run: ProgramRun, step: Instruction) -> None:
        for use in by_step.get(step.name, ()):
            visit(use, run.value(use.data))

    with torch.no_grad():
        for x, _ in context.batches(images, BATCH):
            ProgramRun(context.model, context.plan, context.plan.dense, [x], before).run()


def require_uses(name: str, context: Context, weights: Sequence[str]) -> list[LayerUse]:
    """Where these weights meet data.

    Raises:
        InputError: One of them is not that of a linear layer or plain convolution.
    """
    uses = [use for use in layer_uses(context.model, context.plan) if use.weight in set(weights)]
    missing = sorted(set(weights) - {use.weight for use in uses})
    if missing:
        raise InputError(
            f"criterion {in_words(name)} sees the inputs of linear layers and convolutions only, "
            f"not of {', '.join(missing)}; exclude them, or choose a criterion such as l2 or taylor"
        )
    return uses


# ---- rows of inputs


def windows(data: Tensor, use: LayerUse) -> Tensor:
    """The patches that a convolution reads, without copying.

    Args:
        data: Its input, shape (examples, channels, *positions).
        use: The convolution.

    Returns:
        Shape (examples, channels, *output positions, *kernel).
    """
    conv = use.conv
    if conv is None:
        raise ValueError("windows.use must be a convolution, got a linear layer")
    if any(conv.padding):
        data = F.pad(data, conv.padding)
    for dim, (size, stride, dilation) in enumerate(
        zip(conv.kernel, conv.stride, conv.dilation, strict=True), start=2
    ):
        data = data.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return data


def powers(data: Tensor, use: LayerUse) -> Tensor:
    """Sum of squares of every entry of the rows.

    Args:
        data: What the use reads.
        use: The use.

    Returns:
        Shape (groups, features of a group), float64.
    """
    squares = data.double().square()
    if use.conv is None:
        return squares.flatten(0, -2).sum(0)[None]
    seen = windows(squares.sum(0, keepdim=True), use)[0]
    spatial = (seen.dim() - 1) // 2
    sums = seen.sum(tuple(range(1, 1 + spatial)))  # (channels, *kernel)
    return sums.reshape(use.groups, -1)


def rows(data: Tensor, use: LayerUse, points: int, generator: torch.Generator) -> Tensor:
    """Rows of inputs at random output positions of every example.

    Args:
        data: What the use reads.
        use: The use.
        points: Positions per example; all where there are fewer.
        generator: Chooses them.

    Returns:
        Shape (groups, samples, features of a group).
    """
    seen, last = data, 1  # (examples, *positions, features)
    if use.conv is not None:  # (examples, *positions, channels, *kernel)
        seen, last = windows(data, use).movedim(1, data.dim() - 1), 1 + len(use.conv.kernel)
    places = seen.shape[1 : seen.dim() - last]
    total = reduce(lambda a, b: a * b, places, 1)
    examples = torch.arange(len(seen), device=data.device).repeat_interleave(min(points, total))
    if total <= points:
        flat = torch.arange(total).repeat(len(seen))
    else:
        flat = torch.rand(len(seen), total, generator=generator).topk(points).indices.flatten()
    index = torch.unravel_index(flat.to(data.device), places) if places else ()
    taken = seen[(examples, *index)]
    return taken.reshape(len(taken), use.groups, -1).transpose(0, 1)


# ---- statistics of all layers


def input_powers(context: Context, images: int) -> dict[str, Tensor]:
    """Mean square of every input of every layer, over examples and output positions.

    Returns:
        Weight -> shape (groups, features of a group), float64; weights that are not seen are
        left out. One pass, kept in the context.
    """
    key = f"input powers of {images}"
    if key in context.cache:
        found: dict[str, Tensor] = context.cache[key]
        return found
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def visit(use: LayerUse, data: Tensor) -> None:
        sums[use.weight] = sums.get(use.weight, 0) + powers(data, use)
        counts[use.weight] = counts.get(use.weight, 0) + _positions(data, use)

    observe(context, images, layer_uses(context.model, context.plan), visit)
    found = {name: total / counts[name] for name, total in sums.items()}
    context.cache[key] = found
    return found


def _positions(data: Tensor, use: LayerUse) -> int:
    if use.conv is None:
        return data.numel() // data.shape[-1]
    seen = windows(data[:, :1], use)
    spatial = data.dim() - 2
    return len(data) * reduce(lambda a, b: a * b, seen.shape[2 : 2 + spatial], 1)


#: Bytes of Gram matrices that are held at once.
_GRAM_BYTES = 2**29


def input_grams(
    context: Context, images: int, points: int, uses: Sequence[LayerUse], centred: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Mean outer product of the rows of every weight, ``H = E[x x^T]``.

    Args:
        context: The network and its data.
        images: How many inputs.
        points: Output positions per input and layer, drawn at random.
        uses: Of which weights.
        centred: Subtract the rows' mean first, for layers whose output may shift.

    Yields:
        Weight and H, shape (groups, features, features), float64. Not kept: large networks have
        gigabytes of them, and pass over the data several times.
    """
    sizes = {use.weight: _features(context, use) for use in uses}
    part: list[str] = []
    for weight in dict.fromkeys(use.weight for use in uses):
        if part and sum(sizes[name] for name in [*part, weight]) > _GRAM_BYTES:
            yield from _grams_of(context, images, points, uses, part, centred)
            part = []
        part.append(weight)
    yield from _grams_of(context, images, points, uses, part, centred)


def _features(context: Context, use: LayerUse) -> int:
    """Bytes of the Gram matrix of a use."""
    weight = context.parameter(use.weight)
    into = weight.shape[0] if use.transposed else weight[0].numel()
    return 8 * use.groups * into**2


@dataclass
class _Sums:
    """Sums over the rows of one weight."""

    gram: Tensor  # (groups, features, features)
    rows: Tensor  # (groups, features)
    count: int

    def mean(self, centred: bool) -> Tensor:
        gram, row = self.gram / self.count, self.rows / self.count
        return gram - row[:, :, None] * row[:, None, :] if centred else gram


def _grams_of(
    context: Context,
    images: int,
    points: int,
    uses: Sequence[LayerUse],
    weights: Sequence[str],
    centred: bool,
) -> Iterator[tuple[str, Tensor]]:
    wanted = [use for use in uses if use.weight in set(weights)]
    seeds = {use.step.name: int(digest(context.seed, use.step.name)[:15], 16) for use in wanted}
    generators = {name: torch.Generator().manual_seed(seed) for name, seed in seeds.items()}
    sums: dict[str, _Sums] = {}

    def visit(use: LayerUse, data: Tensor) -> None:
        x = rows(data, use, points, generators[use.step.name])
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of squares overflow in half
        gram, total = (x.transpose(1, 2) @ x).double(), x.sum(1, dtype=torch.float64)
        known = sums.get(use.weight)
        if known is None:
            sums[use.weight] = _Sums(gram, total, x.shape[1])
            return
        known.gram += gram
        known.rows += total
        known.count += x.shape[1]

    observe(context, images, wanted, visit)
    for name in weights:
        gram = sums.pop(name).mean(centred)
        if not bool(gram.isfinite().all()):
            raise InputError(
                f"what {name} multiplies is not finite on the calibration data: too large?"
            )
        yield name, gram


# ---- weights as matrices that multiply rows


def as_matrices(weight: Tensor, use: LayerUse) -> Tensor:
    """A weight as (groups, outputs of a group, features of a group)."""
    if use.transposed:
        return weight.T[None]
    return weight.reshape(use.groups, weight.shape[0] // use.groups, -1)


def from_matrices(matrices: Tensor, weight: Tensor, use: LayerUse) -> Tensor:
    """Undoes :func:`as_matrices`; ``weight`` gives the shape."""
    return matrices[0].T if use.transposed else matrices.reshape(weight.shape)
