"""Which values share memory: few buffers stay in the cache where many would not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from automl.executors.fused.steps import Step, View
from automl.executors.packed import working_memory
from automl.executors.rows import Float32

#: Floats behind every buffer.
_BEHIND = 16


def allocate(steps: Sequence[Step], output: int) -> dict[int, Float32]:
    """Buffers for the values of steps that fill one, of the values' shapes.

    A value's memory is used again once nothing reads it any more. What makes tensors of its own
    may return a view of what it read, so it is taken to hold on to that.

    Args:
        steps: In the order in which they run.
        output: The value that is the result.
    """
    last = _last_uses(steps, output)
    sizes: list[int] = []
    free_from: list[int] = []
    places: dict[int, int] = {}
    for time, step in enumerate(steps):
        if step.shape is None or isinstance(step, View):
            continue
        size = math.prod(step.shape)
        free = [n for n, end in enumerate(free_from) if end < time]
        if free:
            # The smallest that is large enough, else the largest.
            place = min(free, key=lambda n: (sizes[n] < size, abs(sizes[n] - size)))
            sizes[place] = max(sizes[place], size)
        else:
            place = len(sizes)
            sizes.append(size)
            free_from.append(0)
        free_from[place], places[step.writes] = last[step.writes], place
    # One piece of memory, each buffer from a cache line on.
    starts = list(accumulate((-(-(size + _BEHIND) // 16) * 16 for size in sizes), initial=0))
    memory = working_memory(starts[-1])
    buffers: dict[int, Float32] = {}
    for step in steps:
        if isinstance(step, View):
            buffers[step.writes] = buffers[step.reads[0]].reshape(step.shape)
        elif step.shape is not None:
            start = starts[places[step.writes]]
            own = memory[start : start + math.prod(step.shape)]
            buffers[step.writes] = own.reshape(step.shape)
    return buffers


def _last_uses(steps: Sequence[Step], output: int) -> dict[int, int]:
    """The last step that reads each value that lies in a buffer."""
    last: dict[int, int] = {}
    holds: dict[int, set[int]] = {}
    for time, step in enumerate(steps):
        held = set().union(*(holds.get(number, set()) for number in step.reads))
        last.update(dict.fromkeys(held, time))
        own = step.shape is not None and not isinstance(step, View)
        holds[step.writes] = {step.writes} if own else held
        last[step.writes] = time
    last.update(dict.fromkeys(holds.get(output, set()), len(steps)))
    return last
