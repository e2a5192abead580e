"""One call from the name of a data set to its three parts."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from automl.data import sources
from automl.data.request import DataRequest
from automl.data.tensors import DataSplits
from automl.hints import did_you_mean
from automl.types import InputError


def load_data(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "auto",
    validation_size: int | None = None,
    seed: int = 0,
    limit: int | None = None,
    size: int | None = None,
) -> DataSplits:
    """Loads a data set as training, validation and test images, disjoint and decoded.

    Args:
        name: A module of ``automl.data.sources``: ``digits``, ``cifar10`` or ``imagefolder``.
        root: Folder that holds the data; None looks at ``PRUNEPILOT_DATA``, then at
            ``../shared/data`` beside the project. Not used by ``digits``.
        split: ``holdout`` takes validation images out of the training images, ``test_halves``
            takes half of the test images (for networks that have seen all training images);
            ``auto`` is ``holdout`` (see :func:`split_for`).
        validation_size: Images for validation; None is the data set's own number.
        seed: Chooses which images are held out. Independent of the seed of a search.
        limit: At most so many images in each part, class-balanced; None is all.
        size: Height and width in pixels, for data sets that are resized.

    Raises:
        InputError: An argument that is none of these, or data that is missing or damaged.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(sources.__path__))
    if name not in known:
        raise InputError(f"no data set is called {name!r}; {did_you_mean(name, known)}")
    request = DataRequest(
        root=None if root is None else Path(root),
        split=split,
        validation_size=validation_size,
        seed=seed,
        limit=limit,
        size=size,
    )
    source = importlib.import_module(f"{sources.__name__}.{name}")
    splits: DataSplits = source.load(request)
    return splits


def split_for(split: str, trained_on: str | None) -> str:
    """Settles ``split=auto`` by what the network's weights were trained on.

    Args:
        split: The ``data.split`` setting.
        trained_on: The model's setting: ``train``, ``all_train`` (the weights have seen every
            training image, so that no training image can tell a good policy from a bad one) or
            None for untrained weights.

    Returns:
        ``test_halves`` for ``auto`` and ``all_train``, ``holdout`` for any other ``auto``, else
        ``split``.

    Raises:
        InputError: ``trained_on`` is none of these.
    """
    if trained_on not in ("train", "all_train", None):
        raise InputError(f"model.trained_on must be train, all_train or null, got {trained_on!r}")
    if split != "auto":
        return split
    return "test_halves" if trained_on == "all_train" else "holdout"
