"""Packs layers into permute-ELL; ``pell_forms.py`` says what that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl.executors.kernels.pell_schedule import schedule
from automl.executors.packed import aligned_zeros
from automl.executors.pell_forms import (
    BLOCK,
    LANES,
    PellBfloat16,
    PellCodebook,
    PellCodebookInt8,
    PellFloat32,
    PellInt8,
    PellLinear,
    Steps,
)
from automl.executors.rounding import (
    MOST_INT15,
    check_int8_row,
    quantise_rows,
    round_to_bfloat16,
)
from automl.executors.rows import Float32, Rows, as_bias, as_finite, as_weight
from automl.executors.shared_weights import share


@dataclass(frozen=True, slots=True)
class Pell:
    """The format's settings.

    Attributes:
        value: How weights are stored: ``float32``, ``bfloat16``, ``int8``, ``codebook`` or
            ``codebook_int8``.
        tile: Columns of a tile, a multiple of 256.
    """

    value: str = "float32"
    tile: int = 16384

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: One is out of its range.
        """
        if self.value not in _PACKERS:
            raise ValueError(f"Pell.value must be one of {sorted(_PACKERS)}, got {self.value!r}")
        if self.tile < 256 or self.tile % 256:
            raise ValueError(f"Pell.tile must be a multiple of 256, got {self.tile}")

    @property
    def name(self) -> str:
        """See ``Format``."""
        suffix = {"float32": "", "bfloat16": "_bf16"}.get(self.value, f"_{self.value}")
        return f"pell{suffix}"

    def unfit(self, weight: ArrayLike) -> str | None:
        """See ``Format``."""
        if self.value not in ("float32", "bfloat16") and not np.isfinite(np.asarray(weight)).all():
            return "holds NaN or infinite weights"
        return None

    def pack(self, weight: ArrayLike, bias: ArrayLike | None = None) -> PellLinear:
        """See ``Format``."""
        matrix = as_weight(weight)
        return _PACKERS[self.value](matrix, as_bias(bias, len(matrix)), self.tile)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where every entry of a matrix goes."""

    fields: dict[str, Any]
    index_at: NDArray[np.int64]
    value_at: NDArray[np.int64]
    offset: NDArray[np.uint8]
    slots: int


def _pack_float32(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(weight)
    layout = _lay_out(rows, PellFloat32.steps, tile)
    value = aligned_zeros(layout.slots, np.float32)
    value[layout.value_at] = rows.values
    return PellFloat32(bias=bias, value=value, **_indexed(layout, layout.offset))


def _pack_bfloat16(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(round_to_bfloat16(weight))
    layout = _lay_out(rows, PellBfloat16.steps, tile)
    value = aligned_zeros(layout.slots, np.uint16)
    value[layout.value_at] = rows.values.view(np.uint32) >> 16
    return PellBfloat16(bias=bias, value=value, **_indexed(layout, layout.offset))


def _pack_codebook(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    rows = Rows.of(as_finite(weight, "a codebook"))
    codes, codebook = share(rows.values)
    layout = _lay_out(rows, PellCodebook.steps, tile)
    fields = _indexed(layout, layout.offset | codes << np.uint8(4))
    return PellCodebook(bias=bias, value=codebook, **fields)


def _pack_int8(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    scale, quantised = quantise_rows(as_finite(weight, "int8"))
    rows = Rows.of(quantised)
    check_int8_row(int(rows.counts.max()))
    layout = _lay_out(rows, PellInt8.steps, tile)
    value = aligned_zeros(layout.slots, np.int8)
    value[layout.value_at] = rows.values
    return PellInt8(
        bias=bias,
        value=value,
        scale=scale,
        offset=quantised.sum(1).astype(np.int32),
        **_indexed(layout, layout.offset),
    )


def _pack_codebook_int8(weight: Float32, bias: Float32, tile: int) -> PellLinear:
    weight = as_finite(weight, "a codebook")
    codes, codebook = share(weight[weight != 0])
    scale = np.abs(codebook).max(keepdims=True) / np.float32(MOST_INT15)
    # Below the smallest normal number a quotient would overflow.
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    whole = np.zeros(weight.shape, np.float32)
    whole[weight != 0] = np.rint(codebook / scale)[codes]
    rows = Rows.of(whole)
    check_int8_row(int(rows.counts.max()))
    codes, codebook = share(rows.values)  # small ones may have become zero, or one another
    layout = _lay_out(rows, PellCodebookInt8.steps, tile)
    entries = np.zeros(layout.slots, np.uint8)
    entries[layout.value_at] = codes
    halves = entries.reshape(-1, 2, BLOCK // 2)
    packed = aligned_zeros(layout.slots // 2, np.uint8)
    packed[:] = (halves[:, 0] | halves[:, 1] << np.uint8(4)).ravel()
    return PellCodebookInt8(
        bias=bias,
        value=codebook,
        codes=packed,
        scale=scale,
        offset=whole.sum(1, dtype=np.float64).astype(np.int32),
        **_indexed(layout, layout.offset),
    )


_PACKERS = {
    "float32": _pack_float32,
    "bfloat16": _pack_bfloat16,
    "codebook": _pack_codebook,
    "codebook_int8": _pack_codebook_int8,
    "int8": _pack_int8,
}


def _lay_out(rows: Rows, steps: Steps, tile: int) -> _Layout:
    out_features, in_features = rows.shape
    groups, tiles = -(-out_features // LANES), -(-in_features // tile)
    lanes = np.full(groups * LANES, -1, np.int64)
    lanes[:out_features] = np.argsort(-rows.counts, kind="stable")
    entries = len(rows.values)
    taken = np.zeros(groups * tiles, np.int64)
    # Every step takes an entry, but for those that only move the window.
    most = entries + groups * tiles * (tile // (255 * steps.unit) + 1)
    advance = np.zeros(most, np.uint8)
    step_of, rank_of = np.zeros(entries, np.int64), np.zeros(entries, np.int64)
    offset_of = np.zeros(entries, np.uint8)
    total = schedule(
        rows.starts, rows.columns, lanes, tile, tiles, steps.unit, steps.window, steps.depth,
        taken, advance, step_of, rank_of, offset_of,
    )  # fmt: skip
    blocks = np.zeros(groups * tiles + 1, np.int64)
    np.cumsum(-(-taken // steps.per_block), out=blocks[1:])
    # Steps of a segment start at a block of their own.
    shift = blocks[:-1] * steps.per_block - (np.cumsum(taken) - taken)
    moved = np.arange(total) + np.repeat(shift, taken)
    padded = np.zeros(blocks[-1] * steps.per_block, np.uint8)
    padded[moved] = advance[:total]
    place = np.zeros(out_features, np.int32)
    place[lanes[:out_features]] = np.arange(out_features)
    lane = place[rows.row_of].astype(np.int64) % LANES
    turn = moved[step_of] * (steps.depth // steps.width) + rank_of // steps.width
    side = rank_of % steps.width
    within = steps.rounds * side + turn % steps.rounds
    return _Layout(
        {"in_features": in_features, "tile": tile, "place": place, "blocks": blocks}
        | {"advance": padded},
        index_at=BLOCK * (turn // steps.rounds) + 4 * lane + within,
        value_at=(turn * LANES + lane) * steps.width + side,
        offset=offset_of,
        slots=int(blocks[-1]) * BLOCK,
    )


def _indexed(layout: _Layout, entry: NDArray[np.uint8]) -> dict[str, Any]:
    index = aligned_zeros(layout.slots, np.uint8)
    index[layout.index_at] = entry
    return layout.fields | {"index": index}
