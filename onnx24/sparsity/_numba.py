"""The compiled engine of `masks`: the same bits as numpy's, faster. Needs numba, which is the
extra `fast`; it is imported, and its kernels are compiled, on first use.

A value stays that wins two of the three comparisons with the others of its group. Where these lie
side by side, values are taken as unsigned 64-bit words of one, two, four or eight lanes: a
magnitude leaves the top bit of its lane free, and that bit compares whole words: for magnitudes t
and r, `(t | top) - r` has a lane's top bit set where t >= r there, and no lane borrows from the
next. Where they lie apart, `_vectors` compares 64 at a time.

Kernels work in place: input and output that could overlap would keep LLVM from vectorizing.
Whoever wants the result elsewhere copies first, a piece that fits the second-level cache at a
time. Compiled code is kept in numba's cache (`__pycache__` beside this file, else the user's cache
folder, or NUMBA_CACHE_DIR), where one of them can be written.

*Source:* subtraction in lanes with a guard bit: Lamport, Multiple byte processing with full-word
instructions, 1975.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

_WORD = 8
"""Bytes of a word."""
_ROW = 64
"""Values that `_vectors` compares at a time."""
_PIECE = 1 << 19
"""Bytes that are copied before they are pruned there."""


@functools.cache
def available() -> bool:
    """Whether numba is installed."""
    return importlib.util.find_spec("numba") is not None


def loaded() -> bool:
    """Whether numba was imported here already, which is most of the cost of a first use."""
    return _kernels.cache_info().currsize > 0


def prune(values: np.ndarray, out: np.ndarray, stride: int, magnitude: int) -> None:
    """Write the flat `values` with two of four zeroed into `out`; see masks.prune_24_by_stride.

    values, out: unsigned bits, [blocks * 4 * stride]; they may be the same array.
    magnitude: the bits that are compared, all but the lane's top bit.
    """
    kernel, unit = _kernel_for(values.itemsize, stride, magnitude)
    whole = values.size - values.size % unit
    if values is out:
        kernel(out[:whole])
    else:
        step = max(1, _PIECE // (unit * values.itemsize)) * unit
        for start in range(0, whole, step):
            piece = slice(start, min(start + step, whole))
            np.copyto(out[piece], values[piece])
            kernel(out[piece])
    if whole < values.size:  # half a word of bytes: pruned in a word that is filled up
        last = np.zeros(unit, values.dtype)
        last[: values.size - whole] = values[whole:]
        kernel(last)
        out[whole:] = last[: values.size - whole]


def count(values: np.ndarray, stride: int, magnitude: int, nonfinite: int) -> tuple[int, int, int]:
    """(zeros, values from the bits `nonfinite` up, groups with more than two nonzeros)."""
    scalar = values.dtype.type
    nonzero = np.zeros(values.size + 3 * stride, np.uint8)
    zeros, special, violating = _kernels()["count"](
        values, scalar(magnitude), scalar(nonfinite), stride, nonzero, _firsts(values.size, stride)
    )
    return int(zeros), int(special), int(violating)


def survey(
    values: np.ndarray, columns: int, magnitude: int, least: int, shift: int, scale: float
) -> tuple[np.ndarray, int, int]:
    """(column sums of squares, zeros, values from the bits `least` up) of flat bits; see
    metrics.survey. Squares and sums are float32, as numpy's; columns: a multiple of 64."""
    sums, scalar = np.zeros(columns, np.float32), values.dtype.type
    zeros, nonfinite = _kernels()["survey"](
        values, scalar(magnitude), scalar(least), np.uint32(shift), np.float32(scale), sums
    )
    return sums, int(zeros), int(nonfinite)


def survey_24(
    values: np.ndarray, stride: int, columns: int, magnitude: int, shift: int, scale: float
) -> tuple[np.ndarray, bool]:
    """(column sums of squares as `survey`'s, whether all groups have two nonzeros at most)."""
    sums = np.zeros(columns, np.float32)
    bits = values.dtype.type(magnitude)
    arguments = values, bits, np.uint32(shift), np.float32(scale), sums
    if stride < _ROW:
        period = math.lcm(_ROW, 4 * stride)
        first, _, _ = _in_rows_before(period, stride)
        whole = max(0, values.size - 3 * stride) // period * period
        rest = np.zeros(values.size - whole + 3 * stride + _ROW, values.dtype)
        rest[: values.size - whole] = values[whole:]
        return sums, bool(_kernels()["survey_24_near"](*arguments, stride, first, whole, rest))
    return sums, bool(_kernels()["survey_24_rows"](*arguments, stride))


def add_squares(values: np.ndarray, columns: np.ndarray) -> None:
    """Add the squares of the flat float32 or float64 `values` to `columns`, value i to column
    i mod columns.size, in order, in float64."""
    _kernels()["add_squares"](values, columns)


