"""What can be pruned inside layers, beside whole channels or instead of them, and what it costs.

A :class:`MaskedPlan` looks to problems, strategies and environments like an ``IndexPlan``: it has
targets, layers, kept counts and exact costs. Its targets are those of the traced plan (where
channels are pruned too), then one per weight that a granularity fits, named by the parameter.

Where both are pruned, channels go first, and what is kept of a weight is relative to what is left
of it: a target that keeps 300 of its 1,200 units keeps a quarter of the units that the slim
weight has, rounded, at least one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.graph.program import references
from automl.plan import IndexPlan
from automl.plan_axes import IntArray
from automl.policy import Policy
from automl.pruning.granularities import CHANNEL, Granularity, load
from automl.pruning.granularities.sizes import Sizes
from automl.types import Frozen, InputError, Kept, LayerSpec, Target

#: Follows the name of a parameter of no module where its channels have that name.
_OF_NO_MODULE = ".weight"

_KINDS = ("conv", "linear", "embedding")


@dataclass(frozen=True)
class Grains:
    """Which grain each layer is pruned by.

    Attributes:
        channels: Whether whole channels, heads and hidden units are pruned, before anything else.
        inside: What layers are pruned by that no rule names; None leaves them as they are.
        rules: Shell patterns of layers and what they are pruned by, the first that fits counts.
    """

    channels: bool = False
    inside: Granularity | None = None
    rules: tuple[tuple[str, Granularity], ...] = ()

    @classmethod
    def parse(cls, grains: Sequence[str], layers: Mapping[str, str] | None = None) -> Grains:
        """Reads names of granularities.

        Args:
            grains: ``channel`` and at most one finer one, such as ``["channel", "nm:4"]``.
            layers: Pattern of layers -> another finer granularity.

        Raises:
            InputError: A name is unknown, there are two finer ones, or there is nothing.
        """
        rules = tuple((pattern, _inside(name)) for pattern, name in (layers or {}).items())
        finer = [name for name in grains if name != CHANNEL]
        if len(finer) > 1:
            raise InputError(
                f"granularity has two grains for the same layers, {finer[0]} and {finer[1]}; give "
                "one, and the other by layers, as granularity.layers={linear: nm:4}"
            )
        if not grains and not rules:
            raise InputError("granularity has no grain; give one, as granularity=[channel,nm:4]")
        return cls(CHANNEL in grains, load(finer[0]) if finer else None, rules)

    @property
    def names(self) -> list[str]:
        """All grains by name, channels first."""
        found = [CHANNEL] * self.channels
        found += [] if self.inside is None else [self.inside.name]
        return list(dict.fromkeys([*found, *(grain.name for _, grain in self.rules)]))

    def of(self, layer: str) -> tuple[Granularity | None, bool]:
        """The granularity inside a layer, and whether a rule names it."""
        for pattern, granularity in self.rules:
            if fnmatch.fnmatchcase(layer, pattern):
                return granularity, True
        return self.inside, False


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


@dataclass(frozen=True, eq=False)
class MaskedPlan:
    """The targets of a network with finer grains than channels; see the module's docstring.

    Attributes:
        base: The traced plan.
        channels: Whether its targets can be pruned, too.
        weights: The weights that can be pruned inside, in network order.
        excluded: Weights that cannot, and why.
        levels: A search chooses among about so many kept counts per weight.
    """

    base: IndexPlan
    channels: bool
    weights: tuple[MaskedWeight, ...]
    excluded: tuple[Frozen, ...] = ()
    levels: int = field(default=64, kw_only=True)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        plan: IndexPlan,
        grains: Grains,
        *,
        exclude: Sequence[str] = (),
        levels: int = 64,
    ) -> MaskedPlan:
        """Finds the weights that the grains fit.

        Args:
            model: The dense network.
            plan: Its plan.
            grains: Which grain each layer is pruned by.
            exclude: Shell patterns of layers to leave alone.
            levels: A search chooses among about so many kept counts per weight.

        Raises:
            InputError: A rule matches no layer or names one that its grain does not fit, or there
                is nothing to prune.
        """
        if levels < 2:
            raise InputError(f"granularity.levels must be a whole number >= 2, got {levels}")
        weights: list[MaskedWeight] = []
        excluded: list[Frozen] = []
        found = list(_weights(model, plan))
        _require_rules_match(grains, [layer for layer, *_ in found])
        for layer, name, indices in found:
            granularity, named = grains.of(layer)
            if granularity is None:
                continue
            weight = _weight(model, plan, layer, name, indices, granularity)
            reason = _refusal(weight, exclude)
            if reason is None:
                weights.append(weight)
            elif named and not _matches(layer, exclude):
                raise InputError(
                    f"layer {layer!r} cannot be pruned by {granularity.name}: {reason}"
                )
            else:
                excluded.append(Frozen(layer, reason))
        if not weights and (grains.inside or grains.rules):
            why = f": {excluded[0].name!r}: {excluded[0].reason}" if excluded else ""
            names = ", ".join(name for name in grains.names if name != CHANNEL)
            raise InputError(f"granularity {names} fits no layer of this network{why}")
        return cls(plan, grains.channels, tuple(weights), tuple(excluded), levels=levels)

    @classmethod
    def for_policy(cls, model: nn.Module, plan: IndexPlan, policy: Policy) -> MaskedPlan:
        """The plan in which a policy has exactly one decision per target.

        Raises:
            InputError: The policy is of another network.
        """
        found = {name: (layer, indices) for layer, name, indices in _weights(model, plan)}
        inside = [one for one in policy.decisions if is_inside(one.granularity)]
        weights = []
        for decision in inside:
            name = decision.target
            if name not in found:
                name = name.removesuffix(_OF_NO_MODULE)
            if name not in found:
                raise InputError(
                    "policy was learned on another network: it prunes target "
                    f"{decision.target!r}, which this model does not have"
                )
            layer, indices = found[name]
            granularity = load(decision.granularity)
            weights.append(_weight(model, plan, layer, name, indices, granularity))
        weights.sort(key=lambda weight: weight.layers[0])
        return cls(plan, len(inside) < len(policy.decisions), tuple(weights))

    # ---- what problems, strategies and environments look at

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Channels first, if they are pruned, then weights."""
        channels = self.base.targets if self.channels else ()
        inside = (
            Target(
                self._target_name(w),
                len(channels) + i,
                w.granularity.name,
                w.units,
                self._users(w),
                (),
            )
            for i, w in enumerate(self.weights)
        )
        return (*channels, *inside)

    def _target_name(self, weight: MaskedWeight) -> str:
        """The parameter's; one that is no module's gives its name to its channels already."""
        taken = self.channels and any(target.name == weight.name for target in self.base.targets)
        return weight.name + _OF_NO_MODULE if taken else weight.name

    def _users(self, weight: MaskedWeight) -> tuple[str, ...]:
        return tuple(self.base.layers_plan[i].spec.name for i in weight.layers)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Dense layers in execution order."""
        return self.base.layers

    @property
    def frozen(self) -> tuple[Frozen, ...]:
        """What cannot be pruned and why."""
        return (*(self.base.frozen if self.channels else ()), *self.excluded)

    @cached_property
    def dense(self) -> Kept:
        """Kept counts of the dense network."""
        return np.array([target.units for target in self.targets], np.int64)

    def steps(self, rounding: int) -> list[int]:
        """Distance between the kept counts that a search may choose, per target.

        Args:
            rounding: Of channels.
        """
        channels = [
            1 if target.kind == "head" else rounding
            for target in (self.base.targets if self.channels else ())
        ]
        return channels + [max(1, weight.units // self.levels) for weight in self.weights]

    def target_index(self, name: str) -> int:
        """Index of the target of that name, or that holds a layer of that name.

        Raises:
            InputError: There is none; says why, or names the nearest.
        """
        if self.channels and any(name in (t.name, *t.producers) for t in self.base.targets):
            return self.base.target_index(name)
        for target in self.targets[-len(self.weights) :] if self.weights else ():
            if name == target.name or name in target.producers:
                return target.index
        for frozen in self.excluded:
            if frozen.name == name:
                raise InputError(f"layer {name!r} cannot be pruned: {frozen.reason}")
        from automl.hints import did_you_mean

        hint = did_you_mean(name, [target.name for target in self.targets])
        raise InputError(f"no prunable weight or layer is called {name!r}; {hint}")

    # ---- counts

    def split(self, kept: Kept) -> tuple[Kept, Kept]:
        """Kept counts of the traced plan's targets, and of the weights; batched."""
        kept = np.asarray(kept, np.int64)
        first = len(self.base.targets) if self.channels else 0
        if self.channels:
            return kept[..., :first], kept[..., first:]
        channels = np.broadcast_to(self.base.dense, (*kept.shape[:-1], len(self.base.targets)))
        return channels, kept

    def macs(self, kept: Kept) -> IntArray:
        """Multiplications by weights that are not pruned, of one example; batched."""
        channels, inside = self.split(kept)
        saved: Any = 0
        layer_macs = self.base.layer_macs(channels)
        for weight, dense, nonzeros, _ in self._weights_at(channels, inside):
            macs = layer_macs[..., list(weight.layers)].sum(-1)
            # Every weight is used at as many positions as any other; the quotient is whole.
            saved = saved + np.rint(macs / np.maximum(dense, 1) * (dense - nonzeros))
        return np.asarray(self.base.macs(channels) - saved, np.int64)

    def params(self, kept: Kept) -> IntArray:
        """Trainable parameters that are not pruned; batched."""
        channels, inside = self.split(kept)
        saved: Any = 0
        for weight, dense, nonzeros, _ in self._weights_at(channels, inside):
            saved = saved + (dense - nonzeros) * weight.trainable
        return np.asarray(self.base.params(channels) - saved, np.int64)

    def densities(self, kept: Kept) -> NDArray[np.float64]:
        """Fraction of each weight that stays, of what its channels leave; (..., weights)."""
        channels, inside = self.split(kept)
        found = [
            left / np.maximum(all_, 1) for _, all_, left, _ in self._weights_at(channels, inside)
        ]
        return np.stack(np.broadcast_arrays(*found), axis=-1)

    @property
    def grains(self) -> dict[str, str]:
        """Name of each weight -> what it is pruned by."""
        return {weight.name: weight.granularity.name for weight in self.weights}

    def stored_bits(self, kept: Kept, bits_per_value: int = 32) -> IntArray:
        """Bits of the trainable parameters, each weight in the smaller of two forms; batched.

        Dense, or what is left of it with an index (``Granularity.index_bits``).
        """
        channels, inside = self.split(kept)
        total = self.base.params(channels) * bits_per_value
        for weight, dense, nonzeros, index in self._weights_at(channels, inside):
            packed = np.minimum(nonzeros * bits_per_value + index, dense * bits_per_value)
            total = total - (dense * bits_per_value - packed) * weight.trainable
        return np.asarray(total, np.int64)

    def _weights_at(
        self, channels: Kept, inside: Kept
    ) -> Iterator[tuple[MaskedWeight, IntArray, IntArray, IntArray]]:
        """Each weight with its elements, those that stay, and the bits of their index."""
        lengths = self.base.lengths(channels)
        for i, weight in enumerate(self.weights):
            sizes = weight.sizes_at(lengths)
            kept = weight.units_kept(inside[..., i], sizes)
            grain = weight.granularity
            yield weight, sizes.weights, grain.nonzeros(kept, sizes), grain.index_bits(kept, sizes)

    def needs_graph_form(self, kept: Kept) -> bool:
        """Whether ``kept`` changes constants inside the user's ``forward``."""
        return self.base.needs_graph_form(self.split(kept)[0])

    def to_json(self) -> str:
        """The structure of the dense network; grains are in the policy."""
        return self.base.to_json()


