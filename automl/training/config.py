"""The settings of a fine-tuning run; free of torch, so that a command can check them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from automl.types import InputError, is_whole

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How to fine-tune a network.

    Attributes:
        epochs: Passes over the training data; 0 leaves the network as it is.
        optimizer: ``sgd`` (with momentum) or ``adamw`` (Loshchilov and Hutter 2019).
        lr: Highest learning rate.
        momentum: SGD's momentum, AdamW's first beta.
        weight_decay: SGD's L2 penalty, AdamW's decoupled decay.
        decay_norm_and_bias: Also decay vectors and scalars: biases and normalisation's weights.
        batch_size: Examples per step; ignored by data that comes in batches of its own.
        schedule: ``cosine`` (Loshchilov and Hutter 2017, to 0 at the last step) or ``constant``.
        warmup_epochs: Epochs, also fractions, of linear rise at the start (Goyal et al. 2017).
        label_smoothing: Share of the target spread over all classes (Szegedy et al. 2016).
        distill_weight: Share of the loss that is distillation from the dense network (Hinton et
            al. 2015); the rest is cross entropy with the labels. At 1 no labels are needed.
        distill_temperature: Temperature of both softmaxes in distillation.
        mixup: Examples are mixed in pairs, the share of one drawn from Beta(mixup, mixup) for every
            batch (Zhang et al. 2018, arXiv 1710.09412); the dense network sees the same mixtures
            (Beyer et al. 2022, arXiv 2106.05237). 0 mixes nothing.
        early_stop_patience: Stop after so many epochs without a better validation score; None
            never stops early.
        max_grad_norm: Gradients are scaled down to this L2 norm; None leaves them.
        seed: Order of the examples, augmentation, dropout.
        precision: What forward and backward passes compute in: ``float32``, or ``bfloat16`` by
            autocast, where weights, gradients and the optimiser stay float32; about half the time
            on processors that multiply it. None for the run's own type.

    Raises:
        InputError: A field is out of range, or of the wrong type.
    """

    epochs: int = 5
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    batch_size: int = 128
    schedule: Schedule = "cosine"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    distill_weight: float = 0.0
    distill_temperature: float = 4.0
    mixup: float = 0.0
    early_stop_patience: int | None = None
    max_grad_norm: float | None = None
    seed: int = 0
    precision: Precision | None = None

    def __post_init__(self) -> None:
        """Checks every field."""
        self._check_choices()
        self._check_counts()
        self._check_numbers()

    def _check_choices(self) -> None:
        self._require(self.optimizer in ("sgd", "adamw"), "optimizer", "sgd or adamw")
        self._require(self.schedule in ("cosine", "constant"), "schedule", "cosine or constant")
        precisions = (None, "float32", "bfloat16")
        self._require(self.precision in precisions, "precision", "null, float32 or bfloat16")
        flag = self.decay_norm_and_bias
        self._require(isinstance(flag, bool), "decay_norm_and_bias", "true or false")

    def _check_counts(self) -> None:
        self._require(is_whole(self.epochs, 0), "epochs", "an integer >= 0")
        self._require(is_whole(self.batch_size, 1), "batch_size", "an integer >= 1")
        is_seed = is_whole(self.seed, 0) and self.seed < 2**63
        self._require(is_seed, "seed", "an integer >= 0 of 63 bits")
        patience = self.early_stop_patience
        fine = patience is None or is_whole(patience, 1)
        self._require(fine, "early_stop_patience", "null or an integer >= 1")
        for name in ("epochs", "batch_size", "seed", "early_stop_patience"):
            value = getattr(self, name)
            # Checkpoints hold no numbers of NumPy.
            object.__setattr__(self, name, None if value is None else int(value))

    def _check_numbers(self) -> None:
        self._require(_is_number(self.lr) and self.lr > 0, "lr", "> 0")
        for name in ("momentum", "label_smoothing"):
            self._require(_within(getattr(self, name), 0, 1, open_end=True), name, "in [0, 1)")
        for name in ("weight_decay", "mixup"):
            self._require(_within(getattr(self, name), 0), name, ">= 0")
        self._require(
            _within(self.warmup_epochs, 0, self.epochs),
            "warmup_epochs",
            f"from 0 to epochs ({self.epochs})",
        )
        self._require(_within(self.distill_weight, 0, 1), "distill_weight", "in [0, 1]")
        temperature = self.distill_temperature
        self._require(_is_number(temperature) and temperature > 0, "distill_temperature", "> 0")
        norm = self.max_grad_norm
        fine = norm is None or (_is_number(norm) and norm > 0)
        self._require(fine, "max_grad_norm", "null or > 0")

    def _require(self, fine: bool, field: str, rule: str) -> None:
        if not fine:
            value = getattr(self, field)
            raise InputError(f"FinetuneConfig.{field} must be {rule}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _within(value: float, low: float, high: float = math.inf, open_end: bool = False) -> bool:
    return _is_number(value) and low <= value and (value < high if open_end else value <= high)
