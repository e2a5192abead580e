"""Slim networks as they are deployed, and the operators they execute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from automl.cost.latency import LatencySum, Sum, Times
from automl.cost.lut.operators import Ambiguous, Operators
from automl.cost.lut.signature import Signature
from automl.executors.latency_record import Unrecordable, record
from automl.graph.fold import batchnorm_pairs, fold_batchnorm
from automl.graph.trace import Trace
from automl.plan import IndexPlan
from automl.types import InputError, Kept

#: Networks recorded at least, and at most until all axes can be told apart.
_FEWEST, _MOST = 6, 40


class Deployed:
    """Makes the slim networks of a traced one as they are deployed: batch norms folded.

    Args:
        trace: The traced network.
        device: Where they run.
        dtype: What they compute in.
        channels_last: Whether they and their images lie channels last.
    """

    def __init__(
        self,
        trace: Trace,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        """Makes nothing yet."""
        self.plan = trace.plan
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self._trace = trace
        self._pairs = batchnorm_pairs(trace.plan)

    def network(self, kept: Kept) -> nn.Module:
        """The network with these counts, shape (targets,); weights are the dense ones, cut."""
        units = [range(int(count)) for count in kept]
        materialise = self._trace.materialise
        # Where pruning some targets needs a graph module, all are, so that all run alike.
        make = materialise.graph_form if self.plan.graph_targets else materialise
        network = fold_batchnorm(make(units), self._pairs).to(self.device, self.dtype)
        if self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network.eval()

    def inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """What the networks are run on: the first example, ``batch`` times."""
        return tuple(self._input(tensor, batch) for tensor in self._trace.example_inputs)

    def _input(self, value: Tensor, batch: int) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError("latency tables need a network that takes tensors only")
        tensor = value[:1].expand(batch, *value.shape[1:]).contiguous().to(self.device)
        if tensor.dtype.is_floating_point:
            tensor = torch.rand_like(tensor).to(self.dtype)
        if self.channels_last and tensor.dim() == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        return tensor

    @property
    def dense(self) -> Kept:
        """Counts of the dense network."""
        return self.plan.dense

    def total(self, operators: Operators, times: Times) -> Sum:
        """Sums over operators."""
        return LatencySum(operators, times)

    def operators(self, batch: int = 1) -> Operators:
        """What all slim networks execute.

        Raises:
            InputError: Pruning changes which operators run, or one cannot be written down.
        """
        inputs, drawn = self.inputs(batch), _drawn(self.plan)
        kepts = _first(self.plan, drawn)
        records = self._records(kepts, inputs)
        while True:
            try:
                return Operators.align(self.plan, kepts, records)
            except Ambiguous:
                # Of some operators not all networks tell: where one head is left, their layout
                # is another.
                more = list(islice(drawn, min(_FEWEST, _MOST - len(kepts))))
                if not more:
                    raise
                kepts += more
                records += self._records(more, inputs)

    def _records(
        self, kepts: Sequence[Kept], inputs: tuple[Tensor, ...]
    ) -> list[tuple[Signature, ...]]:
        """The operators that each of these networks executes."""
        try:
            return [record(self.network(kept), inputs) for kept in kepts]
        except Unrecordable as error:
            raise InputError(f"the operators of this network cannot be recorded: {error}") from None


def _drawn(plan: IndexPlan) -> Iterator[Kept]:
    """Kept counts without end, the dense ones first."""
    rng = np.random.default_rng(0)
    yield plan.dense.copy()
    # A dimension of one element has no stride and any memory format: not below two, but for
    # targets of two units, which would never change.
    low = np.where(plan.dense > 2, 2, 1)
    while True:
        yield rng.integers(low, plan.dense + 1)


def _first(plan: IndexPlan, drawn: Iterator[Kept]) -> list[Kept]:
    """So many of the counts drawn that no two different axes stay alike."""
    kepts = list(islice(drawn, _FEWEST))
    while len(kepts) < _MOST and not _told_apart(plan, kepts):
        kepts.append(next(drawn))
    return kepts


def _told_apart(plan: IndexPlan, kepts: Sequence[Kept]) -> bool:
    """Whether axes of equal lengths in all networks are equal as polynomials."""
    columns = np.stack([plan.lengths(kept) for kept in kepts]).T
    polynomials: dict[tuple[int, ...], set[object]] = {}
    for count, column in zip(plan.counts, columns, strict=True):
        polynomials.setdefault(tuple(column.tolist()), set()).add(count)
    return all(len(found) == 1 for found in polynomials.values())
