"""``granularity.*``: which grain each layer is pruned by, and the order its channels lie in."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import mean

from torch import Tensor, nn

from automl.commands.settings import Config, flag, instantiate, whole
from automl.plan import IndexPlan
from automl.pruning.grains import Grains
from automl.pruning.masked_plan import MaskedPlan
from automl.pruning.permutation import permute
from automl.types import InputError

#: Keys of conf/granularity that are not the granularity's own.
_OF_EVERY_GRAIN = ("name", "scope", "levels", "min_keep", "rounding", "permute")


def read_grains(section: Config) -> Grains | None:
    """Which grain each layer is pruned by; None for whole channels alone.

    Raises:
        InputError: A setting is off.
    """
    if section.get("scope", "layer") not in ("layer", "global"):
        raise InputError(f"granularity.scope must be layer or global, got {section['scope']!r}")
    if "_target_" in section:
        if "layers" in section:
            raise InputError(
                f"granularity.layers is not for granularity={section['name']}; name the grain of "
                "all other layers with its parameters, as granularity=nm:4"
            )
        own = {key: value for key, value in section.items() if key not in _OF_EVERY_GRAIN}
        return Grains(inside=instantiate(own, "granularity"))
    if section["name"] != "mixed":
        return None
    names, layers = section["grains"], section["layers"]
    if not isinstance(names, list) or not isinstance(layers, Mapping):
        raise InputError("granularity.grains is a list and granularity.layers a mapping of names")
    grains = Grains.parse([str(name) for name in names], {str(k): v for k, v in layers.items()})
    return None if grains.names == ["channel"] else grains


def masked_plan(model: nn.Module, plan: IndexPlan, grains: Grains, config: Config) -> MaskedPlan:
    """What can be pruned by these grains.

    Args:
        model: The dense network.
        plan: Its channels.
        grains: Which grain each layer is pruned by.
        config: The resolved configuration.

    Raises:
        InputError: A setting is off, or a grain fits no layer.
    """
    levels = whole(config["granularity"], "granularity.levels", 2)
    return MaskedPlan.of(model, plan, grains, exclude=config["exclude"], levels=levels)


def rounding(section: Config, plan: IndexPlan | MaskedPlan) -> int | list[int]:
    """The steps in which a search chooses kept counts.

    Raises:
        InputError: ``granularity.rounding`` is no whole number >= 1.
    """
    step = whole(section, "granularity.rounding", 1) if "rounding" in section else 1
    return plan.steps(step) if isinstance(plan, MaskedPlan) else step


def reorder_channels(
    model: nn.Module, plan: IndexPlan, config: Config, inputs: Sequence[Tensor]
) -> None:
    """Puts channels into an order that N:M patterns lose less in, where that is asked for.

    Before anything looks at the weights: to all else this is the dense network.

    Args:
        model: The dense network, reordered in place.
        plan: Its channels.
        config: The resolved configuration.
        inputs: Example inputs, on the network's device.

    Raises:
        InputError: A setting is off, or no channels can be reordered.
    """
    section = config["granularity"]
    asked = "permute" in section and flag(section, "granularity.permute")
    grains = read_grains(section) if asked else None
    if grains is None:
        return
    done = permute(model, masked_plan(model, plan, grains, config), list(inputs))
    if not done:
        raise InputError(
            "granularity.permute=true finds no channels to reorder: it needs layers that N:M "
            "prunes and whose inputs are channels of prunable groups; set it to false"
        )
    before, after = (mean(getattr(one, name) for one in done) for name in ("before", "after"))
    print(
        f"channels of {len(done)} groups reordered: N:M keeps {100 * after:.1f} % of the "
        f"magnitude of the layers behind them, {100 * before:.1f} % before",
        file=sys.stderr,
        flush=True,
    )
