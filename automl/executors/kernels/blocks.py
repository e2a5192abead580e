"""Several vectors of 16 floats as one value, so that one kernel serves every register tile.

A block is a tuple of ``float32x16``. How many there are is the type of an argument, ``like``, a
tuple of as many numbers: Numba compiles a kernel anew for every length, when it is first called
with it, and caches each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from automl.executors.kernels.options import inlined
from automl.executors.kernels.vectors import address_of, float32x16, intrinsic_of, prefetch_line


def _pointer(context: Any, builder: Any, array_type: Any, place: list[Any], number: int) -> Any:
    """Where a vector of the block lies that starts at ``place``: an array and an element of it."""
    address = address_of(context, builder, array_type, *place)
    step = ir.Constant(ir.IntType(64), number * float32x16.llvm.count)
    return builder.bitcast(builder.gep(address, [step]), float32x16.llvm.as_pointer())


def _vector_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(float32x16.llvm, [float32x16.llvm] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
    return builder.call(function, [a, b, c])


@intrinsic_of
def load_block(typing_context: Any, array: Any, offset: Any, like: Any) -> Any:
    """As many vectors as ``like`` is long, from element ``offset`` on, at any alignment."""
    block = types.UniTuple(float32x16, len(like))

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        loaded = []
        for number in range(len(like)):
            place = _pointer(context, builder, signature.args[0], values[:2], number)
            loaded.append(builder.load(place))
            loaded[-1].align = 4
        return context.make_tuple(builder, block, loaded)

    return block(array, types.intp, like), generate


@intrinsic_of
def prefetch_block(typing_context: Any, array: Any, offset: Any, like: Any) -> Any:
    """Asks for the cache lines that a block from element ``offset`` on starts to lie in."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for number in range(len(like)):
            prefetch_line(
                builder, _pointer(context, builder, signature.args[0], values[:2], number)
            )
        return context.get_dummy_value()

    return types.void(array, types.intp, like), generate


@intrinsic_of
def splat_block(typing_context: Any, number: Any, like: Any) -> Any:
    """As many vectors as ``like`` is long, of the same float throughout."""
    block = types.UniTuple(float32x16, len(like))

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        undefined, zero = ir.Constant(float32x16.llvm, ir.Undefined), ir.IntType(32)(0)
        first = builder.insert_element(undefined, values[0], zero)
        places = ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16)
        vector = builder.shuffle_vector(first, undefined, places)
        return context.make_tuple(builder, block, [vector] * len(like))

    return block(types.float32, like), generate


@intrinsic_of
def splat_at(typing_context: Any, array: Any, offset: Any) -> Any:
    """16 times one float of an array, by way of a general register.

    Where products read their other factor from memory, that is faster than to spread the float
    while it is loaded, which takes a turn of the ports that load vectors. The empty piece of
    assembly keeps LLVM from doing so, and from unrolling loops, whose remainders are guessed badly.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        whole = ir.IntType(32)
        lanes = ir.VectorType(whole, 16)
        address = address_of(context, builder, signature.args[0], *values)
        bits = builder.load(builder.bitcast(address, whole.as_pointer()))
        kept = ir.InlineAsm(ir.FunctionType(whole, [whole]), "", "=r,0", side_effect=False)
        undefined = ir.Constant(lanes, ir.Undefined)
        first = builder.insert_element(undefined, builder.call(kept, [bits]), whole(0))
        spread = builder.shuffle_vector(first, undefined, ir.Constant(lanes, [0] * 16))
        return builder.bitcast(spread, float32x16.llvm)

    return float32x16(array, types.intp), generate


@intrinsic_of
def fma_block(typing_context: Any, weight: Any, array: Any, offset: Any, block: Any) -> Any:
    """``block`` plus a vector times the block that starts at element ``offset``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        totals = []
        for number, total in enumerate(cgutils.unpack_tuple(builder, values[3])):
            place = _pointer(context, builder, signature.args[1], values[1:3], number)
            inputs = builder.load(place)
            inputs.align = 4
            totals.append(_vector_fma(builder, values[0], inputs, total))
        return context.make_tuple(builder, block, totals)

    return block(float32x16, array, types.intp, block), generate


@intrinsic_of
def store_block(typing_context: Any, array: Any, offset: Any, block: Any) -> Any:
    """Writes a block from element ``offset`` on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        for number, vector in enumerate(cgutils.unpack_tuple(builder, values[2])):
            place = _pointer(context, builder, signature.args[0], values[:2], number)
            builder.store(vector, place).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, block), generate


@intrinsic_of
def transpose(
    typing_context: Any, array: Any, offset: Any, pitch: Any, goal: Any, place: Any, step: Any
) -> Any:
    """Writes 16 rows of 16 floats as columns.

    Rows start at element ``offset`` of ``array``, ``pitch`` apart; in ``goal`` the transposed rows
    start at ``place``, ``step`` apart.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def row(number: int, array_type: Any, at: Any, first: Any, apart: Any) -> Any:
            start = builder.add(first, builder.mul(apart, ir.Constant(apart.type, number)))
            return _pointer(context, builder, array_type, [at, start], 0)

        rows = []
        for number in range(16):
            rows.append(builder.load(row(number, signature.args[0], *values[:3])))
            rows[-1].align = 4
        for half in (8, 4, 2, 1):
            rows = _swapped(builder, rows, half)
        for number, vector in enumerate(rows):
            builder.store(vector, row(number, signature.args[3], *values[3:])).align = 4
        return context.get_dummy_value()

    integer = types.intp
    return types.void(array, integer, integer, goal, integer, integer), generate


def _swapped(builder: Any, rows: list[Any], half: int) -> list[Any]:
    """Rows after blocks of ``half`` x ``half`` above and below the diagonal have changed places."""
    lanes = range(16)
    upper = [lane if not lane & half else 16 + lane - half for lane in lanes]
    lower = [lane + half if not lane & half else 16 + lane for lane in lanes]
    made = list(rows)
    for number in lanes:
        if not number & half:
            pair = rows[number], rows[number + half]
            for place, order in ((number, upper), (number + half, lower)):
                mask = ir.Constant(ir.VectorType(ir.IntType(32), 16), order)
                made[place] = builder.shuffle_vector(*pair, mask)
    return made


def _mask_of(builder: Any, bits: Any) -> Any:
    return builder.bitcast(bits, ir.VectorType(ir.IntType(1), 16))


def _masked(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic_of
def load_some(typing_context: Any, array: Any, offset: Any, mask: Any) -> Any:
    """The lanes whose bit of a uint16 is set; the others are zero and are not read."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], values[:2], 0)
        zeros = ir.Constant(float32x16.llvm, [0.0] * 16)
        align = ir.Constant(ir.IntType(32), 4)
        arguments = [place, align, _mask_of(builder, values[2]), zeros]
        return _masked(builder, "llvm.masked.load.v16f32.p0", float32x16.llvm, arguments)

    return float32x16(array, types.intp, types.uint16), generate


@intrinsic_of
def store_some(typing_context: Any, array: Any, offset: Any, vector: Any, mask: Any) -> Any:
    """Writes the lanes whose bit of a uint16 is set and touches no others."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], values[:2], 0)
        align = ir.Constant(ir.IntType(32), 4)
        arguments = [values[2], place, align, _mask_of(builder, values[3])]
        _masked(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, float32x16, types.uint16), generate


@inlined
def between(first: int, last: int) -> Any:
    """A mask of the lanes from ``first`` to before ``last``, of which there are 16."""
    low, high = min(max(first, 0), 16), min(max(last, 0), 16)
    return np.uint16((1 << max(low, high)) - (1 << low))
