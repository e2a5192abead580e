"""The pruner: from kept counts to a policy, and from a policy to a repaired slim network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.graph.materialise import KeptUnits, Materialiser
from automl.graph.trace import Trace
from automl.hashing import digest, weights_hash
from automl.policy import Policy
from automl.pruning.calibration import batches, require_one_input
from automl.pruning.criteria import Context, Criterion, Scores, load, require
from automl.pruning.laid_back import computes_the_same, laid_back
from automl.pruning.lookup import LookupRepairer
from automl.pruning.masks import attach, masks_of, watch
from automl.pruning.reconstruct import Reconstruction, Repairer
from automl.pruning.refine import Refinement, Refiner
from automl.pruning.refit import MaskChoice
from automl.pruning.sites import find_sites, fitted_together
from automl.types import InputError, Kept

if TYPE_CHECKING:
    from automl.graph.prefix import Cut
    from automl.pruning.continuation import Continuation, Recording

#: Inputs on which it is checked that a network laid back computes the same.
_COMPARED = 16


class Pruner:
    """Prunes one dense network, as often as asked.

    Args:
        trace: The traced network.
        criterion: Importance of units; a name from conf/criterion or a :class:`Criterion`.
        calibration: Unlabelled training inputs, normalised as the network expects, shape
            (images, ...); None leaves the layers that read pruned channels as they are.
        reconstruct: Settings of the least-squares repair; None turns it off. Ignored without
            ``calibration``.
        batchnorm_recalibration: Re-estimate batch-norm statistics on ``calibration`` after it.
        refine: Settings of the refinement that comes last; None for none. Ignored without
            ``calibration``.
        context: What the criterion looks at; by default the network with ``calibration``.
        report: Called with a line for every part of a network that was refined.

    Raises:
        InputError: There is no such criterion, or the context lacks what it needs.
    """

    def __init__(
        self,
        trace: Trace,
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
        self.plan = trace.plan
        require_one_input(trace, calibration)
        self.criterion = _criterion(criterion)
        self.context = context or Context(trace.model, trace.plan, calibration)
        require(self.criterion, self.context)
        self._calibration = calibration
        self._reconstruct = reconstruct if calibration is not None else None
        self._recalibrate = batchnorm_recalibration and calibration is not None
        self._refine = refine if calibration is not None else None
        self._report = report

    def prepare(self, ranked: bool = True) -> None:
        """Computes all that no policy changes, unless it is there.

        Call it before handing the pruner to other processes, so that all have the same, bit for
        bit, and none computes it again.

        Args:
            ranked: Whether units are to be chosen by importance.
        """
        if ranked:
            _ = self.order
        _ = self.materialise, self.model_hash, self.fingerprint, self._batchnorm_pairs
        if self.repairs:
            _ = self._repairer

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what units are ranked by: where it is sent, policies are given."""
        return {**self.__dict__, "context": None}

    # ---- who is kept

    @cached_property
    def scores(self) -> Scores:
        """Importance of every unit of every target, higher is better."""
        return self.criterion(self.context)

    def unit_scores(self, criterion: str | None = None, **settings: Any) -> Scores:
        """Importance of every unit by another criterion.

        Args:
            criterion: A name from conf/criterion; None gives :attr:`scores`.
            settings: Replace those of the criterion's file.

        Raises:
            InputError: There is no such criterion, or the context lacks what it needs.
        """
        return self.scores if criterion is None else load(criterion, **settings)(self.context)

    @cached_property
    def order(self) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Units of every target, most important first; ties by position."""
        return [np.argsort(-scores, kind="stable") for scores in self.scores]

    def kept_units(self, kept: Kept) -> list[tuple[int, ...]]:
        """The units that stay: the most important ones, ascending, for every target."""
        return [
            tuple(np.sort(order[:count]).tolist())
            for order, count in zip(self.order, kept, strict=True)
        ]

    def policy(self, kept: Kept) -> Policy:
        """The policy that keeps the most important ``kept`` units of every target."""
        units = self.kept_units(kept)
        indices = [
            None if len(u) == t.units else u for u, t in zip(units, self.plan.targets, strict=True)
        ]
        return Policy.from_kept(
            self.plan.targets, kept, indices=indices, model_hash=self.model_hash
        )

    # ---- the network

    @cached_property
    def materialise(self) -> Materialiser:
        """Makes slim networks without repair."""
        return self.trace.materialise

    def prune(self, policy: Policy) -> nn.Module:
        """The slim network, repaired, in eval mode; the dense one is not touched.

        Raises:
            InputError: If the policy is of another network.
        """
        policy.check(self.plan.targets)
        return self.make(policy.kept(self.plan.targets), self.units_of(policy))

    def make(
        self,
        kept: Kept,
        units: KeptUnits,
        masks: Mapping[str, Tensor] | None = None,
        choose: Mapping[str, MaskChoice] | None = None,
    ) -> nn.Module:
        """The slim network of chosen units, repaired and refined, in eval mode.

        Args:
            kept: Kept counts, shape (targets,).
            units: The units that stay, of every target.
            masks: Parameter -> which of its weights in the slim network stay; the others are 0.0
                and remain so (``automl.pruning.masks``).
            choose: Other parameters -> what chooses their masks within the repair.

        Raises:
            ValueError: Masks are to be chosen within a repair that is turned off.
        """
        slim = self._repaired(kept, units, masks, choose)
        if self._refiner is not None and self._is_damaged(slim, kept):
            self._refiner(slim, kept, units)
        return self._finished(slim, kept)

    def unrefined(self, kept: Kept, units: KeptUnits) -> nn.Module:
        """The slim network of chosen units, repaired and no more; see :meth:`make`."""
        return self._finished(self._repaired(kept, units), kept)

    def _finished(self, slim: nn.Module, kept: Kept) -> nn.Module:
        network = self.materialise.finish(slim, kept)
        if masks_of(network):  # may be the dense network's, too
            watch(network)
        return network

    def _repaired(
        self,
        kept: Kept,
        units: KeptUnits,
        masks: Mapping[str, Tensor] | None = None,
        choose: Mapping[str, MaskChoice] | None = None,
    ) -> nn.Module:
        """The slim network in module form."""
        if choose and not self.repairs:
            raise ValueError("Pruner.make: choose must be empty without repair")
        slim = self.materialise.module_form(units)
        attach(slim, masks or {})
        self.repair(slim, kept, units, choose)
        return slim

    @property
    def repairs(self) -> bool:
        """Whether layers are refitted."""
        return self._reconstruct is not None

    @property
    def chooses_masks(self) -> bool:
        """Whether masks are chosen within the repair where the granularity allows."""
        return self._reconstruct is not None and self._reconstruct.masks == "obs"

    def repair(
        self,
        network: nn.Module,
        kept: Kept,
        units: KeptUnits,
        choose: Mapping[str, MaskChoice] | None = None,
        towards: nn.Module | None = None,
        start: int = 0,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """Refits a slim or masked network in place, where this pruner repairs at all.

        Args:
            network: In eval mode, with the module names of the dense network.
            kept: Its kept counts, shape (targets,).
            units: The units that it has kept, of every target.
            choose: Parameters without mask -> what chooses it.
            towards: What the network is to compute again, in the dense network's shapes; None
                for the dense network.
            start: Layers called before this instruction of the plan have been refitted.
            known: The results of those instructions that later ones need, on the calibration
                inputs.
        """
        damaged = choose or self._is_damaged(network, kept)
        if self._reconstruct is not None and damaged:
            repairer = self._repairer if towards is None else self._repairer_towards(towards)
            if isinstance(repairer, Repairer):
                repairer(network, kept, units, choose, start, known)
            else:
                repairer(network, kept, units, choose)
        if self._recalibrate:
            self._recalibrate_batchnorm(network, kept)

    def _is_damaged(self, network: nn.Module, kept: Kept) -> bool:
        return bool((kept < self.plan.dense).any() or masks_of(network))

    # ---- networks that begin alike

    def continuation(
        self, scorer: Any, fold: Callable[[Any], Any] | None = None
    ) -> Continuation | None:
        """Prunes and scores policies from where they begin to differ from a reference.

        Args:
            scorer: Scores networks.
            fold: What is done to them before.

        Returns:
            None where the scorer does not number its batches, and where networks are refined.
        """
        from automl.pruning.continuation import Continuation

        numbers = getattr(scorer, "numbers_batches", False)
        return Continuation(self, scorer, fold) if numbers and self._refine is None else None

    @property
    def fitted_together(self) -> list[tuple[str, str]]:
        """Pairs of instructions of the plan that no cut may separate."""
        return fitted_together(self.trace.model, self.plan)

    def refitting(
        self, slim: nn.Module, kept: Kept, units: KeptUnits, cuts: tuple[Cut, ...], most: float
    ) -> Recording:
        """Repairs a slim network in place, as :meth:`repair` does, and keeps what it computes.

        Args:
            slim: In module form.
            kept: Its kept counts, shape (targets,).
            units: The units that it has kept.
            cuts: Where its values may be wanted.
            most: Bytes there are for them.

        Returns:
            One batch of values, of the cuts that fit; none where no calibration inputs are run.
        """
        from automl.pruning.continuation import Recording, chosen_cuts

        repairer = None if self._reconstruct is None else self._repairer
        if not isinstance(repairer, Repairer):
            self.repair(slim, kept, units)
            return Recording()
        with torch.no_grad():
            share = most / len(repairer.inputs)
            cuts = chosen_cuts(slim, self.plan, kept, cuts, repairer.inputs, share)
        names = Recording(cuts).names
        recording = Recording(cuts, [repairer(slim, kept, units, keep=names)])
        if self._recalibrate:
            self._recalibrate_batchnorm(slim, kept)
        return recording

    def units_of(self, policy: Policy) -> KeptUnits:
        """The units that the policy names, else the most important ones."""
        named = {decision.target: decision.indices for decision in policy.decisions}
        chosen = self.kept_units(policy.kept(self.plan.targets))
        return [named[target.name] or chosen[target.index] for target in self.plan.targets]

    @cached_property
    def _refiner(self) -> Refiner | None:
        if self._refine is None or self._calibration is None:
            return None
        return Refiner(
            self.trace.model,
            self.plan,
            self._calibration,
            self._refine,
            self.fitted_together,
            self._report,
        )

    @cached_property
    def _repairer(self) -> Repairer | LookupRepairer:
        return self._repairer_towards(self.trace.model)

    def _repairer_towards(self, model: nn.Module) -> Repairer | LookupRepairer:
        assert self._reconstruct is not None and self._calibration is not None
        kind = LookupRepairer if self._reconstruct.inputs == "dense" else Repairer
        return kind(model, self.plan, self._calibration, self._reconstruct)

    def aim(self, network: nn.Module, units: KeptUnits) -> nn.Module | None:
        """What a trained network is to compute again after it was pruned further.

        Returns:
            A copy of the network in the dense network's shapes; None where nothing is repaired,
            or where it computes something else in those shapes (layer norms over pruned
            channels), so that the dense network must do.
        """
        if self._reconstruct is None or self._calibration is None:
            return None
        whole = laid_back(network, self.trace.model, self.plan, units)
        same = computes_the_same(network, whole, self._calibration[:_COMPARED])
        return whole if same else None

    def _recalibrate_batchnorm(self, slim: nn.Module, kept: Kept) -> None:
        from automl.training.batchnorm import recalibrate_batchnorm

        assert self._calibration is not None
        network = slim
        if not isinstance(slim, GraphModule):
            network = self.materialise.finish(slim, kept)
        try:
            recalibrate_batchnorm(network, batches(self._calibration))
        except ValueError as error:
            if len(self._calibration) > 1:
                raise
            raise InputError(
                "batch norms cannot be estimated anew on one calibration input: give two or more"
            ) from error

    def for_inference(self, network: nn.Module) -> nn.Module:
        """The same function without the batch norms that can be folded into layers.

        Args:
            network: The dense network or what :meth:`prune` returned, in eval mode; what is not
                folded is shared with it.
        """
        return fold_batchnorm(network, self._batchnorm_pairs)

    @cached_property
    def _batchnorm_pairs(self) -> tuple[tuple[str, str], ...]:
        return batchnorm_pairs(self.plan)

    # ---- identity

    @cached_property
    def model_hash(self) -> str:
        """Hash of the dense weights."""
        return weights_hash(self.trace.model)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies everything besides the policy that decides what :meth:`prune` returns."""
        calibration = None
        if self._calibration is not None and (
            self._reconstruct or self._recalibrate or self._refine
        ):
            calibration = digest(self._calibration)
        settings = None if self._reconstruct is None else self._reconstruct.settings()
        scored_by = self.context.fingerprint(self.criterion)
        refined = [] if self._refine is None else [asdict(self._refine)]  # as in older journals
        functions = []  # older journals are of repairs that left them alone
        if self._reconstruct is not None:
            sites = find_sites(self.trace.model, self.plan)
            functions = [site.weight for site in sites if site.leaves is not None]
        more = [*refined, functions] if functions else refined
        return digest(scored_by, settings, self._recalibrate, calibration, *more)


