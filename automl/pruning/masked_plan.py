"""What can be pruned inside layers, beside whole channels or instead of them, and what it costs.

A :class:`MaskedPlan` looks to problems, strategies and environments like an ``IndexPlan``: it has
targets, layers, kept counts and exact costs. Its targets are those of the traced plan (where
channels are pruned too), then one per weight that a granularity fits, named by the parameter.

Where both are pruned, channels go first, and what is kept of a weight is relative to what is left
of it: a target that keeps 300 of its 1,200 units keeps a quarter of the units that the slim
weight has, rounded, at least one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from automl.plan import IndexPlan
from automl.plan_axes import IntArray
from automl.policy import Policy
from automl.pruning.grains import Grains, is_inside, matches, require_rules_match
from automl.pruning.granularities import CHANNEL, load
from automl.pruning.masked_weight import MaskedWeight, multiplied_weights
from automl.types import Frozen, InputError, Kept, LayerSpec, Target

#: Follows the name of a parameter of no module where its channels have that name.
_OF_NO_MODULE = ".weight"


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
        found = list(multiplied_weights(model, plan))
        require_rules_match(grains, [layer for layer, *_ in found])
        for layer, name, indices in found:
            granularity, named = grains.of(layer)
            if granularity is None:
                continue
            weight = MaskedWeight.of(model, plan, layer, name, indices, granularity)
            reason = _refusal(weight, exclude)
            if reason is None:
                weights.append(weight)
            elif named and not matches(layer, exclude):
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
        found = {name: (layer, indices) for layer, name, indices in multiplied_weights(model, plan)}
        inside = [one for one in policy.decisions if is_inside(one.granularity)]
        weights = []
        for decision in inside:
            name = parameter_of(decision.target, found)
            if name not in found:
                raise InputError(
                    "policy was learned on another network: it prunes target "
                    f"{decision.target!r}, which this model does not have"
                )
            layer, indices = found[name]
            granularity = load(decision.granularity)
            weights.append(MaskedWeight.of(model, plan, layer, name, indices, granularity))
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


def parameter_of(target: str, parameters: Container[str]) -> str:
    """The parameter that is pruned inside by a decision of this target.

    Args:
        target: Its name in a policy.
        parameters: Names of the network's parameters.
    """
    return target if target in parameters else target.removesuffix(_OF_NO_MODULE)


def _refusal(weight: MaskedWeight, exclude: Sequence[str]) -> str | None:
    return (
        "excluded" if matches(weight.layer, exclude) else weight.granularity.refusal(weight.sizes)
    )
