"""Vectors of 512 bits as Numba types, and the few instructions on them that kernels use.

Each function is an intrinsic: it becomes one or two LLVM instructions where it is called, so a
kernel written with them runs as fast as C with intrinsics, without a compiler at the user's.
Offsets are in elements of the array and are not checked; callers pad their arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

_I32 = ir.IntType(32)


def intrinsic_of(build: Callable[..., Any]) -> Any:
    """Numba's decorator; as ``Any``, because type checkers take the result for what is wrapped."""
    return intrinsic(build)


def literal_intrinsic(build: Callable[..., Any]) -> Any:
    """The same, with the values of constant arguments."""
    return intrinsic(prefer_literal=True)(build)


class Vector(types.Type):
    """A SIMD register's content.

    Attributes:
        llvm: The LLVM type.
    """

    def __init__(self, name: str, llvm: ir.VectorType) -> None:
        """A type of this name."""
        super().__init__(name=name)
        self.llvm = llvm


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


float32x16 = Vector("float32x16", ir.VectorType(ir.FloatType(), 16))
int32x16 = Vector("int32x16", ir.VectorType(_I32, 16))
int16x32 = Vector("int16x32", ir.VectorType(ir.IntType(16), 32))
int8x64 = Vector("int8x64", ir.VectorType(ir.IntType(8), 64))


def address_of(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """Where an element of an array lies, for use in intrinsics."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _loader(vector: Vector) -> Any:
    @intrinsic_of
    def load(typing_context: Any, array: Any, offset: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address = address_of(context, builder, signature.args[0], *values)
            loaded = builder.load(builder.bitcast(address, vector.llvm.as_pointer()))
            loaded.align = 1
            return loaded

        return vector(array, types.intp), generate

    return load


#: load(array, offset): the 64 bytes from element ``offset`` on, at any alignment.
load_float32x16 = _loader(float32x16)
load_int32x16 = _loader(int32x16)
load_int16x32 = _loader(int16x32)
load_int8x64 = _loader(int8x64)


@intrinsic_of
def load_codes(typing_context: Any, array: Any, offset: Any) -> Any:
    """64 bytes whose low 4 bits are the lower, then the upper halves of 32 bytes of an array."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = address_of(context, builder, signature.args[0], *values)
        eight = ir.VectorType(_I32, 8)
        loaded = builder.load(builder.bitcast(address, eight.as_pointer()))
        loaded.align = 1
        twice = ir.Constant(int32x16.llvm, [*range(8), *range(8)])
        lanes = builder.shuffle_vector(loaded, ir.Constant(eight, ir.Undefined), twice)
        moved = builder.lshr(lanes, ir.Constant(int32x16.llvm, [0] * 8 + [4] * 8))
        return builder.bitcast(moved, int8x64.llvm)

    return int8x64(array, types.intp), generate


@intrinsic_of
def peek(typing_context: Any, array: Any, offset: Any) -> Any:
    """One element, without the checks for negative indices."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(address_of(context, builder, signature.args[0], *values))

    return array.dtype(array, types.intp), generate


@intrinsic_of
def peek_uint64(typing_context: Any, array: Any, offset: Any) -> Any:
    """The 8 bytes from element ``offset`` on as one number."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = address_of(context, builder, signature.args[0], *values)
        loaded = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()))
        loaded.align = 1
        return loaded

    return types.uint64(array, types.intp), generate


def prefetch_line(builder: Any, address: Any) -> None:
    """Asks for the cache line of an address, for use in intrinsics."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, keep, data = _I32(0), _I32(3), _I32(1)
    builder.call(function, [builder.bitcast(address, pointer), read, keep, data])


@intrinsic_of
def prefetch(typing_context: Any, array: Any, offset: Any) -> Any:
    """Asks for the cache line of an element, which may lie behind the array's end."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        prefetch_line(builder, address_of(context, builder, signature.args[0], *values))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic_of
