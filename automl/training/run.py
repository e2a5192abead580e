"""A run of fine-tuning under way: epochs, steps, the best weights and the checkpoint's state."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from automl.hashing import digest, weights_hash
from automl.pruning.masks import protect
from automl.scoring.errors import ScoreError
from automl.seeding import seeded
from automl.training.checkpoint import Identity, load_checkpoint, save_checkpoint
from automl.training.config import FinetuneConfig
from automl.training.feed import Feed, described, epoch_seed
from automl.training.history import EpochRow, FinetuneError, FinetuneResult
from automl.training.learning_rate import learning_rate
from automl.training.loss import finetune_loss, mixed
from automl.training.regularizers import Penalty
from automl.types import InputError, Scorer


@dataclass
class _Best:
    """The best weights so far; ``state`` is a copy."""

    epoch: int
    score: float
    state: dict[str, Any]


class Run:
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
        """See :func:`automl.training.finetune.finetune`, which checks what it is given."""
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
        with seeded(epoch_seed(self.config.seed, epoch)):  # dropout, loaders and their transforms
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
        if y is None and self.config.distill_weight < 1:
            raise InputError(
                "there are no labels to fine-tune on: give batches (inputs, labels), or learn from "
                "the dense network alone (distill_weight=1, distill_from=network)"
            )
        share = self._share(x)
        if share is not None:
            x = mixed(x, share)
        teacher = self._teacher_logits(x)  # first: the network may write into x
        with self._precision():
            logits = self._logits(x)
            loss = finetune_loss(logits, y, teacher, self.config)
            if share is not None and y is not None:
                other = finetune_loss(logits, y.roll(1), teacher, self.config)
                loss = share * loss + (1 - share) * other
        self.optimizer.zero_grad(set_to_none=True)
        self._with_penalty(loss, step).backward()  # type: ignore[no-untyped-call]
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        if self.regularizer is not None:
            self.regularizer.after_step(self.model, step, self.optimizer.param_groups[0]["lr"])
        return loss.detach()

    def _share(self, x: Tensor) -> Tensor | None:
        """How much of each example stays where examples are mixed; None where they are not."""
        mixup = self.config.mixup
        if mixup == 0:
            return None
        if not x.is_floating_point():
            raise InputError(
                "finetune.mixup mixes images; set it to 0 for inputs that are numbers of tokens"
            )
        return torch.distributions.Beta(mixup, mixup).sample().to(x)

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