def checksum(
    words: np.ndarray, keys: np.ndarray, first: int, step: np.uint64, factor: np.uint64
) -> np.ndarray:
    """The sums of ir.checksum for whole blocks, of which the first is number `first`. words:
    uint64; keys: uint64, [2, words of a block]."""
    sums = np.zeros(2, np.uint64)
    _kernels()["checksum"](words, keys[0], keys[1], np.uint64(first), step, factor, sums)
    return sums


def widen(values: np.ndarray, magnitude: int, shift: int, wide: np.ndarray) -> None:
    """Write the magnitudes of the flat bits `values`, shifted left, into `wide`: uint32."""
    _kernels()["widen"](values, values.dtype.type(magnitude), np.uint32(shift), wide)


def _kernel_for(
    itemsize: int, stride: int, magnitude: int
) -> tuple[Callable[[np.ndarray], None], int]:
    """(what prunes a flat array in place, the unit that the array's size must be a multiple of)."""
    if stride == 1 and itemsize <= 2:
        return _quads(itemsize, magnitude), _WORD // itemsize
    if stride == 1 and itemsize == 4:
        return _pairs(magnitude), 4
    if stride >= _ROW:
        return _rows(stride, magnitude), 4 * stride
    return _near(stride, magnitude), 4 * stride


