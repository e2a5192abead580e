"""The command in this process, whose imports are paid once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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


@pytest.fixture
def cut_in_training(monkeypatch) -> Callable[[], AbstractContextManager[None]]:
    """Within it, commands that train are interrupted after the first epoch."""
    from automl.commands.training import BenchTraining

    report = BenchTraining._report

    def interrupted(self, row, epochs, last):
        report(self, row, epochs, last)
        if row.epoch == 1:
            raise KeyboardInterrupt

    @contextmanager
    def cut() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(BenchTraining, "_report", interrupted)
            yield

    return cut
