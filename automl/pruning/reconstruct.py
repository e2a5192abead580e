"""Least-squares repair of the layers that read pruned channels.

After channels are removed, the weights of a layer that read them are refitted so that its output
on calibration data is again what the dense network's was. One pass over the network in execution
order: every layer is fitted on the inputs it really gets, from layers repaired before it.

Where a layer's output is added to a shortcut, the fitted target is not the dense output but what
makes the pruned sum equal the dense sum, so that error that has built up along the shortcut is
repaid in every block (drift correction).

A weight that is read more than once, by a layer that is called again or a tied one, is fitted at
every call on what all calls so far have read. Each time it changes what has been fitted by then,
and so does one that an embedding reads. The pass is then made once more, with that weight as the
first has left it; of its layers only the intercepts are fitted again.

For a layer with inputs U (samples x features), weights W and target Y, all centred,

    W + argmin_D |U (W + D)^T - Y|^2 + ridge * mean(diag(U^T U)) * |D|^2,

solved by Cholesky in float64; the intercept goes to the layer's bias or, where it has none, to the
running mean of the batch norm behind it. Convolutions are fitted on random output positions.
Masked weights stay zero: D is then confined to the others (see ``regression.solve``).

Source: the regression is that of He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks" (arXiv 1707.06168), section 3.1, as used by AMC (arXiv 1802.03494, section 3.4).
Deviations: inputs come from the pruned network instead of the dense one; the shortcut correction
is theirs (section 3.3) generalised to any sum; a ridge that pulls to the old weights instead of
none; intercepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.plan import IndexPlan
from automl.pruning.observe import observe
from automl.pruning.refit import MaskChoice, Refit
from automl.pruning.sampling import LEAST_SAMPLES, SAMPLES_PER_FEATURE
from automl.types import Kept


@dataclass(frozen=True)
class Reconstruction:
    """Settings of the repair.

    Attributes:
        points: Output positions sampled per calibration image and layer.
        ridge: Pull towards the old weights, as a fraction of the inputs' mean power.
        scope: ``readers`` refits the layers that read pruned channels; ``downstream`` also those
            whose inputs have merely drifted.
        shortcut: Whether targets are corrected for drift along shortcuts.
        seed: Which positions are sampled.
        masks: Who chooses what stays inside layers: the criterion before the repair, or ``obs``
            layer by layer within it, where the granularity is N:M or single weights (see
            ``automl.pruning.obs_masks``).
        inputs: ``pruned``: layers are fitted on the inputs they get in the pruned network, which
            is run for it; ``dense``: on those of the dense network, from Gram matrices that are
            collected once (see ``automl.pruning.lookup``).
    """

    points: int = 10
    ridge: float = 1e-2
    scope: Literal["readers", "downstream"] = "downstream"
    shortcut: bool = True
    seed: int = 0
    masks: Literal["criterion", "obs"] = "criterion"
    inputs: Literal["pruned", "dense"] = "pruned"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.points < 1:
            raise ValueError(f"Reconstruction.points must be >= 1, got {self.points}")
        if not self.ridge > 0:
            raise ValueError(f"Reconstruction.ridge must be > 0, got {self.ridge}")
        if self.scope not in ("readers", "downstream"):
            raise ValueError(
                f"Reconstruction.scope must be 'readers' or 'downstream', got {self.scope!r}"
            )
        if self.masks not in ("criterion", "obs"):
            raise ValueError(
                f"Reconstruction.masks must be 'criterion' or 'obs', got {self.masks!r}"
            )
        if self.inputs not in ("pruned", "dense"):
            raise ValueError(
                f"Reconstruction.inputs must be 'pruned' or 'dense', got {self.inputs!r}"
            )

    def settings(self) -> dict[str, Any]:
        """What the journal's key needs."""
        chosen = asdict(self)
        if self.inputs == "pruned":  # as in journals from before there was a choice
            del chosen["inputs"]
        return {**chosen, "samples_per_feature": [SAMPLES_PER_FEATURE, LEAST_SAMPLES]}


class Repairer:
    """Refits slim networks of one dense network; what the policy cannot change is done once.

    Args:
        model: The dense network.
        plan: Its plan.
        calibration: Inputs, shape (images, ...).
        settings: How to refit.
    """

    def __init__(
        self, model: nn.Module, plan: IndexPlan, calibration: Tensor, settings: Reconstruction
    ) -> None:
        """Runs the dense network once and remembers its outputs at the sampled positions."""
        chosen = settings.points, settings.seed, settings.shortcut
        self._dense, self._settings = observe(model, plan, calibration, *chosen), settings

    @property
    def inputs(self) -> Tensor:
        """The calibration inputs, shape (images, ...), as layers are fitted on them."""
        return self._dense.inputs

    def __call__(
        self,
        slim: nn.Module,
        kept: Kept,
        units: KeptUnits,
        choose: Mapping[str, MaskChoice] | None = None,
        start: int = 0,
        known: Mapping[str, Any] | None = None,
        keep: frozenset[str] = frozenset(),
    ) -> dict[str, Any]:
        """Refits ``slim`` in place.

        Args:
            slim: Slim network in module form, eval mode.
            kept: Its kept counts, shape (targets,).
            units: The kept units of every target.
            choose: Weights that have no mask yet -> what chooses it on the inputs they really get.
            start: Layers called before this instruction have been refitted.
            known: The results of those instructions that later ones need.
            keep: Names of results of the refitted network that are wanted.

        Returns:
            The results that are wanted.
        """
        dense, ridge, scope = self._dense, self._settings.ridge, self._settings.scope

        def one_pass(leave: frozenset[int] = frozenset()) -> tuple[dict[str, Any], set[int]]:
            refit = Refit(
                dense, slim, kept, units,
                ridge=ridge, scope=scope, choose=choose or {}, start=start, leave=leave,
            )  # fmt: skip
            run = ProgramRun(slim, dense.plan, kept, [dense.inputs], refit, keep, start, known)
            run.run()
            return {name: run.value(name) for name in keep}, refit.fitted

        shared = {id(dense.sites[name].module(slim).weight) for name in dense.shared}
        with torch.no_grad():
            at_first = self._own_tensors(slim)
            values, fitted = one_pass()
            if shared & fitted:
                for tensor, value in at_first:
                    tensor.copy_(value)
                values, _ = one_pass(frozenset(shared & fitted))
        return values

    def _own_tensors(self, slim: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """What may be fitted twice, each with a copy; nothing where no weights are shared."""
        if not self._dense.shared:
            return []
        found = []
        for site in self._dense.sites.values():
            layer, norm = site.modules(slim)
            written = [layer.bias, getattr(norm, "running_mean", None)]
            shared = self._dense.shared.get(site.call.name, frozenset())
            if not shared:
                written.append(layer.weight)
            elif "bias" in shared:
                del written[0]
            found += [(t, t.detach().clone()) for t in written if isinstance(t, Tensor)]
        return found
