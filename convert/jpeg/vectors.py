"""Vectors of integers in numba kernels: LLVM compiles them to the instructions of any CPU.

A vector has 8-bit lanes, which are unsigned, or lanes of 16 or 32 bits, which are signed. Vectors
of one kind have the operators ``+ - * >>`` with each other and with whole numbers; results wrap.
There are no instructions of one architecture here: where a CPU has no wide registers, LLVM splits
the vectors. Addresses are plain integers (`numpy.uintp`): nothing is checked.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model


class Vector(types.Type):
    """The type of a vector with ``lanes`` integers of ``bits`` bits."""

    def __init__(self, bits: int, lanes: int) -> None:
        self.bits, self.lanes = bits, lanes
        super().__init__(f"Vector({bits}, {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ir.IntType(self.bits), self.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


U8x16, I16x8, I32x8 = Vector(8, 16), Vector(16, 8), Vector(32, 8)


def _splat(builder: ir.IRBuilder, vector: Vector, value: ir.Value) -> ir.Value:
    """A vector with this integer in each lane."""
    lane = ir.IntType(vector.bits)
    value = builder.trunc(value, lane) if value.type.width > vector.bits else value
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, _lanes([0] * vector.lanes))


def _lanes(numbers: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _add_operator(python: Callable[..., object], name: str) -> None:
    @infer_global(python)
    class _Typing(AbstractTemplate):
        def generic(self, args: tuple, kws: dict) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector):
                left, right = args
                if left == right:
                    return signature(left, left, left)
                if isinstance(right, types.Integer):
                    return signature(left, left, types.int64)
            return None

    @lower_builtin(python, Vector, Vector)
    def with_vector(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, name)(*args)

    @lower_builtin(python, Vector, types.Integer)
    def with_integer(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, name)(args[0], _splat(builder, sig.args[0], args[1]))


for _python, _name in {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.rshift: "ashr",
}.items():  # fmt: skip
    _add_operator(_python, _name)


def _load(vector: Vector) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
            value = builder.load(builder.inttoptr(args[0], vector.llvm.as_pointer()))
            value.align = 1
            return value

        return vector(types.uintp), generate

    return load


load_u8x16, load_i16x8, load_i32x8 = map(_load, (U8x16, I16x8, I32x8))


@intrinsic
def load_u64_big_endian(typing: Any, address: Any) -> Any:
    """Eight bytes at an address, the first one highest."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        word = builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        word.align = 1
        return builder.bswap(word) if sys.byteorder == "little" else word

    return types.uint64(types.uintp), generate


@intrinsic
def store_u64_big_endian(typing: Any, address: Any, word: Any) -> Any:
    """Store eight bytes at an address, the highest one first."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        word = builder.bswap(args[1]) if sys.byteorder == "little" else args[1]
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(word, pointer).align = 1
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), generate


@intrinsic
def nonzero_i16x64(typing: Any, address: Any) -> Any:
    """A bit for each of 64 16-bit integers at an address: 1 if it is not 0; the lowest is first."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        vector = ir.VectorType(ir.IntType(16), 64)
        value = builder.load(builder.inttoptr(args[0], vector.as_pointer()))
        value.align = 2
        bits = builder.icmp_unsigned("!=", value, ir.Constant(vector, [0] * 64))
        if sys.byteorder == "big":
            bits = builder.shuffle_vector(bits, bits, _lanes(list(range(63, -1, -1))))
        return builder.bitcast(bits, ir.IntType(64))

    return types.uint64(types.uintp), generate


@intrinsic
def trailing_zeros(typing: Any, word: Any) -> Any:
    """The number of zeros below the lowest one of an unsigned integer of 64 bits; 64 for 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return builder.cttz(args[0], ir.IntType(1)(0))

    return types.uint64(types.uint64), generate


@intrinsic
def bit_length(typing: Any, value: Any) -> Any:
    """The number of bits of an integer that is not negative; 0 for 0."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        return builder.sub(ir.IntType(64)(64), builder.ctlz(args[0], ir.IntType(1)(0)))

    return types.int64(types.int64), generate


