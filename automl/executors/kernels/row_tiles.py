"""A few rows of a matrix product, gathered from and added to rows anywhere in memory.

The products of several rows with one panel of a weight stay in registers from the first input
channel to the last, so that every weight that is loaded is used once per row, and every sum is
read and written once. Rows of the tile that follows are fetched meanwhile.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from automl.executors.kernels.vectors import float32x16, literal_intrinsic, prefetch_line

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@literal_intrinsic
def add_products(
    typing_context: Any,
    rows: Any,
    vectors: Any,
    x: Any,
    source: Any,
    y: Any,
    target: Any,
    at: Any,
    x_stride: Any,
    y_stride: Any,
    column: Any,
    weight: Any,
    start: Any,
    channels: Any,
    first: Any,
    count: Any,
) -> Any:
    """Adds ``rows`` rows of a product, ``16 * vectors`` columns wide; both are constants.

    For every pair p from ``at`` on, with k from 0 to ``count`` summed before it is added,

        y[target[p], column : column + width] +=
            x[source[p], channels[first + k]] * weight[start + k * width : ... + width]

    Nothing is checked. ``source`` and ``target`` are int32 and are read up to ``2 * rows`` pairs
    from ``at``; ``x``, ``y`` and ``weight`` are flat float32, ``channels`` is int32. There must be
    registers for ``rows * vectors + vectors + 1`` vectors.
    """
    size = rows.literal_value, vectors.literal_value
    whole = types.intp

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kinds = zip(signature.args, values, strict=True)
        plain = [
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array)
            else value
            for kind, value in kinds
        ]
        _Tile(builder, *size).write(*plain[2:])
        return context.get_dummy_value()

    return types.void(
        rows, vectors, x, source, y, target, whole, whole, whole, whole,
        weight, whole, channels, whole, whole,
    ), generate  # fmt: skip


class _Tile:
    """Writes the instructions of one tile."""

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self.builder, self.rows, self.vectors = builder, rows, vectors

    def write(
        self, x: Any, source: Any, y: Any, target: Any, at: Any, x_stride: Any, y_stride: Any,
        column: Any, weight: Any, start: Any, channels: Any, first: Any, count: Any,
    ) -> None:  # fmt: skip
        """The whole of it; the arguments are those of :func:`add_products`."""
        inputs = self._pointers(x, source, at, x_stride, _I64(0))
        outputs = self._pointers(y, target, at, y_stride, column)
        following = self.builder.add(at, _I64(self.rows))
        self._prefetch(self._pointers(x, source, following, x_stride, _I64(0)))
        self._prefetch(self._pointers(y, target, following, y_stride, column))
        panel = self.builder.gep(weight, [start])
        sums = self._loop(inputs, panel, self.builder.gep(channels, [first]), count)
        for index, products in enumerate(sums):
            pointer, vector = outputs[index // self.vectors], index % self.vectors
            both = self.builder.fadd(self._load(pointer, vector), products)
            self.builder.store(both, self._vector(pointer, vector)).align = 4

    def _pointers(self, data: Any, rows: Any, at: Any, stride: Any, column: Any) -> list[Any]:
        """Where each row starts: ``data + rows[at + r] * stride + column``."""
        builder, found = self.builder, []
        for row in range(self.rows):
            number = builder.load(builder.gep(rows, [builder.add(at, _I64(row))]))
            offset = builder.mul(builder.sext(number, _I64), stride)
            found.append(builder.gep(data, [builder.add(offset, column)]))
        return found

    def _prefetch(self, pointers: list[Any]) -> None:
        for pointer in pointers:
            for vector in range(self.vectors):
                prefetch_line(self.builder, self.builder.gep(pointer, [_I64(16 * vector)]))

    def _loop(self, inputs: list[Any], panel: Any, channels: Any, count: Any) -> list[Any]:
        """The sums of products over the listed channels."""
        builder = self.builder
        zero = ir.Constant(float32x16.llvm, [0.0] * 16)
        entry = builder.block
        body, end = builder.append_basic_block("channel"), builder.append_basic_block("end")
        builder.cbranch(builder.icmp_signed(">", count, _I64(0)), body, end)
        builder.position_at_end(body)
        k = builder.phi(_I64)
        sums = [builder.phi(float32x16.llvm) for _ in range(self.rows * self.vectors)]
        channel = builder.sext(builder.load(builder.gep(channels, [k])), _I64)
        places = [builder.gep(pointer, [channel]) for pointer in inputs]
        row = builder.gep(panel, [builder.mul(k, _I64(16 * self.vectors))])
        after = self._step(sums, places, row)
        following = builder.add(k, _I64(1))
        builder.cbranch(builder.icmp_signed("<", following, count), body, end)
        for phi, start, then in zip([k, *sums], [_I64(0), *[zero] * len(sums)],
                                    [following, *after], strict=True):  # fmt: skip
            phi.add_incoming(start, entry)
            phi.add_incoming(then, body)
        builder.position_at_end(end)
        finals = []
        for then in after:
            final = builder.phi(float32x16.llvm)
            final.add_incoming(zero, entry)
            final.add_incoming(then, body)
            finals.append(final)
        return finals

    def _step(self, sums: list[Any], places: list[Any], row: Any) -> list[Any]:
        """The sums after one more channel."""
        kind = ir.FunctionType(float32x16.llvm, [float32x16.llvm] * 3)
        fma = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.fma.v16f32")
        weights = [self._load(row, vector) for vector in range(self.vectors)]
        after = []
        for index, total in enumerate(sums):
            number, vector = divmod(index, self.vectors)
            if vector == 0:
                value = self._splat(self.builder.load(places[number]))
            after.append(self.builder.call(fma, [value, weights[vector], total]))
        return after

    def _vector(self, pointer: Any, vector: int) -> Any:
        moved = self.builder.gep(pointer, [_I64(16 * vector)])
        return self.builder.bitcast(moved, float32x16.llvm.as_pointer())

    def _load(self, pointer: Any, vector: int) -> Any:
        loaded = self.builder.load(self._vector(pointer, vector))
        loaded.align = 4
        return loaded

    def _splat(self, value: Any) -> Any:
        undefined = ir.Constant(float32x16.llvm, ir.Undefined)
        first = self.builder.insert_element(undefined, value, _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, 16), [0] * 16)
        return self.builder.shuffle_vector(first, undefined, zeros)
