"""Point clouds of five shapes: sphere, cube, cylinder, cone or torus?

128 points are drawn from the surface of a shape of random size, stretch and turn about the upright
axis, and fall into a grid of 16 x 16 x 16 voxels; a cloud is the numbers of its points' voxels,
``(16 x + y) 16 + z``, some of which repeat. ``root`` is not needed; the examples are generated, the
same ones everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl.data.generated import SIZE, splits
from automl.data.request import DataRequest
from automl.data.tensors import DataSplits

CLASSES = ("sphere", "cube", "cylinder", "cone", "torus")
GRID, POINTS = 16, 128
_SEED = 3

Floats = NDArray[np.float64]


def load(request: DataRequest) -> DataSplits:
    """Generates the clouds.

    Raises:
        InputError: A size, ``test_halves`` or a validation size above 512.
    """
    random = np.random.default_rng(_SEED)
    labels = random.integers(len(CLASSES), size=SIZE)
    shape = (SIZE, POINTS)
    around, height = random.uniform(0, 2 * np.pi, shape), random.uniform(-1, 1, shape)
    other, side = random.uniform(-1, 1, shape), random.integers(6, size=shape)
    every = np.stack([
        _sphere(around, height), _cube(height, other, side), _cylinder(around, height, other, side),
        _cone(around, height), _torus(around, height),
    ])  # fmt: skip
    points = every[labels, np.arange(SIZE)]
    points *= random.uniform(0.75, 1, (SIZE, 1, 3)) * random.uniform(0.6, 0.95, (SIZE, 1, 1))
    points = _turned(points, random.uniform(0, 2 * np.pi, (SIZE, 1)))
    points += random.uniform(-0.05, 0.05, (SIZE, 1, 3))
    cells = np.clip(np.floor((points / 1.4 + 1) * (GRID / 2)), 0, GRID - 1).astype(np.int64)
    ids = cells @ np.array([GRID * GRID, GRID, 1])
    return splits(request, "shapes", ids, labels, CLASSES)


def _sphere(around: Floats, height: Floats) -> Floats:
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(around), radius * np.sin(around), height], -1)


def _cube(height: Floats, other: Floats, side: NDArray[np.int64]) -> Floats:
    face = np.where(side % 2, 0.8, -0.8)
    flat = np.stack([face, 0.8 * height, 0.8 * other], -1)
    turns = np.stack([np.roll(flat, axis, -1) for axis in range(3)])
    first, second = np.indices(side.shape)
    return np.asarray(turns[side // 2, first, second])


def _cylinder(
    around: Floats, height: Floats, other: Floats, side: NDArray[np.int64]
) -> Floats:  # A third of the points on the two lids.
    lid = side < 2
    radius = 0.7 * np.where(lid, np.sqrt(np.abs(other)), 1)
    z = np.where(lid, np.where(side % 2, 1.0, -1.0), height)
    return np.stack([radius * np.cos(around), radius * np.sin(around), z], -1)


def _cone(around: Floats, height: Floats) -> Floats:
    radius = np.sqrt((1 - height) / 2)  # Evenly over the surface.
    return np.stack([radius * np.cos(around), radius * np.sin(around), 1 - 2 * radius], -1)


def _torus(around: Floats, height: Floats) -> Floats:
    tube = np.pi * height
    radius = 0.7 + 0.3 * np.cos(tube)
    return np.stack([radius * np.cos(around), radius * np.sin(around), 0.3 * np.sin(tube)], -1)


def _turned(points: Floats, angle: Floats) -> Floats:
    x, y, z = np.moveaxis(points, -1, 0)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([cosine * x - sine * y, sine * x + cosine * y, z], -1)
