"""Strategies: searches for the policy that scores best, one per file.

The registry is conf/strategy: one YAML per strategy with its class as ``_target_``.
"""

from __future__ import annotations

from typing import Any

from automl.hints import did_you_mean
from automl.paths import conf_dir
from automl.types import InputError, Strategy


def names() -> list[str]:
    """The strategies that conf/strategy knows, in alphabetical order."""
    return sorted(file.stem for file in (conf_dir() / "strategy").glob("*.yaml"))


def defaults(name: str) -> dict[str, Any]:
    """The settings of a strategy as conf/strategy has them; none where it does not know it."""
    import yaml

    file = conf_dir() / "strategy" / f"{name}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def load(name: str, **settings: Any) -> Strategy:
    """The strategy that conf/strategy calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such strategy, or it does not take these settings.
    """
    if name not in names():
        raise InputError(f"no strategy is called {name!r}; {did_you_mean(name, names())}")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(conf_dir() / "strategy" / f"{name}.yaml")
    for setting in settings:
        if setting not in config:
            hint = did_you_mean(setting, [str(key) for key in config if key != "_target_"])
            raise InputError(f"strategy {name!r} has no setting {setting!r}; {hint}")
    strategy: Strategy = instantiate(config, **settings)
    return strategy