@functools.cache
def _lanes(pattern: int, itemsize: int, word: int = _WORD) -> np.unsignedinteger:
    """A word with `pattern` in each lane."""
    text = pattern.to_bytes(itemsize, "little") * (word // itemsize)
    return np.dtype(f"u{word}").type(int.from_bytes(text, "little"))


def _quads(itemsize: int, magnitude: int) -> Callable[[np.ndarray], None]:
    """For stride 1 and groups that fill a word, or half of one."""
    top, bits = _lanes(magnitude + 1, itemsize), np.uint64(8 * itemsize)
    one = np.array([0, 1], f"u{itemsize}")  # what an earlier opponent, who wins ties, is given
    position = np.arange(_WORD // itemsize) % 4
    ties = [one[(position + d > 3).astype(int)].view(np.uint64)[0] for d in (1, 2, 3)]
    inside = [
        np.uint64(int(tie) * ((1 << 8 * itemsize) - 1) ^ 0xFFFF_FFFF_FFFF_FFFF) for tie in ties
    ]

    def kernel(values: np.ndarray) -> None:
        words = values.view(np.uint64)
        _kernels()["quads"](words, _lanes(magnitude, itemsize), top, bits, *ties, *inside)

    return kernel


def _pairs(magnitude: int) -> Callable[[np.ndarray], None]:
    """For stride 1 and groups that fill two words."""

    def kernel(values: np.ndarray) -> None:
        words = values.view(np.uint64)
        _kernels()["pairs"](words, _lanes(magnitude, 4), _lanes(magnitude + 1, 4))

    return kernel


def _rows(stride: int, magnitude: int) -> Callable[[np.ndarray], None]:
    """For strides from which rows fill the vectors."""

    def kernel(values: np.ndarray) -> None:
        _kernels()["rows"](values, stride, values.dtype.type(magnitude))

    return kernel


def _near(stride: int, magnitude: int) -> Callable[[np.ndarray], None]:
    """For strides below."""
    period = math.lcm(_ROW, 4 * stride)
    masks = _in_rows_before(period, stride)

    def prune(values: np.ndarray, size: int) -> None:
        arguments = values, size, values.dtype.type(magnitude), stride, *masks
        if 3 * stride < _ROW:
            _kernels()["near"](*arguments)
        else:
            _kernels()["middle"](*arguments, np.empty((3, 3 + masks[0].size), np.uint64))

    def kernel(values: np.ndarray) -> None:
        whole = max(0, values.size - 3 * stride) // period * period
        prune(values, whole)
        rest = values[whole:]
        if rest.size:  # where there is something to read behind it
            last = np.zeros(rest.size + 3 * stride + _ROW, values.dtype)
            last[: rest.size] = rest
            prune(last, -(-rest.size // _ROW) * _ROW)
            rest[:] = last[: rest.size]

    return kernel


@functools.lru_cache(maxsize=8)
def _in_rows_before(size: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words that say which of `size` values are in the first, the first two, the first three of
    the four rows of their blocks."""
    place = np.arange(size) // stride % 4
    first, half, later = (np.packbits(place < n, bitorder="little").view("<u8") for n in (1, 2, 3))
    return first, half, later


@functools.lru_cache(maxsize=8)
def _firsts(size: int, stride: int) -> np.ndarray:
    """1 at the first value of each group, else 0."""
    return (np.arange(size, dtype=np.int32) // stride % 4 == 0).view(np.uint8)


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled on first call, from numba's cache where one can be written."""
    import numba

    # No `fastmath`, no `parallel`: sums keep their order, and callers bring their own threads.
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache: a read-only installation without a home
        return numba.njit(nogil=True, error_model="numpy")(function)


@functools.cache
def _kernels() -> dict[str, Any]:
    # In `quads` and `pairs` a lane's top bit of `keep` says that the value stays;
    # `keep - (keep >> …)` spreads it over the bits below.
    u64 = np.uint64

    @_jit
    def quads(w, bits, top, lane, tie1, tie2, tie3, in1, in2, in3):
        for i in range(w.size):
            x = w[i]
            t = x & bits
            # Each lane meets those 1, 2 and 3 behind it, around the group.
            r1 = ((t >> lane) & in1) | ((t << (u64(3) * lane)) & ~in1)
            r2 = ((t >> (u64(2) * lane)) & in2) | ((t << (u64(2) * lane)) & ~in2)
            r3 = ((t >> (u64(3) * lane)) & in3) | ((t << lane) & ~in3)
            g = t | top
            s1, s2, s3 = g - (r1 + tie1), g - (r2 + tie2), g - (r3 + tie3)
            keep = ((s1 & s2) | (s3 & (s1 | s2))) & top
            w[i] = x & (keep | (keep - (keep >> (lane - u64(1)))))

    @_jit
    def pairs(w, bits, top):
        # (a, b) and (c, d) are words of two lanes; `u` are the same with the lanes exchanged.
        half, sign, tie = u64(32), u64(31), u64(1 << 32)
        for g in range(w.size // 2):
            x0, x1 = w[2 * g], w[2 * g + 1]
            t0, t1 = x0 & bits, x1 & bits
            u0, u1 = (t0 >> half) | (t0 << half), (t1 >> half) | (t1 << half)
            ab, cd = (t0 | top) - (u0 + tie), (t1 | top) - (u1 + tie)  # a >= b and b > a
            straight, crossed = (t0 | top) - t1, (t0 | top) - u1  # a >= c, b >= d; a >= d, b >= c
            ba, bc = ~straight, ~((crossed >> half) | (crossed << half))  # c > a, d > b; c > b, …
            keep0 = ((ab & straight) | (crossed & (ab | straight))) & top
            keep1 = ((cd & ba) | (bc & (cd | ba))) & top
            w[2 * g] = x0 & (keep0 | (keep0 - (keep0 >> sign)))
            w[2 * g + 1] = x1 & (keep1 | (keep1 - (keep1 >> sign)))

    @_jit
    def count(x, bits, nonfinite, stride, nonzero, firsts):
        zeros = special = violating = 0
        for i in range(x.size):
            v = x[i] & bits
            nonzero[i] = v != 0
            special += v >= nonfinite
        next1, next2, next3 = nonzero[stride:], nonzero[2 * stride :], nonzero[3 * stride :]
        for i in range(x.size):
            a, b, c, d = nonzero[i], next1[i], next2[i], next3[i]
            zeros += a == 0
            violating += ((a & b & (c | d)) | (c & d & (a | b))) & firsts[i]
        return zeros, special, violating

    @_jit
    def widen(x, bits, shift, wide):
        for i in range(x.size):
            wide[i] = np.uint32(x[i] & bits) << shift

    @_jit
    def add_squares(x, columns):
        for start in range(0, x.size, columns.size):
            row = x[start : start + columns.size]
            for i in range(row.size):
                v = np.float64(row[i])
                columns[i] += v * v

    @_jit
    def checksum(words, keys0, keys1, number, step, factor, sums):
        low, half = u64(0xFFFF_FFFF), u64(32)
        total0 = total1 = u64(0)
        for start in range(0, words.size, keys0.size):
            block = words[start : start + keys0.size]
            m0 = m1 = number * step
            for i in range(block.size):
                a, b = block[i], block[i] >> half
                m0 += ((a + keys0[i]) & low) * ((b + (keys0[i] >> half)) & low)
                m1 += ((a + keys1[i]) & low) * ((b + (keys1[i] >> half)) & low)
            for _ in range(2):
                m0 = (m0 ^ (m0 >> half)) * factor
                m1 = (m1 ^ (m1 >> half)) * factor
            total0 += m0 ^ (m0 >> half)
            total1 += m1 ^ (m1 >> half)
            number += u64(1)
        sums[0] += total0
        sums[1] += total1

    from onnx24.sparsity._vectors import (
        middle,
        near,
        rows,
        survey,
        survey_24_near,
        survey_24_rows,
    )

    functions = (
        quads,
        pairs,
        near,
        middle,
        rows,
        count,
        survey,
        survey_24_near,
        survey_24_rows,
        widen,
        add_squares,
        checksum,
    )
    return {function.__name__: function for function in functions}
