"""What a person asks of a data set, checked once for all data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from automl.data.split import Indices, limited
from automl.hints import did_you_mean
from automl.types import InputError, is_whole

#: ``holdout``: validation out of the training images. ``test_halves``: half of the test images
#: validate and the other half test, for networks that have seen every training image.
SPLITS = ("auto", "holdout", "test_halves")


@dataclass(frozen=True, slots=True)
class DataRequest:
    """The arguments of :func:`~automl.data.load.load_data`; ``data.*`` on the command line.

    Attributes:
        root: Data root, None to look in the usual places.
        split: One of ``SPLITS``.
        validation_size: Images for validation; None is the data set's own number.
        seed: Chooses which images are held out.
        limit: At most so many images in each of the three parts; None is all.
        size: Height and width of the images in pixels; None is the data set's own.

    Raises:
        InputError: A field that is none of these.
    """

    root: Path | None = None
    split: str = "auto"
    validation_size: int | None = None
    seed: int = 0
    limit: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        """Checks the fields and turns NumPy's numbers into Python's."""
        if self.split not in SPLITS:
            raise InputError(
                f"data.split must be one of {', '.join(SPLITS)}, got {self.split!r}; "
                f"{did_you_mean(self.split, SPLITS)}"
            )
        for name in ("validation_size", "limit", "size"):
            value = getattr(self, name)
            if value is not None and not is_whole(value, 1):
                raise InputError(
                    f"data.{name} must be a whole number of at least 1 or null, got {value!r}"
                )
            object.__setattr__(self, name, None if value is None else int(value))
        if not is_whole(self.seed, 0):
            raise InputError(f"data.seed must be a whole number of at least 0, got {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def require_size(self, native: int, name: str) -> None:
        """Refuses a size other than ``native``, for data sets that are not resized.

        Raises:
            InputError: Another size was asked for.
        """
        if self.size not in (None, native):
            raise InputError(
                f"data.size must be {native} or null for {name} (its images are not resized), "
                f"got {self.size}"
            )

    def held_out(self, default: int, available: int, name: str) -> int:
        """How many images to hold out of the training images for validation.

        Raises:
            InputError: As many as there are, or more.
        """
        size = default if self.validation_size is None else self.validation_size
        if size >= available:
            raise InputError(
                f"data.validation_size must be below the {available} training images of {name}, "
                f"got {size}"
            )
        return size

    def at_most(self, labels: NDArray[np.int64], indices: Indices, what: str) -> Indices:
        """``validation_size`` of images that are set apart already; all of them where None.

        Args:
            labels: Labels of the pool that ``indices`` point into.
            indices: The images set apart, ascending.
            what: What they are, for the error's message.

        Raises:
            InputError: There are fewer.
        """
        if self.validation_size is not None and self.validation_size > len(indices):
            raise InputError(
                f"data.validation_size must be at most {len(indices)} ({what}), "
                f"got {self.validation_size}"
            )
        return limited(labels, indices, self.validation_size, self.seed)
