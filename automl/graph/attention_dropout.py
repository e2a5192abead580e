"""What attention drops in training, where its code leaves that out in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.fx import Graph
from torch.nn import functional as F

from automl.graph.inputs import fresh
from automl.seeding import own_random_numbers


def attention_dropout(model: nn.Module, graph: Graph, inputs: tuple[Any, ...]) -> dict[str, float]:
    """Nodes of scaled dot-product attention -> ``dropout_p`` in training; those without left out.

    Found by running the network in training mode, where it calls as many.

    Args:
        model: The network, in eval mode.
        graph: Its graph in eval mode.
        inputs: What it is run on.
    """
    names = [
        node.name
        for node in graph.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]
    if not names:
        return {}
    try:  # a copy: in training a network may write into anything it has
        trained = copy.deepcopy(model).train()
        with own_random_numbers("00000000"), torch.no_grad(), _shares() as shares:
            trained(*fresh(inputs))
    except Exception:  # whatever the user's code raises, in training alone
        return {}
    if len(names) != len(shares):
        return {}
    return {name: share for name, share in zip(names, shares, strict=True) if share > 0}


@contextlib.contextmanager
def _shares() -> Iterator[list[float]]:
    """The ``dropout_p`` of every call."""
    attention: Any = F.scaled_dot_product_attention
    found: list[float] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        found.append(float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)))
        return attention(*args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", noting):
        yield found
