"""Numbers about values and what pruning does to them, in one pass over memory each."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from onnx24.sparsity import _numba

__all__ = [
    "Survey",
    "count_nonfinite",
    "count_violating",
    "count_zeros",
    "energies",
    "energy",
    "survey",
    "survey_24",
]

_CHUNK = 1 << 16
_SUM_CHUNK = 1 << 15
_SUM_ROW = 1 << 13
"""Elements whose squares are summed by one BLAS call, which up to 10,000 elements starts no
threads: callers bring their own, and BLAS's would wait for each other in a loop."""

# 16-bit floats, whose conversion and arithmetic numpy does one by one, are looked at as bits: those
# of the magnitude, the least magnitude that is not finite, and what makes a float32 of a magnitude:
# a shift, and then a factor. Source: IEEE 754 binary16 and binary32; bfloat16 is a binary32 cut.
_BITS: dict[np.dtype, tuple[int, int, int, float]] = {
    np.dtype(np.float16): (0x7FFF, 0x7C00, 13, 2.0**112),
    np.dtype(ml_dtypes.bfloat16): (0x7FFF, 0x7F80, 16, 1.0),
}

_SURVEYED = _BITS | {np.dtype(np.float32): (0x7FFF_FFFF, 0x7F80_0000, 0, 1.0)}
_COLUMNS = 1024
"""Float32 sums that squares are added to in turn, before they are added in float64."""
_LEAST_ENERGY = 2.0**-100
"""Squares that float32 rounds to 0, below 2**-149, matter less than 1e-9 in a sum from here on."""


@dataclass(frozen=True)
class Survey:
    """Of an array: values that are 0 or -0, NaN or infinite, and the sum of squares."""

    zeros: int
    nonfinite: int
    energy: float


def survey(values: np.ndarray, *, compiled: bool = False) -> Survey:
    """The facts of a flat contiguous array, a piece that fits the second-level cache.

    Squares of float32, bfloat16 and float16 are summed in float32, value i in column i mod
    _COLUMNS, and the columns in float64: for n values the relative error is at most
    n / _COLUMNS * 6e-8 (1.6e-5 for 2**18 values, 1e-7 seen). compiled: by numba; the same bits.
    """
    form = _SURVEYED.get(values.dtype)
    if form is None:
        return Survey(count_zeros(values), count_nonfinite(values), energy(values))
    magnitude, least, shift, scale = form
    bits = values.view(f"u{values.itemsize}")
    if compiled:
        columns, zeros, nonfinite = _numba.survey(bits, _COLUMNS, magnitude, least, shift, scale)
    else:
        zeros = most = 0
        for chunk in _chunks(bits):
            magnitudes = np.bitwise_and(chunk, magnitude, out=_scratch("magnitudes", chunk))
            zeros += chunk.size - int(np.count_nonzero(magnitudes))
            most = max(most, int(magnitudes.max()))
        columns = _column_sums(values)
        nonfinite = count_nonfinite(values) if most >= least else 0
    return Survey(zeros, nonfinite, _sum(values, columns))


def survey_24(values: np.ndarray, stride: int, *, compiled: bool = False) -> tuple[float, bool]:
    """(sum of squares as `survey`'s, whether no group of four, `stride` apart, has more than two
    nonzeros). Shares nothing with what prunes."""
    form = _SURVEYED.get(values.dtype)
    if form is None:
        return energy(values), not count_violating(values, stride)
    magnitude, _, shift, scale = form
    bits = values.view(f"u{values.itemsize}")
    if compiled:
        columns, is_24 = _numba.survey_24(bits, stride, _COLUMNS, magnitude, shift, scale)
    else:
        columns = _column_sums(values)
        is_24 = not count_violating(values, stride)
    return _sum(values, columns), is_24


