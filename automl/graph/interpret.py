"""Runs a plan's program step by step, so that others can look between the steps.

The same program serves the dense network and every slim one; only the lengths differ.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from automl.graph.program import find_setting, references, runnable_target
from automl.graph.rebuild import read_constant, trainable_form
from automl.plan import IndexPlan, Instruction

#: Called before an instruction runs; may change the weights of the module it calls.
Hook = Callable[["ProgramRun", Instruction], None]


class ProgramRun:
    """One pass of a network through its program, with values freed after their last use.

    Steps run in order, but any value can be asked for early (:meth:`value`), which runs just the
    steps it depends on.

    Args:
        model: Module tree with the tensors of the network, under the dense network's names.
        plan: Its plan.
        kept: Kept counts of the network, shape (targets,).
        inputs: What the network is run on.
        before: Called before every instruction.
        keep: Names whose values are never freed.
        start: Instructions before this one have run elsewhere (``automl.graph.prefix``).
        known: What they left that is needed: name -> value. Never freed.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: IndexPlan,
        kept: NDArray[np.int64],
        inputs: Sequence[Any],
        before: Hook | None = None,
        keep: frozenset[str] = frozenset(),
        start: int = 0,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepares the pass; nothing runs yet."""
        self._model, self._plan, self._before = model, plan, before
        self._lengths = plan.lengths(kept).tolist()
        self._inputs = iter(inputs)
        self._steps = {i.name: i for i in plan.program}
        self._values: dict[str, Any] = {}
        self._done: set[str] = set()
        self._waiting = consumers(plan)
        self._left = {name: len(users) for name, users in self._waiting.items()}
        self._keep, self._start = keep.union(known or ()), start
        self._values.update(known or {})
        self._done.update(known or ())
        #: Steps whose hook is running: nothing that needs them can be asked for.
        self.starting: set[str] = set()
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def run(self) -> Any:
        """Runs everything that has not run yet; returns the network's output."""
        self.advance(len(self._plan.program))
        return self._decode(self._plan.program[-1].args[0])

    def advance(self, position: int) -> None:
        """Runs what has not run yet of the instructions before a position."""
        for instruction in self._plan.program[self._start : position]:
            if instruction.op != "output":
                self.value(instruction.name)

    def value(self, name: str) -> Any:
        """The value of a step, running what it depends on first.

        Returns:
            The value, or None if it was used up already.
        """
        if name not in self._done:
            self._execute(self._steps[name])
        return self._values.get(name)

    def forget(self, name: str) -> None:
        """Gives back a value that was kept, once everything in the program has read it."""
        self._keep -= {name}
        if self._left[name] == 0:
            self._values.pop(name, None)

    def _execute(self, instruction: Instruction) -> None:
        needs = sorted(references([instruction.args, instruction.kwargs]))
        for need in needs:
            self.value(need)
        if self._before is not None:
            self.starting.add(instruction.name)
            self._before(self, instruction)
            self.starting.discard(instruction.name)
        if instruction.name in self._done:  # the hook asked for it
            return
        self._values[instruction.name] = self._call(instruction)
        self._done.add(instruction.name)
        for need in needs:
            self._left[need] -= 1
            if self._left[need] == 0 and need not in self._keep:
                del self._values[need]

    def _call(self, instruction: Instruction) -> Any:
        if instruction.op == "placeholder":
            return next(self._inputs)
        if instruction.op == "get_attr":
            return self._tensor(instruction.target)
        args = [self._decode(arg) for arg in instruction.args]
        if instruction.op == "call_module":
            return trainable_form(self._model.get_submodule(instruction.target))(*args)
        kwargs = {key: self._decode(value) for key, value in instruction.kwargs.items()}
        return runnable_target(instruction.target)(*args, **kwargs)

    def _tensor(self, path: str) -> Any:
        if path in self._plan.constants:
            return read_constant(self._plan.constants[path]).to(self._device)
        return operator.attrgetter(path)(self._model)

    def _decode(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "ref" in value:
            return self._values[value["ref"]]
        if "axis" in value:
            return self._lengths[value["axis"]]
        if "batch" in value:
            return self._values["batch_size"] * (self._lengths[value["batch"]] // value["per"])
        if "dict" in value:
            return {key: self._decode(item) for key, item in value["dict"].items()}
        if "tuple" in value:
            return tuple(self._decode(item) for item in value["tuple"])
        if "training" in value:
            return 0.0
        return find_setting(value["torch"]) if "torch" in value else self._device


def consumers(plan: IndexPlan) -> dict[str, list[Instruction]]:
    """The instructions that read each value."""
    users: dict[str, list[Instruction]] = {i.name: [] for i in plan.program}
    for instruction in plan.program:
        for name in references([instruction.args, instruction.kwargs]):
            users[name].append(instruction)
    return users
