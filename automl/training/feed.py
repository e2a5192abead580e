"""Batches to train on, the same ones in the same order for the same seed and epoch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from automl.hashing import digest

Batch = tuple[Tensor, Tensor | None]


@runtime_checkable
class BatchSource(Protocol):
    """Decoded images that cut themselves into normalised batches (`automl.data.TensorSet`)."""

    @property
    def images(self) -> Tensor:
        """All images, shape (examples, channels, height, width)."""

    @property
    def labels(self) -> Tensor:
        """Their classes, shape (examples,)."""

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        shuffle: bool,
        generator: torch.Generator,
        channels_last: bool,
        augment: Any,
    ) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass over the images, normalised; the last batch may be smaller."""


class ReadyBatches(Protocol):
    """Batches as they are to be used: a list, or a data loader, which shuffles for itself."""

    def __len__(self) -> int:
        """How many batches a pass has."""

    def __iter__(self) -> Iterator[Any]:
        """One pass: (inputs, labels), labels None where there are none."""


@dataclass(frozen=True)
class Feed:
    """What fine-tuning reads.

    Attributes:
        source: Images, or batches that are ready.
        batch_size: Examples per batch of images.
        seed: Decides order and augmentation, together with the epoch.
        device: Where batches go.
        mean: Subtracted from each channel; None for batches that are ready.
        std: Divides each channel; None for batches that are ready.
        augment: As the images' ``batches`` takes it; None for batches that are ready.
        channels_last: Lay 4-D inputs out channels-last.
    """

    source: BatchSource | ReadyBatches
    batch_size: int
    seed: int
    device: torch.device
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: Any = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Refuses what batches that are ready would ignore."""
        if isinstance(self.source, BatchSource):
            return
        for name in ("mean", "std", "augment"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"finetune.{name} must be None for batches that are ready, got {value!r}"
                )

    @property
    def steps(self) -> int:
        """Batches in one epoch."""
        if not isinstance(self.source, BatchSource):
            return len(self.source)
        whole, rest = divmod(len(self.source.images), self.batch_size)
        # One image left over is left out: alone it has no batch statistics.
        alone = rest == 1 and whole > 0
        return whole + (rest > 0 and not alone)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch ``number``, on the device; the reader may write into inputs."""
        if isinstance(self.source, BatchSource):
            batches = self.source.batches(
                self.batch_size,
                device=self.device,
                mean=self.mean,
                std=self.std,
                shuffle=True,
                generator=torch.Generator().manual_seed(epoch_seed(self.seed, number)),
                channels_last=self.channels_last,
                augment=self.augment,
            )
            yield from islice(batches, self.steps)
            return
        for x, y in self.source:
            yield self._moved(x), None if y is None else y.to(self.device, non_blocking=True)

    def fingerprint(self) -> str:
        """SHA-256 of images, labels and what is done to them; of ready batches, their number."""
        if not isinstance(self.source, BatchSource):
            return digest(self.steps)
        settings = [None if v is None else list(v) for v in (self.mean, self.std)]
        return digest(self.source.images, self.source.labels, settings, described(self.augment))

    def _moved(self, x: Tensor) -> Tensor:
        last = self.channels_last and x.ndim == 4
        layout = torch.channels_last if last else torch.preserve_format
        # A copy in any case: a list's batches come again, and some networks write into their input.
        return x.to(self.device, non_blocking=True, copy=True, memory_format=layout)


def described(function: Any) -> str:
    """A name that is the same in every process, unlike the default repr of an object."""
    if dataclasses.is_dataclass(function):
        return repr(function)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch, unrelated to those of other epochs and seeds; below 2**63."""
    mixed = hashlib.sha256(f"epoch {seed} {epoch}".encode()).digest()
    return int.from_bytes(mixed[:8], "little") >> 1
