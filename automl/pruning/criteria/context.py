"""What a criterion may look at: the network, its plan, and where needed data, labels and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.hashing import digest
from automl.plan import IndexPlan
from automl.types import InputError

if TYPE_CHECKING:
    from automl.pruning.criteria import Criterion
    from automl.training.config import FinetuneConfig
    from automl.training.regularizers import Penalty

#: ``(outputs, labels) -> mean loss of the batch``, a scalar.
Loss = Callable[[Any, Tensor], Tensor]

#: Trains a copy of the network in place under a penalty, as a configuration says, on so many of the
#: training images (None: all); see ``criteria.trained``.
Trainer = Callable[[nn.Module, "Penalty", "FinetuneConfig", int | None], None]

#: What a criterion may ask for beside the weights.
Need = Literal["data", "labels", "loss", "seed", "training"]

_WHAT_TO_GIVE: dict[Need, str] = {
    "data": "calibration data: give inputs of the network, or choose l1, l2 or bn_scale",
    "labels": "labelled calibration data: give labels beside the inputs, or choose a criterion "
    "that does without, such as l2 or wanda",
    "loss": "a loss: give loss(outputs, labels), or choose a criterion without gradients, such "
    "as l2 or wanda",
    "seed": "a seed",
    "training": "training data: use it through the command, with data=, or give a trainer",
}


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Mean cross entropy of classifiers, and of sequence models with a label per token.

    Args:
        outputs: Logits (batch, classes), or (batch, tokens, classes) with labels per token; of
            dense prediction (batch, classes, ...) with labels (batch, ...).
        labels: Classes.

    Raises:
        InputError: The outputs are no logits that go with the labels.
    """
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the network returns {type(outputs).__name__}, not logits: give loss(outputs, labels)"
        )
    if outputs.dim() > 2 and outputs.shape[:-1] == labels.shape:
        outputs, labels = outputs.flatten(0, -2), labels.flatten()
    if outputs.dim() < 2 or labels.shape != (outputs.shape[0], *outputs.shape[2:]):
        raise InputError(
            f"outputs of shape {tuple(outputs.shape)} and labels of shape {tuple(labels.shape)} "
            "have no cross entropy: give loss(outputs, labels)"
        )
    return F.cross_entropy(outputs, labels)


@dataclass(frozen=True, eq=False)
class Context:
    """One network and the data that criteria score it on.

    Results of passes over the data are kept in ``cache``, so that layers and grains share them:
    make one context per network and data and pass it around, and a new one when weights change.

    Attributes:
        model: The dense network, in eval mode; no criterion changes it.
        plan: Its plan.
        inputs: Training inputs, normalised as the network expects, shape (examples, ...).
        labels: Their labels, first dimension (examples,).
        loss: ``loss(outputs, labels)``, the mean over a batch; None refuses gradients.
        seed: Of everything random.
        trainer: Trains a copy of the network, for criteria that look at trained weights.
        trained_on: Identifies what ``trainer`` trains on; part of the journal's key.
        cache: Results of passes over the data, by name; never part of equality.

    Raises:
        ValueError: The numbers of inputs and labels differ.
    """

    model: nn.Module
    plan: IndexPlan
    inputs: Tensor | None = None
    labels: Tensor | None = None
    loss: Loss | None = cross_entropy
    seed: int = 0
    trainer: Trainer | None = None
    trained_on: str = ""
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Checks that inputs and labels go together."""
        if self.labels is None:
            return
        examples = None if self.inputs is None else len(self.inputs)
        if len(self.labels) != examples:
            raise ValueError(
                f"Context.labels must be one per input ({examples}), got {len(self.labels)}"
            )

    def parameter(self, name: str) -> Tensor:
        """A parameter, or other weight, by name, detached.

        Raises:
            ValueError: There is none of that name.
        """
        try:
            return self.weights[name].detach()
        except KeyError:
            raise ValueError(f"Context.model has no parameter {name!r}") from None

    @property
    def weights(self) -> dict[str, Tensor]:
        """All parameters, and the matrices among the buffers that pruning cuts.

        A forward may multiply by those as well; shared ones are there under each of their names.
        """
        cut = {tensor.name for tensor in self.plan.tensors}
        buffers = {
            name: buffer
            for name, buffer in self.model.named_buffers(remove_duplicate=False)
            if name in cut and buffer.dim() > 1 and buffer.is_floating_point()
        }
        return {**self.parameters, **buffers}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters, shared ones under each of their names."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    @property
    def inputs_are_finite(self) -> bool:
        """Whether no input is NaN or infinite; looked at once."""
        if "finite" not in self.cache:
            x = self.inputs
            floating = x is not None and x.is_floating_point()
            self.cache["finite"] = not floating or bool(cast(Tensor, x).isfinite().all())
        return bool(self.cache["finite"])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        first = next(self.model.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def batches(self, examples: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first inputs in batches on the network's device, with labels where there are any.

        Args:
            examples: How many inputs; all where there are fewer.
            batch_size: How many at once; the last batch may be smaller.

        Raises:
            InputError: The network takes batches of one size, and there are fewer inputs.
        """
        if self.inputs is None:
            raise ValueError("Context.inputs must be a tensor, got None")
        stop = min(examples, len(self.inputs))
        if not self.plan.dynamic_batch:  # its forward has made the batch size a constant
            batch_size = self.plan.batch
            stop -= stop % batch_size
            if stop == 0:
                raise InputError(f"this network takes {batch_size} inputs at once: give as many")
        for start in range(0, stop, batch_size):
            rows = slice(start, min(start + batch_size, stop))
            labels = None if self.labels is None else self.labels[rows].to(self.device)
            yield self.inputs[rows].to(self.device), labels

    def fingerprint(self, criterion: Criterion) -> str:
        """Identifies what a criterion's scores depend on beside the weights.

        It is the criterion's name where that is all.
        """
        if not criterion.needs:
            return criterion.name
        parts: list[object] = [criterion.name]
        if {"data", "labels"} & criterion.needs:
            used = getattr(criterion, "images", None)
            assert self.inputs is not None  # for the type checker: needs were checked
            parts.append(self.inputs[:used])
            if "labels" in criterion.needs and self.labels is not None:
                parts.append(self.labels[:used])
        if "seed" in criterion.needs:
            parts.append(self.seed)
        if "training" in criterion.needs:
            parts.append(self.trained_on)
        if "loss" in criterion.needs and self.loss is not cross_entropy:
            named = self.loss if hasattr(self.loss, "__qualname__") else type(self.loss)
            parts.append(f"{named.__module__}.{named.__qualname__}")  # type: ignore[union-attr]
        return digest(*parts)


def require(criterion: Criterion, context: Context) -> None:
    """Makes sure that a context has what a criterion needs.

    Raises:
        InputError: Something is missing; the message says what to give.
    """
    has: dict[Need, bool] = {
        "data": context.inputs is not None and len(context.inputs) > 0,
        "labels": context.labels is not None,
        "loss": context.loss is not None,
        "seed": True,
        "training": context.trainer is not None,
    }
    missing = [need for need in _WHAT_TO_GIVE if need in criterion.needs and not has[need]]
    if "labels" in missing:
        missing = ["labels"]  # says both
    if missing:
        raise InputError(f"criterion {in_words(criterion.name)} needs {_WHAT_TO_GIVE[missing[0]]}")
    if "data" in criterion.needs and not context.inputs_are_finite:
        name = in_words(criterion.name)
        raise InputError(f"criterion {name}: the calibration data hold NaN or infinity")


def in_words(name: str) -> str:
    """A criterion's name as people know it: without the settings, which journals need."""
    return name.partition("(")[0]
