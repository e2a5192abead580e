"""Trials that start from what another network has computed already.

Candidates of one search step mostly differ from one network, the *reference*, in a single place.
Up to there a candidate has the reference's repaired weights and activations, on the calibration
inputs as well as on those that it is scored on; both are kept at the useful places
(:mod:`automl.graph.prefix`), and a candidate's repair and forward passes begin there. Nothing is
approximated: the operators that do run get the same tensors as they would have without.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from automl.environment import available_memory
from automl.graph.interpret import ProgramRun
from automl.graph.materialise import KeptUnits
from automl.graph.prefix import Cut, Prefixes, affordable, last_cut
from automl.plan import IndexPlan
from automl.policy import Policy
from automl.seeding import own_random_numbers
from automl.types import Kept

if TYPE_CHECKING:
    from automl.pruning.pruner import Pruner

#: Bytes of activations kept at most, of calibration inputs and of those scored on, each.
_MOST_KEPT = 512 << 20

_Values = Mapping[str, Any]

_log = logging.getLogger(__name__)


class Continuation:
    """Prunes and scores networks from where they begin to differ from a reference.

    Args:
        pruner: Prunes whole channels.
        scorer: Scores networks; must number its batches (``numbers_batches``).
        fold: What is done to a network before it is scored; None: nothing.
    """

    def __init__(
        self, pruner: Pruner, scorer: Any, fold: Callable[[Any], Any] | None = None
    ) -> None:
        """Computes nothing yet."""
        self._pruner, self._scorer, self._fold = pruner, scorer, fold
        self._named: str | None = None
        self._reference: _Reference | None = None

    def score(self, policy: Policy, near: Policy) -> tuple[float, Mapping[str, float]] | None:
        """Score and metrics of a policy.

        Args:
            policy: What to score.
            near: The reference. It is pruned and scored when it is first named, and kept until
                another one is.

        Returns:
            What the scorer returns of the policy's network; None where nothing is shared with the
            reference, and where the reference cannot be run or its program does not compute its
            outputs to the bit.
        """
        if self._named != near.key:
            self.forget()
            self._named, self._reference = near.key, self._referred(near)
        return None if self._reference is None else self._continued(policy, self._reference)

    def forget(self) -> None:
        """Gives the reference's memory back."""
        self._named = self._reference = None

    @cached_property
    def _prefixes(self) -> Prefixes:
        pruner = self._pruner
        return Prefixes(pruner.trace.model, pruner.plan, pruner.fitted_together)

    def _referred(self, near: Policy) -> _Reference | None:
        plan = self._pruner.plan
        takes_one_input = sum(step.op == "placeholder" for step in plan.program) == 1
        if not (plan.dynamic_batch and takes_one_input and self._prefixes.cuts):
            return None
        try:
            return self._run(near)
        except Exception as error:  # the trials do without; one like it fails for itself
            _log.info("trials do not share what %s computes: %s", near.key[:12], error)
            return None

    def _run(self, near: Policy) -> _Reference | None:
        pruner, plan = self._pruner, self._pruner.plan
        with own_random_numbers(near.key):
            kept, units = near.kept(plan.targets), pruner.units_of(near)
            slim = pruner.materialise.module_form(units)
            cuts, most = self._prefixes.cuts, room()
            refitting = pruner.refitting(slim, kept, units, cuts, most)
            network = self._scored_form(slim, kept)
            recorder = _Recorder(network, plan, kept, cuts, most / len(self._scorer))
            self._scorer(recorder)
        if recorder.differs:
            return None
        return _Reference(near, units, slim, refitting, recorder.recording)

    def _continued(
        self, policy: Policy, reference: _Reference
    ) -> tuple[float, Mapping[str, float]] | None:
        pruner, plan = self._pruner, self._pruner.plan
        kept, units = policy.kept(plan.targets), pruner.units_of(policy)
        differs = self._prefixes.first_difference(units, reference.units)
        cut = last_cut(reference.scoring.cuts, differs)
        if cut is None:
            return None
        slim = pruner.materialise.module_form(units)
        begun = last_cut(reference.refitting.cuts, differs)
        known: _Values = {} if begun is None else reference.refitting.at(begun, 0)
        start = 0 if begun is None else begun.position
        _copy_layers(reference.slim, slim, plan, start)
        pruner.repair(slim, kept, units, start=start, known=known)
        network = self._scored_form(slim, kept)
        found: tuple[float, Mapping[str, float]] = self._scorer(
            _Continued(network, plan, kept, reference.scoring, cut)
        )
        return found

    def _scored_form(self, slim: nn.Module, kept: Kept) -> nn.Module:
        network = self._pruner.materialise.finish(slim, kept)
        folded: nn.Module = network if self._fold is None else self._fold(network)
        return folded


