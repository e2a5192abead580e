"""Lines on what a search would say nothing about: random weights, data that nobody chose."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from automl.commands.settings import Config
from automl.types import Measurement

if TYPE_CHECKING:
    from automl.commands.build import Bench

#: Factories of which it is known that they load no weights unless asked to.
_KNOWN = ("automl.models.", "torchvision:", "timm:", "hf:")
#: Top-1 counts as above chance from so many standard errors on.
_ERRORS = 2


def loads_weights(config: Config) -> bool:
    """Whether the settings name weights; what a factory of one's own loads, nobody knows."""
    model = config["model"]
    weights = {**(model.get("kwargs") or {}), "checkpoint": model.get("checkpoint")}
    return any(weights.get(name) for name in ("checkpoint", "weights", "pretrained"))


def warn_of_initial_weights(config: Config) -> None:
    """Says so where the weights are as they were initialised."""
    if _is_initial(config):
        print(
            f"no weights were loaded: those of {config['model']['factory']} are random; "
            "model.checkpoint=FILE loads trained ones",
            file=sys.stderr,
        )


def _is_initial(config: Config) -> bool:
    return not loads_weights(config) and str(config["model"]["factory"]).startswith(_KNOWN)


def warn_of_default_data(config: Config) -> None:
    """Names the data set that a model of one's own takes because no other was asked for."""
    asked = ("data=", "experiment=")
    given = any(str(text).startswith(asked) for text in config.get("overrides") or ())
    if config["model"].get("name") == "custom" and not given:
        print(f"data={config['data']['name']}, as no other data= was given", file=sys.stderr)


def warn_of_chance(bench: Bench, dense: Measurement) -> None:
    """Says so where the dense network's top-1 is not above that of the most frequent class.

    Args:
        bench: Whose network it is.
        dense: Measured on the validation images that trials are scored on.
    """
    top1 = dense.metrics.get("top1")
    if top1 is None or _is_initial(bench.config):
        return
    labels = bench.search_images.labels.flatten()
    labels = labels[labels >= 0]
    if not len(labels):
        return
    chance = float(labels.bincount().max()) / len(labels)
    if top1 <= chance + _ERRORS * math.sqrt(chance * (1 - chance) / len(labels)):
        print(
            f"the dense network's top-1 is {100 * top1:.2f} %, not above chance: is it trained, "
            f"and on {bench.data.name}? model.checkpoint=FILE loads weights",
            file=sys.stderr,
        )
