"""Ranges of activations, from a stream of them.

A calibrator sees every value once or twice and keeps a few numbers of each tensor, so that memory
does not depend on the number of samples. The result is `amax`, the magnitude that becomes 127.
"""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Iterator

import numpy as np

BINS = 2048
_CHUNK_ELEMENTS = 1 << 16


class Method(enum.Enum):
    MAX = "max"
    PERCENTILE = "percentile"


class Calibrator(abc.ABC):
    """Observes one tensor. `sweeps`: how often it has to see all the data; `observe` is called
    for every array of a sweep, `end_sweep` after it.

    overflowed: values that were NaN or infinite; they enter no range.
    """

    sweeps: int = 1

    def __init__(self) -> None:
        self.overflowed = 0
        self.values = 0
        self.peak = 0.0

    @abc.abstractmethod
    def observe(self, array: np.ndarray) -> None: ...

    def end_sweep(self) -> None:  # noqa: B027 - most have nothing to do
        """The data were seen once more."""

    @property
    @abc.abstractmethod
    def amax(self) -> float:
        """Meaningful once every sweep has ended; 0 where no value differed from 0."""

    def _observe_peak(self, array: np.ndarray) -> None:
        self.values += array.size
        for part in _magnitudes(array):
            finite = np.isfinite(part)
            if not finite.all():
                self.overflowed += part.size - int(np.count_nonzero(finite))
                part = part[finite]
            self.peak = max(self.peak, float(part.max(initial=0.0)))


class Max(Calibrator):
    """The largest magnitude of all."""

    def observe(self, array: np.ndarray) -> None:
        self._observe_peak(array)

    @property
    def amax(self) -> float:
        return self.peak


class Percentile(Calibrator):
    """The magnitude that `percentile` % of the values do not exceed, found in 2,048 equal bins
    from 0 to the largest magnitude: the first sweep finds that, the second counts.

    Zeros are not counted: behind a ReLU half of all values are 0, which would shift every
    percentile. With fewer than 1 / (1 - percentile / 100) values this is the maximum.
    Raises: ValueError unless 0 < percentile <= 100.
    """

    sweeps = 2

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 0 < percentile <= 100:
            raise ValueError(f"a percentile lies above 0 and at or below 100, not at {percentile}")
        self.percentile = percentile
        self.counts = np.zeros(BINS, np.int64)
        self._counting = False

    def observe(self, array: np.ndarray) -> None:
        if not self._counting:
            self._observe_peak(array)
        elif self.peak > 0:
            self._count(array)

    def end_sweep(self) -> None:
        self._counting = True

    def _count(self, array: np.ndarray) -> None:
        for part in _magnitudes(array):
            part = part[np.isfinite(part) & (part > 0)].astype(np.float64)
            bins = (part / self.peak * BINS).astype(np.int64)
            np.minimum(bins, BINS - 1, out=bins)
            self.counts += np.bincount(bins, minlength=BINS)[:BINS]

    @property
    def amax(self) -> float:
        total = int(self.counts.sum())
        if not total:
            return self.peak
        wanted = math.ceil(total * self.percentile / 100)
        last = int(np.searchsorted(np.cumsum(self.counts), wanted))
        return self.peak * (last + 1) / BINS


def make(method: Method, percentile: float = 99.99) -> Calibrator:
    """A fresh calibrator. Raises: ValueError as `Percentile`."""
    return Max() if method is Method.MAX else Percentile(percentile)


def _magnitudes(array: np.ndarray) -> Iterator[np.ndarray]:
    """|array| in float32 (float64 for that), flat, a chunk at a time."""
    flat = array.reshape(-1)
    wide = np.float64 if array.dtype == np.float64 else np.float32
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        yield np.abs(flat[start : start + _CHUNK_ELEMENTS].astype(wide))
