"""Hooks of modules that change what goes in or comes out, beside those that only look."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from automl.graph.inputs import tensors_of

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def modules_changed_by_hooks(model: nn.Module, run: Callable[[], Any]) -> frozenset[str]:
    """Paths of the modules with forward hooks that change a value, by running the network once.

    Args:
        model: The network.
        run: Runs it on its example inputs.
    """
    found: set[str] = set()
    hooked = [
        (path, module)
        for path, module in model.named_modules()
        if any(getattr(module, kind) for kind in _HOOKS)
    ]
    if hooked:
        with contextlib.ExitStack() as stack, torch.no_grad():
            for path, module in hooked:
                stack.enter_context(_watched(module, partial(found.add, path)))
            run()
    return frozenset(found)


@contextlib.contextmanager
def _watched(module: nn.Module, note: Callable[[], Any]) -> Iterator[None]:
    """Calls ``note`` where one of a module's hooks changes something."""
    before = {kind: getattr(module, kind) for kind in _HOOKS}
    for kind, hooks in before.items():
        watched = OrderedDict((key, _watching(hook, note)) for key, hook in hooks.items())
        setattr(module, kind, watched)
    try:
        yield
    finally:
        for kind, hooks in before.items():
            setattr(module, kind, hooks)


def _watching(hook: Callable[..., Any], note: Callable[[], Any]) -> Callable[..., Any]:
    def watching(module: nn.Module, *given: Any) -> Any:
        versions = [tensor._version for tensor in tensors_of(given)]
        result = hook(module, *given)
        replaced = result is not None and not _passed_on(result, given)
        if replaced or versions != [tensor._version for tensor in tensors_of(given)]:
            note()
        return result

    return watching


def _passed_on(result: Any, given: Sequence[Any]) -> bool:
    """Whether a hook gives back what it was given last: inputs, or outputs."""
    whole = (given, given[-1], given[0])
    leaves = tree_leaves(result)
    return any(
        len(leaves) == len(own) and all(a is b for a, b in zip(leaves, own, strict=True))
        for own in map(tree_leaves, whole)
    )
