"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships (UCI, Alpaydin, 1998).

The split is fixed whatever the seed (897 to train, 400 to validate, 500 to test, class-balanced),
because the shipped network was trained on those 897 and no others.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automl.data.augment import PadCropFlip
from automl.data.parts import Pool, fingerprint
from automl.data.request import DataRequest
from automl.data.split import hold_out, limited, stratified, without
from automl.data.tensors import DataSplits
from automl.types import InputError

TEST_SIZE = 500
VALIDATION_SIZE = 400
_SPLIT_SEED = 0

#: Mean and standard deviation of the pixels of all images in [0, 1].
MEAN = (0.3053,)
STD = (0.3760,)


def load(request: DataRequest) -> DataSplits:
    """Loads the digits; ``root`` is not needed.

    Raises:
        InputError: A validation size above 400, ``test_halves``, or a size other than 8.
    """
    request.require_size(8, "digits")
    if request.split == "test_halves":
        raise InputError("data.split=test_halves is not for digits: use holdout, its own split")
    pool = _pool()
    rest, test = hold_out(pool.labels, TEST_SIZE, _SPLIT_SEED)
    held = rest[stratified(pool.labels[rest], VALIDATION_SIZE, _SPLIT_SEED)]
    train = without(len(pool.labels), test, held)
    # Never more: the shipped network has seen the images of the training part.
    validation = request.at_most(pool.labels, held, "the shipped network has seen the others")
    train, validation, test = (
        limited(pool.labels, part, request.limit, request.seed)
        for part in (train, validation, test)
    )
    return DataSplits(
        name="digits",
        train=pool.take(train),
        validation=pool.take(validation),
        test=pool.take(test),
        mean=MEAN,
        std=STD,
        classes=tuple("0123456789"),
        split="holdout",
        fingerprint=fingerprint("digits", [(pool, part) for part in (train, validation, test)]),
        augment=PadCropFlip(pad=1, flip=False),
    )


def _pool() -> Pool:
    pixels, labels = _pixels_and_labels()
    images = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    classes = labels.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + classes.tobytes()).hexdigest()
    return Pool(images, classes, digest)


def _pixels_and_labels() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shapes (1797, 64), from 0 to 16, and (1797,).

    scikit-learn's file is read as it lies, since importing the package takes a second of start-up;
    a version that keeps it elsewhere is asked.
    """
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.data, loaded.target
