"""Regularisers: what is added to the loss, or done after a step, so that units die in training.

A regulariser is settings; bound to a network it is a :class:`Penalty`, which ``finetune`` takes.
Penalties are functions of the weights and the number of the step alone, so a run that was cut
resumes to the same result. Strengths are per step of plain gradient descent: the gradient of the
penalty is added to that of the loss, and proximal steps shrink by ``lr * strength``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from automl.plan import IndexPlan


class Penalty(Protocol):
    """A regulariser of one network."""

    @property
    def name(self) -> str:
        """Identifies the regulariser and its settings; part of a checkpoint's identity."""

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """What is added to the loss, a scalar; None adds nothing.

        Args:
            model: The network it was bound to, or one with tensors of the same names and shapes.
            step: Steps done since the first epoch, from 0.
        """

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """Changes weights after the optimiser has; called without gradients.

        Args:
            model: As for :meth:`penalty`.
            step: As for :meth:`penalty`, of the step just done.
            lr: Its learning rate.
        """


class Regularizer(Protocol):
    """Settings of a regulariser."""

    @property
    def name(self) -> str:
        """Identifies the regulariser and its settings."""

    def bind(self, model: nn.Module, plan: IndexPlan) -> Penalty:
        """The penalty of a network.

        Args:
            model: The network, with the weights that training starts from.
            plan: Its plan.

        Raises:
            InputError: It has nothing that could be regularised.
        """
