"""One pass over a slim network that refits its layers (see :mod:`automl.pruning.reconstruct`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.plan import Instruction
from automl.pruning.columns import as_matrices, by_columns, by_group, from_columns, write
from automl.pruning.masks import masks_of, register
from automl.pruning.observe import Observed
from automl.pruning.regression import Fit, solve
from automl.pruning.sampling import channel_dim, gather, patches
from automl.pruning.sites import Site
from automl.types import Kept

#: Chooses which weights stay: (weight, inputs of shape (groups, samples, features), groups) to
#: booleans of the weight's shape.
MaskChoice = Callable[[Tensor, Tensor, int], Tensor]


class Refit:
    """Refits every layer right before it is called, so that it reads what it really gets.

    Args:
        dense: What the dense network has.
        slim: Slim network in module form, eval mode; written to.
        kept: Its kept counts, shape (targets,).
        units: The kept units of every target.
        ridge: Of the regressions.
        scope: Which layers are refitted (see ``Reconstruction``).
        choose: Weights that have no mask yet -> what chooses it on the inputs they really get.
        start: Layers called before this instruction have been refitted.
        leave: Weights that stay as they are, by ``id``.

    Attributes:
        fitted: Weights that were refitted, by ``id``.
    """

    def __init__(
        self,
        dense: Observed,
        slim: nn.Module,
        kept: Kept,
        units: KeptUnits,
        *,
        ridge: float,
        scope: Literal["readers", "downstream"],
        choose: Mapping[str, MaskChoice],
        start: int,
        leave: frozenset[int],
    ) -> None:
        """Looks at what is gone; nothing is written yet."""
        self.fitted: set[int] = set()
        self._dense, self._slim = dense, slim
        self._ridge, self._scope, self._choose, self._leave = ridge, scope, choose, leave
        plan = dense.plan
        self._changed = plan.lengths(kept) != plan.lengths(plan.dense)
        self._masks = [axis.mask(plan.alive(units)) for axis in plan.axes]
        #: Samples of the calls so far that read a shared weight, by its id.
        self._read: dict[int, list[tuple[Tensor, Tensor]]] = {}
        sites = (dense.sites.get(step.name) for step in plan.program[:start])
        self._is_drifted = any(s is not None and _reads_less(s, self._changed) for s in sites)

    def __call__(self, run: ProgramRun, call: Instruction) -> None:
        """Refits the layer that is about to be called."""
        site = self._dense.sites.get(call.name)
        if site is None:
            return
        damaged = (
            _reads_less(site, self._changed)
            or _weight_mask(self._slim, site) is not None
            or self._choice(site) is not None
        )
        wanted = damaged or (self._is_drifted and self._scope == "downstream")
        weight = id(site.module(self._slim).weight)
        if weight in self._leave:
            self._fit_intercept(run, site)
        elif wanted:
            self._refit(run, site)
            self.fitted.add(weight)
        elif call.name in self._dense.shared:  # what it reads now counts where it is fitted later
            self._together(site, *self._samples(run, site))
        self._is_drifted |= damaged

    def _refit(self, run: ProgramRun, site: Site) -> None:
        layer, norm = site.modules(self._slim)
        inputs, goal = self._samples(run, site)
        centred, ridge = _takes_intercept(layer, norm), self._ridge
        own = (inputs, goal)
        if call_is_shared := site.call.name in self._dense.shared:
            inputs, goal = self._together(site, inputs, goal)
            centred = centred and self._has_shared_bias(site)
        groups = getattr(layer, "groups", 1)
        weight = as_matrices(layer, groups)
        choice = self._choice(site)
        if choice is not None:
            weight = solve(inputs, goal, weight, ridge, centred).weight
            register(layer, {"weight": choice(from_columns(layer, weight), inputs, groups)})
        zeros = _weight_mask(self._slim, site)
        pattern = None if zeros is None else by_columns(layer, zeros, groups)
        if pattern is not None:
            weight = weight * pattern
        fit = solve(inputs, goal, weight, ridge, centred, pattern)
        if call_is_shared and not centred:
            fit = replace(fit, intercept=_intercept(*own, fit.weight))
        write(layer, norm, fit)

    def _fit_intercept(self, run: ProgramRun, site: Site) -> None:
        """Fits what a call has for itself of a layer whose weight stays as it is."""
        layer, norm = site.modules(self._slim)
        if _takes_intercept(layer, norm) and not self._has_shared_bias(site):
            weight = as_matrices(layer, getattr(layer, "groups", 1)).clone()
            intercept = _intercept(*self._samples(run, site), weight)
            write(layer, norm, Fit(weight, intercept))

    def _has_shared_bias(self, site: Site) -> bool:
        return "bias" in self._dense.shared[site.call.name]

    def _samples(self, run: ProgramRun, site: Site) -> tuple[Tensor, Tensor]:
        """What a layer reads and is to put out, by group: (groups, samples, numbers)."""
        layer = site.module(self._slim)
        data = run.value(site.call.args[0]["ref"])
        inputs = patches(data, layer, self._dense.positions[site.call.name], site.padded)
        goal = self._wanted(run, site)
        return inputs, by_group(goal, getattr(layer, "groups", 1))

    def _together(self, site: Site, inputs: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of all calls so far that read a weight, these included.

        Each call's are centred where it has an intercept of its own.
        """
        layer, norm = site.modules(self._slim)
        if _takes_intercept(layer, norm) and not self._has_shared_bias(site):
            inputs = inputs - inputs.mean(1, keepdim=True)
            goal = goal - goal.mean(1, keepdim=True)
        read = self._read.setdefault(id(layer.weight), [])
        read.append((inputs, goal))
        return torch.cat([one for one, _ in read], 1), torch.cat([one for _, one in read], 1)

    def _choice(self, site: Site) -> MaskChoice | None:
        """What chooses the mask of a site's weight, if it is still to be chosen."""
        return self._choose.get(site.weight)

    def _wanted(self, run: ProgramRun, site: Site) -> Tensor:
        """Target of the layer's own output, shape (samples, kept output channels)."""
        targets = self._dense.targets[site.call.name]
        axis = site.layer.out_axis
        keep = slice(None) if axis is None else torch.from_numpy(np.flatnonzero(self._masks[axis]))
        if targets.total is not None and site.shortcut is not None:
            shortcut = self._early(run, site)
            channels = channel_dim(site.module(self._slim))
            if shortcut is not None and _is_alike(shortcut, targets.shape, channels):
                positions = self._dense.positions[site.call.name]
                drifted = targets.total[:, keep] - gather(shortcut, channels, positions)
                return _through_norm_backwards(drifted, self._slim, site)
        return targets.output[:, keep]

    def _early(self, run: ProgramRun, site: Site) -> Tensor | None:
        """The pruned network's shortcut, computed ahead where it does not need this layer."""
        assert site.shortcut is not None
        # Of two refitted branches the first asks for the second, which cannot wait for the first.
        if site.shortcut_needs & run.starting:
            return None
        value = run.value(site.shortcut)
        return value if isinstance(value, Tensor) else None


