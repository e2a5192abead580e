"""Weight sharing: 15 values that stand for all non-zero weights of a layer.

S. Han, H. Mao and W. Dally, "Deep Compression" (arXiv 1510.00149, section 3): k-means in one
dimension, started from centroids spread evenly over the range of the weights, which serves large
weights better than other starts do. Zero has a code of its own, 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl.executors.rows import Float32

#: Codes of non-zero weights.
CENTROIDS = 15


def share(values: Float32, iterations: int = 50) -> tuple[NDArray[np.uint8], Float32]:
    """Codes of weights, and what each code stands for.

    Weights with at most 15 distinct values are kept exactly.

    Args:
        values: Finite weights that are not zero, shape (n,).
        iterations: Of k-means, at most.

    Returns:
        codes in 1..15, shape (n,), and the codebook, shape (16,), ascending from its second
        entry on, zero at code 0.
    """
    distinct = np.unique(values)
    if len(distinct) <= CENTROIDS:
        centroids = distinct.astype(np.float64)
    else:
        centroids = _k_means(np.sort(values).astype(np.float64), iterations)
    middles = (centroids[1:] + centroids[:-1]) / 2
    codes = np.searchsorted(middles, values.astype(np.float64)).astype(np.uint8) + np.uint8(1)
    codebook = np.zeros(CENTROIDS + 1, np.float32)
    codebook[1 : len(centroids) + 1] = centroids
    return codes, codebook


def _k_means(ascending: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
    """Lloyd's algorithm: in one dimension clusters are ranges, and sums are differences."""
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    centroids = np.linspace(ascending[0], ascending[-1], CENTROIDS)
    for _ in range(iterations):
        inner = np.searchsorted(ascending, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ascending)]])
        count = np.diff(edges)
        mean = np.diff(sums[edges]) / np.maximum(count, 1)
        moved = np.where(count > 0, mean, centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids
