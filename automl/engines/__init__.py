"""Engines: where trials run. Here, in processes of this machine, or on a cluster.

An engine is handed what all trials have in common once (``put``), then maps functions over items
(``submit``) and gives results as they finish. It knows nothing of networks or policies. The
registry is conf/engine: one YAML per engine with its class as ``_target_``.

What every engine keeps (``tests/contracts/test_engines.py``): every item gives exactly one result;
a function that raises fails its own item and no other; where functions run in other processes, one
that is killed or hangs is replaced and its item tried again, ``retries`` times, before the item
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from automl import registry

#: Called as ``function(data, item)``; defined at the top level of a module.
Function = Callable[[Any, Any], Any]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one item.

    Attributes:
        index: Its position among the items submitted.
        value: What the function returned; None where ``error`` is set.
        error: Why there is no value, one line; None where there is one.
        detail: The traceback of ``error``, where the function raised.
        attempts: How often it was started.
    """

    index: int
    value: Any = None
    error: str | None = None
    detail: str = ""
    attempts: int = 1


class Engine(Protocol):
    """Runs functions on items."""

    @property
    def workers(self) -> int:
        """How many items run at the same time, at most."""

    @property
    def isolated(self) -> bool:
        """Whether functions run in other processes, which may die without taking this one along."""

    def put(self, data: Hashable) -> int:
        """Hands over what a function needs beside the item; equal data are sent once.

        Args:
            data: Anything; other processes get a copy that shares one memory for tensors.

        Returns:
            What ``submit`` calls it.

        Raises:
            InputError: It cannot be sent to other processes.
            RuntimeError: The engine is closed.
        """

    def submit(self, function: Function, items: Sequence[Any], handle: int) -> Iterator[Done]:
        """Calls ``function(data, item)`` for every item.

        Nothing runs before the first result is asked for. Closing the iterator early gives up
        the items that have no result yet. One submission runs at a time.

        Args:
            function: What to call.
            items: Its second arguments.
            handle: Of the first, from ``put``.

        Yields:
            One result per item, as they finish.

        Raises:
            InputError: An item cannot be sent to other processes, or those cannot be started.
            RuntimeError: The engine is closed.
            ValueError: The handle is not one of ``put``'s.
        """

    def close(self) -> None:
        """Ends all processes and frees the memory they share; the second call does nothing."""


def names() -> list[str]:
    """The engines that conf/engine knows, in alphabetical order."""
    return registry.names("engine")


def load(name: str, **settings: Any) -> Engine:
    """The engine that conf/engine calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such engine, it does not take these settings, or a package that it
            needs is not installed.
    """
    engine: Engine = registry.load("engine", name, settings)
    return engine
