"""N:M patterns: of every M neighbouring inputs at most N stay (Mishra et al., arXiv 2104.08378)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from automl.pruning.granularities.layout import as_rows, from_rows, padded
from automl.pruning.granularities.ranking import top
from automl.pruning.granularities.sizes import Ints, Sizes
from automl.types import InputError, Kept

_MOST = 256


@dataclass(frozen=True)
class NM:
    """Groups of ``m`` neighbouring inputs of one output; what is decided is how many stay, n.

    A layer therefore has ``m`` units, of which n are kept: 2:4 is ``kept=2`` of ``nm:4``. In
    convolutions the neighbours are input channels at one position of the kernel (``layout.py``).
    A last group that ``m`` does not fill keeps ``min(n, its size)``, as if padded by zeros.

    Attributes:
        m: Inputs of a group, in [2, 256].

    Raises:
        InputError: ``m`` is out of range.
    """

    m: int = 4
    acceleration: ClassVar[str] = "2:4 sparse tensor cores; CPU kernels with packed indices"

    def __post_init__(self) -> None:
        """Checks the size of groups."""
        fine = isinstance(self.m, int) and not isinstance(self.m, bool) and 2 <= self.m <= _MOST
        if not fine:
            raise InputError(f"granularity nm needs whole groups of 2 to {_MOST}, got {self.m!r}")

    @classmethod
    def parse(cls, parameters: str) -> NM:
        """``M``.

        Raises:
            InputError: It is no number.
        """
        if not re.fullmatch(r"[0-9]{1,6}", parameters):
            raise InputError(
                f"granularity nm is nm:M with M inputs a group, got {parameters!r}; how many of "
                "them stay is the ratio's business (2:4 is nm:4 at ratio=0.5)"
            )
        return cls(int(parameters))

    @property
    def name(self) -> str:
        """``nm:M``."""
        return f"nm:{self.m}"

    def refusal(self, sizes: Sizes) -> str | None:
        """Layers with fewer inputs than one group."""
        if sizes.into >= self.m:
            return None
        return f"its {sizes.into} input channels (per group) do not fill a group of {self.m}"

    def units(self, sizes: Sizes) -> Ints:
        """M, whatever the sizes."""
        return np.full(np.shape(sizes.weights), self.m, np.int64)

    def nonzeros(self, kept: Kept, sizes: Sizes) -> Ints:
        """N of each full group, and of the last what it has."""
        full, rest = np.divmod(np.asarray(sizes.into, np.int64), self.m)
        row = full * np.asarray(kept, np.int64) + np.minimum(kept, rest)
        return np.asarray(row * sizes.out * sizes.taps, np.int64)

    def index_bits(self, kept: Kept, sizes: Sizes) -> Ints:
        """The position within the group, for every stored weight; none for a dense weight."""
        bits = int(self.m - 1).bit_length()
        return np.where(np.asarray(kept) < self.m, bits * self.nonzeros(kept, sizes), 0)

    def unit_scores(self, saliency: Tensor) -> Tensor:
        """Level n of m: the sum over groups of the n-th highest; falls with n."""
        groups = self._groups(saliency)
        ranked = groups.sort(dim=-1, descending=True).values
        # What pads a group ranks last and costs nothing.
        ranked = torch.where(ranked == _PADDING, torch.zeros_like(ranked), ranked)
        return ranked.reshape(-1, self.m).sum(0)

    def mask(self, saliency: Tensor, kept: int) -> Tensor:
        """The ``kept`` highest of every group, ties by position."""
        groups = self._groups(saliency)
        out, taps = groups.shape[:2]
        rows = top(groups, kept).reshape(out, taps, -1)[..., : saliency.shape[1]]
        return from_rows(rows, tuple(saliency.shape))

    def _groups(self, saliency: Tensor) -> Tensor:
        """(out, taps, groups, m), padded below every real value."""
        finite = saliency.double().clamp_min(_LEAST)
        rows = padded(as_rows(finite), 1, self.m, _PADDING)
        return rows.reshape(*rows.shape[:2], -1, self.m)


#: Below every saliency, so that padding is never kept instead of a weight.
_PADDING = -torch.inf
_LEAST = torch.finfo(torch.float64).min
