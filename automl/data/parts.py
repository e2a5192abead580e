"""Puts the three parts of a data set together from arrays and indices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from automl.data.split import Indices
from automl.data.tensors import TensorSet

#: Statistics of ImageNet's training images in [0, 1]; what most published networks are fed with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Pool:
    """Decoded images that parts are taken from.

    Attributes:
        images: (n, channels, height, width), uint8 or float32; or ids, (n, length), int64.
        labels: (n,), int64.
        digest: Hash of the content.
    """

    images: NDArray[np.generic]
    labels: NDArray[np.int64]
    digest: str

    def take(self, indices: Indices) -> TensorSet:
        """The images at ascending ``indices``; a gapless run is not copied."""
        images, labels = torch.from_numpy(self.images), torch.from_numpy(self.labels)
        if len(indices) and indices[-1] - indices[0] + 1 == len(indices):
            run = slice(int(indices[0]), int(indices[-1]) + 1)
            return TensorSet(images[run], labels[run])
        at = torch.from_numpy(indices)
        return TensorSet(images[at], labels[at])


def fingerprint(name: str, parts: Sequence[tuple[Pool, Indices]], settings: str = "") -> str:
    """SHA-256 of what is in each part, by the digests of the pools and the indices taken."""
    text = hashlib.sha256(f"{name}\n{settings}\n".encode())
    for pool, indices in parts:
        text.update(f"{pool.digest} {len(indices)}\n".encode())
        text.update(indices.astype("<i8").tobytes())
    return text.hexdigest()