def _criterion(criterion: str | Criterion) -> Criterion:
    return load(criterion) if isinstance(criterion, str) else criterion


def policy_from_ratios(
    pruner: Pruner, ratios: float | dict[str, float], rounding: int, min_keep: float = 0.0
) -> Policy:
    """A policy that removes the given fraction of every target, or of the named ones.

    Args:
        pruner: The pruner.
        ratios: Fraction REMOVED in [0, 1), of all targets or by group or layer name.
        rounding: Kept counts are multiples of this where a target is large enough.
        min_keep: Least fraction of its units that every target keeps.

    Raises:
        InputError: For arguments out of range and unknown names.
    """
    from automl.fitting import fewest, round_ratio

    targets = pruner.plan.targets
    asked = np.zeros(len(targets))
    if isinstance(ratios, dict):
        for name, ratio in ratios.items():
            asked[pruner.plan.target_index(name)] = _checked(ratio, name)
    else:
        asked[:] = _checked(ratios, "ratio")
    kept = np.array(
        [
            round_ratio(ratio, target.units, rounding if target.kind != "head" else 1)
            for ratio, target in zip(asked, targets, strict=True)
        ],
        dtype=np.int64,
    )
    return pruner.policy(np.maximum(kept, fewest(targets, rounding, min_keep)))


def _checked(ratio: float, name: str) -> float:
    if not isinstance(ratio, (int, float)) or isinstance(ratio, bool) or not 0 <= ratio < 1:
        raise InputError(f"pruning ratio of {name!r} must be in [0, 1), got {ratio!r}")
    return float(ratio)
