"""Networks of Hugging Face's transformers, from a configuration or from the hub.

Their forward takes many arguments and returns a structure; here it takes ids (or pixels) and
returns logits, as everything else in the package does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from automl.hints import did_you_mean
from automl.types import InputError

#: What ``head`` may be: the networks that end in logits of shape (batch, classes).
HEADS = ("SequenceClassification", "CausalLM", "ImageClassification")


class Logits(nn.Module):
    """A network of transformers that takes one tensor and returns logits.

    Attributes:
        model: The network of transformers.
        vocab_size: Its vocabulary, where it reads ids; else None.
        input_shape: (channels, height, width), where it reads images; else None.
    """

    def __init__(self, model: nn.Module) -> None:
        """Reads off the network what it takes."""
        super().__init__()
        self.model = model
        self.input_name = str(model.main_input_name)
        config: Any = model.config
        images = self.input_name == "pixel_values"
        # Not all configurations say it; then model.input_shape has to.
        vocabulary = getattr(config, "vocab_size", None)
        self.vocab_size = None if images or vocabulary is None else int(vocabulary)
        self.input_shape: tuple[int, ...] | None = None
        channels, side = (getattr(config, name, None) for name in ("num_channels", "image_size"))
        if images and isinstance(channels, int) and side is not None:
            sides = (side, side) if isinstance(side, int) else tuple(side)
            self.input_shape = (channels, *sides)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) ids or images to (batch, classes)."""
        logits: Tensor = self.model(**{self.input_name: x}).logits
        return logits


class NextTokenLogits(Logits):
    """The same for decoders: the logits of the token after the last one."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length) ids to (batch, vocab_size)."""
        return super().forward(x)[:, -1]


def create(name: str, kwargs: Mapping[str, Any]) -> Logits:
    """Builds a network of transformers.

    Args:
        name: A model type of transformers, such as ``bert`` or ``gpt2``, which is built with
            random weights and without a download; or a hub name or folder, whose weights are
            loaded.
        kwargs: Settings of its configuration, and ``head``: one of ``HEADS``, by default the
            first.

    Raises:
        InputError: transformers is not installed, or there is no such network, head or setting.
    """
    transformers = _import()
    kwargs = dict(kwargs)
    head = kwargs.pop("head", HEADS[0])
    if head not in HEADS:
        raise InputError(f"model.kwargs.head is none of hf's: {did_you_mean(head, HEADS)}")
    family = getattr(transformers, f"AutoModelFor{head}")
    known = name in transformers.CONFIG_MAPPING
    try:
        source = transformers.AutoConfig
        read = source.for_model if known else source.from_pretrained
        _check(name, kwargs, read(name).to_dict())
        config = read(name, **kwargs)
        # Past keys are for generating; they are no part of one pass.
        config.use_cache = False
        model = family.from_config(config) if known else family.from_pretrained(name, config=config)
    except InputError:
        raise
    except (ImportError, OSError, ValueError, TypeError) as error:
        raise InputError(f"model.factory hf:{name} cannot be built: {_reason(error)}") from error
    wrap = NextTokenLogits if head == "CausalLM" else Logits
    return wrap(model.float())


def _import() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"model.factory=hf:NAME needs {error.name}: pip install prunepilot[transformers]"
        ) from error
    return transformers


def _reason(error: BaseException) -> str:
    """One line: what went wrong, and what was the matter underneath where imports failed."""
    root = error
    while isinstance(error, ImportError) and root.__cause__ is not None:
        root = root.__cause__
    first = str(root).strip().splitlines()[0]
    if "torchvision::" in first:
        return f"torchvision and torch do not match ({first}): install a matching pair"
    return first


def _check(name: str, kwargs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuses what the configuration would take as it takes anything, and never look at."""
    # Not among the settings themselves: what they are told by.
    known = [*settings, "num_labels", "attn_implementation"]
    for key in kwargs:
        if key not in known:
            raise InputError(f"hf:{name} has no setting {key!r}; {did_you_mean(key, known)}")
