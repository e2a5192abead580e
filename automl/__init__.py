"""PrunePilot: search how much to prune from every layer, prune for real, show what was gained.

The public names are resolved when first used, so that ``import automl`` and the command's help
stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from automl._version import __version__

if TYPE_CHECKING:
    from automl.api import prune as prune
    from automl.executors.compiler import compile as compile
    from automl.graph.trace import Trace as Trace
    from automl.graph.trace import trace as trace
    from automl.model_folder import load_pruned as load_pruned
    from automl.plan import IndexPlan as IndexPlan
    from automl.policy import Policy as Policy
    from automl.pruning.refine import Refinement as Refinement
    from automl.report.loading import load_runs as load_runs
    from automl.searcher import Searcher as Searcher
    from automl.types import InputError as InputError

_HOMES = {
    "IndexPlan": "automl.plan",
    "InputError": "automl.types",
    "Policy": "automl.policy",
    "Refinement": "automl.pruning.refine",
    "Searcher": "automl.searcher",
    "Trace": "automl.graph.trace",
    "compile": "automl.executors.compiler",
    "load_pruned": "automl.model_folder",
    "load_runs": "automl.report.loading",
    "prune": "automl.api",
    "trace": "automl.graph.trace",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'automl' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted([*globals(), *_HOMES])
