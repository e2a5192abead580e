"""What a search in Python found, and what can be made of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from automl.export import PROGRAMS, export_program, load_format, require_right
from automl.finalists import searched
from automl.journal import frame
from automl.model_folder import packed_weights
from automl.paths import atomic_write
from automl.policy import Policy
from automl.problem import Problem, best, trial_row
from automl.pruning.sparse_pruner import with_units
from automl.runs import PLAN, POLICY, WEIGHTS
from automl.strategies import strategy_of
from automl.types import InputError, Measurement, SearchResult, Strategy

if TYPE_CHECKING:
    import pandas as pd

    from automl.searcher import Searcher

#: What ``SearchRun.export`` can write.
FORMATS = ("safetensors", *PROGRAMS)


@dataclass(frozen=True, eq=False)
class SearchRun:
    """What a search found.

    Attributes:
        searcher: What searched.
        result: What the strategy returned.
        dense: The dense network's measurement.
        asked: How many trials were asked for.
        seed: Of the strategy.
    """

    searcher: Searcher
    result: SearchResult
    dense: Measurement
    asked: int
    seed: int

    @property
    def policy(self) -> Policy:
        """The policy that was chosen."""
        policy: Policy = self.result.policy
        return policy

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Every trial in order: score, metrics, costs, kept counts, seconds, errors."""
        return frame(trial_row(trial) for trial in self.result.trials)

    def compare(self, *strategies: str | Strategy) -> pd.DataFrame:
        """The dense network, what other strategies find with as many trials, and what was found.

        Args:
            strategies: Names from conf/strategy, or strategies; ``"uniform"`` if none is given.
                Of several of one name the second is called ``"NAME 2"``, and so on.

        Returns:
            One row each, by name: score, metrics and costs, all before fine-tuning.
        """
        rows = {"dense": self.dense}
        with self.searcher.problem() as problem:
            for strategy in strategies or ("uniform",):
                other = strategy_of(strategy)
                name = strategy if isinstance(strategy, str) else type(strategy).__name__
                found = searched(other, problem, self.asked, self.seed)
                rows[_free(name, rows)] = _measured(problem, found.policy)
            rows["found"] = _measured(problem, self.policy)
        fields = ({"score": m.score, "metrics": m.metrics, "costs": m.costs} for m in rows.values())
        return frame(fields).set_axis(list(rows), axis="index")

    def apply(self) -> nn.Module:
        """The pruned network: slim, repaired and, where the searcher was told how, fine-tuned.

        It is made once; further calls return the same module.
        """
        return self._network

    @cached_property
    def _network(self) -> nn.Module:
        return self.searcher.finished(self.policy)

    def export(
        self, path: str | os.PathLike[str], formats: Sequence[str] = ("safetensors",)
    ) -> list[Path]:
        """Writes the pruned network (see ``apply``) with its policy and plan.

        ``automl.load_pruned(path, dense=network)`` reads it again.

        Args:
            path: Directory, created where it does not exist.
            formats: Names from ``FORMATS``. ``safetensors`` is the slim network's state; ``pt2``
                and ``onnx`` are programs that run without the network's classes, with any batch
                size, compared with the network on the example inputs.

        Returns:
            The files written.

        Raises:
            InputError: A format is unknown, or the directory cannot be written or holds files
                of these names.
        """
        formats = [formats] if isinstance(formats, str) else list(formats)
        for name in formats:
            if name not in FORMATS:
                raise InputError(
                    f"cannot export as {name!r}; known formats are {', '.join(FORMATS)}"
                )
        programs = [name for name in formats if name in PROGRAMS]
        for name in programs:
            load_format(name)  # says what is not installed before anything is written
        inputs = self.searcher.several_examples() if programs else torch.empty(0)
        folder = Path(path)
        files = [folder / name for name in (POLICY, PLAN, WEIGHTS)]
        for file in files:
            if file.exists():
                raise InputError(f"{str(file)!r} exists; choose another folder to export to")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with_units(self.searcher.pruner, self.policy).save(files[0])
            atomic_write(files[1], self.searcher.trace.plan.to_json())
            atomic_write(files[2], packed_weights(self.apply()))
            done = [export_program(n, self.apply(), inputs, folder) for n in programs]
        except OSError as error:
            raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
        require_right(done)
        return [*files, *(one.file for one in done)]


def _free(name: str, taken: Collection[str]) -> str:
    """The name, numbered where it is taken."""
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _measured(problem: Problem, policy: Policy) -> Measurement:
    trial = best([problem.evaluate(policy)])
    assert trial.measurement is not None  # best() returns no failed trial
    return trial.measurement