@intrinsic
def store(typing: Any, address: Any, vector: Any) -> Any:
    """Store a vector at an address."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        pointer = builder.inttoptr(args[0], vector.llvm.as_pointer())
        builder.store(args[1], pointer).align = 1
        return context.get_dummy_value()

    return types.void(types.uintp, vector), generate


@intrinsic
def stream_i32x8(typing: Any, address: Any, vector: Any) -> Any:
    """Store a vector past the caches; the address must be a multiple of the vector's size.

    Call `fence` before another thread may read it.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        stored = builder.store(args[1], builder.inttoptr(args[0], vector.llvm.as_pointer()))
        stored.align = vector.bits * vector.lanes // 8
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.uintp, vector), generate


@intrinsic
def fence(typing: Any) -> Any:
    """Let all earlier stores of this thread be seen before any later ones."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def store_triples(typing: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    """Store a[0], b[0], c[0], a[1], ... at an address."""
    lanes = a.lanes

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        to, a, b, c = args
        both = builder.shuffle_vector(a, b, _lanes(list(range(2 * lanes))))
        more = builder.shuffle_vector(c, c, _lanes(list(range(2 * lanes))))
        order = [i + j * lanes for i in range(lanes) for j in range(3)]
        triples = builder.shuffle_vector(both, more, _lanes(order))
        builder.store(triples, builder.inttoptr(to, triples.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(types.uintp, a, b, c), generate


def _fill(vector: Vector) -> Any:
    @intrinsic
    def fill(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
            return _splat(builder, vector, args[0])

        return vector(types.int64), generate

    return fill


fill_i32x8 = _fill(I32x8)


def _spread(lane: int) -> Any:
    """A function that fills all lanes of a vector with one of them."""

    @intrinsic
    def spread(typing: Any, vector: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
            undefined = ir.Constant(vector.llvm, ir.Undefined)
            return builder.shuffle_vector(args[0], undefined, _lanes([lane] * vector.lanes))

        return vector(vector), generate

    return spread


spread_0, spread_1, spread_2, spread_3, spread_4, spread_5, spread_6, spread_7 = map(
    _spread, range(8)
)


@intrinsic
def widen(typing: Any, vector: Any) -> Any:
    """The same values in lanes of twice the size."""
    wide = Vector(2 * vector.bits, vector.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        extend = builder.zext if vector.bits == 8 else builder.sext
        return extend(args[0], wide.llvm)

    return wide(vector), generate


@intrinsic
def narrow(typing: Any, vector: Any) -> Any:
    """The nearest values that lanes of half the size hold; 8-bit lanes: 0..255."""
    bits = vector.bits // 2
    low, high = (0, 255) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        value = args[0]
        for limit, beyond in ((low, "<"), (high, ">")):
            bound = ir.Constant(vector.llvm, [limit] * vector.lanes)
            value = builder.select(builder.icmp_signed(beyond, value, bound), bound, value)
        return builder.trunc(value, Vector(bits, vector.lanes).llvm)

    return Vector(bits, vector.lanes)(vector), generate


@intrinsic
def high_product(typing: Any, vector: Any, factor: Any) -> Any:
    """floor(vector * factor / 65536) of 16-bit lanes; factor: -32768 to 32767."""
    wide = Vector(32, vector.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
        product = builder.mul(
            builder.sext(args[0], wide.llvm),
            builder.sext(_splat(builder, vector, args[1]), wide.llvm),
        )
        return builder.trunc(
            builder.ashr(product, ir.Constant(wide.llvm, [16] * vector.lanes)), vector.llvm
        )

    return vector(vector, types.int64), generate


def _shuffle(choose: Callable[[int], list[int]]) -> Any:
    """A function of two vectors; choose: from their lanes, the lanes of the result of both."""

    @intrinsic
    def shuffle(typing: Any, a: Any, b: Any) -> Any:
        lanes = choose(a.lanes)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> ir.Value:
            return builder.shuffle_vector(*args, _lanes(lanes))

        return Vector(a.bits, len(lanes))(a, b), generate

    return shuffle


interleave_low = _shuffle(lambda n: [i // 2 + i % 2 * n for i in range(n)])
interleave_high = _shuffle(lambda n: [n // 2 + i // 2 + i % 2 * n for i in range(n)])
