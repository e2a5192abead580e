"""What schedules work on: masks inside layers, or whole channels cut for real at every stage."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl.graph.mask_buffers import SUFFIX
from automl.graph.materialise import Materialiser
from automl.policy import Policy
from automl.pruning.granularities.ranking import top
from automl.pruning.laid_back import laid_back
from automl.pruning.masks import attach, enforce, masks_of, watch
from automl.pruning.pruner import Pruner
from automl.pruning.schedules import AfterStep
from automl.pruning.sparse_pruner import SparsePruner
from automl.types import InputError, Kept


class Training(Protocol):
    """How a session trains."""

    def __call__(
        self, network: nn.Module, epochs: int, last: bool, after_step: AfterStep | None
    ) -> None:
        """Trains in place; ``last`` keeps the best epoch by validation score."""

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Normalised training inputs and labels, another batch for every number."""

    def untrained(self) -> nn.Module:
        """The dense network with its first, random weights.

        Raises:
            InputError: They are not known.
        """


def open_session(
    pruner: Pruner | SparsePruner,
    policy: Policy,
    training: Training,
    pruned: Callable[[], nn.Module] | None = None,
) -> MaskSession | ChannelSession:
    """The session that leads to a policy.

    Args:
        pruner: Of the dense network.
        policy: What is kept in the end; which units, the sessions decide on the way.
        training: How to train.
        pruned: Gives what the pruner makes of the policy, if that is kept: asked, and copied,
            where everything is pruned at once. What is pruned in stages is not refined.
    """
    if isinstance(pruner, SparsePruner):
        return MaskSession(pruner, policy, training, pruned)
    return ChannelSession(pruner, policy, training, pruned)


class _Session:
    """What both kinds share: training, and sharing out ratios.

    Attributes:
        network: As it is now.
    """

    network: nn.Module

    def __init__(self, training: Training) -> None:
        self._training = training
        #: Whether the weights are no longer the dense network's: repair then aims at what the
        #: network computed before it was pruned further, or training would be undone.
        self._trained = False

    def train(
        self, epochs: int, *, last: bool = False, after_step: AfterStep | None = None
    ) -> None:
        """Trains the network as it is."""
        self._training(self.network, epochs, last, after_step)
        self._trained = True
        self.network.eval()

    def regrow(self, fraction: float, number: int) -> None:
        """Refuses; sessions of masks do it."""
        raise InputError("only weights inside layers can be regrown; see schedule=rigl")


