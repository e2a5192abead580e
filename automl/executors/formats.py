"""The formats that layers can be packed into, by name.

The registry is conf/executor: one YAML per format with its class as ``_target_``.
"""

from __future__ import annotations

from typing import Any

from automl.executors.packed import Format
from automl.hints import did_you_mean
from automl.paths import conf_dir
from automl.types import InputError


def names() -> list[str]:
    """The formats that conf/executor knows, in alphabetical order."""
    return sorted(file.stem for file in (conf_dir() / "executor").glob("*.yaml"))


def load(name: str, **settings: Any) -> Format:
    """The format that conf/executor calls ``name``.

    Args:
        name: Name of the YAML file.
        settings: Replace those in the file.

    Raises:
        InputError: There is no such format, or it does not take these settings.
    """
    if name not in names():
        raise InputError(f"no executor is called {name!r}; {did_you_mean(name, names())}")
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(conf_dir() / "executor" / f"{name}.yaml")
    for setting in settings:
        if setting not in config:
            hint = did_you_mean(setting, [str(key) for key in config if key != "_target_"])
            raise InputError(f"executor {name!r} has no setting {setting!r}; {hint}")
    form: Format = instantiate(config, **settings)
    return form
