"""The learning rate as a pure function of the step, so that resuming has no state to restore."""

from __future__ import annotations

import math

from automl.training.config import FinetuneConfig


def learning_rate(config: FinetuneConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimisation step.

    Rises linearly over the warm-up (Goyal et al. 2017, "Accurate, Large Minibatch SGD", 2.2), then
    follows half a cosine towards 0 (Loshchilov and Hutter 2017, "SGDR", equation 5, without
    restarts) or stays. It is 0 at no step: the first and last still learn.

    Args:
        config: Its lr, schedule, epochs and warmup_epochs.
        step: Steps done before this one, in the whole run.
        steps_per_epoch: Steps in one epoch.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    total = config.epochs * steps_per_epoch
    progress = (step - warmup) / (total - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
