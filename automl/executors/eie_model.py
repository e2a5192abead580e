"""What EIE's processing elements do with one layer, step by step, and how often.

S. Han et al. (arXiv 1602.01528, section IV). Non-zero activations are broadcast, one a cycle, as
(column, value) into a queue in every element, unless some queue is full. An element takes the head
of its queue, reads where the column starts and ends from two pointer banks, reads the entries from
a memory 64 bits (8 entries) wide, decodes each code into a shared weight, adds its distance to the
running row, and multiplies and adds to that row's sum, one entry a cycle. The results go through
ReLU; a tree of non-zero detectors feeds the next layer's broadcast.

This is a model of functions and counts, not of wires. It simplifies: numbers are float64, where
the chip has 16-bit fixed point; a column without entries for an element occupies it for one cycle,
that of reading its pointers, and otherwise pointers are read while the column before is worked on;
words of the memory are counted anew for every column; filling and draining the pipeline, some ten
cycles a layer, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl.cost.energy_tables import ADD_PJ, DRAM_PJ, MULTIPLY_PJ, SRAM_BYTES, SRAM_PJ
from automl.executors.eie import EieLinear
from automl.executors.rows import Float32

#: Entries in one word of the matrix memory.
_WORD = 8

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class EieRun:
    """What happened while one example went through one layer.

    Attributes:
        output: Sums after ReLU, shape (out_features).
        next_active: Rows whose output is not zero: what would be broadcast next.
        broadcasts: Non-zero activations.
        pointer_reads: Pairs of pointers read, by element.
        matrix_reads: 64-bit words of entries read, by element.
        entries: Entries decoded, multiplied and added, by element, padding included.
        padding: Those among them that hold a zero, by element.
        queue_depth: Most activations that waited, by element.
        cycles: From the first broadcast to the last sum.
        stalls: Cycles in which nothing could be broadcast because a queue was full.
    """

    output: NDArray[np.float64]
    next_active: Int64
    broadcasts: int
    pointer_reads: Int64
    matrix_reads: Int64
    entries: Int64
    padding: Int64
    queue_depth: Int64
    cycles: int
    stalls: int

    @property
    def load_balance(self) -> float:
        """Fraction of all elements' cycles that multiplied, 1 where there was nothing to do."""
        return _balance(self.entries, self.cycles)

    def energy_pj(self) -> float:
        """Energy by published figures (``automl.cost.energy_tables``), pJ.

        16-bit arithmetic; a word of entries and a pair of pointers cost a 64-bit access to the
        memory that holds EIE's 128 KB of entries and 32 KB of pointers, the running sum two
        accesses of 16 bits to its smallest. Clock, control and leakage are not in it.
        """
        entry = MULTIPLY_PJ["float16"] + ADD_PJ["float16"] + 2 * SRAM_PJ[0] / 4
        words = _access_pj(128 * 1024) * float(self.matrix_reads.sum())
        pointers = _access_pj(32 * 1024) * float(self.pointer_reads.sum())
        return entry * float(self.entries.sum()) + words + pointers


def dense_energy_pj(out_features: int, in_features: int) -> float:
    """The same layer dense in float32, every weight fetched from DRAM once, pJ."""
    weight = DRAM_PJ / 2 + MULTIPLY_PJ["float32"] + ADD_PJ["float32"]
    return weight * out_features * in_features


def run(layer: EieLinear, x: Float32, queue: int = 8, relu: bool = True) -> EieRun:
    """Puts one example through a layer.

    Args:
        layer: Dealt out to as many elements as the chip has (the paper's has 64).
        x: Activations, shape (in_features).
        queue: Activations that an element's queue holds; the paper chose 8.
        relu: Whether negative sums become zero.

    Raises:
        ValueError: The queue holds nothing, or the activations have another shape.
    """
    if queue < 1:
        raise ValueError(f"run.queue must be at least 1, got {queue}")
    if x.shape != (layer.in_features,):
        raise ValueError(f"run.x must have shape ({layer.in_features},), got {x.shape}")
    broadcast = np.flatnonzero(x)
    work = layer.counts[:, broadcast]
    cycles, stalls, depth = _clock(work, queue)
    sums, padding = _accumulate(layer, x, broadcast)
    output = sums + layer.bias
    if relu:
        output = np.maximum(output, 0)
    first = layer.starts[:, broadcast].astype(np.int64) - layer.starts[:, :1]
    words = np.where(work > 0, (first + work - 1) // _WORD - first // _WORD + 1, 0)
    return EieRun(
        output=output,
        next_active=np.flatnonzero(output),
        broadcasts=len(broadcast),
        pointer_reads=np.full(layer.elements, len(broadcast)),
        matrix_reads=words.sum(1),
        entries=work.sum(1),
        padding=padding,
        queue_depth=depth,
        cycles=cycles,
        stalls=stalls,
    )


def load_balance(layer: EieLinear, x: Float32, queue: int) -> float:
    """``EieRun.load_balance`` alone, without the sums; arguments as in :func:`run`."""
    work = layer.counts[:, np.flatnonzero(x)]
    return _balance(work.sum(1), _clock(work, queue)[0])


def _balance(entries: Int64, cycles: int) -> float:
    return float(entries.sum()) / (cycles * len(entries)) if cycles else 1.0


def _accumulate(layer: EieLinear, x: Float32, columns: Int64) -> tuple[NDArray[np.float64], Int64]:
    """Sums by row, and the padding entries that each element met."""
    sums = np.zeros(layer.out_features)
    padding = np.zeros(layer.elements, np.int64)
    codebook = layer.codebook.astype(np.float64)
    for element in range(layer.elements):
        own = sums[layer.rows_of(element)]
        for column in columns:
            rows, codes = layer.column(element, int(column))
            # Rows of one column differ, so adding them at once is adding them in turn.
            own[rows] += codebook[codes] * float(x[column])
            padding[element] += np.count_nonzero(codes == 0)
        sums[layer.rows_of(element)] = own
    return sums, padding


def _clock(work: Int64, queue: int) -> tuple[int, int, Int64]:
    """Cycles, stalls, and the most that waited in each queue.

    Args:
        work: Entries of every element for every broadcast, shape (elements, broadcasts).
        queue: Activations that a queue holds.
    """
    elements, broadcasts = work.shape
    taken, busy = np.zeros(elements, np.int64), np.zeros(elements, np.int64)
    depth = np.zeros(elements, np.int64)
    sent = cycles = stalls = 0
    while sent < broadcasts or busy.any() or (taken < sent).any():
        waiting = sent - taken
        start = np.flatnonzero((busy == 0) & (waiting > 0))
        busy[start] = np.maximum(work[start, taken[start]], 1)
        taken[start] += 1
        busy -= busy > 0
        if sent < broadcasts:
            if (sent - taken < queue).all():
                sent += 1
            else:
                stalls += 1
        np.maximum(depth, sent - taken, out=depth)
        cycles += 1
    return cycles, stalls, depth


def _access_pj(capacity: int) -> float:
    """One access of 64 bits to the smallest memory of the tables that holds ``capacity`` bytes."""
    held = (pj for size, pj in zip(SRAM_BYTES, SRAM_PJ, strict=True) if size >= capacity)
    return next(held, DRAM_PJ)
