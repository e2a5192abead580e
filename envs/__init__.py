"""Gymnasium environments over a pruning problem: ``PruningRatio-v0``.

Importing this package registers the environment, so either of these finds it::

    import envs
    env = gymnasium.make("PruningRatio-v0", problem=problem)
    env = gymnasium.make("envs:PruningRatio-v0", problem=problem)
"""

from __future__ import annotations

from typing import Any

ENV_ID = "PruningRatio-v0"


def register() -> None:
    """Makes ``PruningRatio-v0`` known to Gymnasium; harmless when repeated."""
    from gymnasium.envs import registration

    if ENV_ID in registration.registry:
        return
    registration.register(
        ENV_ID,
        entry_point="envs.pruning_env:PruningEnv",
        vector_entry_point="envs.vector_env:PruningVectorEnv",
    )


def __getattr__(name: str) -> Any:
    """Loads the environments on first use."""
    if name == "PruningEnv":
        from envs.pruning_env import PruningEnv

        return PruningEnv
    if name == "PruningVectorEnv":
        from envs.vector_env import PruningVectorEnv

        return PruningVectorEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register()

__all__ = ["ENV_ID", "PruningEnv", "PruningVectorEnv", "register"]
