"""The command in this process, whose imports are paid once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from command import Result

from automl.cli import main


@pytest.fixture
def cli(capfd) -> Callable[..., Result]:
    """Runs the command in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run
