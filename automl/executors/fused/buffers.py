"""Which values share memory: few buffers stay in the cache where many would not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from automl.executors.fused.steps import Step
from automl.executors.packed import aligned_zeros
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
        if step.shape is None:
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
    memory = [aligned_zeros(size + _BEHIND, np.float32) for size in sizes]
    return {
        step.writes: memory[places[step.writes]][: math.prod(step.shape)].reshape(step.shape)
        for step in steps
        if step.shape is not None
    }


def _last_uses(steps: Sequence[Step], output: int) -> dict[int, int]:
    """The last step that reads each value that lies in a buffer."""
    last: dict[int, int] = {}
    holds: dict[int, set[int]] = {}
    for time, step in enumerate(steps):
        held = set().union(*(holds.get(number, set()) for number in step.reads))
        last.update(dict.fromkeys(held, time))
        holds[step.writes] = held if step.shape is None else {step.writes}
        last[step.writes] = time
    last.update(dict.fromkeys(holds.get(output, set()), len(steps)))
    return last
