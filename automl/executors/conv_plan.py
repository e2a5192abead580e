"""Where a sparse convolution keeps the pixels of an image, so that lanes are neighbours.

Output positions are cut into tiles of whole rows. For each tile what the kernel reads is copied
into *planes*: one for every input channel, column of the kernel, and phase (row of the kernel,
times dilation, modulo the stride). In a plane the rows that a phase reads follow each other, as
long as rows of the output; so a row of the kernel is the plane of its phase, shifted by whole rows,
and 16 positions are 64 bytes in a row. Without padding, strides and a wide kernel rows have no
seams, and are cut anew where that wastes the fewest lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl.executors.spmm import SpmmLinear

Pair = tuple[int, int]

#: Floats of a vector.
LANES = 16
#: Vectors of positions that two rows of weights work on at once, in registers.
_MOST = 8
#: Bytes of a tile's planes and sums that stay in the second-level cache, more that they may take,
#: and cycles that each line beyond costs.
_CACHE, _MOST_BYTES, _MISS = 512 * 1024, 1536 * 1024, 4


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a convolution reads; pairs are vertical and horizontal.

    Attributes:
        channels: Of the input.
        kernel: Height and width.
        stride: Steps of the kernel.
        padding: Zeros on each side.
        dilation: Distance of what the kernel reads.
    """

    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def seamless(self) -> bool:
        """Whether every output pixel depends on the pixel in its own place only."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)

    def output(self, size: Pair) -> Pair:
        """Height and width of the output.

        Raises:
            ValueError: The image is smaller than the kernel.
        """
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        room = [n + 2 * p - s for n, p, s in zip(size, self.padding, spans, strict=True)]
        if min(room) < 0:
            raise ValueError(f"SparseConv2d.x must be as large as the kernel, got {size}")
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    @property
    def phases(self) -> list[int]:
        """Distances of rows to the first that is a multiple of strides away, ascending."""
        return sorted({ky * self.dilation[0] % self.stride[0] for ky in range(self.kernel[0])})

    @property
    def shifts(self) -> list[int]:
        """For each row of the kernel: by how many rows it is shifted in its plane."""
        return [ky * self.dilation[0] // self.stride[0] for ky in range(self.kernel[0])]


@dataclass(frozen=True, slots=True)
class Plan:
    """How images of one size are convolved.

    Attributes:
        output: Height and width of the output.
        layout: See ``kernels.conv.convolve``, with the one that follows.
        planes: See there.
        offsets: Where in the planes each entry of the matrix reads, shape (entries).
        vectors: Of positions that are worked on at once.
        floats: Of all memory that is needed.
    """

    output: Pair
    layout: NDArray[np.int64]
    planes: NDArray[np.int64]
    offsets: NDArray[np.uint32]
    vectors: int
    floats: int


def plan(matrix: SpmmLinear, geometry: Geometry, size: Pair, *, whole_rows: bool = False) -> Plan:
    """Chooses the tiles for images of a size.

    Args:
        matrix: Rows are output channels, columns input channels by places of the kernel.
        geometry: Of the convolution.
        size: Height and width of the image.
        whole_rows: Whether tiles are rows of the image without gaps, as another convolution makes
            them; only for those without seams.

    Raises:
        ValueError: The image is smaller than the kernel.
    """
    output = geometry.output(size)
    if geometry.seamless and not whole_rows:
        pixels = math.prod(size)
        width = LANES * _widest(-(-pixels // LANES))
        height = -(-pixels // width)
        size = (height, width)
    else:
        height, width = output
    pitch = width if whole_rows else -(-width // 8) * 8
    planes = np.array(_planes(geometry, size[1], width))
    extra, count = max(geometry.shifts), geometry.channels * len(planes)
    # Another convolution reads three rows for each; more rows read fewer of them twice.
    copied = _Copied(count, 2, 10) if whole_rows else _Copied(count, extra, 4)
    rows = _rows(height, pitch, copied, matrix.out_features, len(matrix.value))
    parts, vectors = _parts(rows * pitch)
    lanes = parts * vectors * LANES
    # An odd number of cache lines: planes at multiples of a page would share few sets.
    plane = (-(-(rows + extra) * pitch // LANES) | 1) * LANES
    # Behind the planes there is room for lanes that are none.
    sums = count * plane + 2 * LANES * _MOST
    layout = (*size, *geometry.stride, height, width, pitch, rows, rows + extra, plane)
    return Plan(
        output=output,
        layout=np.array((*layout, lanes, sums, -(-matrix.in_features // matrix.tile))),
        planes=planes,
        offsets=_offsets(geometry, plane, pitch)[matrix.columns],
        vectors=vectors,
        floats=sums + matrix.out_features * lanes + LANES,
    )


def _parts(lanes: int) -> Pair:
    """In how many equal parts, of how many vectors, so many lanes are worked on."""
    vectors = -(-lanes // LANES)
    parts = -(-vectors // _MOST)
    return parts, -(-vectors // parts)


def _planes(geometry: Geometry, inside: int, width: int) -> list[tuple[int, int, int, int]]:
    """See ``Plan.planes``; the image is ``inside`` columns wide, the output ``width``."""
    stride = geometry.stride[1]
    planes = []
    for phase in geometry.phases:
        for kx in range(geometry.kernel[1]):
            begin = kx * geometry.dilation[1] - geometry.padding[1]
            last = min((inside - 1 - begin) // stride + 1, width)
            planes.append((phase - geometry.padding[0], begin, max(-(begin // stride), 0), last))
    return planes


def _widest(vectors: int) -> int:
    """The vectors per part with the fewest parts times vectors, the most of those."""
    return min(range(1, _MOST + 1), key=lambda n: (-(-vectors // n) * (n + 1), -n))


@dataclass(frozen=True, slots=True)
class _Copied:
    """What laying out a tile takes.

    Attributes:
        planes: For all channels.
        extra: Rows that are read beyond those of the output.
        cycles: For 16 numbers.
    """

    planes: int
    extra: int
    cycles: int


def _rows(height: int, pitch: int, copied: _Copied, channels: int, entries: int) -> int:
    """Output rows of a tile: the fewest cycles by count, among what the cache holds."""

    def cycles(rows: int) -> float:
        parts, vectors = _parts(rows * pitch)
        multiply = entries * parts * (vectors + 1.5)
        deep = rows + copied.extra
        copy = copied.cycles * copied.planes * deep * -(-pitch // LANES)
        size = 4 * pitch * (copied.planes * deep + channels * rows)
        missed = _MISS * max(size - _CACHE, 0) / 64
        return -(-height // rows) * (multiply + copy + missed)

    room = _MOST_BYTES // (4 * pitch) - copied.planes * copied.extra
    fitting = max(room // (copied.planes + channels), 1)
    return min(range(1, min(fitting, height + 1) + 1), key=cycles)


def _offsets(geometry: Geometry, plane: int, pitch: int) -> NDArray[np.uint32]:
    """Where every column of the matrix (channel, row, column of the kernel) has its first lane."""
    height, width = geometry.kernel
    phases = geometry.phases
    phase = [phases.index(ky * geometry.dilation[0] % geometry.stride[0]) for ky in range(height)]
    channel = len(phases) * width * np.arange(geometry.channels)[:, None, None]
    number = channel + width * np.array(phase)[:, None] + np.arange(width)
    start: NDArray[np.int64] = plane * number + pitch * np.array(geometry.shifts)[:, None]
    return start.reshape(-1).astype(np.uint32)
