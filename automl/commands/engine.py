"""``engine.*``: what trials run on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from automl.commands.settings import Config, instantiate
from automl.engines import Engine


@contextmanager
def engine_of(config: Config) -> Iterator[Engine]:
    """The engine that trials run on, closed after the block.

    Raises:
        InputError: A setting is off, or a package that the engine needs is not installed.
    """
    # Runs that were started before there were engines have none in their settings.
    settings = config.get("engine") or {"_target_": "automl.engines.serial.Serial"}
    engine: Engine = instantiate(settings, "engine")
    try:
        yield engine
    finally:
        engine.close()
