"""What all forms of CIFAR-10 have in common."""

from __future__ import annotations

from pathlib import Path

from automl.data.cache import Labels
from automl.types import InputError

#: Height and width of an image in pixels.
SIDE = 32
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def check_labels(labels: Labels, file: Path) -> Labels:
    """Returns ``labels``.

    Raises:
        InputError: One is no class of CIFAR-10.
    """
    wrong = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(wrong):
        raise InputError(f"{file} must hold labels 0 to {len(CLASSES) - 1}, got {int(wrong[0])}")
    return labels