def store(typing_context: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Writes a vector to the 64 bytes from element ``offset`` on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = address_of(context, builder, signature.args[0], values[0], values[1])
        pointer = builder.bitcast(address, vector.llvm.as_pointer())
        builder.store(values[2], pointer).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _constant(vector: Vector, lanes: list[Any]) -> Any:
    def build(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return ir.Constant(vector.llvm, lanes)

        return vector(), generate

    return intrinsic_of(build)


zeros_float32x16 = _constant(float32x16, [0.0] * 16)
zeros_int32x16 = _constant(int32x16, [0] * 16)

#: For ``pick2``: every other number of two registers, the first or the second of each pair.
evens = _constant(int32x16, list(range(0, 32, 2)))
odds = _constant(int32x16, list(range(1, 32, 2)))


@intrinsic_of
def splat(typing_context: Any, number: Any) -> Any:
    """16 times the same float."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        undefined = ir.Constant(float32x16.llvm, ir.Undefined)
        first = builder.insert_element(undefined, values[0], _I32(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(int32x16.llvm, [0] * 16))

    return float32x16(types.float32), generate


def _operator(name: str, result: Vector, *operands: Vector) -> Any:
    """An LLVM intrinsic function as one of ours."""

    def build(typing_context: Any, *arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = ir.FunctionType(result.llvm, [operand.llvm for operand in operands])
            return builder.call(
                cgutils.get_or_insert_function(builder.module, kind, name), list(values)
            )

        return result(*operands), generate

    return build


def _binary(build: Callable[..., Any]) -> Any:
    return intrinsic_of(lambda typing_context, a, b: build(typing_context, a, b))


def _ternary(build: Callable[..., Any]) -> Any:
    return intrinsic_of(lambda typing_context, a, b, c: build(typing_context, a, b, c))


#: fma(a, b, c): a * b + c, rounded once.
fma = _ternary(_operator("llvm.fma.v16f32", float32x16, float32x16, float32x16, float32x16))

#: pick(table, index): lane i is table[index[i] & 15].
pick = _binary(_operator("llvm.x86.avx512.permvar.sf.512", float32x16, float32x16, int32x16))

#: The same of 64 bytes: the low 6 bits count.
pick_int8x64 = _binary(_operator("llvm.x86.avx512.permvar.qi.512", int8x64, int8x64, int8x64))

#: pick2(low, index, high): from two registers as one table; the low 5, 5, 6 or 7 bits count.
pick2_float32x16 = _ternary(
    _operator("llvm.x86.avx512.vpermi2var.ps.512", float32x16, float32x16, int32x16, float32x16)
)
pick2_int16x32 = _ternary(
    _operator("llvm.x86.avx512.vpermi2var.hi.512", int16x32, int16x32, int16x32, int16x32)
)
pick2_int8x64 = _ternary(
    _operator("llvm.x86.avx512.vpermi2var.qi.512", int8x64, int8x64, int8x64, int8x64)
)


@intrinsic_of
def dot4(typing_context: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Adds to each of 16 sums four products of an unsigned and a signed byte."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        # Declared as LLVM had it before version 22, which upgrades it to operands of bytes.
        kind = ir.FunctionType(int32x16.llvm, [int32x16.llvm] * 3)
        name = "llvm.x86.avx512.vpdpbusd.512"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        left, right = (builder.bitcast(value, int32x16.llvm) for value in values[1:])
        return builder.call(function, [values[0], left, right])

    return int32x16(int32x16, int8x64, int8x64), generate


@intrinsic_of
def shift_right(typing_context: Any, vector: Any, bits: Any) -> Any:
    """Every lane shifted by the same number of bits; zeros come in."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lane, count = vector.llvm.element, vector.llvm.count
        undefined = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(undefined, builder.trunc(values[1], lane), _I32(0))
        zeros = ir.Constant(ir.VectorType(_I32, count), [0] * count)
        return builder.lshr(values[0], builder.shuffle_vector(first, undefined, zeros))

    return vector(vector, types.intp), generate


@literal_intrinsic
def choose(typing_context: Any, index: Any, mask: Any, without: Any, having: Any) -> Any:
    """Lane by lane ``having`` where ``index & mask`` is not zero, else ``without``."""
    bits = mask.literal_value

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        constant = ir.Constant(index.llvm, [bits] * index.llvm.count)
        zero = ir.Constant(index.llvm, [0] * index.llvm.count)
        test = builder.icmp_unsigned("!=", builder.and_(values[0], constant), zero)
        return builder.select(test, values[3], values[2])

    return without(index, mask, without, without), generate


@intrinsic_of
def add(typing_context: Any, a: Any, b: Any) -> Any:
    """The sum of two vectors of one type."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        floats = isinstance(a.llvm.element, ir.FloatType)
        return (builder.fadd if floats else builder.add)(*values)

    return a(a, a), generate


@intrinsic_of
def clamp(typing_context: Any, vector: Any, low: Any, high: Any) -> Any:
    """Finite floats limited lane by lane to the range from ``low`` to ``high``."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        floats, least, most = values
        floats = builder.select(builder.fcmp_ordered(">", floats, least), floats, least)
        return builder.select(builder.fcmp_ordered("<", floats, most), floats, most)

    return vector(vector, vector, vector), generate


@intrinsic_of
def upper_halves(typing_context: Any, words: Any) -> Any:
    """The 16 bfloat16 in the upper halves of 32-bit lanes, as float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = builder.bitcast(values[0], int32x16.llvm)
        kept = builder.and_(lanes, ir.Constant(int32x16.llvm, [-65536] * 16))
        return builder.bitcast(kept, float32x16.llvm)

    return float32x16(words), generate


@intrinsic_of
def lower_halves(typing_context: Any, words: Any) -> Any:
    """The 16 bfloat16 in the lower halves of 32-bit lanes, as float32."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        lanes = builder.bitcast(values[0], int32x16.llvm)
        moved = builder.shl(lanes, ir.Constant(int32x16.llvm, [16] * 16))
        return builder.bitcast(moved, float32x16.llvm)

    return float32x16(words), generate


@intrinsic_of
def expand(typing_context: Any, mask: Any, vector: Any) -> Any:
    """The vector's first floats spread out to the lanes whose bit of a uint16 is set; else zero."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        bits = ir.VectorType(ir.IntType(1), 16)
        kind = ir.FunctionType(float32x16.llvm, [float32x16.llvm, float32x16.llvm, bits])
        name = "llvm.x86.avx512.mask.expand.v16f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        zeros = ir.Constant(float32x16.llvm, [0.0] * 16)
        return builder.call(function, [values[1], zeros, builder.bitcast(values[0], bits)])

    return float32x16(types.uint16, float32x16), generate


@intrinsic_of
def ones(typing_context: Any, mask: Any) -> Any:
    """How many bits of a uint16 are set."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(16)
        kind = ir.FunctionType(word, [word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.i16")
        return builder.zext(builder.call(function, values), ir.IntType(64))

    return types.intp(types.uint16), generate


def _spread(vector: Vector, copies: int, shifts: list[int], base: list[int]) -> Any:
    """Lane i is ``word >> shifts[i] & 3 | base[i]``, of a word repeated over the register."""

    @intrinsic_of
    def spread(typing_context: Any, word: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            whole = ir.VectorType(ir.IntType(512 // copies), copies)
            undefined = ir.Constant(whole, ir.Undefined)
            first = builder.insert_element(undefined, values[0], _I32(0))
            zeros = ir.Constant(ir.VectorType(_I32, copies), [0] * copies)
            lanes = builder.bitcast(builder.shuffle_vector(first, undefined, zeros), vector.llvm)
            moved = builder.lshr(lanes, ir.Constant(vector.llvm, shifts))
            two = builder.and_(moved, ir.Constant(vector.llvm, [3] * vector.llvm.count))
            return builder.or_(two, ir.Constant(vector.llvm, base))

        return vector(word), generate

    return spread


#: Places in 32 columns of the two of every four that a uint32 names, 2 bits each.
spread_places_int32x16 = _spread(
    int32x16, 16, [2 * i for i in range(16)], [4 * (i // 2) for i in range(16)]
)

#: Places in 64 columns: lane i takes bits from the 16-bit word i % 4 of a uint64.
spread_places_int16x32 = _spread(
    int16x32, 8, [2 * (i // 4) for i in range(32)], [4 * (i // 2) for i in range(32)]
)


@intrinsic_of
def spread_places_int8x64(typing_context: Any, words: Any, offset: Any) -> Any:
    """Places in 128 columns: lane i takes bits 2 (i // 16) of byte i % 16 from an offset on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        address = address_of(context, builder, signature.args[0], *values)
        four = ir.VectorType(_I32, 4)
        loaded = builder.load(builder.bitcast(address, four.as_pointer()))
        loaded.align = 4
        undefined = ir.Constant(four, ir.Undefined)
        copies = ir.Constant(int32x16.llvm, [0, 1, 2, 3] * 4)
        lanes = builder.shuffle_vector(loaded, undefined, copies)
        # Bits of a neighbour come into a byte from above, where they are masked.
        shifts = ir.Constant(int32x16.llvm, [2 * (i // 4) for i in range(16)])
        moved = builder.bitcast(builder.lshr(lanes, shifts), int8x64.llvm)
        two = builder.and_(moved, ir.Constant(int8x64.llvm, [3] * 64))
        return builder.or_(two, ir.Constant(int8x64.llvm, [4 * (i // 2) for i in range(64)]))

    return int8x64(words, types.intp), generate


@intrinsic_of
def total_int32x16(typing_context: Any, vector: Any) -> Any:
    """The sum of 16 whole numbers."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(_I32, [int32x16.llvm])
        name = "llvm.vector.reduce.add.v16i32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, values)

    return types.int32(vector), generate


@intrinsic_of
def total(typing_context: Any, vector: Any) -> Any:
    """The sum of 16 floats, added in any order."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), float32x16.llvm])
        name = "llvm.vector.reduce.fadd.v16f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        zero = ir.Constant(ir.FloatType(), 0.0)
        return builder.call(function, [zero, values[0]], fastmath=("reassoc",))

    return types.float32(vector), generate
