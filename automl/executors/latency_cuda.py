"""Times operators on a CUDA device, by events around captured graphs.

A single operator is shorter than launching it. Each is therefore captured many times into one CUDA
graph, which replays without the interpreter, and the time between two events is divided by the
number of runs. A buffer as large as the cache is written before each replay: the first run reads
its weights from memory, the others from the cache where they fit into it, as those of a network
that is smaller than the cache do in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from automl.cost.lut.entry import Entry
from automl.cost.lut.signature import Signature
from automl.executors.latency_meter import Effort, Found, laps
from automl.executors.latency_replay import replay

#: Runs of an operator in one graph.
_IN_GRAPH = 20
_WARM_UP = 3
_AT_ONCE = 64


@dataclass(frozen=True)
class CudaMeter:
    """Times operators on one CUDA device.

    Attributes:
        device: Which.
        effort: How hard to measure; there is no CPU time to compare with.
    """

    device: torch.device
    effort: Effort = field(default_factory=Effort)

    def __call__(
        self, wanted: Iterable[Signature], network: Sequence[Signature]
    ) -> Iterator[Found]:
        """Times operators, yielding what is done some at a time (see ``latency_meter.Meter``)."""
        ordered = (sig for lap in laps(wanted, network) for sig, is_timed in lap if is_timed)
        with torch.cuda.device(self.device), torch.inference_mode():
            flush = self._flush()
            while chunk := list(islice(ordered, _AT_ONCE)):
                yield [(signature, self._time(signature, flush)) for signature in chunk]

    def _flush(self) -> torch.Tensor:
        cache = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 0)
        return torch.empty(max(int(cache), 2**22), dtype=torch.uint8, device=self.device)

    def _time(self, signature: Signature, flush: torch.Tensor) -> Entry:
        graph, runs = self._captured(signature)
        found = self._replays(graph, runs, flush)
        for _ in range(self.effort.retries):
            if not self.effort.noisy(found):
                break
            again = self._replays(graph, runs, flush)
            found = min(found, again, key=lambda entry: entry.spread)
        return found

    def _captured(self, signature: Signature) -> tuple[torch.cuda.CUDAGraph, int]:
        """A graph of several runs of an operator."""
        one = replay(signature, self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):  # libraries choose their kernels before the capture
            for _ in range(_WARM_UP):
                one.call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_IN_GRAPH):
                one.call()
        graph.keep_alive = one  # type: ignore[attr-defined] # the graph reads its tensors
        return graph, _IN_GRAPH

    def _replays(self, graph: torch.cuda.CUDAGraph, runs: int, flush: torch.Tensor) -> Entry:
        times = []
        for _ in range(self.effort.repeats):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            flush.zero_()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(1e3 * start.elapsed_time(end) / runs)
        return Entry.of(np.array(times), None)