def _column_sums(values: np.ndarray) -> np.ndarray:
    magnitude, _, shift, scale = _SURVEYED[values.dtype]
    rows = _scratch("squares", values, np.dtype(np.float32), _CHUNK + _COLUMNS)
    rows = rows.reshape(-1, _COLUMNS)
    columns = np.zeros(_COLUMNS, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in _chunks(values):
            squares = rows[1:].reshape(-1)[: chunk.size]
            if shift:
                bits = squares.view(np.uint32)
                np.copyto(bits, chunk.view(f"u{chunk.itemsize}"))
                bits &= np.uint32(magnitude)
                bits <<= np.uint32(shift)
                if scale != 1.0:
                    squares *= np.float32(scale)
                chunk = squares
            np.multiply(chunk, chunk, out=squares)
            whole = squares.size // _COLUMNS
            rows[0] = columns
            np.add.reduce(rows[: 1 + whole], axis=0, out=columns)
            rest = squares[whole * _COLUMNS :]
            columns[: rest.size] += rest
    return columns


def _sum(values: np.ndarray, columns: np.ndarray) -> float:
    total = float(columns.sum(dtype=np.float64))
    if _LEAST_ENERGY <= total < math.inf:
        return total
    return energy(values)  # all 0, or beyond float32


_kept = threading.local()


def _scratch(
    name: str, like: np.ndarray, dtype: np.dtype | None = None, size: int | None = None
) -> np.ndarray:
    """Memory of this thread for `size` or as many values, used again: fresh memory costs page
    faults."""
    dtype = dtype or like.dtype
    nbytes = (like.size if size is None else size) * dtype.itemsize
    kept = getattr(_kept, name, None)
    if kept is None or len(kept) < nbytes:
        kept = np.empty(nbytes, np.uint8)
        setattr(_kept, name, kept)
    return kept[:nbytes].view(dtype)


def energy(array: np.ndarray) -> float:
    """The sum of squares, in double precision. Magnitudes above 1e150 overflow to infinity."""
    bits = _BITS.get(array.dtype)
    if bits is None or array.size % 2 or count_nonfinite(array):
        return sum(_square_sum(chunk) for chunk in _chunks(array, _SUM_CHUNK))
    magnitude, _, shift, factor = bits
    mask, total = np.uint32(magnitude << shift & 0xFFFF_FFFF), 0.0
    pairs = np.ascontiguousarray(array).reshape(-1).view(np.uint32)  # casts are slower than shifts
    for chunk in _chunks(pairs, _SUM_CHUNK):
        low = chunk << np.uint32(shift)
        low &= mask
        total += _square_sum(low.view(np.float32))
        high = np.right_shift(chunk, np.uint32(16 - shift), out=low)
        high &= mask
        total += _square_sum(high.view(np.float32))
    return total * factor * factor


def _square_sum(chunk: np.ndarray) -> float:
    values = chunk.astype(np.float64)
    whole = len(values) // _SUM_ROW * _SUM_ROW
    rows, rest = values[:whole].reshape(-1, _SUM_ROW), values[whole:]
    sums = rows[:, None, :] @ rows[:, :, None]  # a dot product a row
    return float(sums.sum()) + float(rest @ rest)


def energies(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Sums of squares, in double precision: of `before`, of its values where `after` is not 0,
    and of the difference."""
    total = kept = lost = 0.0
    for a, b in zip(_chunks(before), _chunks(after), strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        total += _square_sum(x)
        kept += _square_sum(np.where(y != 0, x, 0))
        lost += _square_sum(x - y)
    return total, kept, lost


def count_zeros(array: np.ndarray) -> int:
    """Values that are 0 or -0."""
    bits = _BITS.get(array.dtype)
    if bits is not None:
        mask = np.uint16(bits[0])
        parts = _chunks(array.view(np.uint16))
        return array.size - sum(int(np.count_nonzero((c & mask) != 0)) for c in parts)
    return sum(len(c) - int(np.count_nonzero(c != np.zeros((), c.dtype))) for c in _chunks(array))


def count_nonfinite(array: np.ndarray) -> int:
    """Values that are NaN or infinite; 0 for integers."""
    if np.issubdtype(array.dtype, np.integer) or array.dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        return 0
    bits = _BITS.get(array.dtype)
    if bits is not None:
        mask, least = np.uint16(bits[0]), np.uint16(bits[1])
        parts = _chunks(array.view(np.uint16))
        return sum(int(np.count_nonzero((c & mask) >= least)) for c in parts)
    return sum(len(c) - int(np.count_nonzero(np.isfinite(c))) for c in _chunks(array))


def count_violating(array: np.ndarray, stride: int) -> int:
    """Groups of four with more than two nonzeros, for groups whose members lie `stride` elements
    apart in the flat array, which they fill. Where the groups are, `masks.violations_by_stride`
    says. Scratch: a byte for each element."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = _BITS.get(array.dtype)
    if bits is not None:
        nonzero = (flat.view(np.uint16) & np.uint16(bits[0])) != 0
    else:
        nonzero = flat != np.zeros((), flat.dtype)
    if stride == 1:  # the four bytes of a group, 0 or 1 each, add up in the topmost of a product
        sums = (nonzero.view(np.uint32) * np.uint32(0x01010101)) >> np.uint32(24)
        return int(np.count_nonzero(sums > 2))
    planes = nonzero.view(np.int8).reshape(-1, 4, stride)
    sums = planes[:, 0] + planes[:, 1]
    sums += planes[:, 2]
    sums += planes[:, 3]
    return int(np.count_nonzero(sums > 2))


def _chunks(array: np.ndarray, size: int = _CHUNK) -> Iterator[np.ndarray]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, size):
        yield flat[start : start + size]
