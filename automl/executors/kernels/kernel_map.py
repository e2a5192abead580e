"""Neighbours of occupied places, by merging sorted keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from automl.executors.kernels.options import kernel


@kernel
def first_duplicate(keys: Any) -> int:
    """Where sorted keys repeat the one before, -1 if nowhere."""
    for i in range(1, keys.shape[0]):
        if keys[i] == keys[i - 1]:
            return i
    return -1


@kernel
def shifted_matches(keys: Any, shift: int, source: Any, target: Any) -> int:
    """Pairs of places whose keys differ by ``shift``: keys[source] = keys[target] + shift.

    Args:
        keys: Sorted, int64, no two alike.
        shift: What is added to a target's key.
        source: Filled with places, int32; likewise target. Room for as many as keys.
        target: See there; in rising order, as the sources are.

    Returns:
        How many pairs there are.
    """
    found, place, size = 0, 0, keys.shape[0]
    for i in range(size):
        wanted = keys[i] + shift
        while place < size and keys[place] < wanted:
            place += 1
        if place == size:
            break
        if keys[place] == wanted:
            source[found] = place
            target[found] = i
            found += 1
    return found


@kernel
def reached(
    coordinates: Any, offset: Any, stride: Any, padding: Any, weights: Any, low: Any, keys: Any,
    source: Any,
) -> int:  # fmt: skip
    """The outputs of a strided convolution that read a place through one offset of the kernel.

    Args:
        coordinates: (batch, x, y, z) of the inputs in the order of their keys, int64.
        offset: Place in the kernel, from 0 on, shape (3).
        stride: Shape (3).
        padding: Shape (3).
        weights: What a step in batch, x, y and z adds to an output's key.
        low: Subtracted from an output's coordinates before.
        keys: Filled with the outputs' keys, which rise.
        source: Filled with the inputs' places.

    Returns:
        How many there are.
    """
    found = 0
    for i in range(coordinates.shape[0]):
        key = np.int64(coordinates[i, 0] - low[0]) * weights[0]
        whole = True
        for axis in range(3):
            shifted = coordinates[i, axis + 1] + padding[axis] - offset[axis]
            step = shifted // stride[axis]
            whole &= step * stride[axis] == shifted
            key += (step - low[axis + 1]) * weights[axis + 1]
        if whole:
            keys[found] = key
            source[found] = i
            found += 1
    return found


@kernel
def positions(table: Any, keys: Any, target: Any) -> None:
    """target[i] = where keys[i] is in the table; both are sorted, and every key is there."""
    place = 0
    for i in range(keys.shape[0]):
        while table[place] < keys[i]:
            place += 1
        target[i] = place
