"""The compiled kernels that compare 64 values at a time; needs numba, and is imported by `_numba`
alone, on first use.

LLVM is told of vectors of 64 lanes, which it cuts into those of the machine, and of comparisons
whose results are the bits of one word, so that what follows a comparison costs one instruction for
64 values. Loops over single values can't say so: 9 values of a 3x3 kernel fill no vector.

Kernels read up to 3 rows past the last value they prune, and change nothing there. They are
functions of a module, not of a scope, since numba keeps no code of functions with free variables
that it can't name.

*Source:* LLVM language reference, `icmp` on vectors and `bitcast` of <64 x i1>.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnx24.sparsity._numba import _jit

try:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
except ModuleNotFoundError as err:
    raise ImportError("compiled kernels need numba: pip install 'onnx24[fast]'") from err

LANES = 64


def _instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """`intrinsic`, of whose results mypy thinks that they take the compiler's first argument."""
    return intrinsic(function)


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """A pointer to the 64 values from `index` on."""
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(ir.IntType(kind.dtype.bitwidth), LANES)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _magnitudes(context: Any, builder: Any, kind: Any, array: Any, index: Any, bits: Any) -> Any:
    values = builder.load(_at(context, builder, kind, array, index), align=kind.dtype.bitwidth // 8)
    return builder.and_(values, _splat(builder, values.type, bits))


def _splat(builder: Any, vector: Any, value: Any) -> Any:
    """The value in every lane."""
    places = ir.VectorType(ir.IntType(32), LANES)
    nothing = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(places, None))


@_instruction
def not_less(typing: Any, array: Any, i: Any, j: Any, bits: Any) -> Any:
    """not_less(array, i, j, bits) -> uint64: bit n says whether the magnitude at i + n is at least
    that at j + n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, other, mask = arguments
        kind = signature.args[0]
        a = _magnitudes(context, builder, kind, values, at, mask)
        b = _magnitudes(context, builder, kind, values, other, mask)
        # Without their signs both are at least 0, and AVX2 has this comparison and no other.
        less = builder.icmp_signed(">", b, a)
        return builder.not_(builder.bitcast(less, ir.IntType(LANES)))

    return types.uint64(array, types.intp, types.intp, array.dtype), generate


@_instruction
def keep_only(typing: Any, array: Any, i: Any, keep: Any) -> Any:
    """keep_only(array, i, keep): zero the value at i + n where bit n is not set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, bits = arguments
        kind = signature.args[0]
        place = _at(context, builder, kind, values, at)
        size = kind.dtype.bitwidth // 8
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES))
        old = builder.load(place, align=size)
        builder.store(builder.select(mask, old, ir.Constant(old.type, None)), place, align=size)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.uint64), generate


@_instruction
def nonzero(typing: Any, array: Any, i: Any, bits: Any) -> Any:
    """nonzero(array, i, bits) -> uint64: bit n says whether the magnitude at i + n is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, mask = arguments
        found = _magnitudes(context, builder, signature.args[0], values, at, mask)
        some = builder.icmp_unsigned("!=", found, ir.Constant(found.type, None))
        return builder.bitcast(some, ir.IntType(LANES))

    return types.uint64(array, types.intp, array.dtype), generate


@_instruction
def at_least(typing: Any, array: Any, i: Any, bits: Any, least: Any) -> Any:
    """at_least(array, i, bits, least) -> uint64: bit n says whether the magnitude at i + n is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, mask, bound = arguments
        found = _magnitudes(context, builder, signature.args[0], values, at, mask)
        less = builder.icmp_signed(">", _splat(builder, found.type, bound), found)
        return builder.not_(builder.bitcast(less, ir.IntType(LANES)))

    return types.uint64(array, types.intp, array.dtype, array.dtype), generate


@_instruction
def ones(typing: Any, bits: Any) -> Any:
    """ones(bits) -> int64: how many bits of a word are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@_instruction
def square(
    typing: Any, array: Any, i: Any, bits: Any, shift: Any, scale: Any, sums: Any, j: Any
) -> Any:
    """Adds to sums[j + n] the square of the float32 that the magnitude at i + n is, once it is
    shifted and scaled."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, mask, places, factor, target, column = arguments
        wide, real = (ir.VectorType(kind, LANES) for kind in (ir.IntType(32), ir.FloatType()))
        found = _magnitudes(context, builder, signature.args[0], values, at, mask)
        if found.type.element.width < 32:
            found = builder.zext(found, wide)
        value = builder.bitcast(builder.shl(found, _splat(builder, wide, places)), real)
        value = builder.fmul(value, _splat(builder, real, factor))
        data = context.make_array(signature.args[5])(context, builder, target).data
        place = builder.bitcast(builder.gep(data, [column]), real.as_pointer())
        total = builder.fadd(builder.load(place, align=4), builder.fmul(value, value))
        builder.store(total, place, align=4)
        return context.get_dummy_value()

    signature = types.none(
        array, types.intp, array.dtype, types.uint32, types.float32, sums, types.intp
    )
    return signature, generate


