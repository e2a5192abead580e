"""Which image goes into which part: class-balanced, seeded, the same on every machine for ever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def stratified(labels: NDArray[np.int64], size: int, seed: int) -> Indices:
    """Chooses ``size`` examples so that every class has its share.

    Args:
        labels: Class of every example, shape (n,).
        size: How many to choose, 0 to n. Shares are rounded by largest remainder.
        seed: Chooses which; the choice depends on nothing else (not on a library's version).

    Returns:
        Their indices in ascending order, shape (size,).

    Raises:
        ValueError: ``size`` is outside 0 to n.
    """
    if not 0 <= size <= len(labels):
        raise ValueError(f"stratified size must be 0 to {len(labels)}, got {size}")
    _, kind, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = _quotas(counts, size)
    rank = _random_keys(len(labels), seed)
    # Sorted by class, then at random: the first examples of every class are the chosen ones.
    order = np.lexsort((rank, kind))
    first = np.concatenate(([0], np.cumsum(counts)))[:-1]
    place_in_class = np.arange(len(labels)) - np.repeat(first, counts)
    chosen = order[place_in_class < np.repeat(quota, counts)]
    return np.sort(chosen).astype(np.int64)


def without(n: int, *taken: Indices) -> Indices:
    """The indices 0 to n - 1 that are in none of ``taken``, ascending."""
    left = np.ones(n, dtype=np.bool_)
    for indices in taken:
        left[indices] = False
    return np.flatnonzero(left).astype(np.int64)


def hold_out(labels: NDArray[np.int64], size: int, seed: int) -> tuple[Indices, Indices]:
    """Splits into (kept, held out), the latter of ``size`` examples; see :func:`stratified`."""
    held = stratified(labels, size, seed)
    return without(len(labels), held), held


def limited(labels: NDArray[np.int64], indices: Indices, limit: int | None, seed: int) -> Indices:
    """At most ``limit`` of ``indices``, class-balanced, ascending; all of them where None."""
    if limit is None or limit >= len(indices):
        return indices
    return indices[stratified(labels[indices], limit, seed)]


def _quotas(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Largest-remainder shares of ``size``; integers throughout, so no rounding can vary."""
    total = max(int(counts.sum()), 1)
    quota, remainder = np.divmod(counts.astype(np.int64) * size, total)
    short = size - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:short]] += 1
    return quota


def _random_keys(n: int, seed: int) -> NDArray[np.uint64]:
    """One distinct pseudo-random key per index: SplitMix64 (Steele et al., 2014) of each."""
    with np.errstate(over="ignore"):
        start = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))
        return _splitmix64(start + np.arange(n).astype(np.uint64))


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