class MaskSession(_Session):
    """Masks inside layers; channels, where they are pruned, too, go at the first stage."""

    def __init__(
        self,
        pruner: SparsePruner,
        policy: Policy,
        training: Training,
        pruned: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Prunes nothing yet."""
        super().__init__(training)
        self._pruner, self.policy, self._pruned = pruner, policy, pruned
        self._channels, self._inside = pruner.plan.split(policy.kept(pruner.plan.targets))
        self._units = pruner.units(policy)
        self._point: dict[str, Tensor] | None = None
        self._started = False

    def prune(self, ratio: Callable[[float], float]) -> None:
        """Masks what now scores least, beside what is masked already, and repairs."""
        kept = _counts([w.units for w in self._pruner.plan.weights], self._inside, ratio)
        if not self._started and (kept == self._inside).all():
            self._started = True
            ready = self._pruned
            self.network = self._pruner.prune(self.policy) if ready is None else _copied(ready())
            return
        self._start()
        aim = self._aim()
        attach(self.network, self._chosen(kept))
        self._repair(aim)

    def blend(self, share: float) -> None:
        """Masks the part of what goes that has the least magnitude."""
        self._start()
        aim = self._aim()
        _blend(self.network, self._target, share)
        self._repair(aim)

    def _aim(self) -> nn.Module | None:
        return self._pruner.channels.aim(self.network, self._units) if self._trained else None

    def _repair(self, towards: nn.Module | None) -> None:
        self._pruner.channels.repair(self.network, self._channels, self._units, towards=towards)
        enforce(self.network)

    @cached_property
    def _target(self) -> dict[str, Tensor]:
        return self._chosen(self._inside)

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self.network = self._pruner.channels.unrefined(self._channels, self._units)

    def _chosen(self, kept: Kept) -> dict[str, Tensor]:
        """Masks by the scores of the network as it is; pruned weights go first."""
        pruner, before = self._pruner, masks_of(self.network)
        names = [
            weight.name
            for weight, count in zip(pruner.plan.weights, kept.tolist(), strict=True)
            if count < weight.units
        ]
        whole = self.network.eval()
        if (self._channels < pruner.plan.base.dense).any():
            whole = laid_back(whole, pruner.trace.model, pruner.plan.base, self._units)
        context = replace(pruner.channels.context, model=whole, cache={})
        found = pruner.channels.criterion.saliency(context, names)
        saliency = pruner.left(found, self._units)
        for name in before.keys() & saliency.keys():
            scores = saliency[name].double()
            saliency[name] = scores.masked_fill(~before[name], -torch.inf)
        return pruner.masks_by(saliency, kept)

    def start_anew(self) -> None:
        """Starts from the first weights of the network, slim where channels are pruned."""
        untrained = _like(self._training.untrained(), self._pruner.trace.model)
        self._started = self._trained = True
        self.network = Materialiser(untrained, self._pruner.plan.base)(self._units)

    def remember(self) -> None:
        """Keeps a copy of all weights."""
        state = self.network.state_dict()
        self._point = {n: t.clone() for n, t in state.items() if not n.endswith(SUFFIX)}

    @torch.no_grad()
    def rewind(self) -> None:
        """Copies them back, without what is pruned."""
        if self._point is None:
            raise ValueError("Session.rewind: remember() must come first, got no point")
        self.network.load_state_dict(self._point, strict=False)
        enforce(self.network)

    def regrow(self, fraction: float, number: int) -> None:
        """Moves the least weights of every mask to where the gradient is largest."""
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        # Layers that are frozen do not learn: their weights stay where they are.
        masks = {n: m for n, m in masks_of(self.network).items() if parameters[n].requires_grad}
        if not masks:
            return
        gradients = self._gradients(list(masks), number)
        moved = {
            name: regrown(mask, parameters[name].detach(), gradients[name], fraction)
            for name, mask in masks.items()
        }
        for name, mask in masks.items():
            mask.copy_(moved[name])  # in place: hooks and optimisers hold this tensor
        enforce(self.network)

    def _gradients(self, names: Sequence[str], number: int) -> dict[str, Tensor]:
        """Gradients of the masked weights as if they were not, on a batch, in eval mode."""
        inputs, labels = self._training.batch(number)
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        loss = self._pruner.channels.context.loss
        if loss is None:
            raise InputError("schedule rigl needs a loss: give loss(outputs, labels)")
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        with torch.enable_grad():
            value = loss(self.network(inputs), labels)
            found = torch.autograd.grad(value, [parameters[name] for name in names])
        for module, mode in modes:
            module.training = mode
        return dict(zip(names, found, strict=True))

    def finish(self) -> nn.Module:
        """The network with its masks."""
        return self.network.eval()


class ChannelSession(_Session):
    """Whole channels; every stage cuts the slim network of the last one further.

    Scores are those of the trained weights, laid back into the dense network's shapes (see
    :func:`laid_back`). Repair aims at what the network computed before the stage.
    """

    def __init__(
        self,
        pruner: Pruner,
        policy: Policy,
        training: Training,
        pruned: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Prunes nothing yet."""
        super().__init__(training)
        self._pruner, self._asked, self._pruned = pruner, policy, pruned
        self._final = policy.kept(pruner.plan.targets)
        self._units: list[Sequence[int]] = [range(t.units) for t in pruner.plan.targets]
        self._point: nn.Module | None = None
        #: Whether the network is still a copy of the dense one.
        self._untouched = True
        self._is_blended = False
        self.network = pruner.trace.materialise(self._units)

    @property
    def policy(self) -> Policy:
        """What the network has kept, by the dense network's numbers."""
        targets = self._pruner.plan.targets
        kept = [len(units) for units in self._units]
        indices = [
            None if len(u) == t.units else u for u, t in zip(self._units, targets, strict=True)
        ]
        return Policy.from_kept(targets, kept, indices=indices, model_hash=self._pruner.model_hash)

    def prune(self, ratio: Callable[[float], float]) -> None:
        """Cuts off what now scores least, and repairs."""
        pruner = self._pruner
        kept = _counts([target.units for target in pruner.plan.targets], self._final, ratio)
        if self._untouched and (kept == self._final).all():
            self._units = list(pruner.units_of(self._asked))
            ready = self._pruned
            self.network = pruner.make(kept, self._units) if ready is None else _copied(ready())
        else:
            whole = laid_back(self.network, pruner.trace.model, pruner.plan, self._units)
            aim = self._aim()
            context = replace(pruner.context, model=whole, cache={})
            scores = pruner.criterion(context)
            self._units = [
                _best(score, units, count)
                for score, units, count in zip(scores, self._units, kept.tolist(), strict=True)
            ]
            self._cut(whole, kept, aim)
        self._untouched = False

    def _aim(self) -> nn.Module | None:
        return self._pruner.aim(self.network, self._units) if self._trained else None

    def _cut(self, whole: nn.Module, kept: Kept, aim: nn.Module | None) -> None:
        """Cuts the network out of one of the dense network's shapes, and repairs it."""
        materialise = Materialiser(whole, self._pruner.plan)
        slim = materialise.module_form(self._units)
        enforce(slim)  # where the dense network has masks
        self._pruner.repair(slim, kept, self._units, towards=aim)
        self.network = materialise.finish(slim, kept)

    def train(
        self, epochs: int, *, last: bool = False, after_step: AfterStep | None = None
    ) -> None:
        """Trains the network as it is."""
        super().train(epochs, last=last, after_step=after_step)
        self._untouched = False

    def blend(self, share: float) -> None:
        """Masks the part of the channels that go that has the least magnitude.

        At 1 they are cut off: layer norms compute something else without them than with zeros, and
        what is trained and chosen last has to be the network that is returned.
        """
        pruner, aim = self._pruner, self._aim()
        self._is_blended = share < 1
        _blend(self.network, self._target, share)
        if share < 1:
            pruner.repair(self.network, pruner.plan.dense, self._units, towards=aim)
            enforce(self.network)
            return
        whole = laid_back(self.network, pruner.trace.model, pruner.plan, self._units)
        self._units = list(pruner.units_of(self._asked))
        self._cut(whole, self._final, aim)

    @cached_property
    def _target(self) -> dict[str, Tensor]:
        """For every parameter what the final network keeps of it."""
        plan = self._pruner.plan
        positions = plan.positions(self._pruner.units_of(self._asked))
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        target = {}
        for tensor in plan.tensors:
            if tensor.name not in parameters:
                continue
            mask = torch.ones(tensor.shape, dtype=torch.bool)
            for dim, axis in enumerate(tensor.axes):
                if axis is not None:
                    stays = torch.zeros(tensor.shape[dim], dtype=torch.bool)
                    stays[torch.from_numpy(positions[axis])] = True
                    shape = [-1 if d == dim else 1 for d in range(mask.dim())]
                    mask &= stays.reshape(shape)
            target[tensor.name] = mask.to(parameters[tensor.name].device)
        return target

    def start_anew(self) -> None:
        """Starts from the first weights of the network."""
        untrained = _like(self._training.untrained(), self._pruner.trace.model)
        self.network = Materialiser(untrained, self._pruner.plan)(self._units)
        self._untouched, self._trained = False, True

    def remember(self) -> None:
        """Keeps a copy of all weights.

        Raises:
            ValueError: Something is pruned already.
        """
        if any(
            len(units) < target.units
            for units, target in zip(self._units, self._pruner.plan.targets, strict=True)
        ):
            raise ValueError("Session.remember: nothing must be pruned yet, got a slim network")
        self._point = copy.deepcopy(self.network)

    def rewind(self) -> None:
        """Cuts the network out of that copy."""
        if self._point is None:
            raise ValueError("Session.rewind: remember() must come first, got no point")
        self.network = Materialiser(self._point, self._pruner.plan)(self._units)

    def finish(self) -> nn.Module:
        """The slim network."""
        if self._is_blended:  # but not to the end
            self.blend(1.0)
        return self.network.eval()


