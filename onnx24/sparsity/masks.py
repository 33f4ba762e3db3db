"""2:4 masks by magnitude: of every four consecutive values along an axis, the two largest stay.

A group is four consecutive values along `axis`; in memory they lie `stride` elements apart, with
`stride` the product of the sizes behind the axis. So every case is a flat array cut into blocks
of `4 * stride` elements, and both engines, numpy and numba, work on that form and give the same
bits. Ties go to the lower index, and exactly two of each four survive. Values are compared by
their bits without the sign, so that NaN counts as the largest and the result is the same on every
machine.

*Source:* the rule is that of apex's `m4n2_1d` (the best two of four).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from onnx24.sparsity import _numba

__all__ = [
    "Engine",
    "Violations",
    "count_violations",
    "is_24",
    "is_24_by_stride",
    "mask_24",
    "prune_24",
    "prune_24_by_stride",
    "stride_of",
    "supports",
    "violations",
    "violations_by_stride",
]

Engine = Literal["auto", "numpy", "numba"]

_CHUNK = 1 << 17
"""Elements that are worked on at a time: they and the scratch stay in a core's cache."""
_PLANE_STRIDE = 512
"""From this stride on, rows are long enough to compare whole planes of a block."""
_NUMBA_FROM = 1 << 24
"""Elements from which "auto" takes numba: importing and compiling it costs about a second, in
which numpy does a billion elements."""

# Bits that hold the magnitude. Unlisted: int8, whose magnitude is no bit field (numpy only).
_MAGNITUDE: dict[np.dtype, int] = {
    np.dtype(np.float64): 0x7FFF_FFFF_FFFF_FFFF,
    np.dtype(np.float32): 0x7FFF_FFFF,
    np.dtype(np.float16): 0x7FFF,
    np.dtype(ml_dtypes.bfloat16): 0x7FFF,
    np.dtype(ml_dtypes.float8_e4m3fn): 0x7F,
    np.dtype(ml_dtypes.float8_e5m2): 0x7F,
}
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
    if not supports(array.dtype):
        raise TypeError(f"{array.dtype} cannot be pruned: expected a float or int8 array")
    source = np.ascontiguousarray(array).reshape(array.shape)
    if out is None:
        out = np.empty(array.shape, array.dtype)
    elif (out.shape, out.dtype) != (array.shape, array.dtype) or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype}{list(out.shape)}, expected a C-contiguous "
            f"{array.dtype}{list(array.shape)}"
        )
    _check_blocks(array, stride)
    values, target = _as_bits(source), _as_bits(out)
    magnitude = _MAGNITUDE.get(array.dtype)
    if magnitude is not None and _use_numba(engine, array.size):
        _numba.prune(values, target, stride, magnitude)
        return out
    for piece, keep in _keeps(values, stride, magnitude):
        # 0 or 1 → 0 or all ones, in the width of the values.
        np.negative(keep, out=keep)
        ones = keep.astype(f"i{values.itemsize}").view(values.dtype)
        np.bitwise_and(values[piece].reshape(ones.shape), ones, out=ones)
        target[piece] = ones.reshape(target[piece].shape)
    return out


def mask_24(array: np.ndarray, axis: int) -> np.ndarray:
    """True where `prune_24` keeps the value, zero or not: exactly two of every four.

    Raises: as `prune_24`.
    """
    stride = stride_of(array.shape, axis)
    if not supports(array.dtype):
        raise TypeError(f"{array.dtype} cannot be pruned: expected a float or int8 array")
    mask = np.empty(array.shape, np.bool_)
    flat = mask.reshape(-1)
    values = _as_bits(np.ascontiguousarray(array))
    for piece, keep in _keeps(values, stride, _MAGNITUDE.get(array.dtype)):
        flat[piece] = keep.reshape(flat[piece].shape)
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


def _use_numba(engine: Engine, size: int) -> bool:
    if engine == "numpy":
        return False
    if engine == "numba":
        if not _numba.available():
            raise ValueError("engine 'numba' needs the package numba: install onnx24[fast]")
        return True
    return size >= _NUMBA_FROM and _numba.available()


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


def _keeps(
    values: np.ndarray, stride: int, magnitude: int | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """(piece of `values`, int8 array of 1 for kept and 0) over the whole; the array is scratch."""
    if stride < _PLANE_STRIDE:
        yield from _keeps_by_shift(values, stride, magnitude)
    else:
        yield from _keeps_by_plane(values, stride, magnitude)


def _keeps_by_shift(
    values: np.ndarray, stride: int, magnitude: int | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Every value is compared with those 1, 2 and 3 strides behind it, whole chunks at once.

    Each comparison within a group is a win for the one or the other, and two wins survive. The
    wins are counted in one byte a value: position p starts with p, gains what it wins against
    later positions, and loses what earlier ones win against it.
    """
    block = 4 * stride
    size = min(max(1, _CHUNK // block) * block, values.size)
    position = (np.arange(size) // stride % 4).astype(np.int8)
    within = [(position < 4 - d).astype(np.int8) for d in (1, 2, 3)]
    t = np.zeros(size + 3 * stride, values.dtype)
    won = [np.empty(size, np.int8) for _ in within]
    wins = np.empty(size, np.int8)
    for start in range(0, values.size, max(size, 1)):
        piece = slice(start, min(start + size, values.size))
        n = piece.stop - piece.start
        _magnitudes(values[piece], magnitude, t[:n])
        wins[:n] = position[:n]
        for d, (c, inside) in enumerate(zip(won, within, strict=True), 1):
            shift = d * stride
            np.greater_equal(t[:n], t[shift : shift + n], out=c[:n].view(np.bool_))
            np.bitwise_and(c[:n], inside[:n], out=c[:n])
            np.add(wins[:n], c[:n], out=wins[:n])
            np.subtract(wins[shift:n], c[: n - shift], out=wins[shift:n])
        np.right_shift(wins[:n], 1, out=wins[:n])  # 0 or 1, 2 or 3
        yield piece, wins[:n]


def _keeps_by_plane(
    values: np.ndarray, stride: int, magnitude: int | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """The four positions of a block are rows of `stride` values: six comparisons of rows, where
    shifts would make twelve. Blocks are taken whole, so that a piece is one slice."""
    per_piece = max(1, _CHUNK // (4 * stride))
    size = 4 * stride * per_piece
    width = min(_CHUNK // 4, stride)
    scratch = np.empty((4, per_piece * width), values.dtype)
    keep = np.empty(min(size, values.size), np.int8)
    for start in range(0, values.size, size):
        piece = slice(start, min(start + size, values.size))
        n = piece.stop - piece.start
        planes = values[piece].reshape(-1, 4, stride)
        kept = keep[:n].reshape(-1, 4, stride)
        for column in range(0, stride, width):
            columns = slice(column, min(column + width, stride))
            shape = (planes.shape[0], columns.stop - columns.start)
            t = [s[: shape[0] * shape[1]].reshape(shape) for s in scratch]
            for p in range(4):
                _magnitudes(planes[:, p, columns], magnitude, t[p])
            wins = [np.full(shape, p, np.int8) for p in range(4)]
            for p in range(3):
                for q in range(p + 1, 4):
                    won = (t[p] >= t[q]).view(np.int8)
                    wins[p] += won
                    wins[q] -= won
            for p in range(4):
                np.right_shift(wins[p], 1, out=kept[:, p, columns])
        yield piece, keep[:n]


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
