"""Functions that engines run in tests; other processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Layer:
    """Shared data with tensors: a convolution and images."""

    weight: Tensor
    images: Tensor


def times(data: float, item: float) -> float:
    return data * item


class _Stubborn:
    """Its own code does not let it be pickled, or read again."""

    def __init__(self, sent: bool) -> None:
        self.sent = sent

    def __getstate__(self) -> dict[str, bool]:
        if not self.sent:
            raise ValueError("not me")
        return {"sent": True}

    def __setstate__(self, state: dict[str, bool]) -> None:
        raise RuntimeError("not here")


def stubborn(data: float, sent: bool) -> object:
    return _Stubborn(sent)


def output(layer: Layer, scale: float) -> bytes:
    return F.conv2d(layer.images, layer.weight * scale, padding=1).numpy().tobytes()


def mapped_from(layer: Layer, item: int) -> str:
    """The file that the images' memory is mapped from."""
    address = layer.images.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
        if start <= address < end:
            return line.split()[-1]
    raise AssertionError("the address is not mapped")


def odd_only(data: Any, item: int) -> int:
    if item % 2 == 0:
        raise ValueError(f"{item} is\neven")
    return item


def leaves(data: Any, item: int) -> int:
    raise SystemExit(3)


def killed(folder: str, item: int) -> int:
    """Item 2 kills its process the first time it is tried, item 4 always."""
    mark = Path(folder) / "killed"
    if item == 4 or (item == 2 and not mark.exists()):
        if item == 2:
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def hangs(data: Any, item: int) -> int:
    """Item 1 hangs; the others say in which process they were."""
    time.sleep(600 if item == 1 else 0)
    return os.getpid()


def works(folder: str, item: float) -> float:
    """Says that it is at work, then takes ``item`` seconds."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(item)
    return item


def unsendable(data: Any, item: int) -> Any:
    return (one for one in range(item))
