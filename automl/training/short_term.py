"""A short training of every trial's network, the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from automl.hashing import digest, weights_hash
from automl.training.config import FinetuneConfig
from automl.training.feed import BatchSource, Feed
from automl.training.finetune import finetune


@dataclass(frozen=True, eq=False)
class ShortTerm:
    """Trains networks in place: no validation data are looked at, the last weights stay.

    Attributes:
        train: Training images.
        config: How to train.
        mean: Subtracted from each channel.
        std: Divides each channel.
        augment: What the images' ``batches`` takes.
        teacher: The dense network, for distillation.
        device: Where to train.
        dtype: float32, or bfloat16 for autocast.
        channels_last: Lay images and weights out channels-last.
    """

    train: BatchSource
    config: FinetuneConfig
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: Any = None
    teacher: nn.Module | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def __call__(self, network: nn.Module) -> None:
        """Trains ``network``; modes stay as they are."""
        finetune(
            network,
            self.train,
            self.config,
            mean=self.mean,
            std=self.std,
            augment=self.augment,
            distill_from=self.teacher,
            device=self.device,
            dtype=self.dtype,
            channels_last=self.channels_last,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identifies data, settings and teacher."""
        feed = Feed(
            self.train, self.config.batch_size, self.config.seed, self.device,
            self.mean, self.std, self.augment, self.channels_last,
        )  # fmt: skip
        distils = self.teacher is not None and self.config.distill_weight > 0
        teacher = weights_hash(self.teacher) if distils and self.teacher is not None else None
        return digest(
            "short term", asdict(self.config), feed.fingerprint(), str(self.dtype), teacher
        )
