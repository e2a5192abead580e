"""Images and labels in memory, and the batches that networks are fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from automl.data.augment import PadCropFlip
from automl.data.split import stratified

#: Called as ``augment(images, generator)`` on images that are not normalised yet.
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class TensorSet:
    """A set of labelled images, decoded, or of labelled sequences of ids.

    Attributes:
        images: (n, channels, height, width), uint8 in [0, 255] or float32 in [0, 1]; or ids of
            tokens or categories, int64 of shape (n, length), which are never normalised.
        labels: (n,), int64.
    """

    images: Tensor
    labels: Tensor
    _copies: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Checks shapes and types."""
        kinds = {4: (torch.uint8, torch.float32), 2: (torch.int64,)}
        if self.images.dtype not in kinds.get(self.images.ndim, ()):
            raise ValueError(
                "TensorSet.images must be uint8 or float32 of shape (n, channels, height, width), "
                "or int64 of shape (n, length), "
                f"got {self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"TensorSet.labels must be int64 of shape ({len(self.images)},), "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def subset(self, indices: Tensor | slice) -> TensorSet:
        """The images at ``indices``; a slice shares memory with this set."""
        return TensorSet(self.images[indices], self.labels[indices])

    def batches(
        self,
        batch_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        channels_last: bool = False,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the set in normalised batches.

        On a device other than the CPU the raw images are copied there once, on the first pass;
        shuffling, augmentation and normalisation then run there, and no batch waits for the
        host. The same generator state gives the same pass (per kind of device).

        Args:
            batch_size: Images in a batch; the last batch may be smaller.
            device: Where the batches are wanted.
            dtype: Floating type of the batches; arithmetic is float32 at least.
            mean: Per channel, subtracted from images in [0, 1]; None subtracts nothing.
            std: Per channel, divided by; None divides by nothing.
            shuffle: Whether to draw a new order.
            generator: CPU generator that order and augmentation come from; None is the global one.
            channels_last: Whether the batches lie channels last in memory.
            augment: Applied to each raw batch.
            drop_last: Whether to leave out a last batch that is smaller.

        Yields:
            x of shape (batch, channels, height, width), or (batch, length) of ids as they are,
            and y of shape (batch,).

        Raises:
            ValueError: ``batch_size`` is not positive, ``dtype`` is no floating type, or mean and
                std do not fit the channels.
        """
        if batch_size < 1:
            raise ValueError(f"TensorSet.batch_size must be at least 1, got {batch_size}")
        images, labels = self._on(torch.device(device))
        normalise = _normaliser(images, dtype, mean, std, channels_last)
        order: Tensor | None = None
        if shuffle:
            order = torch.randperm(len(self), generator=generator).to(images.device)
        noise: torch.Generator | None = None
        if augment is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
            noise = torch.Generator(images.device).manual_seed(seed)
        count = len(self) - len(self) % batch_size if drop_last else len(self)

        def iterate() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, count, batch_size):
                pick = slice(start, min(start + batch_size, count))
                at = pick if order is None else order[pick]
                x = images[at]
                if augment is not None and noise is not None:
                    x = augment(x, noise)
                yield normalise(x), labels[at]

        return iterate()

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device == self.images.device:
            return self.images, self.labels
        if device not in self._copies:
            self._copies[device] = (self.images.to(device), self.labels.to(device))
        return self._copies[device]


def _normaliser(
    images: Tensor,
    dtype: torch.dtype,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels_last: bool,
) -> Callable[[Tensor], Tensor]:
    """The function from raw images to the input of a network: one multiplication, one sum."""
    if not dtype.is_floating_point:
        raise ValueError(f"TensorSet.dtype must be a floating type, got {dtype}")
    if images.dtype == torch.int64:
        if mean or std:
            raise ValueError(f"TensorSet.mean and std must be empty for ids, got {mean}, {std}")
        return torch.clone
    channels = images.shape[1]
    # Half types would round the constants and the images before they meet.
    compute = dtype if dtype == torch.float64 else torch.float32
    shift = _per_channel("mean", mean, channels, 0.0)
    spread = _per_channel("std", std, channels, 1.0)
    if not bool((spread > 0).all()):
        raise ValueError(f"TensorSet.std must be positive, got {std}")
    unit = 255.0 if images.dtype == torch.uint8 else 1.0
    scale = (1.0 / (unit * spread)).to(images.device, compute)
    bias = (-shift / spread).to(images.device, compute)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def normalise(x: Tensor) -> Tensor:
        x = x.to(compute, copy=True, memory_format=layout)
        return x.mul_(scale).add_(bias).to(dtype)

    return normalise


def _per_channel(
    name: str, values: Sequence[float] | None, channels: int, default: float
) -> Tensor:
    """Shape (1, channels, 1, 1), float64."""
    values = [default] * channels if values is None else list(values)
    if len(values) != channels:
        raise ValueError(
            f"TensorSet.{name} must have one value for each of {channels} channels, got {values}"
        )
    return torch.tensor(values, dtype=torch.float64).view(1, channels, 1, 1)


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set in three disjoint parts, and how to normalise it.

    Attributes:
        name: Name of the data set.
        train: What networks are trained, repaired and calibrated on.
        validation: What a search scores on.
        test: What is reported, and nothing else.
        mean: Per channel, of images in [0, 1], subtracted; empty for ids.
        std: Per channel, divided by; empty for ids.
        classes: Names of the classes in the order of the labels.
        split: How the parts were made, ``holdout`` or ``test_halves``.
        fingerprint: Hash of the content and of which image is in which part.
        augment: The data set's usual augmentation for training, None where it has none.
        from_train: The parts, ``validation`` and ``test``, that were cut from the data set's own
            training images: weights from elsewhere may have been trained on them.
    """

    name: str
    train: TensorSet
    validation: TensorSet
    test: TensorSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    split: str
    fingerprint: str
    augment: PadCropFlip | None = None
    from_train: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def calibration(self, n: int, seed: int = 0) -> TensorSet:
        """Training images for repair and BatchNorm statistics, class-balanced, not augmented.

        Args:
            n: How many; all of them where the training set has fewer.
            seed: Chooses which.

        Raises:
            ValueError: ``n`` is not positive.
        """
        if n < 1:
            raise ValueError(f"DataSplits.calibration n must be at least 1, got {n}")
        chosen = stratified(self.train.labels.numpy(), min(n, len(self.train)), seed)
        return self.train.subset(torch.from_numpy(chosen))
