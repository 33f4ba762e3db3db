"""Symmetric INT8, FP8 and INT4: scales from ranges, and the two directions of the quantization.

    q = clip(round_half_even(x / scale), -128, 127),  x' = q · scale,  zero point 0

A zero stays a zero, so that a 2:4 pattern survives. *Source:* TensorRT developer guide, explicit
quantization (symmetric, zero point 0, round half to even); ONNX operator QuantizeLinear.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

INT8_MAX = 127
"""amax maps to 127: [-127, 127] is symmetric, and -128 is reached only by values below -amax."""

FP8_MAX = 448
"""The largest value of E4M3. *Source:* 2209.05433, FP8 formats for deep learning."""
INT4_MAX = 7
"""[-7, 7] is symmetric, as with INT8."""

CHUNK_ELEMENTS = 1 << 18
"""Elements that are widened to float32 at once, so that temporaries stay small."""


def channel_amax(array: np.ndarray, axis: int | None) -> np.ndarray:
    """The largest magnitude, as float32: of the whole array (rank 0) or of each index along
    `axis` (`[shape[axis]]`). NaN where a NaN is. An empty array has 0."""
    if axis is None:
        return np.asarray(_amax_rows(array.reshape(1, -1))[0])
    moved = np.moveaxis(array, axis, 0)
    return _amax_rows(moved.reshape(moved.shape[0], -1))


def _amax_rows(rows: np.ndarray) -> np.ndarray:
    """rows: [R, n] → [R]"""
    count, width = rows.shape
    out = np.zeros(count, np.float32)
    if not width:
        return out
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, count, step):
        part = rows[start : start + step].astype(np.float32)
        out[start : start + step] = np.maximum(part.max(axis=1), -part.min(axis=1))
    return out


def symmetric_scale(
    amax: np.ndarray | float, dtype: np.dtype | type = np.float32, levels: int = INT8_MAX
) -> np.ndarray:
    """Scales in `dtype`, of the shape of `amax`: amax / 127 (`levels`: 448 for FP8, 7 for INT4).

    Where amax is 0 every value is 0, any scale is right, and it is 1, since builders refuse a
    scale of 0. A scale below the smallest normal number of `dtype` is raised to that.
    Raises: ValueError for a negative or non-finite amax, or one whose scale `dtype` cannot hold.
    """
    given = np.asarray(amax, np.float64)
    if not np.isfinite(given).all() or (given < 0).any():
        raise ValueError(f"a range must be finite and not negative, this one is {given.max()}")
    info = ml_dtypes.finfo(dtype)
    scale = np.where(given == 0, 1.0, np.maximum(given / levels, float(info.tiny)))
    if (scale > float(info.max)).any():
        raise ValueError(f"a scale of {scale.max():g} does not fit into {np.dtype(dtype)}")
    return np.asarray(scale.astype(dtype))


def quantize(
    array: np.ndarray,
    scale: np.ndarray,
    axis: int | None = None,
    zero_point: np.ndarray | None = None,
    dtype: np.dtype | type = np.int8,
) -> np.ndarray:
    """QuantizeLinear: `array` in steps of `scale`, as int8, uint8, int4, uint4 or float8_e4m3fn
    of the same shape; what is out of range saturates.

    scale, zero_point: rank 0 (or one element), or `[shape[axis]]` for one per index along `axis`.
    Divides in float32, as ONNX Runtime does, so that the result is bit-identical to its own.
    Raises: ValueError where `array` is not finite or the scales do not fit the axis.
    """
    low, high, is_float = _limits(np.dtype(dtype))
    steps, offsets = _parameters(array.shape, scale, axis, zero_point)
    out = np.empty(array.shape, dtype)
    for index, size in _chunks(array):
        values = np.array(array[index], np.float32)
        if not np.isfinite(values).all():
            raise ValueError("NaN or infinity cannot be quantized")
        with np.errstate(over="ignore"):
            values /= steps[size]
        if not is_float:
            np.rint(values, out=values)
        values += offsets[size]
        out[index] = np.clip(values, low, high, out=values).astype(dtype)
    return out


def quantize_blocks(
    array: np.ndarray,
    scale: np.ndarray,
    axis: int,
    block: int,
    zero_point: np.ndarray | None = None,
    dtype: np.dtype | type = ml_dtypes.int4,
) -> np.ndarray:
    """QuantizeLinear by blocks: the scale of element i along `axis` is that of i // block.

    scale, zero_point: the shape of `array` but for ceil(n / block) along `axis`.
    Raises: ValueError where `array` is not finite or the scales do not fit.
    """
    low, high, is_float = _limits(np.dtype(dtype))
    wide = array.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ValueError("NaN or infinity cannot be quantized")
    with np.errstate(over="ignore"):
        wide /= _per_element(scale, array.shape, axis, block)
    if not is_float:
        np.rint(wide, out=wide)
    if zero_point is not None:
        wide += _per_element(zero_point, array.shape, axis, block)
    return np.clip(wide, low, high, out=wide).astype(dtype)


def block_amax(array: np.ndarray, axis: int, block: int) -> np.ndarray:
    """The largest magnitude of each block along `axis`, as float32. The axis is a multiple of the
    block."""
    axis %= array.ndim
    shape = (*array.shape[:axis], array.shape[axis] // block, block, *array.shape[axis + 1 :])
    return np.abs(array.reshape(shape).astype(np.float32)).max(axis=axis + 1)


def _per_element(
    parameter: np.ndarray, shape: tuple[int, ...], axis: int, block: int
) -> np.ndarray:
    axis %= len(shape)
    expected = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    if parameter.shape != expected:
        raise ValueError(f"expected parameters of {list(expected)}, got {list(parameter.shape)}")
    repeated = np.repeat(parameter.astype(np.float32), block, axis=axis)
    return repeated[tuple(slice(n) for n in shape)]


def _limits(dtype: np.dtype) -> tuple[float, float, bool]:
    """(least, largest, whether it is a float)"""
    if dtype.kind in "iu" or dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        info: Any = ml_dtypes.iinfo(dtype)
        return float(info.min), float(info.max), False
    limits = ml_dtypes.finfo(dtype)
    return float(limits.min), float(limits.max), True


def dequantize(
    array: np.ndarray,
    scale: np.ndarray,
    axis: int | None = None,
    zero_point: np.ndarray | None = None,
) -> np.ndarray:
    """DequantizeLinear: the real values, in the dtype of `scale`."""
    steps, offsets = _parameters(array.shape, scale, axis, zero_point)
    out = np.empty(array.shape, scale.dtype)
    for index, size in _chunks(array):
        values = np.array(array[index], np.float32) - offsets[size]
        out[index] = (values * steps[size]).astype(scale.dtype)
    return out


class _PerChunk:
    """A parameter in a shape that broadcasts over a chunk: rank 0, or cut along the axis."""

    def __init__(self, values: np.ndarray, cut: bool) -> None:
        self.values, self.cut = values, cut

    def __getitem__(self, span: slice) -> np.ndarray:
        return self.values[span] if self.cut else self.values


def _parameters(
    shape: tuple[int, ...], scale: np.ndarray, axis: int | None, zero_point: np.ndarray | None
) -> tuple[_PerChunk, _PerChunk]:
    found = []
    for parameter in (scale, np.zeros_like(scale) if zero_point is None else zero_point):
        wide = parameter.astype(np.float32)
        if axis is None or wide.size == 1:
            if wide.size != 1:
                raise ValueError(f"expected one scale and zero point, got {wide.size}")
            found.append(_PerChunk(wide.reshape(()), False))
            continue
        axis %= len(shape)
        if wide.shape != (shape[axis],):
            raise ValueError(f"axis {axis} has {shape[axis]} indices, and scales {wide.shape}")
        view = wide.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        found.append(_PerChunk(view, axis == 0))
    return found[0], found[1]


def _chunks(array: np.ndarray) -> Iterator[tuple[Any, slice]]:
    """(index, span of the first axis) of pieces of about CHUNK_ELEMENTS elements."""
    if array.ndim == 0:
        yield (), slice(None)
        return
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], step):
        span = slice(start, start + step)
        yield span, span