@_instruction
def word(typing: Any, array: Any, i: Any) -> Any:
    """array[i], where i is known to be in it: numba would ask whether i is negative."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]]))

    return array.dtype(array, types.intp), generate


@_instruction
def put(typing: Any, array: Any, i: Any, value: Any) -> Any:
    """array[i] = value, likewise."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.store(arguments[2], builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.none(array, types.intp, array.dtype), generate


@_jit
def _majority(a, b, c):
    return (a & b) | (c & (a | b))


@_jit
def _row_keeps(x, i, row, bits):
    """Which of 64 values of each of a block's first three rows stay; i: in the first."""
    j, k, n = i + row, i + 2 * row, i + 3 * row
    ab, ac, ad = not_less(x, i, j, bits), not_less(x, i, k, bits), not_less(x, i, n, bits)
    bc, bd, cd = not_less(x, j, k, bits), not_less(x, j, n, bits), not_less(x, k, n, bits)
    return _majority(ab, ac, ad), _majority(~ab, bc, bd), _majority(~ac, ~bc, cd)


@_jit
def rows(x, row, bits):
    """For rows of 64 values and more."""
    for start in range(0, x.size, 4 * row):
        # The last 64 may overlap others. They are compared before anything is stored: what reads
        # a vector that two stores wrote waits for both.
        end = start + row - 64
        last_a, last_b, last_c = _row_keeps(x, end, row, bits)
        for i in range(start, end, 64):
            a, b, c = _row_keeps(x, i, row, bits)
            keep_only(x, i, a)
            keep_only(x, i + row, b)
            keep_only(x, i + 2 * row, c)
            keep_only(x, i + 3 * row, a ^ b ^ c)  # two of four stay
        keep_only(x, end, last_a)
        keep_only(x, end + row, last_b)
        keep_only(x, end + 2 * row, last_c)
        keep_only(x, end + 3 * row, last_a ^ last_b ^ last_c)


# Below 64 values, each is compared with those 1, 2 and 3 rows behind it. `later`, `half` and
# `first` say, for 64 values a word, which are in the first three, two and one rows of their blocks:
# only there does the comparison mean anything. What meets an earlier value, around the block, wins
# where that one lost, so those bits are moved to its place. As masks._keeps_by_bits.


