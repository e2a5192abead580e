"""Masks chosen where they are repaired: on the inputs that a layer of the sparse network gets.

A criterion chooses all masks on the dense network. Here a layer's mask is chosen when the repair
comes to it: its weights are first fitted, unmasked, to what the dense network put out, given the
inputs that the layers before it, masked already, really deliver; then Optimal Brain Surgeon goes
through that matrix column by column, and its zeros are the mask. The weights that are left are
refitted once more, all together.

Source: SparseGPT (arXiv 2301.00774), algorithm 1, for the columns. Deviations: the target is the
dense network's output rather than that of the dense weights on the same inputs, corrected along
shortcuts like all repair; the final weights are the least-squares optimum on the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from automl.pruning.criteria.obs import (
    KeepFraction,
    KeepNM,
    MaskRule,
    channels_innermost,
    obs_prune,
)
from automl.pruning.granularities.nm import NM
from automl.pruning.granularities.unstructured import Unstructured
from automl.pruning.masked_weight import MaskedWeight


@dataclass(frozen=True)
class ObsChoice:
    """Chooses the mask of one weight.

    Attributes:
        weight: Which.
        kept: Units that stay of the dense weight.
    """

    weight: MaskedWeight
    kept: int

    @staticmethod
    def fits(weight: MaskedWeight) -> bool:
        """Single weights, and N:M where no group is cut short; inputs must come second."""
        grain = weight.granularity
        whole = isinstance(grain, NM) and weight.into % grain.m == 0
        return not weight.transposed and (whole or isinstance(grain, Unstructured))

    def __call__(self, weight: Tensor, inputs: Tensor, groups: int) -> Tensor:
        """Which weights stay.

        Args:
            weight: Fitted without mask, shape (out, into, *kernel).
            inputs: What it multiplies, shape (groups, samples, features).
            groups: Of the convolution.

        Returns:
            Booleans of the shape of ``weight``.
        """
        rows = weight.flatten(1).reshape(groups, weight.shape[0] // groups, -1)
        centred = inputs - inputs.mean(1, keepdim=True)
        pruned = rows.clone()
        for group in range(groups):
            gram = (centred[group].T @ centred[group]).double()
            order = channels_innermost(weight)
            pruned[group] = obs_prune(rows[group], gram, self._rule(), order=order)
        # What was removed is exactly 0.0; ranking the rest again makes counts exact.
        return self.weight.mask(pruned.reshape(weight.shape).abs(), self.kept)

    def _rule(self) -> MaskRule:
        grain = self.weight.granularity
        if isinstance(grain, NM):
            return KeepNM(self.kept, grain.m)
        return KeepFraction(self.kept / self.weight.units)
