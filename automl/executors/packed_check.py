"""Whether a packed layer from a file is one that packing could have made.

Kernels trust the places that a layer holds: an index beyond the end would read or write memory that
is not theirs. So whatever comes from a file is unpacked by NumPy, which checks every index, packed
again, and must come out with the same places. Weights may differ: shared and scaled ones are found
anew. That takes about as long as packing did, and the memory of the dense weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl.executors import formats
from automl.executors.packed import PackedLinear
from automl.types import InputError

#: Weights of a layer at most, zeros included: 1 GiB of float32.
MOST_WEIGHTS = 1 << 28
#: Settings (tiles, chunks, elements) at most.
_MOST_SETTING = 1 << 20
#: Arrays that say where something starts and ends in another.
_BOUNDS = ("starts", "blocks", "tiles")
#: Arrays of weights, which do not say where anything is.
_WEIGHTS = ("bias", "value", "codes", "scale", "offset", "codebook")
#: Kind -> the array whose bytes hold a place and a code, and the bits of the place.
_CODED = {"eie": ("entries", 0xF0), "pell_codebook": ("index", 0x0F)}


def check_layer(layer: PackedLinear, name: str) -> None:
    """Refuses a layer that no packing could have made.

    Args:
        layer: What a file describes.
        name: What to call it in errors.

    Raises:
        InputError: Sizes, settings or places are not those of a packed layer.
    """
    _check_sizes(layer, name)
    try:
        again = _packed_again(layer)
    except Exception as error:  # on damaged places NumPy raises nearly anything
        raise InputError(f"packed layer {name} is damaged: {_line(error)}") from error
    if type(again) is not type(layer):
        raise InputError(f"packed layer {name} is damaged: it says that it is {layer.kind[:40]}")
    for field in fields(layer):
        here, there = getattr(layer, field.name), getattr(again, field.name)
        if not _agrees(layer.kind, field.name, here, there):
            raise InputError(f"packed layer {name} is damaged: its {field.name} cannot be right")


def _check_sizes(layer: PackedLinear, name: str) -> None:
    """Everything that could make unpacking take all memory or for ever."""
    arrays = layer.arrays
    settings = {f.name: getattr(layer, f.name) for f in fields(layer) if f.name not in arrays}
    if not isinstance(layer.bias, np.ndarray) or layer.bias.ndim != 1 or not len(layer.bias):
        raise InputError(f"packed layer {name} is damaged: its bias is no row of numbers")
    whole = settings.pop("in_features", None)
    if type(whole) is not int or not 0 < whole * len(layer.bias) <= MOST_WEIGHTS:
        raise InputError(f"packed layer {name} has an impossible size: {str(whole)[:20]} inputs")
    for key, value in settings.items():
        if not isinstance(value, int) or not 0 <= value <= _MOST_SETTING:
            raise InputError(f"packed layer {name} is damaged: {key} is {str(value)[:40]}")
    if settings.get("elements", 1) != 1 and settings["elements"] > len(layer.bias):
        raise InputError(f"packed layer {name} is damaged: it has more elements than rows")
    _check_bounds(arrays, name)


def _check_bounds(arrays: Mapping[str, NDArray[Any]], name: str) -> None:
    most = sum(array.size for array in arrays.values())
    for key in [key for key in _BOUNDS if key in arrays]:
        ends = arrays[key]
        is_whole = ends.dtype.kind in "iu" and ends.ndim > 0 and ends.size > 0
        if not is_whole or ends.min() < 0 or ends.max() > most or (np.diff(ends) < 0).any():
            raise InputError(f"packed layer {name} is damaged: its {key} do not ascend")


def _packed_again(layer: PackedLinear) -> PackedLinear:
    settings = {key: getattr(layer, key) for key in ("tile", "elements") if hasattr(layer, key)}
    with np.errstate(all="ignore"):
        return formats.load(layer.name, **settings).pack(layer.to_dense(), layer.bias)


def _agrees(kind: str, field: str, here: Any, there: Any) -> bool:
    if not isinstance(there, np.ndarray):
        return type(here) is type(there) and bool(here == there)
    if not isinstance(here, np.ndarray) or here.dtype != there.dtype or here.shape != there.shape:
        return False
    if field in _WEIGHTS:
        return True
    coded, bits = _CODED.get(kind, ("", 0))
    if field == coded:
        return np.array_equal(here & bits, there & bits)
    return np.array_equal(here, there)


def check_geometry(layer: PackedLinear, geometry: Mapping[str, Any], name: str) -> None:
    """Refuses a convolution whose weight has another shape, or that is none.

    Args:
        layer: Its matrix, checked.
        geometry: ``shape``, ``stride``, ``padding``, ``dilation`` and ``groups``.
        name: What to call it in errors.

    Raises:
        InputError: One of them is missing or impossible.
    """
    shape, groups = geometry.get("shape"), geometry.get("groups")
    pairs = [(geometry.get("stride"), 1), (geometry.get("padding"), 0)]
    fits = _counts(shape, 4, 1) and _counts([groups], 1, 1)
    fits = fits and all(_counts(pair, 2, least) for pair, least in pairs)
    fits = fits and _counts(geometry.get("dilation"), 2, 1) and len(geometry) == 5
    if fits and shape is not None and groups is not None:
        matrix = (layer.out_features, layer.in_features)
        fits = matrix == (shape[0], math.prod(shape[1:]) * groups) and shape[0] % groups == 0
    if not fits:
        raise InputError(f"packed convolution {name} is damaged: its geometry is impossible")


def _counts(values: Any, length: int, least: int) -> bool:
    if not isinstance(values, list | tuple) or len(values) != length:
        return False
    return all(type(value) is int and least <= value <= _MOST_SETTING for value in values)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:80] or type(error).__name__