def _takes_intercept(layer: Any, norm: Any) -> bool:
    return getattr(layer, "bias", None) is not None or norm is not None


def _intercept(inputs: Tensor, goal: Tensor, weight: Tensor) -> Tensor:
    """What is missing on average, shape (groups, outputs)."""
    return goal.mean(1) - (inputs.mean(1, keepdim=True) @ weight).squeeze(1)


def _is_alike(value: Tensor, shape: torch.Size, channels: int) -> bool:
    """Whether a value has that shape, but for its channels: a smaller one is spread in a sum."""
    if value.dim() != len(shape):
        return False
    sizes, wanted = list(value.shape), list(shape)
    del sizes[channels], wanted[channels]
    return sizes == wanted


def _reads_less(site: Site, changed: NDArray[np.bool_]) -> bool:
    """Whether a layer reads channels some of which are gone; ``changed`` by axis."""
    axis = site.layer.in_axis
    return axis is not None and bool(changed[axis])


def _weight_mask(slim: nn.Module, site: Site) -> Tensor | None:
    """Which weights of a masked layer may be other than zero."""
    return masks_of(slim.get_submodule(site.path)).get(site.leaf)


def _through_norm_backwards(total: Tensor, slim: nn.Module, site: Site) -> Tensor:
    """What the layer must put out for its batch norm to put out ``total``."""
    if site.norm is None:
        return total
    norm: Any = slim.get_submodule(site.norm)
    deviation: Tensor = torch.sqrt(norm.running_var + norm.eps)
    if norm.weight is None:
        return total * deviation + cast(Tensor, norm.running_mean)
    # A scale near zero cannot be inverted; there the channel is its shift whatever comes in.
    scale: Tensor = norm.weight
    safe = torch.where(scale.abs() < 1e-6, torch.full_like(scale, 1e-6), scale)
    wanted: Tensor = (total - norm.bias) / safe * deviation + norm.running_mean
    return wanted
