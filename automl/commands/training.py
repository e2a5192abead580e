"""How the command trains networks: the data, the teacher and the scorer of a run."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automl.commands.build import Bench
from automl.commands.settings import instantiate, seed_of
from automl.models import load_model
from automl.policy import Policy
from automl.pruning.grains import is_inside
from automl.pruning.granularities import CHANNEL
from automl.pruning.schedules import AfterStep, Schedule
from automl.training.codebook import SHARED_VALUES, sharing
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.training.history import EpochRow
from automl.types import InputError

_BATCH = 256


@dataclass(eq=False)
class BenchTraining:
    """Trains the stages of a schedule.

    Attributes:
        bench: Data, teacher and scorer.
        config: How to train; the epochs are each stage's own.
        name: What is trained, for the reports.
        checkpoints: Start of the checkpoints' paths, one each stage; None writes none.
    """

    bench: Bench
    config: FinetuneConfig
    name: str
    checkpoints: Path | None = None
    _stage: int = field(default=0, init=False)

    def __call__(
        self, network: nn.Module, epochs: int, last: bool, after_step: AfterStep | None
    ) -> None:
        """Trains in place; the last stage keeps the best epoch by validation top-1."""
        self._stage += 1
        bench, path = self.bench, self.checkpoints
        finetune(
            network,
            bench.data.train,
            self._config(epochs, last),
            **bench.normalisation,
            augment=bench.data.augment,
            distill_from=bench.teacher,
            validation_scorer=bench.tuning_scorer if last else None,
            device=bench.device,
            dtype=bench.dtype,
            channels_last=bench.images_channels_last,
            checkpoint=None if path is None else path.with_name(f"{path.name}-{self._stage}.pt"),
            progress=lambda row: self._report(row, epochs, last),
            after_step=after_step,
            stage=self._stage_in_words(),
        )

    def _config(self, epochs: int, last: bool) -> FinetuneConfig:
        config = self.config
        return replace(
            config,
            epochs=epochs,
            warmup_epochs=min(config.warmup_epochs, epochs),
            early_stop_patience=config.early_stop_patience if last else None,
            seed=config.seed + self._stage - 1,  # stages see other orders of the data
        )

    def _stage_in_words(self) -> str:
        """Such as ``1 of RigL(drop=0.3, every=20, updates=10)``."""
        settings = dict(self.bench.config["schedule"])
        kind = str(settings.pop("_target_")).rpartition(".")[2]
        told = ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))
        return f"{self._stage} of {kind}({told})"

    def _report(self, row: EpochRow, epochs: int, last: bool) -> None:
        stage = "" if last and self._stage == 1 else f" stage {self._stage}"
        loss = "" if row.train_loss is None else f", loss {row.train_loss:.4f}"
        score = "" if row.score is None else f", validation top1 {row.score:.4f}"
        line = f"fine-tuning {self.name}{stage} {row.epoch}/{epochs}{loss}{score}"
        print(line, file=sys.stderr, flush=True)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Training images drawn at random, normalised, and their labels."""
        bench, images = self.bench, self.bench.data.train
        generator = torch.Generator().manual_seed(self.config.seed + number)
        chosen = torch.randperm(len(images), generator=generator)[:_BATCH]
        batches = images.subset(chosen).batches(_BATCH, bench.device, **bench.normalisation)
        return next(iter(batches))

    def untrained(self) -> nn.Module:
        """What the model's factory makes from the run's seed, without a checkpoint.

        Raises:
            InputError: It makes the same from another seed: weights that are trained, or known.
        """
        loaded, seed = self.bench.loaded, seed_of(self.bench.config)
        network, another = (
            load_model(
                loaded.factory, kwargs=loaded.kwargs, input_shape=loaded.input_shape, seed=one
            ).model
            for one in (seed, seed + 1)
        )
        if _same_weights(network, another):
            raise InputError(
                f"schedule=lottery starts from random weights, and {loaded.factory} makes the same "
                "for every seed: leave out what loads trained ones (model.kwargs, as weights or "
                "pretrained), or choose another schedule"
            )
        return network


def _same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether most weights are equal; those of norms and biases begin so in any network."""
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(first.parameters(), second.parameters(), strict=True)
        if ours.dim() > 1
    ]
    equal = sum(int((ours == theirs).sum()) for ours, theirs in pairs)
    return 2 * equal > sum(ours.numel() for ours, _ in pairs)


def codebook_of(config: Any) -> FinetuneConfig | None:
    """How shared weights are trained; None where weights are not shared.

    Raises:
        InputError: A setting is off, or the type cannot be trained in.
    """
    # Runs of earlier versions do not have the section.
    section = config.get("codebook", {"values": None})
    if section["values"] is None:
        return None
    if section["values"] != SHARED_VALUES:
        raise InputError(
            f"codebook.values must be null or {SHARED_VALUES}, got {section['values']}"
        )
    training: FinetuneConfig = instantiate(section["finetune"], "codebook.finetune")
    _check_dtype(config, training, "codebook.finetune")
    return training


def with_shared_weights(
    bench: Bench, network: nn.Module, training: FinetuneConfig, name: str, checkpoints: Path
) -> nn.Module:
    """A copy of a network whose layers have 16 values each, trained if there are epochs.

    Args:
        bench: Data, teacher and scorer.
        network: Left as it is.
        training: How.
        name: What is trained, for the reports.
        checkpoints: Start of the checkpoint's path.
    """
    copied = copy.deepcopy(network)
    with sharing(copied):
        if training.epochs:
            train = BenchTraining(bench, training, f"{name}, shared weights", checkpoints)
            train(copied, training.epochs, last=True, after_step=None)
    return copied


def _check_dtype(config: Any, training: FinetuneConfig, name: str) -> None:
    # As in finetune: a precision of its own comes before the run's type.
    if training.epochs and (training.precision or config["dtype"]) == "float16":
        raise InputError(
            "dtype=float16 cannot fine-tune; use bfloat16 or float32, for training alone by "
            f"{name}.precision"
        )


def tuning_of(config: Any) -> FinetuneConfig:
    """How to fine-tune.

    Raises:
        InputError: A setting is off, or the type cannot be trained in.
    """
    tuning: FinetuneConfig = instantiate(config["finetune"], "finetune")
    _check_dtype(config, tuning, "finetune")
    return tuning


def grains_of(policy: Policy) -> list[str]:
    """What a policy prunes by; channels, heads and hidden units are one."""
    kinds = [one.granularity for one in policy.decisions]
    return list(dict.fromkeys(kind if is_inside(kind) else CHANNEL for kind in kinds))


def schedule_of(config: Any, grains: list[str], epochs: int) -> Schedule:
    """The schedule, fit for these grains and so many epochs.

    Raises:
        InputError: A setting is off, or they do not go together.
    """
    schedule: Schedule = instantiate(config["schedule"], "schedule")
    schedule.check(grains, epochs)
    return schedule
