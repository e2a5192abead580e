"""Fine-tunes a network after pruning, and resumes where it was cut to the very same result.

Everything random in an epoch is drawn from its seed and number, and the learning rate is a
function of the step. A checkpoint therefore holds weights, optimizer and history, no generator:
an interrupted run continues bit for bit like one that never stopped, where the device's own
operators repeat bit for bit (CPUs do; for CUDA see torch.use_deterministic_algorithms).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl.training.config import FinetuneConfig
from automl.training.feed import BatchSource, Feed, ReadyBatches
from automl.training.history import EpochRow, FinetuneResult
from automl.training.regularizers import Penalty
from automl.training.run import Run
from automl.training.state import evaluating, restored_modes
from automl.types import InputError, Scorer


def finetune(
    model: nn.Module,
    train: BatchSource | ReadyBatches,
    config: FinetuneConfig,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: Any = None,
    distill_from: nn.Module | None = None,
    validation_scorer: Scorer | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    checkpoint: Path | None = None,
    resume: bool = True,
    progress: Callable[[EpochRow], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    regularizer: Penalty | None = None,
    stage: str | None = None,
) -> FinetuneResult:
    """Trains ``model`` in place and leaves it with its best weights.

    With a validation scorer those are the best by its score, the network as it came among them,
    so that fine-tuning never makes it worse there; without one, the last. Masks
    (``automl.pruning.masks``) are kept: pruned weights are 0.0 after every step.

    Args:
        model: Maps a batch to logits (batch, classes). Moved to ``device``; modes are restored.
        train: Training images (`automl.data.TensorSet`), shuffled anew for every epoch; or
            batches that are ready, for example a list or a data loader.
        config: The settings.
        mean: Subtracted from each channel of training images; None for batches that are ready.
        std: Divides each channel of training images; None for batches that are ready.
        augment: What the training images' ``batches`` takes; None for batches that are ready.
        distill_from: The dense network, for config.distill_weight > 0. Moved to ``device``,
            otherwise unchanged.
        validation_scorer: Scores the network after every epoch, on held-out data, NEVER on test
            data: its choice would make the test score optimistic.
        device: Where to train; None for where the network is.
        dtype: float32, or bfloat16 for autocast; weights and gradients stay as they are. A
            ``config.precision`` comes first.
        channels_last: Lay images out channels-last, which is convolved faster. On a GPU weights
            too; on a CPU they gain nothing by it, and keep the layout that others count on.
        checkpoint: File written after every epoch, for resuming.
        resume: Continue from ``checkpoint`` where it is there; a finished one is read and nothing
            is trained. False starts over, and replaces it after the first epoch.
        progress: Called with every new row of the history.
        after_step: Called after every step of the optimiser with the number of steps done since
            the first epoch, those before a resumed one among them; may change weights and masks.
        regularizer: Added to the loss and applied after every step; reported losses are without.
        stage: What the run is a part of, in words: which schedule, its settings, and how far it
            is. A checkpoint of another stage is refused. None for a run on its own.

    Returns:
        History and which epoch was kept.

    Raises:
        InputError: The checkpoint is damaged or of another run; dtype is float16; nothing can be
            trained; there are no training data, no labels where they are used, or a batch of one,
            of which the network takes no statistics.
        ValueError: Settings ask for a teacher or a scorer that is not given.
        FinetuneError: The loss became NaN or infinite. The checkpoint is that of the epoch before.
        automl.scoring.ScoreError: The validation scorer could not score the network.
    """
    if config.precision is not None:
        dtype = getattr(torch, config.precision)
    _check(config, distill_from, validation_scorer, dtype)
    device = device or _device_of(model)
    _move(model, device, channels_last and device.type == "cuda")
    teacher = distill_from if config.distill_weight > 0 else None
    if teacher is not None:
        _move(teacher, device, channels_last=False)
    feed = Feed(train, config.batch_size, config.seed, device, mean, std, augment, channels_last)
    run = Run(
        model, config, feed, teacher, validation_scorer, dtype, checkpoint, after_step, regularizer,
        stage,
    )  # fmt: skip
    with restored_modes(model), contextlib.ExitStack() as stack:
        if teacher is not None:
            stack.enter_context(evaluating(teacher))
        if resume and checkpoint is not None and checkpoint.exists():
            run.restore(checkpoint)
        for row in run.rows():
            if progress is not None:
                progress(row)
    return run.finish()


def _check(
    config: FinetuneConfig, teacher: nn.Module | None, scorer: Scorer | None, dtype: torch.dtype
) -> None:
    if config.distill_weight > 0 and teacher is None:
        raise ValueError(
            "FinetuneConfig.distill_weight must be 0 without distill_from, "
            f"got {config.distill_weight}"
        )
    if config.early_stop_patience is not None and scorer is None:
        raise ValueError(
            "FinetuneConfig.early_stop_patience must be None without validation_scorer, "
            f"got {config.early_stop_patience}"
        )
    if dtype == torch.float16:
        raise InputError("float16 is for scoring alone; fine-tune with dtype=bfloat16 or float32")


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _move(model: nn.Module, device: torch.device, channels_last: bool) -> None:
    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
