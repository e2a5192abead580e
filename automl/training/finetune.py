"""Fine-tunes a network after pruning, and resumes where it was cut to the very same result.

Everything random in an epoch is drawn from its seed and number, and the learning rate is a
function of the step. A checkpoint therefore holds weights, optimizer and history, no generator:
an interrupted run continues bit for bit like one that never stopped, where the device's own
operators repeat bit for bit (CPUs do; for CUDA see torch.use_deterministic_algorithms).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from automl.hashing import digest, weights_hash
from automl.pruning.masks import protect
from automl.scoring.errors import ScoreError
from automl.training.checkpoint import Identity, load_checkpoint, save_checkpoint
from automl.training.config import FinetuneConfig
from automl.training.feed import BatchSource, Feed, ReadyBatches, described, epoch_seed
from automl.training.learning_rate import learning_rate
from automl.training.loss import finetune_loss
from automl.training.regularizers import Penalty
from automl.training.state import evaluating, restored_modes
from automl.types import FailedError, InputError, Scorer

if TYPE_CHECKING:
    import pandas as pd


class FinetuneError(FailedError):
    """Training ran and failed: the loss is no longer a finite number."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One line of a fine-tuning run's history.

    Attributes:
        epoch: From 1; 0 is the network as it came, scored before any training.
        lr: Learning rate of the epoch's first step; 0 for epoch 0.
        train_loss: Mean over the examples, each as it was when trained on; None for epoch 0.
        score: Of the validation scorer, higher is better; None without one.
        metrics: Of the validation scorer; empty without one.
        seconds: Wall time of training and scoring.
    """

    epoch: int
    lr: float
    train_loss: float | None
    score: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """What came of a fine-tuning run; the weights are in the network.

    Attributes:
        history: One row per epoch, after epoch 0 where there is a validation scorer.
        best_epoch: The epoch whose weights the network has now: the best by validation score
            (the first of equals), or the last one without a scorer.
        best_score: Its validation score; None without a scorer.
        stopped_early: Whether early stopping ended the run.
    """

    history: tuple[EpochRow, ...]
    best_epoch: int
    best_score: float | None
    stopped_early: bool

    def to_frame(self) -> pd.DataFrame:
        """The history as a table, one column per metric."""
        import pandas as pd

        rows = [dataclasses.asdict(row) for row in self.history]
        metrics = [row.pop("metrics") for row in rows]
        return pd.DataFrame([row | more for row, more in zip(rows, metrics, strict=True)])


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
            trained; there are no training data, or a batch of one, of which the network takes no
            statistics.
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
    run = _Run(
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


@dataclass
class _Best:
    """The best weights so far; ``state`` is a copy."""

    epoch: int
    score: float
    state: dict[str, Any]


class _Run:
    """A run under way: what changes from epoch to epoch, and one method per thing an epoch does."""

    def __init__(
        self,
        model: nn.Module,
        config: FinetuneConfig,
        feed: Feed,
        teacher: nn.Module | None,
        scorer: Scorer | None,
        dtype: torch.dtype,
        checkpoint: Path | None,
        after_step: Callable[[int], None] | None,
        regularizer: Penalty | None,
        stage: str | None,
    ) -> None:
        self.model = model
        self.config = config
        self.feed = feed
        self.teacher = teacher
        self.scorer = scorer
        self.dtype = dtype
        self.checkpoint = checkpoint
        self.after_step = after_step
        self.regularizer = regularizer
        self.stage = stage
        self.optimizer = _optimizer(model, config)
        protect(self.optimizer, model)
        self.history: list[EpochRow] = []
        self.best: _Best | None = None
        # Taken now, because it holds the weights that the run starts from.
        self.identity = self._identity() if checkpoint is not None else {}

    def rows(self) -> Iterator[EpochRow]:
        """Runs what is left of the run, one epoch per row."""
        if self.scorer is not None and not self.history:
            yield self._record(0, 0.0, None, time.perf_counter())
        while self._epochs_done() < self.config.epochs and not self._stalled():
            start = time.perf_counter()
            epoch = self._epochs_done() + 1
            lr, loss = self._train(epoch)
            row = self._record(epoch, lr, loss, start)
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, self.identity, self._state())
            yield row

    def finish(self) -> FinetuneResult:
        """Gives the network its best weights."""
        done = self._epochs_done()
        if self.best is None:
            return FinetuneResult(tuple(self.history), done, None, False)
        if self.best.epoch != done:
            self.model.load_state_dict(self.best.state)
        early = done < self.config.epochs
        return FinetuneResult(tuple(self.history), self.best.epoch, self.best.score, early)

    def restore(self, path: Path) -> None:
        """Continues where the checkpoint was written."""
        state = load_checkpoint(path, self.identity, self.feed.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [EpochRow(**row) for row in state["history"]]
        self.best = None if state["best"] is None else _Best(**state["best"])

    def _state(self) -> dict[str, Any]:
        best = self.best
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [dataclasses.asdict(row) for row in self.history],
            "best": best and {"epoch": best.epoch, "score": best.score, "state": best.state},
        }

    # One epoch

    def _train(self, epoch: int) -> tuple[float, float]:
        """Trains for one epoch; returns its first learning rate and its mean loss."""
        self.model.train()
        # Stays on the device until the end: no synchronisation per batch.
        total = torch.zeros((), dtype=torch.float64, device=self.feed.device)
        seen = 0
        first_step = (epoch - 1) * self.feed.steps
        with _seeded(epoch_seed(self.config.seed, epoch), self.feed.device):
            for step, (x, y) in enumerate(self.feed.epoch(epoch), first_step):
                self._set_lr(learning_rate(self.config, step, self.feed.steps))
                total += self._step(x, y, step).double() * len(x)
                seen += len(x)
                if self.after_step is not None:
                    self.after_step(step + 1)
        if seen == 0:
            raise InputError("there is nothing to fine-tune on: the training data are empty")
        return learning_rate(self.config, first_step, self.feed.steps), self._mean(total, seen)

    def _step(self, x: Tensor, y: Tensor | None, step: int) -> Tensor:
        """One step on a batch; returns its loss, a scalar on the device."""
        teacher = self._teacher_logits(x)  # first: the network may write into x
        with self._precision():
            loss = finetune_loss(self._logits(x), y, teacher, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        self._with_penalty(loss, step).backward()  # type: ignore[no-untyped-call]
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        if self.regularizer is not None:
            self.regularizer.after_step(self.model, step, self.optimizer.param_groups[0]["lr"])
        return loss.detach()

    def _with_penalty(self, loss: Tensor, step: int) -> Tensor:
        penalty = None if self.regularizer is None else self.regularizer.penalty(self.model, step)
        return loss if penalty is None else loss + penalty

    def _logits(self, x: Tensor) -> Tensor:
        try:
            logits = self.model(x)
        except ValueError as error:
            if len(x) > 1:
                raise
            # What BatchNorm says of one value per channel.
            raise InputError(
                f"the network cannot be trained on a batch of one example ({error}); give batches "
                "of two or more, and a data loader drop_last=True"
            ) from error
        if not isinstance(logits, Tensor):
            raise InputError(
                f"in training the network returns {type(logits).__name__}, not logits of "
                "shape (batch, classes); wrap it, or bring your own finetune(model)"
            )
        return logits

    def _teacher_logits(self, x: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        # A block of its own: autocast keeps casts of weights to its end, and those made here have
        # no gradient. A copy, because a network may write into its input.
        with torch.no_grad(), self._precision():
            logits: Tensor = self.teacher(x.clone())
        return logits

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _mean(self, total: Tensor, seen: int) -> float:
        loss = total.item() / seen
        if not math.isfinite(loss):
            raise FinetuneError(self._diverged(self._epochs_done() + 1, f"loss {loss}"))
        return loss

    def _record(self, epoch: int, lr: float, loss: float | None, start: float) -> EpochRow:
        """Scores the network, keeps it where it is the best, and adds the epoch to the history."""
        score, metrics = None, {}
        if self.scorer is not None:
            score, reported = self._scored(epoch)
            # Plain floats: a checkpoint with NumPy's would not load with weights_only.
            score = float(score)
            metrics = {name: float(value) for name, value in reported.items()}
            if self.best is None or score > self.best.score:
                self.best = _Best(epoch, score, copy.deepcopy(self.model.state_dict()))
        row = EpochRow(epoch, lr, loss, score, metrics, time.perf_counter() - start)
        self.history.append(row)
        return row

    def _scored(self, epoch: int) -> tuple[float, Mapping[str, float]]:
        assert self.scorer is not None  # for the type checker
        try:
            return self.scorer(self.model)
        except ScoreError as error:
            if epoch == 0:
                raise
            raise FinetuneError(self._diverged(epoch, str(error))) from error

    def _diverged(self, epoch: int, how: str) -> str:
        return (
            f"fine-tuning diverged in epoch {epoch} ({how}): "
            f"lower lr ({self.config.lr:g}) or set max_grad_norm"
        )

    def _epochs_done(self) -> int:
        return self.history[-1].epoch if self.history else 0

    def _stalled(self) -> bool:
        patience = self.config.early_stop_patience
        if patience is None or self.best is None:
            return False
        return self._epochs_done() - self.best.epoch >= patience

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.feed.device.type, dtype=self.dtype)
        return contextlib.nullcontext()

    # Identity

    def _identity(self) -> Identity:
        """What decides the result of the run, as plain values and digests."""
        regularizer = self.regularizer
        state = self.model.state_dict()
        shapes = {name: list(t.shape) for name, t in state.items() if isinstance(t, Tensor)}
        return {
            **dataclasses.asdict(self.config),
            "network": digest(shapes),
            "starting weights": weights_hash(self.model),
            "teacher": None if self.teacher is None else weights_hash(self.teacher),
            "validation": None if self.scorer is None else self.scorer.fingerprint,
            "training data": self.feed.fingerprint(),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if regularizer is None else {"regularizer": regularizer.name}),
            **({} if self.after_step is None else {"after_step": described(self.after_step)}),
            **({} if self.stage is None else {"stage": self.stage}),
        }


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators (dropout, data loaders) for the block, then restores them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that require gradients; matrices decay, vectors need not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("the network has no parameters that require gradients")
    decayed = [p for p in trained if p.ndim > 1 or config.decay_norm_and_bias]
    others = [p for p in trained if p.ndim <= 1 and not config.decay_norm_and_bias]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


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