def regrown(mask: Tensor, weight: Tensor, gradient: Tensor, fraction: float) -> Tensor:
    """A mask of as many weights, some moved (RigL, arXiv 1911.11134, algorithm 1).

    Args:
        mask: Which weights there are now.
        weight: Their values.
        gradient: Of all weights, also those that are not there.
        fraction: Which part of them is dropped, in [0, 1].

    Returns:
        Booleans of the same shape: the rest of the mask, and of all others as many with the
        largest gradients as were dropped (those just dropped may come back).
    """
    there = int(mask.sum())
    stay = there - int(fraction * there)
    magnitude = weight.abs().double().masked_fill(~mask, -1.0).flatten()
    rest = top(magnitude, stay)
    pull = gradient.abs().double().flatten().masked_fill(rest, -1.0)
    return (rest | top(pull, there - stay)).reshape(mask.shape)


def _blend(network: nn.Module, target: dict[str, Tensor], share: float) -> None:
    """Masks, of all weights outside of ``target``, the share with the least magnitude."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    before, masks = masks_of(network), {}
    for name, stays in target.items():
        doomed = int((~stays).sum())
        if not doomed:
            continue
        there = before.get(name, torch.ones_like(stays))
        magnitude = parameters[name].detach().abs().double().masked_fill(~there, -1.0)
        magnitude = magnitude.masked_fill(stays, torch.inf)
        kept = stays.numel() - round(share * doomed)
        masks[name] = top(magnitude.flatten(), kept).reshape(stays.shape) & there
    attach(network, masks)


def _best(scores: NDArray[np.float64], units: Sequence[int], count: int) -> tuple[int, ...]:
    """The ``count`` units with the highest scores, ascending; ties by position."""
    order = np.argsort(-scores[list(units)], kind="stable")[:count]
    return tuple(sorted(units[at] for at in order.tolist()))


def _counts(units: Sequence[int], final: Kept, ratio: Callable[[float], float]) -> Kept:
    """Units kept at a stage, never fewer than in the end."""
    wished = [
        round(count * (1 - ratio(1 - kept / count)))
        for count, kept in zip(units, final.tolist(), strict=True)
    ]
    return np.maximum(np.array(wished, np.int64), final)


def _copied(network: nn.Module) -> nn.Module:
    """A copy whose masks are kept in training from the start."""
    copied = copy.deepcopy(network)
    watch(copied)
    return copied


def _like(network: nn.Module, model: nn.Module) -> nn.Module:
    """The network where the other one is."""
    first = next(model.parameters(), None)
    return network if first is None else network.to(first.device)


__all__ = ["ChannelSession", "MaskSession", "Training", "open_session", "regrown"]
