"""2:4 masks by magnitude: of every four consecutive values along an axis, the two largest stay.

A group is four consecutive values along `axis`; in memory they lie `stride` elements apart, with
`stride` the product of the sizes behind the axis. So every case is a flat array cut into blocks
of `4 * stride` elements, and both engines, numpy and numba, work on that form and give the same
bits.

The rule: the two largest magnitudes of each four survive, exactly two, and of equal ones that with
the lower index. Values are compared by their bits without the sign, so that NaN counts as the
largest, subnormals as what they are, and the result is the same on every machine. What survives
keeps its bits, what does not becomes +0.

*Source:* apex's `m4n2_1d` (`sparse_masklib.py`: of the six patterns of two in four the one that
keeps the greatest sum of magnitudes). It leaves the choice among equal sums to the order of a set
and to rounding; here the positions decide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from onnx24.sparsity import _numba

__all__ = [
    "Engine",
    "Measured",
    "Violations",
    "count_violations",
    "engine_for",
    "is_24",
    "is_24_by_stride",
    "mask_24",
    "prune_24",
    "prune_24_by_stride",
    "prune_24_measured",
    "stride_of",
    "supports",
    "violations",
    "violations_by_stride",
]

Engine = Literal["auto", "numpy", "numba"]

_CHUNK = 1 << 19
"""Elements that are pruned at a time: scratch stays small, and calls of numpy stay few."""
_MEASURED_CHUNK = 1 << 17
"""Elements that are measured at a time: they and their float64 squares stay in cache."""
_COLUMNS = 4096
"""Sums that the squares are added to in turn; see `Measured`."""
_PLANE_STRIDE = 512
"""From this stride on, rows are long enough to compare whole planes of a block."""
_NUMBA_FROM = 1 << 24
"""Elements from which "auto" imports numba, which takes 0.4 s with its cache and 1 s without, in
which numpy prunes 500 M; but a model with one such weight has many."""
_NUMBA_MODEL_FROM = 1 << 28
"""Elements of all of a model's weights from which the import is repaid where they are measured as
well, piece by piece: numpy takes 1 to 2 ns for each, numba a third of that."""
_NUMBA_LOADED_FROM = 1 << 14
"""Elements from which "auto" takes numba where it has been imported."""


@dataclass(frozen=True)
class _Format:
    """The bits of a float. magnitude: all but the sign. nonfinite: infinity's or the first NaN's,
    as a magnitude. shift, scale: a magnitude shifted left is a float32 that is `scale` times too
    small (None: the dtype is numpy's own)."""

    magnitude: int
    nonfinite: int
    shift: int | None = None
    scale: float = 1.0


# Unlisted: int8, whose magnitude is no bit field (numpy only).
_FORMATS: dict[np.dtype, _Format] = {
    np.dtype(np.float64): _Format(0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    np.dtype(np.float32): _Format(0x7FFF_FFFF, 0x7F80_0000),
    np.dtype(np.float16): _Format(0x7FFF, 0x7C00, 13, 2.0**112),
    np.dtype(ml_dtypes.bfloat16): _Format(0x7FFF, 0x7F80, 16),
    np.dtype(ml_dtypes.float8_e4m3fn): _Format(0x7F, 0x7F, 20, 2.0**120),
    np.dtype(ml_dtypes.float8_e5m2): _Format(0x7F, 0x7C, 21, 2.0**112),
}
_MAGNITUDE: dict[np.dtype, int] = {dtype: f.magnitude for dtype, f in _FORMATS.items()}
# Bits that are zero in a zero, of dtypes where -0 exists or a byte holds fewer bits.
_NONZERO = _MAGNITUDE | {
    np.dtype(ml_dtypes.int4): 0x0F,
    np.dtype(ml_dtypes.uint4): 0x0F,
    np.dtype(ml_dtypes.int2): 0x03,
    np.dtype(ml_dtypes.uint2): 0x03,
    np.dtype(ml_dtypes.float4_e2m1fn): 0x07,
}


@dataclass(frozen=True)
class Violations:
    """How far an array is from 2:4. `first`: the index of the first value of the first group that
    has more than two nonzeros, None if there is none."""

    groups: int
    violating: int
    first: tuple[int, ...] | None


@dataclass(frozen=True)
class Measured:
    """What `prune_24_measured` saw of an array.

    zeros, nonfinite: values that were 0 or -0, and NaN or infinite, before. violating: groups of
    `groups` that had more than two nonzeros; 0 says that the array was 2:4 already. energy,
    kept_energy: Σw² before and after, NaN if a value is not finite; in float64, in an order that
    depends on the shape alone, so that engines and machines agree to the bit.
    """

    elements: int
    groups: int
    zeros: int
    nonfinite: int
    violating: int
    energy: float
    kept_energy: float


def supports(dtype: np.dtype) -> bool:
    """Whether values of this dtype can be pruned."""
    return np.dtype(dtype) in _MAGNITUDE or dtype == np.int8


def stride_of(shape: tuple[int, ...], axis: int) -> int:
    """The distance [elements] of neighbours along `axis` in a C-contiguous array.

    Raises: ValueError for an axis that is not there, or whose size is no multiple of 4.
    """
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} of a shape with {len(shape)} dimensions, {list(shape)}")
    axis %= len(shape)
    if shape[axis] % 4:
        raise ValueError(
            f"{list(shape)} has {shape[axis]} values along axis {axis}; groups of four need a "
            "multiple of 4: pad the axis"
        )
    return int(np.prod(shape[axis + 1 :], dtype=np.int64))


def prune_24(
    array: np.ndarray, axis: int, out: np.ndarray | None = None, *, engine: Engine = "auto"
) -> np.ndarray:
    """The array with the two smallest of every four values along `axis` set to zero.

    out: where to write, of the same shape and dtype and C-contiguous; `array` itself for in place.
    Raises: ValueError for a size that is no multiple of 4 or an unfit `out`; TypeError for a dtype
    that `supports` denies.
    """
    return prune_24_by_stride(array, stride_of(array.shape, axis), out, engine=engine)


def prune_24_by_stride(
    array: np.ndarray, stride: int, out: np.ndarray | None = None, *, engine: Engine = "auto"
) -> np.ndarray:
    """As `prune_24`, for groups whose members lie `stride` elements apart in the flat array.

    A weight that is reshaped before it is used can have groups along no axis of its own.
    """
    values = _as_bits(_source(array, stride))
    result = np.empty(array.shape, array.dtype) if out is None else _target(array, out)
    target = values if result is array else _as_bits(result)
    magnitude = _MAGNITUDE.get(array.dtype)
    if magnitude is not None and _use_numba(engine, array.size):
        _numba.prune(values, target, stride, magnitude)
    else:
        _prune(values, target, stride, magnitude)
    return result


def prune_24_measured(
    array: np.ndarray, stride: int, out: np.ndarray | None = None, *, engine: Engine = "auto"
) -> Measured:
    """`prune_24_by_stride` into `out`, and the facts that a report needs, in one pass over the
    array: for tensors that are read from a disk or do not fit the cache.

    out: as for `prune_24`; None: measure what pruning would do and write nothing.
    Scratch: a few MiB. Raises: as `prune_24`.
    """
    source, target = _source(array, stride), None
    if out is not None:
        target = _target(array, out)
    form = _FORMATS.get(array.dtype)
    compiled = form is not None and _use_numba(engine, array.size)
    counts = np.zeros(3, np.int64)
    energies = np.zeros((2, _COLUMNS))
    blocks = _as_bits(source).reshape(-1, 4, stride)
    written = None if target is None else _as_bits(target).reshape(-1, 4, stride)
    scratch = np.empty(max(_MEASURED_CHUNK, 4), blocks.dtype)
    wide = np.empty(scratch.size, np.float32)
    for index, run in _pieces(blocks.shape, _MEASURED_CHUNK):
        rows = blocks[index]
        piece = scratch[: rows.size]
        np.copyto(piece.reshape(rows.shape), rows)
        values = piece.view(array.dtype)
        counts += _count(piece, run, form, compiled)
        energies[0] += _squares(values, form, wide, compiled)
        prune_24_by_stride(values, run, values, engine="numba" if compiled else "numpy")
        energies[1] += _squares(values, form, wide, compiled)
        if written is not None:
            written[index] = piece.reshape(rows.shape)
    zeros, nonfinite, violating = (int(count) for count in counts)
    scale = 1.0 if form is None else form.scale * form.scale
    before, after = (
        math.nan if nonfinite else _total(columns) * scale for columns in energies.tolist()
    )
    groups = array.size // 4
    return Measured(array.size, groups, zeros, nonfinite, violating, before, after)


def _total(squares: list[float]) -> float:
    """Their sum to the last bit; infinite where it is beyond float64, as that of one square is."""
    try:
        return math.fsum(squares)
    except OverflowError:
        return math.inf


def mask_24(array: np.ndarray, axis: int) -> np.ndarray:
    """True where `prune_24` keeps the value, zero or not: exactly two of every four.

    Raises: as `prune_24`.
    """
    stride = stride_of(array.shape, axis)
    if not supports(array.dtype):
        raise TypeError(f"{array.dtype} cannot be pruned: expected a float or int8 array")
    mask = np.empty(array.shape, np.bool_)
    values = _grid(_as_bits(np.ascontiguousarray(array)), stride)
    kept = _grid(mask.reshape(-1), stride)
    for index, keep in _keeps(values, stride, _MAGNITUDE.get(array.dtype)):
        kept[index] = keep
    return mask


def is_24(array: np.ndarray, axis: int) -> bool:
    """Whether no group of four along `axis` has more than two nonzeros. Any dtype.

    Raises: ValueError for a size that is no multiple of 4.
    """
    return is_24_by_stride(array, stride_of(array.shape, axis))


def is_24_by_stride(array: np.ndarray, stride: int) -> bool:
    """As `is_24`, for groups whose members lie `stride` elements apart in the flat array. A dense
    array is told by its beginning."""
    return not any(np.any(violating) for _, violating in _counts(array, stride))


def count_violations(array: np.ndarray, axis: int) -> int:
    """Groups of four along `axis` with more than two nonzeros. Raises: as `is_24`."""
    return violations(array, axis).violating


def violations(array: np.ndarray, axis: int) -> Violations:
    """How many groups of how many have more than two nonzeros, and the first of them.

    Raises: as `is_24`.
    """
    return violations_by_stride(array, stride_of(array.shape, axis))


def violations_by_stride(array: np.ndarray, stride: int) -> Violations:
    """As `violations`, for groups whose members lie `stride` elements apart in the flat array."""
    total, first = 0, None
    for start, violating in _counts(array, stride):
        count = int(np.count_nonzero(violating))
        if count and first is None:
            flat = start + int(np.argmax(violating))
            first = tuple(int(i) for i in np.unravel_index(flat, array.shape))
        total += count
    return Violations(groups=array.size // 4, violating=total, first=first)


def engine_for(elements: int) -> Engine:
    """The faster engine for weights of so many elements together, which are worked on in pieces."""
    least = _NUMBA_LOADED_FROM if _numba.loaded() else _NUMBA_MODEL_FROM
    return "numba" if elements >= least and _numba.available() else "numpy"


def _use_numba(engine: Engine, size: int) -> bool:
    if engine == "numpy":
        return False
    if engine == "numba":
        if not _numba.available():
            raise ValueError("engine 'numba' needs the package numba: install onnx24[fast]")
        return True
    if size < (_NUMBA_LOADED_FROM if _numba.loaded() else _NUMBA_FROM):
        return False
    return _numba.available()


def _source(array: np.ndarray, stride: int) -> np.ndarray:
    """The array, contiguous. Raises: as `prune_24_by_stride`."""
    if not supports(array.dtype):
        raise TypeError(f"{array.dtype} cannot be pruned: expected a float or int8 array")
    _check_blocks(array, stride)
    return np.ascontiguousarray(array).reshape(array.shape)


def _target(array: np.ndarray, out: np.ndarray) -> np.ndarray:
    if (out.shape, out.dtype) != (array.shape, array.dtype) or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype}{list(out.shape)}, expected a C-contiguous "
            f"{array.dtype}{list(array.shape)}"
        )
    return out


