"""The three parts of a data set that is made, not read."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from automl.data.parts import Pool, fingerprint
from automl.data.request import DataRequest
from automl.data.split import Indices, limited
from automl.data.tensors import DataSplits
from automl.types import InputError

TRAIN_SIZE, VALIDATION_SIZE, TEST_SIZE = 2048, 512, 512
#: Examples of a generated data set.
SIZE = TRAIN_SIZE + VALIDATION_SIZE + TEST_SIZE


def splits(
    request: DataRequest,
    name: str,
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[str, ...],
) -> DataSplits:
    """Cuts generated examples, independent of each other, into fixed parts.

    The parts do not depend on the seed: shipped weights were trained on the first of them.

    Args:
        request: What was asked for.
        name: Name of the data set.
        ids: Inputs, shape (SIZE, length).
        labels: Shape (SIZE,).
        classes: Their names.

    Raises:
        InputError: A size, ``test_halves`` or a validation size above 512.
    """
    if request.size is not None:
        raise InputError(f"data.size must be null for {name} (it has no images)")
    if request.split == "test_halves":
        raise InputError(f"data.split=test_halves is not for {name}: use holdout, its own split")
    digest = hashlib.sha256(ids.astype("<i8").tobytes() + labels.astype("<i8").tobytes())
    pool = Pool(ids, labels, digest.hexdigest())
    train, validation, test = np.split(np.arange(SIZE), [TRAIN_SIZE, SIZE - TEST_SIZE])
    validation = request.at_most(labels, validation, "the shipped network has seen the others")
    parts: list[Indices] = [
        limited(labels, part, request.limit, request.seed) for part in (train, validation, test)
    ]
    return DataSplits(
        name=name,
        train=pool.take(parts[0]),
        validation=pool.take(parts[1]),
        test=pool.take(parts[2]),
        mean=(),
        std=(),
        classes=classes,
        split="holdout",
        fingerprint=fingerprint(name, [(pool, part) for part in parts]),
    )
