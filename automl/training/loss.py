"""What fine-tuning minimises: cross entropy with the labels, distillation, or a mix of both."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from automl.training.config import FinetuneConfig


def finetune_loss(
    logits: Tensor, labels: Tensor | None, teacher: Tensor | None, config: FinetuneConfig
) -> Tensor:
    """The loss of one batch, a scalar in float32 (float64 for float64 logits), in nats.

    Args:
        logits: Outputs of the network that learns, shape (batch, classes).
        labels: True classes, shape (batch,); unused where distill_weight is 1.
        teacher: Outputs of the dense network, shape (batch, classes); unused where it is 0.
        config: Its label_smoothing, distill_weight and distill_temperature.

    Raises:
        ValueError: Labels or teacher are missing where they are used.
    """
    logits = _at_least_float32(logits)
    loss = logits.new_zeros(())
    if config.distill_weight < 1:
        if labels is None:
            raise ValueError("FinetuneConfig.distill_weight must be 1 without labels")
        entropy = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        loss = loss + (1 - config.distill_weight) * entropy
    if config.distill_weight > 0:
        if teacher is None:
            raise ValueError("FinetuneConfig.distill_weight must be 0 without distill_from")
        divergence = distillation_loss(logits, teacher, config.distill_temperature)
        loss = loss + config.distill_weight * divergence
    return loss


def mixed(x: Tensor, share: Tensor) -> Tensor:
    """Every example mixed with the one before it in the batch.

    Args:
        x: Examples, shape (batch, ...).
        share: Of the example itself, in [0, 1], a scalar.
    """
    return share * x + (1 - share) * x.roll(1, 0)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch, a scalar.

    The factor T^2 keeps the size of gradients where it is at T = 1 (Hinton, Vinyals and Dean
    2015, "Distilling the Knowledge in a Neural Network", section 2).

    Args:
        logits: Shape (batch, classes); receives gradients.
        teacher: Shape (batch, classes); a constant.
        temperature: T > 0.
    """
    log_q = F.log_softmax(_at_least_float32(logits) / temperature, dim=1)
    log_p = F.log_softmax(_at_least_float32(teacher.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
