"""CIFAR-10 (Krizhevsky, 2009), from Parquet shards, torchvision's folder or the binary version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from automl.data.augment import PadCropFlip
from automl.data.cache import Decoding, decoded
from automl.data.formats import cifar_binary, cifar_parquet, cifar_pickle
from automl.data.formats.cifar import CLASSES, SIDE
from automl.data.parts import IMAGENET_MEAN, IMAGENET_STD, Pool, fingerprint
from automl.data.request import DataRequest
from automl.data.roots import data_root
from automl.data.split import Indices, hold_out, limited
from automl.data.tensors import DataSplits
from automl.types import InputError

VALIDATION_SIZE = 5_000
_WANTED = "cifar10/train-*.parquet, cifar-10-batches-py/ or cifar-10-batches-bin/"


class _Format(Protocol):
    __name__: str

    def find(self, root: Path, part: str) -> list[Path]: ...
    def start(self, files: Sequence[Path]) -> Decoding: ...


def load(request: DataRequest) -> DataSplits:
    """Loads CIFAR-10, normalised by ImageNet's statistics as published networks for it are.

    Raises:
        InputError: The files are missing or damaged, or a size other than 32 is asked for.
    """
    request.require_size(SIDE, "cifar10")
    root = data_root(request.root, _WANTED)
    train_pool, test_pool = _pools(root)
    split = "holdout" if request.split == "auto" else request.split
    parts = _split(train_pool, test_pool, split, request)
    parts = [
        (pool, limited(pool.labels, part, request.limit, request.seed)) for pool, part in parts
    ]
    train, validation, test = (pool.take(part) for pool, part in parts)
    return DataSplits(
        name="cifar10",
        train=train,
        validation=validation,
        test=test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=CLASSES,
        split=split,
        fingerprint=fingerprint("cifar10", parts),
        from_train=("validation",) if split == "holdout" else (),
        augment=PadCropFlip(pad=4, flip=True),
    )


def _split(
    train_pool: Pool, test_pool: Pool, split: str, request: DataRequest
) -> list[tuple[Pool, Indices]]:
    train = np.arange(len(train_pool.labels))
    test = np.arange(len(test_pool.labels))
    if split == "test_halves":
        # By index, not at random: the files are shuffled, and published figures split them so.
        first, second = test[: len(test) // 2], test[len(test) // 2 :]
        validation = request.at_most(test_pool.labels, first, "half of cifar10's test images")
        return [(train_pool, train), (test_pool, validation), (test_pool, second)]
    size = request.held_out(VALIDATION_SIZE, len(train), "cifar10")
    kept, held = hold_out(train_pool.labels, size, request.seed)
    return [(train_pool, kept), (train_pool, held), (test_pool, test)]


def _pools(root: Path) -> tuple[Pool, Pool]:
    formats: tuple[_Format, ...] = (cifar_parquet, cifar_pickle, cifar_binary)
    for form in formats:
        train, test = form.find(root, "train"), form.find(root, "test")
        if train and test:
            return _pool(form, train), _pool(form, test)
        if train or test:
            there, missing = ("train", "test") if train else ("test", "train")
            raise InputError(
                f"{(train or test)[0].parent} has CIFAR-10's {there} files but not its {missing} "
                "files: fetch those too"
            )
    raise InputError(
        f"data.root {root} holds no CIFAR-10: looked for {_WANTED}; set data.root or "
        "PRUNEPILOT_DATA to the folder that holds one of them"
    )


def _pool(form: _Format, files: Sequence[Path]) -> Pool:
    start: Callable[[], Decoding] = partial(form.start, files)
    content = decoded("cifar10", files, form.__name__, start)
    return Pool(content.images, content.labels, content.digest)
