"""``automl.prune``: one call from a network and ratios to a smaller or sparser network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from automl.graph.trace import trace
from automl.policy import Policy
from automl.pruning.criteria import Criterion
from automl.pruning.pruner import policy_from_ratios
from automl.pruning.refine import Refinement, require_inputs
from automl.pruning.sparse_pruner import SparsePruner, counts_from_ratios, pruner_for


def prune(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    ratios: float | Mapping[str, float] | Policy,
    *,
    criterion: str | Criterion = "l2",
    granularity: str | Sequence[str] = "channel",
    calibration: Tensor | None = None,
    refine: Refinement | None = None,
    rounding: int = 1,
    exclude: str | Sequence[str] = (),
) -> nn.Module:
    """Removes channels for real, or zeroes finer grains; the dense network is left as it was.

    Args:
        model: The dense network.
        example_inputs: A tensor or the positional arguments of ``forward``.
        ratios: The fraction to REMOVE, in [0, 1): one for every group of coupled channels, or by
            name of a group or layer (others stay dense), or a policy. Of a policy that was learned
            on other weights of the network only the counts are taken: which units stay is chosen
            anew on these, as ``prunepilot apply`` does.
        criterion: Which units go first; a name from conf/criterion or a ``Criterion``.
        granularity: What is removed together: ``channel``, or inside layers ``unstructured``,
            ``kernel``, ``vector:row``, ``block:1x16``, ``nm:4`` and the like, where masks keep
            exact zeros (``automl.pruning.masks``); or ``["channel", "nm:4"]``, channels first. A
            policy says it itself.
        calibration: Unlabelled inputs, shape (images, ...); the layers that read pruned channels
            are refitted on them by least squares, convolutions of all kinds and linear layers that
            are called as modules, once each. None: no repair.
        refine: After that, fits the layers of a few blocks together on them, such as
            ``automl.Refinement()``: minutes for much of the accuracy that is left to win back.
        rounding: Kept counts are multiples of this where a group is large enough.
        exclude: Shell patterns of layer names whose channels and weights must stay; one, or
            several.

    Returns:
        The slim network in eval mode, in the model's own classes where possible, else a
        ``torch.fx.GraphModule`` with the same parameter names.

    Raises:
        InputError: If a ratio is out of range, a name is unknown, the policy is of another network,
            the network cannot be traced, or ``refine`` comes without ``calibration``.

    Example:
        >>> slim = automl.prune(model, example_inputs, 0.5)
        >>> slim.conv1.weight.shape[0], model.conv1.weight.shape[0]
        (16, 32)
        >>> slim = automl.prune(model, example_inputs, {"conv1": 0.25})
        >>> slim.conv1.weight.shape[0]
        24
    """
    require_inputs(refine, calibration)
    traced = trace(model, example_inputs, exclude=exclude)
    asked = ratios if isinstance(ratios, Policy) else granularity
    pruner = pruner_for(
        traced,
        asked,
        exclude=exclude,
        criterion=criterion,
        calibration=calibration,
        refine=refine,
    )
    if isinstance(ratios, Policy):
        # Indices are of the weights they were chosen on; a policy without a hash means its own.
        is_of_others = ratios.model_hash not in ("", pruner.model_hash)
        return pruner.prune(ratios.counts_alone() if is_of_others else ratios)
    if isinstance(pruner, SparsePruner):
        return pruner.prune(pruner.policy(counts_from_ratios(pruner.plan, ratios, rounding)))
    given = dict(ratios) if isinstance(ratios, Mapping) else ratios
    return pruner.prune(policy_from_ratios(pruner, given, rounding))
