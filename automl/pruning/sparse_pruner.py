"""The pruner of finer grains: masks inside layers, on the slim network where channels go too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.fitting import fewest, round_ratio
from automl.graph.materialise import KeptUnits
from automl.graph.trace import Trace
from automl.hashing import digest
from automl.policy import Decision, Policy
from automl.pruning.criteria import Context, Criterion, Scores, UnitCriterion, load
from automl.pruning.grains import Grains, is_inside
from automl.pruning.granularities import CHANNEL
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.masked_weight import MaskedWeight
from automl.pruning.obs_masks import ObsChoice
from automl.pruning.pruner import Pruner
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.refine import Refinement
from automl.pruning.sites import find_sites
from automl.types import InputError, Kept, one_or_more


class SparsePruner:
    """Prunes inside layers, after whole channels where the plan has those; see :class:`Pruner`.

    The criterion looks at the dense network once; where channels are pruned first, its scores of
    the weights that are left are used. What is left is repaired in one pass: every layer that is
    masked, reads pruned channels or has inputs that drifted is refitted, zeros staying zeros.

    Args:
        trace: The traced network.
        plan: Its targets.
        criterion: Importance of weights; a name from conf/criterion or a :class:`Criterion`.
        calibration: As for :class:`Pruner`.
        reconstruct: As for :class:`Pruner`.
        batchnorm_recalibration: As for :class:`Pruner`.
        refine: As for :class:`Pruner`.
        context: What the criterion looks at; by default the network with ``calibration``.
        report: As for :class:`Pruner`.

    Raises:
        InputError: The criterion scores whole units only, or the context lacks what it needs.
    """

    def __init__(
        self,
        trace: Trace,
        plan: MaskedPlan,
        *,
        criterion: str | Criterion = "l2",
        calibration: Tensor | None = None,
        reconstruct: Reconstruction | None = Reconstruction(),  # noqa: B008 - frozen
        batchnorm_recalibration: bool = False,
        refine: Refinement | None = None,
        context: Context | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Takes the network as it is now; its weights must not change afterwards."""
        self.trace = trace
        self.plan = plan
        self.channels = Pruner(
            trace,
            criterion=criterion,
            calibration=calibration,
            reconstruct=reconstruct,
            batchnorm_recalibration=batchnorm_recalibration,
            refine=refine,
            context=context,
            report=report,
        )
        if isinstance(self.channels.criterion, UnitCriterion):
            self.channels.criterion.saliency(self.channels.context, [])  # refuses

    def prepare(self) -> None:
        """Computes all that no policy changes; see :meth:`Pruner.prepare`."""
        _ = self.saliency, self._sites, self.fingerprint
        self.channels.prepare(ranked=bool(self.plan.channels))

    # ---- who is kept

    @cached_property
    def saliency(self) -> dict[str, Tensor]:
        """Importance of every single weight of the dense network, by parameter."""
        names = [weight.name for weight in self.plan.weights]
        return self.channels.criterion.saliency(self.channels.context, names)

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> Scores:
        """Importance of every unit, channels first; see :meth:`Pruner.unit_scores`."""
        context, chosen = self.channels.context, self.channels.criterion
        if criterion is not None:
            chosen = load(criterion, **settings)
        saliency = chosen.saliency(context, [weight.name for weight in self.plan.weights])
        inside = [
            weight.granularity.unit_scores(weight.canonical(saliency[weight.name])).cpu().numpy()
            for weight in self.plan.weights
        ]
        return [*(chosen(context) if self.plan.channels else ()), *inside]

    def policy(self, kept: Kept) -> Policy:
        """The policy that keeps so many units of every target.

        Which channels stay is written down; inside layers the criterion decides (a layer may have
        millions of weights), and the masks are saved with the network.
        """
        channels, inside = self.plan.split(kept)
        decisions = self.channels.policy(channels).decisions if self.plan.channels else ()
        targets = self.plan.targets[len(decisions) :]
        rest = Policy.from_kept(targets, inside)
        return Policy((*decisions, *rest.decisions), self.model_hash)

    # ---- the network

    def prune(self, policy: Policy) -> nn.Module:
        """The network with zeros, and masks that keep them, repaired, in eval mode.

        Raises:
            InputError: If the policy is of another network.
        """
        policy.check(self.plan.targets)
        channels, inside = self.plan.split(policy.kept(self.plan.targets))
        units, masks = self.units(policy), {}
        choose = self._choices(inside) if self.channels.chooses_masks else {}
        if any(k < w.units and w.name not in choose for w, k in self._pairs(inside)):
            masks = {n: m for n, m in self.masks(inside, units).items() if n not in choose}
        return self.channels.make(channels, units, masks, choose)

    def _pairs(self, inside: Kept) -> list[tuple[MaskedWeight, int]]:
        return list(zip(self.plan.weights, inside.tolist(), strict=True))

    def _choices(self, inside: Kept) -> dict[str, ObsChoice]:
        """What chooses masks within the repair, for the weights where that can be done."""
        # The masks of what a function reads are not the layer's to choose: its module has others.
        refitted = {site.weight for site in self._sites if site.leaves is None}
        return {
            weight.name: ObsChoice(weight, kept)
            for weight, kept in self._pairs(inside)
            if kept < weight.units
            and weight.name in refitted
            and ObsChoice.fits(weight)
            and not (self.plan.channels and weight.in_axis is not None)
        }

    @cached_property
    def _sites(self) -> list[Any]:
        return find_sites(self.trace.model, self.trace.plan)

    def masks(self, inside: Kept, units: KeptUnits) -> dict[str, Tensor]:
        """Which weights of the slim network stay, by parameter; without those that all stay.

        Args:
            inside: Kept units of every weight in ``plan.weights``.
            units: The channels that stay.
        """
        return self.masks_by(self.left(self.saliency, units), inside)

    def masks_by(self, saliency: Mapping[str, Tensor], inside: Kept) -> dict[str, Tensor]:
        """The same by other scores.

        Args:
            saliency: Of every weight of the slim network that is to be masked, by parameter.
            inside: Kept units of every weight in ``plan.weights``.
        """
        return {
            weight.name: weight.mask(saliency[weight.name], kept)
            for weight, kept in self._pairs(inside)
            if kept < weight.units
        }

    def left(self, saliency: Mapping[str, Tensor], units: KeptUnits) -> dict[str, Tensor]:
        """Of scores of dense weights those of what the pruned channels leave of them."""
        positions = [torch.from_numpy(at) for at in self.plan.base.positions(units)]
        found = dict(saliency)
        for weight in self.plan.weights:
            for dim, axis in enumerate((weight.out_axis, weight.in_axis)):
                if axis is not None and weight.name in found:
                    stored, scores = 1 - dim if weight.transposed else dim, found[weight.name]
                    at = positions[axis].to(scores.device)
                    if len(at) < scores.shape[stored]:
                        found[weight.name] = scores.index_select(stored, at)
        return found

    def units(self, policy: Policy) -> KeptUnits:
        """The channels that stay, of every target of the traced plan."""
        if not self.plan.channels:
            return [range(target.units) for target in self.plan.base.targets]
        first = policy_of_channels(policy, self.plan)
        return self.channels.units_of(first)

    def for_inference(self, network: nn.Module) -> nn.Module:
        """The same function without the batch norms that can be folded into layers."""
        return self.channels.for_inference(network)

    # ---- identity

    @property
    def model_hash(self) -> str:
        """Hash of the dense weights."""
        return self.channels.model_hash

    @cached_property
    def fingerprint(self) -> str:
        """Identifies everything besides the policy that decides what :meth:`prune` returns."""
        return digest("masks", self.channels.fingerprint)