def _check_blocks(array: np.ndarray, stride: int) -> None:
    if stride < 1 or array.size % (4 * stride):
        raise ValueError(
            f"{list(array.shape)} has {array.size} values, which are no blocks of 4 · {stride}"
        )


def _as_bits(array: np.ndarray) -> np.ndarray:
    """The flat values as unsigned integers of the same width; a view of a contiguous array."""
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")


def _magnitudes(values: np.ndarray, magnitude: int | None, out: np.ndarray) -> np.ndarray:
    if magnitude is None:
        # |-128| wraps to -128 as int8, whose bits are 128 as uint8.
        return np.absolute(values.view(np.int8), out=out.view(np.int8)).view(np.uint8)
    return np.bitwise_and(values, values.dtype.type(magnitude), out=out)


def _prune(values: np.ndarray, out: np.ndarray, stride: int, magnitude: int | None) -> None:
    """`values`, flat bits, with two of four zeroed into `out`, by numpy."""
    source, target = _grid(values, stride), _grid(out, stride)
    ones = np.empty(min(_CHUNK, values.size), values.dtype)
    for index, keep in _keeps(source, stride, magnitude):
        factor = ones[: keep.size].reshape(keep.shape)
        np.copyto(factor, keep)  # 0 or 1, in the width of the values
        np.multiply(source[index], factor, out=target[index])