@_jit
def near(x, size, bits, row, first, half, later):
    """For rows of 21 values at most: what is moved comes from the word before.

    size: how many values, a multiple of 64. first, half, later: of whole blocks.
    """
    p1, p2, p3 = np.uint64(row), np.uint64(2 * row), np.uint64(3 * row)
    q1, q2, q3 = np.uint64(64) - p1, np.uint64(64) - p2, np.uint64(64) - p3
    for start in range(0, size, 64 * first.size):
        old1 = old2 = old3 = np.uint64(0)
        for w in range(min(first.size, (size - start) // 64)):
            i = start + 64 * w
            in_half = word(half, w)
            next1 = not_less(x, i, i + row, bits) & word(later, w)
            next2 = not_less(x, i, i + 2 * row, bits) & in_half
            lost3 = ~not_less(x, i, i + 3 * row, bits) & word(first, w)
            one = next1 | (lost3 << p3) | (old3 >> q3)
            two = next2 | ~((next2 << p2) | (old2 >> q2) | in_half)
            lost = lost3 | (next1 << p1) | (old1 >> q1)
            old1, old2, old3 = next1, next2, lost3
            keep_only(x, i, _majority(one, two, ~lost))


@_jit
def middle(x, size, bits, row, first, half, later, seen):
    """For rows of 22 to 63 values. seen: scratch of uint64, [3, 3 + first.size]."""
    next1, next2, lost3 = seen[0], seen[1], seen[2]
    next1[:3] = next2[:3] = lost3[:3] = 0
    v1, v2, v3 = 3 - row // 64, 3 - 2 * row // 64, 3 - 3 * row // 64
    p1, p2, p3 = np.uint64(row % 64), np.uint64(2 * row % 64), np.uint64(3 * row % 64)
    q1, q2, q3 = np.uint64(63) - p1, np.uint64(63) - p2, np.uint64(63) - p3
    bit = np.uint64(1)  # a shift by 64 would be none
    for start in range(0, size, 64 * first.size):
        for w in range(min(first.size, (size - start) // 64)):
            i = start + 64 * w
            in_half = word(half, w)
            n1 = not_less(x, i, i + row, bits) & word(later, w)
            n2 = not_less(x, i, i + 2 * row, bits) & in_half
            l3 = ~not_less(x, i, i + 3 * row, bits) & word(first, w)
            put(next1, 3 + w, n1)
            put(next2, 3 + w, n2)
            put(lost3, 3 + w, l3)
            one = n1 | (word(lost3, v3 + w) << p3) | (word(lost3, v3 + w - 1) >> bit >> q3)
            behind = (word(next2, v2 + w) << p2) | (word(next2, v2 + w - 1) >> bit >> q2)
            lost = l3 | (word(next1, v1 + w) << p1) | (word(next1, v1 + w - 1) >> bit >> q1)
            keep_only(x, i, _majority(one, n2 | ~(behind | in_half), ~lost))


@_jit
def _add_squares(x, bits, shift, scale, sums):
    """Adds squares to `sums`, value i to column i mod sums.size, which 64 divides."""
    whole = x.size - x.size % 64
    for i in range(0, whole, 64):
        square(x, i, bits, shift, scale, sums, i % sums.size)
    for i in range(whole, x.size):
        v = np.uint32(np.uint32(x[i] & bits) << shift).view(np.float32) * scale
        sums[i % sums.size] += v * v


@_jit
def survey(x, bits, least, shift, scale, sums):
    """Returns: (zeros, magnitudes of at least `least`); squares are added to `sums`."""
    zeros = x.size
    large = 0
    whole = x.size - x.size % 64
    for i in range(0, whole, 64):
        zeros -= ones(nonzero(x, i, bits))
        large += ones(at_least(x, i, bits, least))
    for i in range(whole, x.size):
        zeros -= (x[i] & bits) != 0
        large += (x[i] & bits) >= least
    _add_squares(x, bits, shift, scale, sums)
    return zeros, large


@_jit
def _more_than_two(a, b, c, d):
    return (a & b & (c | d)) | (c & d & (a | b))


@_jit
def survey_24_rows(x, bits, shift, scale, sums, row):
    """As `survey`. Returns: whether no group of rows of 64 values and more has over two nonzeros.
    Shares nothing with what prunes but how it reads."""
    broken = np.uint64(0)
    for start in range(0, x.size, 4 * row):
        for column in range(0, row, 64):
            i = start + min(column, row - 64)
            a, b = nonzero(x, i, bits), nonzero(x, i + row, bits)
            c, d = nonzero(x, i + 2 * row, bits), nonzero(x, i + 3 * row, bits)
            broken |= _more_than_two(a, b, c, d)
    _add_squares(x, bits, shift, scale, sums)
    return broken == 0


@_jit
def survey_24_near(x, bits, shift, scale, sums, row, first, whole, rest):
    """The same for shorter rows. first: as for `near`; whole: values that are looked at where they
    are, the others in `rest`, which ends in zeros."""
    broken = np.uint64(0)
    if 64 % (4 * row) == 0:  # a word holds whole blocks
        shift1, shift2, shift3 = np.uint64(row), np.uint64(2 * row), np.uint64(3 * row)
        for i in range(0, whole, 64):
            a = nonzero(x, i, bits)
            broken |= _more_than_two(a, a >> shift1, a >> shift2, a >> shift3) & word(first, 0)
        whole = 0
    for start in range(0, whole, 64 * first.size):
        for w in range(first.size):
            i = start + 64 * w
            a, b = nonzero(x, i, bits), nonzero(x, i + row, bits)
            c, d = nonzero(x, i + 2 * row, bits), nonzero(x, i + 3 * row, bits)
            broken |= _more_than_two(a, b, c, d) & word(first, w)
    for i in range(0, rest.size - 3 * row - 63, 64):
        a, b = nonzero(rest, i, bits), nonzero(rest, i + row, bits)
        c, d = nonzero(rest, i + 2 * row, bits), nonzero(rest, i + 3 * row, bits)
        broken |= _more_than_two(a, b, c, d) & word(first, i // 64 % first.size)
    _add_squares(x, bits, shift, scale, sums)
    return broken == 0
