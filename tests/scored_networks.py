"""Small networks in float64 with the structures that criteria have to cope with."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import automl
from automl.plan import IndexPlan
from automl.pruning.criteria import Context
from automl.training.config import FinetuneConfig
from automl.training.finetune import finetune
from automl.training.regularizers import Penalty

CLASSES = 3


class Small(nn.Module):
    """Batch norms, a shortcut, a depthwise and a grouped convolution, strides and padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 4, 3, stride=1, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(4)
        self.back = nn.Conv2d(4, 6, 1, bias=False)
        self.back_norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 4, 1, groups=2, bias=False)
        self.grouped_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.inner_norm(self.inner(x)))
        x = torch.relu(x + self.back_norm(self.back(y)))
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        x = torch.relu(self.grouped_norm(self.grouped(x)))
        return self.head(x.mean((2, 3)))


class Plain(nn.Module):
    """Convolution and linear layers with biases and no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.hidden = nn.Linear(5 * 9, 7)
        self.head = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class Encoder(nn.Module):
    """A transformer encoder with one layer that classifies a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, its batch norms as if trained."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise)
        for name, buffer in model.named_buffers():
            noise = torch.rand(buffer.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * noise)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + noise)
    return model


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(Small(), seed)


def plain(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(Plain(), seed)


def encoder(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(Encoder(), seed)


def images(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs of shape (count, 3, 6, 6) and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (count,), generator=generator)


@cache
def plan_of(kind: type[nn.Module]) -> IndexPlan:
    """The plan of one of these networks; weights do not matter for it."""
    x = torch.randn(2, 4, 5) if kind is Encoder else torch.randn(2, 3, 6, 6)
    return automl.trace(kind().eval(), x).plan


def trainer(
    model: nn.Module, penalty: Penalty, tuning: FinetuneConfig, images_: int | None
) -> None:
    """Trains on a few batches, those of sequences for encoders."""
    x, y = sequences(16) if isinstance(model, Encoder) else images(16, seed=2)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4)]
    finetune(model, batches, tuning, regularizer=penalty)


def sequences(count: int) -> tuple[Tensor, Tensor]:
    """Inputs of shape (count, 4, 5) and labels."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, 5, dtype=torch.float64, generator=generator)
    return x, torch.arange(count) % CLASSES


def context_of(model: nn.Module, count: int = 12, **settings: object) -> Context:
    """A context with labelled images; settings replace its fields."""
    x, y = images(count)
    fields = {"model": model, "plan": plan_of(type(model)), "inputs": x, "labels": y}
    return Context(**fields | {"trainer": trainer, "trained_on": "noise"} | settings)


def permute_inner(model: nn.Module, order: Tensor) -> None:
    """Reorders the channels of ``inner`` everywhere; the network computes the same."""
    with torch.no_grad():
        for tensor in (model.inner.weight, *model.inner_norm.state_dict().values()):
            if tensor.dim():
                tensor.copy_(tensor[order].clone())
        model.back.weight.copy_(model.back.weight[:, order].clone())


def square_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """A loss other than the default one."""
    return (outputs - labels[:, None]).square().mean()