def room() -> float:
    """Bytes that a process may keep of one kind.

    Half a gigabyte, or less: with a process on every processor, all of them together take half of
    the memory that is free at most.
    """
    return min(_MOST_KEPT, available_memory() / (4 * (os.cpu_count() or 1)))


@dataclass
class Recording:
    """Values of a network's program at cuts.

    Attributes:
        cuts: Ascending.
        values: Of every batch in order: name -> value.
    """

    cuts: tuple[Cut, ...] = ()
    values: list[_Values] = field(default_factory=list)

    @property
    def names(self) -> frozenset[str]:
        """Of what is kept."""
        return frozenset(name for cut in self.cuts for name in cut.live)

    def at(self, cut: Cut, batch: int) -> dict[str, Any]:
        """What is needed to go on from a cut."""
        return {name: self.values[batch][name] for name in cut.live}


@dataclass(frozen=True)
class _Reference:
    """A network, and what it computed.

    Attributes:
        policy: How it was pruned.
        units: The units that it has kept.
        slim: Its module form, repaired.
        refitting: Values of its repair.
        scoring: Values of its forward passes.
    """

    policy: Policy
    units: KeptUnits
    slim: nn.Module
    refitting: Recording
    scoring: Recording


def chosen_cuts(
    network: nn.Module,
    plan: IndexPlan,
    kept: Kept,
    cuts: tuple[Cut, ...],
    inputs: Tensor,
    most: float,
) -> tuple[Cut, ...]:
    """The cuts whose values fit into so many bytes for each of the inputs.

    Args:
        network: With the tensors of a pruned network.
        plan: Its plan.
        kept: Its kept counts, shape (targets,).
        cuts: The useful ones.
        inputs: At least one; the first is run.
        most: Bytes for each.
    """
    names = frozenset(name for cut in cuts for name in cut.live)
    # A copy: what views of it are kept then count as one image, not as all.
    run = ProgramRun(network, plan, kept, [inputs[:1].clone()], keep=names)
    run.run()
    return affordable(cuts, {name: _bytes(run.value(name)) for name in names}, most)


def _bytes(value: Any) -> int:
    """What a value keeps in memory; of a view, all that it is a view of."""
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return value.untyped_storage().nbytes() if isinstance(value, Tensor) else 0


class _Recorder(nn.Module):
    """Runs a network by its program, batch by batch, and keeps values at the cuts."""

    def __init__(
        self, network: nn.Module, plan: IndexPlan, kept: Kept, cuts: tuple[Cut, ...], most: float
    ) -> None:
        super().__init__()
        self.network = network
        self._plan, self._kept, self._cuts, self._most = plan, kept, cuts, most
        self.recording = Recording()
        self.differs = False

    def forward(self, inputs: Tensor) -> Any:
        """Outputs as the network itself computes them: a batch size is measured so."""
        return self.network(inputs)

    def numbered_batch(self, number: int, inputs: Tensor) -> Any:
        """Outputs of a batch; those of the first are compared with the network's own."""
        if number == 0:
            network, plan, kept = self.network, self._plan, self._kept
            self.recording = Recording(
                chosen_cuts(network, plan, kept, self._cuts, inputs, self._most)
            )
        names = self.recording.names
        run = ProgramRun(self.network, self._plan, self._kept, [inputs], keep=names)
        outputs = run.run()
        self.recording.values.append({name: run.value(name) for name in names})
        if number == 0:
            own = self.network(inputs)
            self.differs = not (isinstance(outputs, Tensor) and torch.equal(outputs, own))
        return outputs


class _Continued(nn.Module):
    """Runs a network from a cut, with the values that a reference has there."""

    def __init__(
        self, network: nn.Module, plan: IndexPlan, kept: Kept, known: Recording, cut: Cut
    ) -> None:
        super().__init__()
        self.network = network
        self._plan, self._kept, self._known, self._cut = plan, kept, known, cut

    def numbered_batch(self, number: int, inputs: Tensor) -> Any:
        """Outputs of a batch."""
        known = self._known.at(self._cut, number)
        at = self._cut.position
        run = ProgramRun(self.network, self._plan, self._kept, [inputs], start=at, known=known)
        return run.run()


@torch.no_grad()
def _copy_layers(source: nn.Module, target: nn.Module, plan: IndexPlan, before: int) -> None:
    """Gives a network the weights of another's layers that are called before an instruction."""
    for step in plan.program[:before]:
        if step.op != "call_module":
            continue
        there, here = source.get_submodule(step.target), target.get_submodule(step.target)
        for name, parameter in here.named_parameters():
            parameter.copy_(there.get_parameter(name))
        for name, buffer in here.named_buffers():
            buffer.copy_(there.get_buffer(name))
