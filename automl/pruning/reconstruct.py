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

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.plan import IndexPlan, Instruction
from automl.pruning.masks import masks_of, register
from automl.pruning.regression import Fit, solve
from automl.pruning.sampling import (
    LEAST_SAMPLES,
    SAMPLES_PER_FEATURE,
    channel_dim,
    features,
    gather,
    layout,
    patches,
    sample,
    thinned,
)
from automl.pruning.sites import Site, find_sites, shared_tensors
from automl.types import Kept

#: Chooses which weights stay: (weight, inputs of shape (groups, samples, features), groups) to
#: booleans of the weight's shape.
MaskChoice = Callable[[Tensor, Tensor, int], Tensor]


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


@dataclass(frozen=True, eq=False)
class _Targets:
    """What the dense network has at the sampled positions of a site, shape (samples, channels).

    Attributes:
        output: The layer's.
        total: The sum's with the shortcut; None where there is none of the layer's own shape.
        shape: Of all of the layer's output.
    """

    output: Tensor
    total: Tensor | None
    shape: torch.Size


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
        # Channels last: convolutions then need no reordering, and a sampled position is one row.
        rows = calibration.contiguous(memory_format=layout(calibration))
        self._plan, self._settings, self._inputs = plan, settings, rows
        self._sites = {site.call.name: site for site in find_sites(model, plan)}
        self._shared = shared_tensors(model, plan)
        self._targets: dict[str, _Targets] = {}
        self._positions: dict[str, Tensor] = {}
        self._choose: dict[str, MaskChoice] = {}
        self._read: dict[int, list[tuple[Tensor, Tensor]]] = {}
        with torch.inference_mode():
            self._observe(model)

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
        self._choose = dict(choose or {})
        fitted: set[int] = set()

        def one_pass(leave: frozenset[int] = frozenset()) -> dict[str, Any]:
            self._read = {}
            before = self._fitting(slim, kept, units, start, leave, fitted)
            with torch.no_grad():
                run = ProgramRun(slim, self._plan, kept, [self._inputs], before, keep, start, known)
                run.run()
                return {name: run.value(name) for name in keep}

        at_first = self._own_tensors(slim)
        values = one_pass()
        shared = {id(slim.get_submodule(self._sites[name].path).weight) for name in self._shared}
        if shared & fitted:
            with torch.no_grad():
                for tensor, value in at_first:
                    tensor.copy_(value)
            values = one_pass(frozenset(shared & fitted))
        self._read = {}
        return values

    def _fitting(
        self,
        slim: nn.Module,
        kept: Kept,
        units: KeptUnits,
        start: int,
        leave: frozenset[int],
        fitted: set[int],
    ) -> Callable[[ProgramRun, Instruction], None]:
        """What refits a layer right before it is called, but the weights to leave, by their id.

        It adds the weights that it fits to ``fitted``.
        """
        changed = self._plan.lengths(kept) != self._plan.lengths(self._plan.dense)
        masks = [axis.mask(self._plan.alive(units)) for axis in self._plan.axes]
        drifted = self._is_damaged_before(start, changed)

        def before(run: ProgramRun, call: Instruction) -> None:
            nonlocal drifted
            site = self._sites.get(call.name)
            if site is None:
                return
            damaged = _reads_less(site, changed) or _weight_mask(slim, site) is not None
            damaged |= self._choice(site) is not None
            wanted = damaged or (drifted and self._settings.scope == "downstream")
            weight = id(slim.get_submodule(site.path).weight)
            if weight in leave:
                self._fit_intercept(run, slim, site, masks)
            elif wanted:
                self._refit(run, slim, site, masks)
                fitted.add(weight)
            elif call.name in self._shared:  # what it reads now counts where it is fitted later
                self._together(site, slim, *self._samples(run, slim, site, masks))
            drifted |= damaged

        return before

    def _own_tensors(self, slim: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """What may be fitted twice, each with a copy; nothing where no weights are shared."""
        if not self._shared:
            return []
        found = []
        for site in self._sites.values():
            layer, norm = _modules(slim, site)
            written = [layer.bias, getattr(norm, "running_mean", None)]
            if site.call.name not in self._shared:
                written.append(layer.weight)
            elif self._has_shared_bias(site):
                del written[0]
            found += [(t, t.detach().clone()) for t in written if isinstance(t, Tensor)]
        return found

    @property
    def inputs(self) -> Tensor:
        """The calibration inputs, shape (images, ...), as layers are fitted on them."""
        return self._inputs

    def _is_damaged_before(self, start: int, changed: NDArray[np.bool_]) -> bool:
        sites = (self._sites.get(step.name) for step in self._plan.program[:start])
        return any(site is not None and _reads_less(site, changed) for site in sites)

    # ---- the dense network, once

    def _observe(self, model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(self._settings.seed)
        wanted = frozenset(
            name
            for site in self._sites.values()
            for name in (site.call.name, site.sum_name)
            if name is not None
        )
        run = _Collector(model, self._plan, self._inputs, wanted)
        for name, value in run.values():
            for site in self._sites.values():
                layer = model.get_submodule(site.path)
                channels = channel_dim(layer)
                if site.call.name == name:
                    positions = sample(value, channels, self._settings.points, generator)
                    positions = thinned(positions, features(layer))
                    self._positions[name] = positions
                    output = gather(value, channels, positions)
                    self._targets[name] = _Targets(output, None, value.shape)
                elif site.sum_name == name and self._settings.shortcut:
                    found = self._targets[site.call.name]
                    if value.shape == found.shape:
                        total = gather(value, channels, self._positions[site.call.name])
                        self._targets[site.call.name] = replace(found, total=total)

    # ---- one layer

    def _refit(
        self, run: ProgramRun, slim: nn.Module, site: Site, masks: list[np.ndarray[Any, Any]]
    ) -> None:
        layer, norm = _modules(slim, site)
        inputs, goal = self._samples(run, slim, site, masks)
        centred, ridge = _takes_intercept(layer, norm), self._settings.ridge
        own = (inputs, goal)
        if call_is_shared := site.call.name in self._shared:
            inputs, goal = self._together(site, slim, inputs, goal)
            centred = centred and self._has_shared_bias(site)
        groups = getattr(layer, "groups", 1)
        weight = as_matrices(layer, groups)
        choice = self._choice(site)
        if choice is not None:
            weight = solve(inputs, goal, weight, ridge, centred).weight
            register(layer, {"weight": choice(_from_columns(layer, weight), inputs, groups)})
        zeros = _weight_mask(slim, site)
        pattern = None if zeros is None else _by_columns(layer, zeros, groups)
        if pattern is not None:
            weight = weight * pattern
        fit = solve(inputs, goal, weight, ridge, centred, pattern)
        if call_is_shared and not centred:
            fit = replace(fit, intercept=_intercept(*own, fit.weight))
        write(layer, norm, fit)

    def _fit_intercept(
        self, run: ProgramRun, slim: nn.Module, site: Site, masks: list[np.ndarray[Any, Any]]
    ) -> None:
        """Fits what a call has for itself of a layer whose weight stays as it is."""
        layer, norm = _modules(slim, site)
        if _takes_intercept(layer, norm) and not self._has_shared_bias(site):
            weight = as_matrices(layer, getattr(layer, "groups", 1)).clone()
            intercept = _intercept(*self._samples(run, slim, site, masks), weight)
            write(layer, norm, Fit(weight, intercept))

    def _has_shared_bias(self, site: Site) -> bool:
        return "bias" in self._shared[site.call.name]

    def _samples(
        self, run: ProgramRun, slim: nn.Module, site: Site, masks: list[np.ndarray[Any, Any]]
    ) -> tuple[Tensor, Tensor]:
        """What a layer reads and is to put out, by group: (groups, samples, numbers)."""
        layer: Any = slim.get_submodule(site.path)
        data = run.value(site.call.args[0]["ref"])
        inputs = patches(data, layer, self._positions[site.call.name], site.padded)
        goal = self._wanted(run, slim, site, masks)
        return inputs, _by_group(goal, getattr(layer, "groups", 1))

    def _together(
        self, site: Site, slim: nn.Module, inputs: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The samples of all calls so far that read a weight, these included.

        Each call's are centred where it has an intercept of its own.
        """
        layer, norm = _modules(slim, site)
        if _takes_intercept(layer, norm) and not self._has_shared_bias(site):
            inputs = inputs - inputs.mean(1, keepdim=True)
            goal = goal - goal.mean(1, keepdim=True)
        read = self._read.setdefault(id(layer.weight), [])
        read.append((inputs, goal))
        return torch.cat([one for one, _ in read], 1), torch.cat([one for _, one in read], 1)

    def _choice(self, site: Site) -> MaskChoice | None:
        """What chooses the mask of a site's weight, if it is still to be chosen."""
        return self._choose.get(f"{site.path}.weight")

    def _wanted(
        self, run: ProgramRun, slim: nn.Module, site: Site, masks: list[np.ndarray[Any, Any]]
    ) -> Tensor:
        """Target of the layer's own output, shape (samples, kept output channels)."""
        targets = self._targets[site.call.name]
        axis = site.layer.out_axis
        keep = slice(None) if axis is None else torch.from_numpy(np.flatnonzero(masks[axis]))
        if targets.total is not None and site.shortcut is not None:
            shortcut = self._early(run, site)
            channels = channel_dim(slim.get_submodule(site.path))
            if shortcut is not None and _is_alike(shortcut, targets.shape, channels):
                positions = self._positions[site.call.name]
                drifted = targets.total[:, keep] - gather(shortcut, channels, positions)
                return _through_norm_backwards(drifted, slim, site)
        return targets.output[:, keep]

    def _early(self, run: ProgramRun, site: Site) -> Tensor | None:
        """The pruned network's shortcut, computed ahead where it does not need this layer."""
        assert site.shortcut is not None
        # Of two refitted branches the first asks for the second, which cannot wait for the first.
        if site.shortcut_needs & run.starting:
            return None
        value = run.value(site.shortcut)
        return value if isinstance(value, Tensor) else None


def _modules(slim: nn.Module, site: Site) -> tuple[Any, Any]:
    """A site's layer and the batch norm behind it, if any."""
    norm = None if site.norm is None else slim.get_submodule(site.norm)
    return slim.get_submodule(site.path), norm


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


class _Collector:
    """Runs the dense network and yields wanted values in the order they are made."""

    def __init__(
        self, model: nn.Module, plan: IndexPlan, inputs: Tensor, wanted: frozenset[str]
    ) -> None:
        self._run = ProgramRun(model, plan, plan.dense, [inputs], keep=wanted)
        self._plan, self._wanted = plan, wanted

    def values(self) -> Any:
        for instruction in self._plan.program:
            if instruction.op == "output":
                return
            value = self._run.value(instruction.name)
            if instruction.name in self._wanted:
                yield instruction.name, value
                self._run.forget(instruction.name)


def as_matrices(layer: nn.Module, groups: int) -> Tensor:
    """Weights as (groups, features of a group, outputs of a group), in the order of patches."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return _by_columns(layer, weight, groups)


def _by_columns(layer: nn.Module, weight: Tensor, groups: int) -> Tensor:
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out of a group, *kernel)
        apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return apart.transpose(2, 3).reshape(groups, -1, weight.shape[1])
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)


def _from_columns(layer: nn.Module, columns: Tensor) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        groups, _, outputs = columns.shape
        apart = columns.reshape(groups, weight.shape[0] // groups, -1, outputs)
        return apart.transpose(2, 3).reshape(weight.shape)
    return columns.transpose(1, 2).reshape(weight.shape)


def _weight_mask(slim: nn.Module, site: Site) -> Tensor | None:
    """Which weights of a masked layer may be other than zero."""
    return masks_of(slim.get_submodule(site.path)).get("weight")


def _by_group(wanted: Tensor, groups: int) -> Tensor:
    """(samples, channels) to (groups, samples, channels of a group)."""
    return wanted.reshape(len(wanted), groups, -1).transpose(0, 1)


# ---- through batch norm, and writing back


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


def write(layer: nn.Module, norm: Any, fit: Fit) -> None:
    """Puts a fit into a layer, and its intercept into the layer's bias or its norm's mean."""
    weight: Any = layer.weight
    weight.copy_(_from_columns(layer, fit.weight))
    intercept = fit.intercept.reshape(-1).to(weight.dtype)
    bias: Any = getattr(layer, "bias", None)
    if bias is not None:
        bias.copy_(intercept)
    elif norm is not None:
        norm.running_mean.sub_(intercept)
