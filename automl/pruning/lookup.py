"""Repair by look-up: layers refitted from one set of Gram matrices of the dense network.

The textbook procedure (He et al., arXiv 1707.06168, section 3.1, as AMC's official code has it)
fits a layer on the inputs that it has in the DENSE network. Then nothing has to be run for a
policy: with G the Gram matrix of a layer's inputs, S those that stay and R those that go,

    W_S + (G_SS + ridge * mean(diag(G_SS)))^-1 G_SR W_R

is the refitted weight, so that G is collected once and a policy costs one solve per layer. Units
that stay are the first ones of one order and their counts are rounded, so few sets S occur: what
was solved is kept and looked up.

What that gives up against :mod:`automl.pruning.reconstruct`: error of earlier layers is not repaid
in later ones, and neither is drift along shortcuts. Layers that are called more than once are
fitted on what all calls read. Layers with groups stay as they are: in a
depthwise layer channels go with their own filter, and nothing is left to refit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.plan import IndexPlan, Instruction
from automl.pruning.columns import as_matrices, write
from automl.pruning.masks import masks_of
from automl.pruning.reconstruct import Reconstruction
from automl.pruning.refit import MaskChoice
from automl.pruning.regression import Fit, moments, regularised
from automl.pruning.sampling import channel_dim, features, layout, patches, sample, thinned
from automl.pruning.sites import Site, find_sites
from automl.types import InputError, Kept

#: Which units of an axis stay.
_Mask = np.ndarray[Any, np.dtype[np.bool_]]

#: Bytes of solutions that are kept.
_MOST_KEPT = 256 << 20


@dataclass(frozen=True, eq=False)
class _Layer:
    """What the dense network says of one layer's inputs.

    Attributes:
        gram: Of the centred inputs, float64, shape (features, features).
        mean: Of the inputs, float64, shape (features,).
        weight: Dense weight, float64, shape (features, outputs).
        bias: Dense bias, float64, shape (outputs,); zeros where there is none.
        samples: How many there were.
    """

    gram: Tensor
    mean: Tensor
    weight: Tensor
    bias: Tensor
    samples: int


class LookupRepairer:
    """Refits slim networks of one dense network without running them.

    Args:
        model: The dense network.
        plan: Its plan.
        calibration: Inputs, shape (images, ...).
        settings: How to refit; ``scope`` and ``shortcut`` say nothing here.
    """

    def __init__(
        self, model: nn.Module, plan: IndexPlan, calibration: Tensor, settings: Reconstruction
    ) -> None:
        """Runs the dense network once and collects the Gram matrices."""
        self._plan, self._settings = plan, settings
        sites = find_sites(model, plan)
        self._sites = {site.call.name: site for site in sites if _can_change(model, site)}
        self._layers: dict[str, _Layer] = {}
        self._solved: dict[tuple[str, bytes], tuple[Tensor, Tensor]] = {}
        self._room = _MOST_KEPT
        rows = calibration.contiguous(memory_format=layout(calibration))
        generator = torch.Generator().manual_seed(settings.seed)
        calls: dict[str, list[Site]] = {}
        for site in self._sites.values():
            calls.setdefault(site.weight, []).append(site)
        read: dict[str, list[Tensor]] = {}

        def before(run: ProgramRun, call: Instruction) -> None:
            site = self._sites.get(call.name)
            if site is not None:
                data = run.value(call.args[0]["ref"])
                inputs = self._inputs(model, site, data, len(rows), generator)
                read.setdefault(site.weight, []).append(inputs)
                if site is calls[site.weight][-1]:
                    self._layers |= _layers(model, calls[site.weight], read.pop(site.weight))

        with torch.inference_mode():
            ProgramRun(model, plan, plan.dense, [rows], before).run()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what was solved: other processes solve for themselves."""
        return {**self.__dict__, "_solved": {}, "_room": _MOST_KEPT}

    def __call__(
        self,
        slim: nn.Module,
        kept: Kept,
        units: KeptUnits,
        choose: Mapping[str, MaskChoice] | None = None,
    ) -> None:
        """Refits ``slim`` in place.

        Args:
            slim: Slim network in module form, eval mode.
            kept: Its kept counts, shape (targets,).
            units: The kept units of every target.
            choose: Must be empty.

        Raises:
            InputError: Weights are masked.
        """
        if choose or masks_of(slim):
            raise InputError("repair.reconstruction.inputs=dense is for granularity=channel")
        stays = [axis.mask(self._plan.alive(units)) for axis in self._plan.axes]
        with torch.no_grad():
            for name, site in self._sites.items():
                inputs, outputs = site.layer.in_axis, site.layer.out_axis
                if inputs is None or bool(stays[inputs].all()):
                    continue
                weight, intercept = self._solution(name, stays[inputs])
                if outputs is not None:
                    keep = torch.from_numpy(np.flatnonzero(stays[outputs])).to(weight.device)
                    weight, intercept = weight[:, keep], intercept[keep]
                write(*site.modules(slim), Fit(weight[None], intercept[None]))

    def _inputs(
        self,
        model: nn.Module,
        site: Site,
        data: Tensor,
        images: int,
        generator: torch.Generator,
    ) -> Tensor:
        """What makes up sampled outputs of a call, shape (1, samples, features)."""
        module: Any = site.module(model)
        one = site.outputs(module, data[:1])
        outputs = one.expand(len(data), *one.shape[1:])
        points = self._settings.points
        places = sample(outputs, channel_dim(module), points, images, generator)
        places = thinned(places, features(module))
        return patches(data, module, places, site.padded)

    def _solution(self, name: str, stays: _Mask) -> tuple[Tensor, Tensor]:
        """Weight (kept features, all outputs) and intercept (all outputs) of a layer."""
        key = (name, np.packbits(stays).tobytes())
        found = self._solved.get(key)
        if found is None:
            found = self._solve(self._layers[name], stays)
            size = found[0].numel() * found[0].element_size()
            if size <= self._room:
                self._solved[key], self._room = found, self._room - size
        return found

    def _solve(self, layer: _Layer, stays: _Mask) -> tuple[Tensor, Tensor]:
        places = len(layer.mean) // len(stays)  # of a kernel: features go by channel, then place
        alive = torch.from_numpy(np.repeat(stays, places)).to(layer.gram.device)
        keep, gone = alive.nonzero()[:, 0], (~alive).nonzero()[:, 0]
        rows = layer.gram[keep]
        residual = rows[:, gone] @ layer.weight[gone]
        noise = layer.samples * 1e-12 * layer.mean[keep].square().mean()[None]
        change = regularised(rows[:, keep][None], residual[None], self._settings.ridge, noise)[0]
        new = layer.weight[keep] + change
        intercept = layer.bias + layer.mean @ layer.weight - layer.mean[keep] @ new
        return new.float(), intercept.float()


def _layers(model: nn.Module, sites: Sequence[Site], inputs: Sequence[Tensor]) -> dict[str, _Layer]:
    """Of each call of a layer, from what its calls read; the weight is fitted on all of that."""
    module: Any = sites[0].module(model)
    weight = as_matrices(module, 1)[0].double()
    bias = torch.zeros(weight.shape[1], dtype=weight.dtype, device=weight.device)
    if getattr(module, "bias", None) is not None:  # one intercept for all calls
        bias = module.bias.detach().double()
        found = [moments(torch.cat(list(inputs), 1), centred=True)] * len(sites)
        gram = found[0][0]
    else:
        pairs = zip(sites, inputs, strict=True)
        found = [moments(values, centred=site.norm is not None) for site, values in pairs]
        gram = torch.stack([one for one, _ in found]).sum(0)
    samples = sum(values.shape[1] for values in inputs)
    return {
        site.call.name: _Layer(gram[0], mean[0, 0], weight, bias, samples)
        for site, (_, mean) in zip(sites, found, strict=True)
    }


def _can_change(model: nn.Module, site: Site) -> bool:
    return getattr(site.module(model), "groups", 1) == 1