def _grid(flat: np.ndarray, stride: int) -> np.ndarray:
    """The array that `_keeps` indexes: flat, or [blocks, 4, stride] for planes."""
    return flat if stride < _PLANE_STRIDE else flat.reshape(-1, 4, stride)


def _keeps(
    grid: np.ndarray, stride: int, magnitude: int | None
) -> Iterator[tuple[Any, np.ndarray]]:
    """(index of a piece of `grid`, uint8 array of its shape, 1 for kept and 0) over the whole; the
    array is scratch, of at most _CHUNK elements."""
    if grid.ndim == 1:
        return _keeps_by_bits(grid, stride, magnitude)
    return _keeps_by_plane(grid, magnitude)


def _keeps_by_bits(
    values: np.ndarray, stride: int, magnitude: int | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Every value is compared with those 1, 2 and 3 strides behind it, a chunk in one call, and the
    results are packed to bits, where logic is cheap.

    A bit at a value's place says that it wins; value p of a group meets p + 1, p + 2 and p + 3,
    around the group, and stays if it wins twice. What meets an earlier value wins where that one
    lost, so the earlier one's bit is moved to its place and inverted.
    """
    block = 4 * stride
    size = min(max(1, _CHUNK // block) * block, values.size)
    first, half, later = _lanes_before(-(-size // 64) * 64, stride)
    t = np.zeros(size + 3 * stride, values.dtype)
    compared = np.zeros(first.size * 64, np.bool_)
    for start in range(0, values.size, max(size, 1)):
        piece = slice(start, min(start + size, values.size))
        n = piece.stop - piece.start
        _magnitudes(values[piece], magnitude, t[:n])
        at = [t[d * stride : d * stride + n] for d in range(4)]
        # Bits past the piece are compared with scratch, and never read.
        next1 = _packed(np.greater_equal(at[0], at[1], out=compared[:n]), compared) & later
        next2 = _packed(np.greater_equal(at[0], at[2], out=compared[:n]), compared) & half
        lost3 = _packed(np.less(at[0], at[3], out=compared[:n]), compared) & first
        one = next1 | _moved(lost3, 3 * stride)  # against p + 1
        two = next2 | _moved(next2 ^ half, 2 * stride)  # against p + 2
        lost = _moved(next1, stride) | lost3  # against p + 3
        keep = (one & two) | ((one | two) & ~lost)
        yield piece, np.unpackbits(keep.view(np.uint8), count=n, bitorder="little")


@functools.lru_cache(maxsize=8)
def _lanes_before(size: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words that say which of `size` values are the first, the first two, the first three of their
    groups."""
    lanes = np.arange(size, dtype=np.int32) // stride % 4
    return _packed(lanes < 1), _packed(lanes < 2), _packed(lanes < 3)


def _packed(bits: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray:
    """Booleans as words of 64, the first in the lowest bit; `whole` is the scratch that `bits` is
    the beginning of, and is a multiple of 64 long."""
    packed = np.packbits(bits if whole is None else whole, bitorder="little")
    return packed.view("<u8")


def _moved(bits: np.ndarray, by: int) -> np.ndarray:
    """The words with every bit moved `by` places up."""
    words, places = divmod(by, 64)
    moved = np.zeros_like(bits)
    low = bits[: max(bits.size - words, 0)]
    np.left_shift(low, np.uint64(places), out=moved[words:])
    if places:
        moved[words + 1 :] |= low[:-1] >> np.uint64(64 - places)
    return moved


def _keeps_by_plane(
    blocks: np.ndarray, magnitude: int | None
) -> Iterator[tuple[tuple[slice, slice, slice], np.ndarray]]:
    """The four positions of a block are rows: a and b play, c and d play, and then the winner of
    each pair plays the loser of the other. The loser of one that beats the winner of the other
    takes both places."""
    scratch = np.empty((6, _CHUNK // 4), blocks.dtype)
    results = np.empty((4, _CHUNK // 4), np.bool_)
    keep = np.empty(_CHUNK, np.uint8)
    for index, width in _pieces(blocks.shape, _CHUNK):
        rows = blocks[index]
        shape = (rows.shape[0], width)
        n = shape[0] * width
        a, b, c, d, best, other = (s[:n].reshape(shape) for s in scratch)
        for p, t in enumerate((a, b, c, d)):
            _magnitudes(rows[:, p], magnitude, t)
        ab, cd, both, one = (r[:n].reshape(shape) for r in results)
        np.greater_equal(a, b, out=ab)
        np.greater_equal(c, d, out=cd)
        np.maximum(a, b, out=best)
        np.maximum(c, d, out=other)
        np.greater_equal(np.minimum(a, b, out=a), other, out=both)  # a and b stay
        np.greater_equal(best, np.minimum(c, d, out=c), out=one)  # at least one of them stays
        kept = keep[: 4 * n].view(np.bool_).reshape(rows.shape)
        np.logical_and(ab, one, out=ab)
        np.logical_and(cd, one, out=cd)
        np.logical_or(both, ab, out=kept[:, 0])
        np.logical_or(both, np.not_equal(ab, one, out=ab), out=kept[:, 1])
        np.logical_not(np.logical_or(both, cd, out=ab), out=kept[:, 3])
        np.logical_not(np.logical_or(both, np.not_equal(cd, one, out=cd), out=cd), out=kept[:, 2])
        yield index, kept.view(np.uint8)


def _pieces(shape: tuple[int, ...], size: int) -> Iterator[tuple[tuple[slice, slice, slice], int]]:
    """(index, width) of pieces [blocks, 4, width] of an array [blocks, 4, stride], at most `size`
    elements each: whole blocks, or columns of one."""
    blocks, _, stride = shape
    per_piece = max(1, size // (4 * stride))
    width = min(size // 4, stride)
    for start in range(0, blocks, per_piece):
        for column in range(0, stride, width):
            columns = slice(column, min(column + width, stride))
            index = slice(start, min(start + per_piece, blocks)), slice(None), columns
            yield index, columns.stop - columns.start


def _count(
    values: np.ndarray, stride: int, form: _Format | None, compiled: bool
) -> tuple[int, int, int]:
    """(zeros, NaN and infinities, groups with more than two nonzeros) of flat bits."""
    if form is not None and compiled:
        return _numba.count(values, stride, form.magnitude, form.nonfinite)
    t = _magnitudes(values, None if form is None else form.magnitude, np.empty_like(values))
    nonzero = t != 0
    special = 0 if form is None else int(np.count_nonzero(t >= form.nonfinite))
    lanes = nonzero.view(np.uint8)
    pairs = lanes[: -2 * stride] + lanes[2 * stride :]
    fours = pairs[:-stride] + pairs[stride:]
    violating = (fours > 2)[: values.size]
    groups = np.zeros(values.size, np.bool_)
    groups[: violating.size] = violating
    count = int(np.count_nonzero(groups.reshape(-1, 4, stride)[:, 0]))
    return values.size - int(np.count_nonzero(nonzero)), special, count


def _squares(
    values: np.ndarray, form: _Format | None, wide: np.ndarray, compiled: bool
) -> np.ndarray:
    """The squares of flat values, times `form.scale` to the minus 2, summed in columns: value i in
    column i mod _COLUMNS, in order."""
    if form is not None and form.shift is not None:
        bits, stored = wide[: values.size].view(np.uint32), values.view(f"u{values.itemsize}")
        if compiled:
            _numba.widen(stored, form.magnitude, form.shift, bits)
        else:
            np.copyto(bits, stored)
            np.bitwise_and(bits, np.uint32(form.magnitude), out=bits)
            np.left_shift(bits, np.uint32(form.shift), out=bits)
        values = bits.view(np.float32)
    columns = np.zeros(_COLUMNS)
    if compiled:
        _numba.add_squares(values, columns)
        return columns
    with np.errstate(over="ignore", invalid="ignore"):
        squares = values.astype(np.float64)
        np.multiply(squares, squares, out=squares)
        rows = squares.size // _COLUMNS
        whole = rows * _COLUMNS
        if rows:
            np.add.reduce(squares[:whole].reshape(rows, _COLUMNS), axis=0, out=columns)
        columns[: squares.size - whole] += squares[whole:]
    return columns


def _counts(array: np.ndarray, stride: int) -> Iterator[tuple[int, np.ndarray]]:
    """(flat index of a chunk's start, bool array over the chunk: True at the first value of each
    group that has more than two nonzeros)."""
    _check_blocks(array, stride)
    values = np.ascontiguousarray(array).reshape(-1)
    bits = _NONZERO.get(array.dtype)
    if bits is not None:
        values = _as_bits(values)
    block = 4 * stride
    size = min(max(1, _CHUNK // block) * block, values.size)
    first = np.arange(size) // stride % 4 == 0
    for start in range(0, values.size, max(size, 1)):
        chunk = values[start : start + size]
        if bits is None:
            nonzero = chunk != np.zeros((), chunk.dtype)
        else:
            nonzero = np.bitwise_and(chunk, chunk.dtype.type(bits)) != 0
        count = nonzero.view(np.int8).copy()
        for d in (1, 2, 3):
            shift = d * stride
            count[:-shift] += nonzero[shift:].view(np.int8)
        yield start, np.logical_and(count > 2, first[: len(chunk)])
