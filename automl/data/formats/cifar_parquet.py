"""CIFAR-10 in the Hugging Face layout: Parquet shards of PNGs and labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from automl.data.cache import Decoding, Images, Labels
from automl.data.formats.cifar import SIDE, check_labels
from automl.data.formats.pictures import decode
from automl.types import InputError

#: Where the shards may lie under the data root.
FOLDERS = ("", "cifar10", "plain_text", "cifar10/plain_text", "data")


def find(root: Path, part: str) -> list[Path]:
    """The shards of ``part`` (``train`` or ``test``) under ``root``, in order; [] if none.

    Raises:
        InputError: Some of the shards are missing.
    """
    for folder in FOLDERS:
        shards = sorted((root / folder).glob(f"{part}-*.parquet"))
        if shards:
            _check_complete(shards)
            return shards
    return []


def _check_complete(shards: Sequence[Path]) -> None:
    numbered = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})", shards[0].stem)
    if numbered is None:
        return
    name, _, total = numbered.groups()
    names = {shard.name for shard in shards}
    for index in range(int(total)):
        expected = f"{name}-{index:05d}-of-{total}.parquet"
        if expected not in names:
            raise InputError(
                f"{shards[0].parent} lacks {expected}: fetch all {int(total)} shards of {name}"
            )


def start(shards: Sequence[Path]) -> Decoding:
    """Starts decoding; counts the rows by the shards' metadata.

    Raises:
        InputError: A shard is no Parquet file.
    """
    from pyarrow import parquet

    rows = 0
    for shard in shards:
        with _readable(shard):
            rows += int(parquet.read_metadata(shard).num_rows)
    return Decoding((rows, 3, SIDE, SIDE), _chunks(shards))


def _chunks(shards: Sequence[Path]) -> Iterator[tuple[Images, Labels]]:
    for shard in shards:
        pictures, labels = _columns(shard)
        images = np.empty((len(pictures), 3, SIDE, SIDE), dtype=np.uint8)
        for row, content in enumerate(pictures):
            name = f"row {row} of {shard}"
            if not content.is_valid:
                raise InputError(f"{name} has no picture: fetch the shard again")
            picture = decode(content.as_py(), name)
            if picture.shape != images.shape[1:]:
                height, width = picture.shape[1:]
                raise InputError(f"{name} must be {SIDE} x {SIDE} pixels, got {width} x {height}")
            images[row] = picture
        yield images, labels


def _columns(shard: Path) -> tuple[Any, Labels]:
    """The encoded pictures as an Arrow binary array, and the labels."""
    import pyarrow
    from pyarrow import parquet

    with _readable(shard):
        table = parquet.read_table(shard)
    picture = next((name for name in ("img", "image") if name in table.column_names), None)
    if picture is None or "label" not in table.column_names:
        raise InputError(
            f"{shard} must have the columns img (or image) and label, got {table.column_names}"
        )
    column = table[picture].combine_chunks()
    if pyarrow.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if not pyarrow.types.is_binary(column.type):
        raise InputError(f"{shard}: column {picture} must hold encoded pictures")
    labels = table["label"]
    if labels.null_count or not pyarrow.types.is_integer(labels.type):
        raise InputError(f"{shard}: column label must hold whole numbers, none missing")
    return column, check_labels(labels.to_numpy().astype(np.int64), shard)


@contextmanager
def _readable(shard: Path) -> Iterator[None]:
    """Turns what Arrow raises on a damaged file into one line."""
    from pyarrow.lib import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{shard} is not a whole Parquet file ({reason}): fetch it again"
        ) from error
