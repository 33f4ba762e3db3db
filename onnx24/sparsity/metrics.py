"""Numbers about values and what pruning does to them, in one pass over memory each."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

__all__ = ["count_nonfinite", "count_zeros", "energies", "energy"]

_CHUNK = 1 << 16


def energy(array: np.ndarray) -> float:
    """The sum of squares, in double precision. Magnitudes above 1e150 overflow to infinity."""
    total = 0.0
    for chunk in _chunks(array):
        values = chunk.astype(np.float64)
        total += float(values @ values)
    return total


def energies(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Sums of squares, in double precision: of `before`, of its values where `after` is not 0,
    and of the difference."""
    total = kept = lost = 0.0
    for a, b in zip(_chunks(before), _chunks(after), strict=True):
        x, y = a.astype(np.float64), b.astype(np.float64)
        total += float(x @ x)
        survivors = np.where(y != 0, x, 0)
        kept += float(survivors @ survivors)
        x -= y
        lost += float(x @ x)
    return total, kept, lost


def count_zeros(array: np.ndarray) -> int:
    """Values that are 0 or -0."""
    return sum(len(c) - int(np.count_nonzero(c != np.zeros((), c.dtype))) for c in _chunks(array))


def count_nonfinite(array: np.ndarray) -> int:
    """Values that are NaN or infinite; 0 for integers."""
    if np.issubdtype(array.dtype, np.integer) or array.dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        return 0
    return sum(len(c) - int(np.count_nonzero(np.isfinite(c))) for c in _chunks(array))


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
