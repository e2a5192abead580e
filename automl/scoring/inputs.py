"""What classifiers are scored on: decoded images, or ids, and what makes inputs of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from automl.batch_size import default_batch_size
from automl.types import InputError, is_whole


def check_data(images: Tensor, labels: Tensor | None) -> None:
    """Refuses images and labels that do not fit a scorer.

    Raises:
        InputError: There are no examples, or not one label for each.
        ValueError: A shape or type is off.
    """
    if images.ndim < 2:
        raise ValueError(
            f"ClassifierScorer.images must be (examples, ...), got {tuple(images.shape)}"
        )
    if not (images.is_floating_point() or images.dtype in (torch.uint8, torch.int64)):
        raise ValueError(
            "ClassifierScorer.images must be uint8, floating point or int64 ids, "
            f"got {images.dtype}"
        )
    if len(images) == 0:
        raise InputError("there are no examples to score on; check the data's split")
    if labels is None:
        return
    if labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(
            "ClassifierScorer.labels must be integers of shape (examples,), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) != len(images):
        raise InputError(f"there are {len(images)} images but {len(labels)} labels")
    if int(labels.min()) < 0:
        raise InputError(f"labels must be classes from 0 on, got {int(labels.min())}")


def initial_batch_size(
    asked: int | Literal["auto"] | None, images: Tensor, device: torch.device
) -> int | Literal["auto"]:
    """The batch size that was asked for, or one by rule.

    Raises:
        ValueError: It is none.
    """
    if asked is None:
        return default_batch_size(images[0].numel(), device)
    if asked == "auto":
        return "auto"
    if not is_whole(asked, 1):
        raise ValueError(
            f"ClassifierScorer.batch_size must be a positive integer or 'auto', got {asked!r}"
        )
    return int(asked)


def normalisation(
    images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor | None, Tensor | None]:
    """(scale, bias) that turn decoded images into inputs: float64, shape (channels, 1, 1).

    (None, None) where there is nothing to do.
    """
    if images.dtype == torch.int64:
        if mean or std:
            raise ValueError(f"ClassifierScorer.mean and std must be None for ids, got {mean}")
        return None, None
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    if mean is None and std is None and unit == 1.0:
        return None, None
    shift = _per_channel("mean", mean, images, 0.0)
    spread = _per_channel("std", std, images, 1.0)
    if not bool((spread > 0).all()):
        raise ValueError(f"ClassifierScorer.std must be > 0, got {std}")
    return 1.0 / (unit * spread), -shift / spread


def _per_channel(
    name: str, values: Sequence[float] | None, images: Tensor, default: float
) -> Tensor:
    """Shape (channels, 1, 1), float64; one value for all without ``values``."""
    if values is None:
        return torch.tensor(default, dtype=torch.float64)
    if images.ndim != 4 or len(values) != images.shape[1]:
        raise ValueError(
            f"ClassifierScorer.{name} must have one value for each channel of images "
            f"{tuple(images.shape)}, got {list(values)}"
        )
    return torch.tensor(list(values), dtype=torch.float64)[:, None, None]