def pruner_for(
    traced: Trace,
    grain: str | Sequence[str] | Policy = CHANNEL,
    *,
    exclude: str | Sequence[str] = (),
    **settings: Any,
) -> Pruner | SparsePruner:
    """The pruner of a granularity, several, or those that a policy names.

    Args:
        traced: The traced network.
        grain: Such as ``"channel"``, ``"nm:4"`` or ``["channel", "unstructured"]``; or a policy.
        exclude: Shell patterns of layers that finer grains leave alone.
        settings: Those that both pruners have.

    Raises:
        InputError: There is no such granularity, or the policy is of another network.
    """
    model, plan = traced.model, traced.plan
    if isinstance(grain, Policy):
        if not any(is_inside(one.granularity) for one in grain.decisions):
            return Pruner(traced, **settings)
        return SparsePruner(traced, MaskedPlan.for_policy(model, plan, grain), **settings)
    grains = Grains.parse([grain] if isinstance(grain, str) else list(grain))
    if grains.names == [CHANNEL]:
        return Pruner(traced, **settings)
    masked = MaskedPlan.of(model, plan, grains, exclude=one_or_more(exclude))
    return SparsePruner(traced, masked, **settings)


def with_units(pruner: Pruner | SparsePruner, policy: Policy) -> Policy:
    """The policy with the units named where it left their choice to the pruner.

    Raises:
        InputError: The policy is of another network.
    """

    def is_open(one: Decision) -> bool:
        return one.indices is None and one.kept < one.units and not is_inside(one.granularity)

    if not any(map(is_open, policy.decisions)):
        return policy
    chosen = pruner.policy(policy.kept(pruner.plan.targets))
    by_name = {one.target: one for one in chosen.decisions}
    named = (by_name[one.target] if is_open(one) else one for one in policy.decisions)
    return Policy(tuple(named), chosen.model_hash)


