"""What networks in graph form cannot do that the dense one can, found by trying.

The graph form holds what the forward did when it was exported: in evaluation mode, and often on
inputs of one size but for the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from automl.graph.buffers import buffers_kept
from automl.graph.deadline import Deadline
from automl.graph.export import quiet
from automl.graph.inputs import each_tensor, fresh, tensors_of
from automl.graph.materialise import Materialiser
from automl.graph.same import close
from automl.plan import IndexPlan
from automl.seeding import own_random_numbers
from automl.types import InputError

#: Of the random numbers that both forms draw.
_KEY = "00000000"


@dataclass(frozen=True)
class Caveats:
    """What the graph form of a network lacks.

    Attributes:
        sizes: It fails or is wrong on inputs of other sizes that the network takes.
        training: It lacks something that the network does in training.
    """

    sizes: bool = False
    training: bool = False

    def lines(self, name: str, plan: IndexPlan) -> Iterator[str]:
        """What to tell users of a network of that class."""
        remedy = _remedy(plan)
        if self.sizes:
            yield (
                f"{name}.forward makes sizes of its inputs constants: slim networks in graph form "
                f"are right for inputs of the traced sizes only{remedy}"
            )
        if self.training:
            yield (
                f"{name}.forward does something in training alone (dropout inside of attention, "
                "stochastic depth, outputs of its own) that slim networks in graph form lack"
                f"{remedy}"
            )


def find_caveats(
    model: nn.Module, plan: IndexPlan, inputs: tuple[Any, ...], deadline: Deadline
) -> Caveats:
    """Tries the graph form of the dense network, where networks of a plan may need that form.

    Args:
        model: The dense model in eval mode.
        plan: Its plan.
        inputs: What is tried; the batch must be the plan's.
        deadline: Raises when the analysis takes too long.

    Raises:
        InputError: The graph form of the dense network is not what the network is.
    """
    if plan.module_form and not plan.graph_targets:
        return Caveats()
    everything = [list(range(target.units)) for target in plan.targets]
    graph = Materialiser(model, plan).graph_form(everything).eval()
    with deadline.interrupting(), quiet(), torch.no_grad():
        if not plan.module_form and _differ(model, graph, inputs):
            raise InputError(
                f"what was traced of {type(model).__name__} computes something else than the "
                "network does; please report it"
            )
        deadline.check()
        sizes = any(_differ(model, graph, other) for other in _of_other_sizes(inputs))
        deadline.check()
        return Caveats(sizes, _differ_in_training(model, graph, inputs))


def _remedy(plan: IndexPlan) -> str:
    """The layers that can be left alone, where that helps."""
    if not plan.module_form:
        return ""
    return f"; excluding {layers_of(plan, plan.graph_targets)} keeps the network's own classes"


def layers_of(plan: IndexPlan, targets: Iterable[int]) -> str:
    """Layers whose exclusion leaves targets whole, by name: a head is no layer."""
    firsts = (plan.targets[index].producers[0] for index in sorted(targets))
    names = list(dict.fromkeys(firsts))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _of_other_sizes(inputs: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The inputs cut to half: images, sequences of vectors and of tokens, signals."""
    for dims in ({2: (1,), 3: (1,), 4: (2, 3), 5: (2, 3, 4)}, {3: (2,)}):

        def half(x: Tensor, dims: Mapping[int, tuple[int, ...]] = dims) -> Tensor:
            if x.dim() == 2 and x.is_floating_point():
                return x
            for dim in dims.get(x.dim(), ()):
                x = x.narrow(dim, 0, x.shape[dim] - x.shape[dim] // 2)
            return x.contiguous()

        smaller = each_tensor(half, inputs)
        if [x.shape for x in tensors_of(smaller)] != [x.shape for x in tensors_of(inputs)]:
            yield smaller


def _differ(model: nn.Module, graph: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a graph fails or is wrong on inputs that the network takes."""
    expected = _outputs(model, inputs)
    if expected is None or not _are_close(expected, _outputs(model, inputs)):
        return False  # it does not take them, or draws random numbers
    return not _are_close(expected, _outputs(graph, inputs))


def _differ_in_training(model: nn.Module, graph: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:  # a copy: in training a network may write into anything it has
        trained = copy.deepcopy(model).train()
    except Exception:  # what cannot be copied is not tried
        return False
    return _differ(trained, graph.train(), inputs)


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor] | None:
    """With the same random numbers each time; None where the network fails."""
    try:
        with own_random_numbers(_KEY), buffers_kept(network):
            return tensors_of(network(*fresh(inputs)))
    except InputError:  # the time is over
        raise
    except Exception:  # whatever the user's code raises
        return None


def _are_close(expected: Sequence[Tensor], found: Sequence[Tensor] | None) -> bool:
    if found is None or len(expected) != len(found):
        return False
    return all(close(*pair) for pair in zip(expected, found, strict=True))