def is_inside(granularity: str) -> bool:
    """Whether a decision's granularity is one inside layers, not whole channels or heads."""
    return granularity not in (CHANNEL, "head", "head_dim")


def _inside(name: str) -> Granularity:
    if name == CHANNEL:
        raise InputError(
            "granularity.layers gives finer grains to layers; channels are pruned by "
            "granularity=[channel,...] and left alone by exclude="
        )
    return load(str(name))


def _require_rules_match(grains: Grains, layers: list[str]) -> None:
    for pattern, _ in grains.rules:
        if not fnmatch.filter(layers, pattern):
            raise InputError(
                f"granularity.layers pattern {pattern!r} matches no layer; see `prunepilot trace`"
            )


def _matches(layer: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(layer, pattern) for pattern in patterns)


def _refusal(weight: MaskedWeight, exclude: Sequence[str]) -> str | None:
    return (
        "excluded" if _matches(weight.layer, exclude) else weight.granularity.refusal(weight.sizes)
    )


def _weights(model: nn.Module, plan: IndexPlan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
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


def _weight(
    model: nn.Module,
    plan: IndexPlan,
    layer: str,
    name: str,
    indices: tuple[int, ...],
    granularity: Granularity,
) -> MaskedWeight:
    parameter = dict(model.named_parameters(remove_duplicate=False))[name]
    axes: tuple[int | None, ...] = (None,) * parameter.dim()
    trainable = True  # as the plan counts: whether it is trained right now does not matter
    for tensor in plan.tensors:
        if tensor.name == plan.aliases.get(name, name):
            axes, trainable = tensor.axes, tensor.trainable
    shape = tuple(parameter.shape)
    flip = _is_transposed(model, plan, name, indices[0], shape)
    out, into = (1, 0) if flip else (0, 1)
    return MaskedWeight(
        name, layer, indices, granularity, shape[out], shape[into], shape[2:], flip,
        axes[out], axes[into], trainable,
    )  # fmt: skip


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
