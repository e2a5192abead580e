"""How labels pass through operators: one small file per family, found by the operator's name."""

from automl.graph.ops import (
    attention,
    conv,
    indexing,
    joining,
    linear,
    movement,
    norm,
    points,
    pointwise,
    reduction,
)
from automl.graph.ops.step import HANDLERS, Labels, Layer, Length, Rewrite, Step

__all__ = [
    "HANDLERS",
    "Labels",
    "Layer",
    "Length",
    "Rewrite",
    "Step",
    "attention",
    "conv",
    "indexing",
    "joining",
    "linear",
    "movement",
    "norm",
    "points",
    "pointwise",
    "reduction",
]
