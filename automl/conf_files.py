"""What the files of conf/ hold, each read once a process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from automl.paths import conf_dir

#: The parser in C where PyYAML has it: these files are the package's own, and there are a hundred.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def conf_files() -> Mapping[str, Any]:
    """Name below conf/ without ending (``config``, ``model/resnet20``) -> content; read only."""
    root = conf_dir()
    return {
        file.relative_to(root).with_suffix("").as_posix(): yaml.load(
            file.read_text(encoding="utf-8"), _LOADER
        )
        for file in sorted(root.rglob("*.yaml"))
    }