def policy_of_channels(policy: Policy, plan: MaskedPlan) -> Policy:
    """The decisions of a policy on whole channels, heads and hidden units."""
    names = {target.name for target in plan.base.targets}
    kept = tuple(one for one in policy.decisions if one.target in names)
    return Policy(kept, policy.model_hash)


def counts_from_ratios(
    plan: MaskedPlan, ratios: float | Mapping[str, float], rounding: int, min_keep: float = 0.0
) -> Kept:
    """Kept units where a fraction of every target, or of the named ones, is removed.

    Args:
        plan: The targets.
        ratios: Fraction REMOVED in [0, 1), of all targets or by name of a target or layer.
        rounding: Kept counts of channels are multiples of this where a group is large enough.
        min_keep: Least fraction of its units that every target keeps.

    Returns:
        Shape (targets,).

    Raises:
        InputError: For arguments out of range, ratios that would empty a layer, and unknown names.
    """
    asked = np.zeros(len(plan.targets))
    for name, ratio in ratios.items() if isinstance(ratios, Mapping) else [("all", ratios)]:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise InputError(f"pruning ratio of {name!r} must be in [0, 1), got {ratio!r}")
        asked[plan.target_index(name) if isinstance(ratios, Mapping) else slice(None)] = ratio
    kept, steps = [], []
    for target, ratio in zip(plan.targets, asked.tolist(), strict=True):
        inside = is_inside(target.kind)
        if inside and (1 - ratio) * target.units < 0.5:
            raise InputError(
                f"ratio {ratio:g} would empty {target.name}, which has {target.units} units of "
                f"{target.kind}; choose a lower ratio, a finer granularity, or exclude that layer"
            )
        step = 1 if inside or target.kind == "head" else rounding
        kept.append(round_ratio(ratio, target.units, step) if target.units > 1 else 1)
        steps.append(step)
    least = fewest(plan.targets, steps, min_keep)
    return np.asarray(np.maximum(np.array(kept, np.int64), least), np.int64)


def global_counts(pruner: SparsePruner, ratio: float, min_keep: float = 0.0) -> Kept:
    """Kept units of every weight from one ranking over all layers.

    Units are ranked by saliency per weight, so that units of different sizes compare; as many of
    the highest stay as keep no more than ``1 - ratio`` of all weights, and at least one in every
    layer. The ratios of the layers fall out.

    Args:
        pruner: Of the network; its plan must not prune channels.
        ratio: Fraction of the weights to remove, in [0, 1).
        min_keep: Least fraction of its units that every layer keeps.

    Returns:
        Shape (targets,).

    Raises:
        InputError: The ratio is not one number, channels are pruned, too, or so few weights
            cannot be kept, or ``min_keep`` is out of range.
    """
    plan = pruner.plan
    if not isinstance(ratio, int | float):
        raise InputError("granularity.scope=global takes one ratio for all layers")
    if plan.channels:
        raise InputError("granularity.scope=global ranks single layers' units, not channels")
    least = fewest(plan.targets, 1, min_keep)
    scores, sizes = [], []
    for weight in plan.weights:
        grain = weight.granularity
        size = int(grain.nonzeros(np.asarray(1), weight.sizes))
        unit_scores = grain.unit_scores(weight.canonical(pruner.saliency[weight.name]))
        scores.append(np.sort(unit_scores.cpu().numpy())[::-1] / size)
        sizes.append(size)
    return _largest_prefix(scores, np.array(sizes), least, ratio)


def _largest_prefix(
    scores: list[NDArray[np.float64]],
    sizes: NDArray[np.int64],
    least: NDArray[np.int64],
    ratio: float,
) -> Kept:
    """Units kept of every layer, in one order by score.

    Args:
        scores: Of every layer's units, falling.
        sizes: Weights of one unit of every layer.
        least: Units that every layer keeps.
        ratio: Fraction of all weights that goes at least.
    """
    counts = np.array([len(layer) for layer in scores])
    owner = np.repeat(np.arange(len(scores)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    # The tolerance keeps (1 - 0.8) * 2520 = 503.99999999999994 from being rounded down to 503.
    limit = (1 - ratio) * float(sizes @ counts) + 1e-6
    fixed = float(sizes @ least)
    if fixed > limit:
        raise InputError(
            f"ratio {ratio:g} would empty a layer: the units that stay in each layer are "
            f"{100 * fixed / float(sizes @ counts):.3g} % of the weights; choose a lower ratio"
        )
    free = np.flatnonzero(rank >= least[owner])
    order = free[np.argsort(-np.concatenate(scores)[free], kind="stable")]
    fits = np.cumsum(sizes[owner[order]]) <= limit - fixed
    return np.asarray(least + np.bincount(owner[order[fits]], minlength=len(counts)), np.int64)
