"""Penalties on single values: L1, L2, and L1 on the scales of batch norms.

Sources: L1 and its proximal step (soft thresholding) as in Beck and Teboulle, "A Fast Iterative
Shrinkage-Thresholding Algorithm" (2009), equation 1.5; on batch norms' scales it is network
slimming, Liu et al. (arXiv 1708.06519), equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from automl.plan import IndexPlan
from automl.training.regularizers.checks import require_strength
from automl.types import InputError


@dataclass(frozen=True)
class L1:
    """``strength * sum |w|`` over all weight tensors; biases and normalisation are left alone.

    Attributes:
        strength: Per step of gradient descent, > 0.
        proximal: Soft-threshold by ``lr * strength`` after every step instead, which makes exact
            zeros.

    Raises:
        ValueError: ``strength`` is not a finite number above 0.
    """

    strength: float = 1e-5
    proximal: bool = False

    def __post_init__(self) -> None:
        """Checks the strength."""
        require_strength(self)

    @property
    def name(self) -> str:
        """``l1`` and its settings."""
        return f"l1({self.strength:g}, {self.proximal})"

    def bind(self, model: nn.Module, plan: IndexPlan) -> ElementPenalty:
        """On all weight tensors."""
        return ElementPenalty(self.name, weight_names(model), 1, self.strength, self.proximal)


@dataclass(frozen=True)
class L2:
    """``strength / 2 * sum w ** 2`` over all weight tensors.

    Attributes:
        strength: Per step of gradient descent, > 0.
        proximal: Divide weights by ``1 + lr * strength`` after every step instead.

    Raises:
        ValueError: ``strength`` is not a finite number above 0.
    """

    strength: float = 1e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        """Checks the strength."""
        require_strength(self)

    @property
    def name(self) -> str:
        """``l2`` and its settings."""
        return f"l2({self.strength:g}, {self.proximal})"

    def bind(self, model: nn.Module, plan: IndexPlan) -> ElementPenalty:
        """On all weight tensors."""
        return ElementPenalty(self.name, weight_names(model), 2, self.strength, self.proximal)


@dataclass(frozen=True)
class BatchNormL1:
    """``strength * sum |gamma|`` over the scales of all batch norms (network slimming).

    Attributes:
        strength: Per step of gradient descent, > 0; 1e-5 to 1e-4 in the paper.
        proximal: Soft-threshold by ``lr * strength`` after every step instead.

    Raises:
        ValueError: ``strength`` is not a finite number above 0.
    """

    strength: float = 1e-4
    proximal: bool = False

    def __post_init__(self) -> None:
        """Checks the strength."""
        require_strength(self)

    @property
    def name(self) -> str:
        """``bn_l1`` and its settings."""
        return f"bn_l1({self.strength:g}, {self.proximal})"

    def bind(self, model: nn.Module, plan: IndexPlan) -> ElementPenalty:
        """On all batch norms with scales.

        Raises:
            InputError: There are none.
        """
        names = [
            f"{path}.weight"
            for path, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.weight is not None
        ]
        if not names:
            raise InputError(
                "regularizer bn_l1 needs batch norms with scales, and this network has none; "
                "choose group_lasso"
            )
        return ElementPenalty(self.name, names, 1, self.strength, self.proximal)


@dataclass(frozen=True, eq=False)
class ElementPenalty:
    """A power of absolute values of some parameters.

    Attributes:
        name: Of the regulariser.
        parameters: Which.
        power: 1 or 2.
        strength: See the regulariser.
        proximal: See the regulariser.
    """

    name: str
    parameters: Sequence[str]
    power: Literal[1, 2]
    strength: float
    proximal: bool

    def penalty(self, model: nn.Module, step: int) -> Tensor | None:
        """The sum, unless steps are proximal."""
        if self.proximal:
            return None
        values = [model.get_parameter(name) for name in self.parameters]
        if self.power == 1:
            return self.strength * torch.stack([value.abs().sum() for value in values]).sum()
        return self.strength / 2 * torch.stack([value.square().sum() for value in values]).sum()

    def after_step(self, model: nn.Module, step: int, lr: float) -> None:
        """The proximal step, if any."""
        if not self.proximal:
            return
        by = lr * self.strength
        for name in self.parameters:
            value = model.get_parameter(name).data
            if self.power == 1:
                value.copy_(nn.functional.softshrink(value, by))
            else:
                value.div_(1 + by)


def weight_names(model: nn.Module) -> list[str]:
    """Names of all parameters with two or more dimensions.

    Raises:
        InputError: There are none.
    """
    names = [name for name, value in model.named_parameters() if value.dim() > 1]
    if not names:
        raise InputError("this network has no weights to regularise")
    return names
