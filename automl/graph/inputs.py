"""What a forward is called with: tensors, and lists, tuples and dicts of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

#: Number of an argument, then keys and indices to a value inside of it.
Place = tuple[Any, ...]


def places(arguments: Sequence[Any]) -> list[Place]:
    """Where the values that are no containers are, in the order in which torch.export has them."""
    return list(_places_in(tuple(arguments), ()))


def _places_in(value: Any, place: Place) -> Iterator[Place]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places_in(item, (*place, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _places_in(item, (*place, index))
    else:
        yield place


def tensors_of(arguments: Any) -> list[Tensor]:
    """All tensors of a structure."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]


def each_tensor(change: Callable[[Tensor], Tensor], arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The same arguments with every tensor changed."""
    changed = tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, tuple(arguments))
    return tuple(changed)


def fresh(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of arguments, for a network that may write into what it is given."""
    return each_tensor(lambda x: x.detach().clone(), arguments)


def argument_names(model: nn.Module, count: int) -> list[str]:
    """What a forward calls its first arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [one.name for one in parameters if one.kind in positional]
    return [*names, *(f"input_{number}" for number in range(len(names), count))][:count]


def described(arguments: Sequence[Any]) -> str:
    """Shapes and types, for messages."""

    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return str(tuple(value.shape))
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {one(item)}" for key, item in value.items()) + "}"
        return type(value).__name__

    return ", ".join(map(one, arguments))
