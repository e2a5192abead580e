"""A weight that is pruned inside: its units in slim networks, and which of its values stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from automl.graph.program import references
from automl.plan import IndexPlan
from automl.plan_axes import IntArray
from automl.pruning.granularities import Granularity
from automl.pruning.granularities.sizes import Sizes
from automl.types import Kept

_KINDS = ("conv", "linear", "embedding")


@dataclass(frozen=True, slots=True)
class MaskedWeight:
    """A weight that can be pruned inside.

    Attributes:
        name: The parameter.
        layer: The first layer that multiplies by it.
        layers: Indices in ``IndexPlan.layers_plan`` of all that do.
        granularity: What its units are.
        out: Outputs in the dense network; see :class:`Sizes`.
        into: Inputs per group in the dense network.
        kernel: Spatial kernel.
        transposed: Whether the module stores (into, out, ...).
        out_axis: Axis of the outputs, None where they never change.
        in_axis: Axis of the inputs, likewise.
        trainable: Whether it counts as a parameter.
    """

    name: str
    layer: str
    layers: tuple[int, ...]
    granularity: Granularity
    out: int
    into: int
    kernel: tuple[int, ...]
    transposed: bool
    out_axis: int | None
    in_axis: int | None
    trainable: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        plan: IndexPlan,
        layer: str,
        name: str,
        indices: tuple[int, ...],
        granularity: Granularity,
    ) -> MaskedWeight:
        """The weight ``name`` of the dense network; see the attributes for the arguments."""
        parameter = dict(model.named_parameters(remove_duplicate=False))[name]
        axes: tuple[int | None, ...] = (None,) * parameter.dim()
        trainable = True  # as the plan counts: whether it is trained right now does not matter
        for tensor in plan.tensors:
            if tensor.name == plan.aliases.get(name, name):
                axes, trainable = tensor.axes, tensor.trainable
        shape = tuple(parameter.shape)
        flip = _is_transposed(model, plan, name, indices[0], shape)
        out, into = (1, 0) if flip else (0, 1)
        return cls(
            name, layer, indices, granularity, shape[out], shape[into], shape[2:], flip,
            axes[out], axes[into], trainable,
        )  # fmt: skip

    @property
    def sizes(self) -> Sizes:
        """In the dense network."""
        return Sizes(self.out, self.into, self.kernel)

    @property
    def units(self) -> int:
        """In the dense network."""
        return int(self.granularity.units(self.sizes))

    def sizes_at(self, lengths: IntArray) -> Sizes:
        """In slim networks; ``lengths`` is (..., axes)."""
        out = self.out if self.out_axis is None else lengths[..., self.out_axis]
        into = self.into if self.in_axis is None else lengths[..., self.in_axis]
        return Sizes(out, into, self.kernel)

    def units_kept(self, kept: Kept, sizes: Sizes) -> Kept:
        """Kept units of a slim weight, from kept units of the dense one; batched."""
        units = self.granularity.units(sizes)
        share = (2 * np.asarray(kept, np.int64) * units + self.units) // (2 * self.units)
        return np.asarray(np.clip(share, 1, units), np.int64)

    def canonical(self, weight: Tensor) -> Tensor:
        """As (out, into, *kernel), a view."""
        return weight.transpose(0, 1) if self.transposed else weight

    def mask(self, saliency: Tensor, kept: int) -> Tensor:
        """Which weights stay where the dense weight keeps ``kept`` units.

        Args:
            saliency: Of the slim weight, in the shape in which the module stores it.
            kept: Units of the DENSE weight that stay, in [1, units].

        Returns:
            Booleans of that shape.
        """
        scores = self.canonical(saliency)
        sizes = Sizes(scores.shape[0], scores.shape[1], tuple(scores.shape[2:]))
        count = int(self.units_kept(np.asarray(kept), sizes))
        mask = self.canonical(self.granularity.mask(scores, count))
        return mask.contiguous()


def multiplied_weights(
    model: nn.Module, plan: IndexPlan
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """First layer, parameter and all layers of every weight that layers multiply by."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    users: dict[int, tuple[str, str, list[int]]] = {}
    for index, layer in enumerate(plan.layers_plan):
        if layer.spec.kind not in _KINDS or not layer.tensors:
            continue
        name = layer.tensors[0]
        parameter = parameters.get(name)
        if parameter is None or parameter.dim() < 2 or not parameter.is_floating_point():
            continue
        users.setdefault(id(parameter), (layer.spec.name, name, []))[2].append(index)
    for first, name, indices in users.values():
        yield first, name, tuple(indices)


def _is_transposed(
    model: nn.Module, plan: IndexPlan, name: str, index: int, shape: tuple[int, ...]
) -> bool:
    """Whether inputs come first: transposed convolutions, and products with ``x @ weight``."""
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, (nn.Linear, nn.Embedding, nn.MultiheadAttention)):
        return False
    if isinstance(module, nn.modules.conv._ConvNd):
        return isinstance(module, nn.modules.conv._ConvTransposeNd)
    spec = plan.layers_plan[index].spec
    if spec.in_channels == spec.out_channels:  # the shape does not tell
        return bool(_readers(plan, name) & _INPUTS_FIRST)
    return shape[:2] == (spec.in_channels, spec.out_channels)


#: Products ``x @ weight``, where ``linear`` is ``x @ weight.T``.
_INPUTS_FIRST = {"aten.matmul.default", "aten.mm.default", "aten.addmm.default"}


def _readers(plan: IndexPlan, name: str) -> set[str]:
    """Operators that read a parameter, under whichever of its names."""
    own = plan.aliases.get(name, name)
    values = {
        step.name
        for step in plan.program
        if step.op == "get_attr" and plan.aliases.get(step.target, step.target) == own
    }
    return {step.target for step in plan.program if values & references(step.args)}
