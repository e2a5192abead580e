"""Folders of pictures: ``root/train/CLASS/*.png`` and, if there are, ``root/val``, ``root/test``.

What has no folder is held out of the training pictures, but where there is ``val`` and no ``test``:
then the two are halves of ``val``. Classes are the folders' names, sorted. Pictures are scaled by
their shorter side, cropped at the centre, and kept decoded in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automl.data.augment import PadCropFlip
from automl.data.cache import Decoding, Images, Labels, decoded
from automl.data.formats.pictures import SUFFIXES, VERSION, decode
from automl.data.parts import IMAGENET_MEAN, IMAGENET_STD, Pool, fingerprint
from automl.data.request import DataRequest
from automl.data.roots import data_root
from automl.data.split import Indices, hold_out, limited, without
from automl.data.tensors import DataSplits
from automl.types import InputError

DEFAULT_SIZE = 224
_WANTED = "train/CLASS/*.png"
_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class _Listing:
    """The pictures of one folder, by name only."""

    files: tuple[Path, ...]
    labels: NDArray[np.int64]


_Part = tuple[_Listing, Indices]


def load(request: DataRequest) -> DataSplits:
    """Loads a folder of pictures, normalised by ImageNet's statistics.

    Raises:
        InputError: No ``train`` folder, too few classes or pictures, a class that training does
            not have, or a picture that cannot be read.
    """
    root = data_root(request.root, _WANTED)
    classes, listings = _listings(root)
    split = "holdout" if request.split == "auto" else request.split
    cut = _test_halves if split == "test_halves" else _holdout
    parts = [
        (listing, limited(listing.labels, indices, request.limit, request.seed))
        for listing, indices in cut(listings, request)
    ]
    size = request.size or DEFAULT_SIZE
    pooled = _decode(parts, size)
    train, validation, test = (pool.take(indices) for pool, indices in pooled)
    return DataSplits(
        name="imagefolder",
        train=train,
        validation=validation,
        test=test,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        classes=classes,
        split=split,
        fingerprint=fingerprint("imagefolder", pooled, f"{classes}"),
        from_train=tuple(
            name
            for name, (listing, _) in zip(("validation", "test"), parts[1:], strict=True)
            if listing is parts[0][0]
        ),
        # In proportion to CIFAR's 4 pixels of 32.
        augment=PadCropFlip(pad=size // 8, flip=True),
    )


def _listings(root: Path) -> tuple[tuple[str, ...], dict[str, _Listing]]:
    train = root / "train"
    if not train.is_dir():
        raise InputError(
            f"data.root {root} has no folder train: pictures must lie in {root / _WANTED}"
        )
    classes = tuple(sorted(folder.name for folder in _folders(train)))
    if len(classes) < 2:
        raise InputError(f"{train} must hold a folder per class, at least 2, got {len(classes)}")
    listings = {}
    for part, names in _FOLDERS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is not None:
            listings[part] = _list(folder, classes)
    return classes, listings


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."]


def _list(folder: Path, classes: Sequence[str]) -> _Listing:
    files: list[Path] = []
    labels: list[int] = []
    for entry in sorted(_folders(folder)):
        if entry.name not in classes:
            raise InputError(f"{entry} is a class that train does not have: remove or rename it")
        pictures = sorted(file for file in entry.iterdir() if file.suffix.lower() in SUFFIXES)
        if not pictures and folder.name == "train":
            raise InputError(f"{entry} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        files += pictures
        labels += [classes.index(entry.name)] * len(pictures)
    if not files:
        raise InputError(f"{folder} holds no pictures in folders named by class")
    return _Listing(tuple(files), np.array(labels, dtype=np.int64))


def _holdout(listings: dict[str, _Listing], request: DataRequest) -> list[_Part]:
    if "test" not in listings and "val" in listings and len(listings["val"].files) > 1:
        # Pictures that the weights have not seen, or need not have; of train nobody can say so.
        return _test_halves(listings, request)
    train = listings["train"]
    kept = np.arange(len(train.files))
    parts: list[_Part] = []
    for part in ("val", "test"):
        if part not in listings:
            default = max(1, len(train.files) // 10)
            size = (
                default if part == "test" else request.held_out(default, len(kept), "imagefolder")
            )
            if size >= len(kept):
                raise InputError(
                    f"data.validation_size leaves {len(kept)} training pictures, too few to hold "
                    f"{size} out for a test: set it lower, or add a folder test"
                )
            rest, chosen = hold_out(train.labels[kept], size, request.seed)
            parts.append((train, kept[chosen]))
            kept = kept[rest]
            continue
        own = listings[part]
        indices = np.arange(len(own.files))
        if part == "val":
            indices = request.at_most(own.labels, indices, "the pictures of val")
        parts.append((own, indices))
    return [(train, kept), *parts]


def _test_halves(listings: dict[str, _Listing], request: DataRequest) -> list[_Part]:
    own = listings.get("test") or listings.get("val")
    if own is None or len(own.files) < 2:
        raise InputError("data.split=test_halves needs a folder test or val with 2 pictures")
    # Class-balanced: files are listed class by class, so halves by index would share no class.
    first, second = hold_out(own.labels, len(own.files) // 2, request.seed)[::-1]
    validation = request.at_most(own.labels, first, "half of the test pictures")
    train = listings["train"]
    return [(train, np.arange(len(train.files))), (own, validation), (own, second)]


def _decode(parts: Sequence[_Part], size: int) -> list[tuple[Pool, Indices]]:
    """Decodes each folder once, only the pictures that a part uses."""
    pools: dict[int, tuple[Pool, Indices]] = {}
    for listing, _ in parts:
        if id(listing) not in pools:
            used = without(
                len(listing.files),
                without(len(listing.files), *(at for other, at in parts if other is listing)),
            )
            files = [listing.files[index] for index in used]
            labels = listing.labels[used]
            start = partial(_start, files, labels, size)
            # Labels are part of the key: they come from all folders' names, not from the files.
            settings = f"{VERSION} {size} {labels.tolist()}"
            content = decoded("imagefolder", files, settings, start)
            pools[id(listing)] = (Pool(content.images, content.labels, content.digest), used)
    taken = []
    for listing, indices in parts:
        pool, used = pools[id(listing)]
        taken.append((pool, np.searchsorted(used, indices).astype(np.int64)))
    return taken


def _start(files: Sequence[Path], labels: Labels, size: int) -> Decoding:
    return Decoding((len(files), 3, size, size), _chunks(files, labels, size))


def _chunks(files: Sequence[Path], labels: Labels, size: int) -> Iterator[tuple[Images, Labels]]:
    # Threads suffice: decoding and scaling leave the interpreter's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        for start in range(0, len(files), _CHUNK):
            some = files[start : start + _CHUNK]
            pictures = threads.map(lambda file: decode(file, str(file), size), some)
            yield np.stack(list(pictures)), labels[start : start + _CHUNK]
