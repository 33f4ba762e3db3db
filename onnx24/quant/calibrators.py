"""Ranges of activations, from a stream of them.

A calibrator sees every value once and keeps a few numbers of each tensor, so that memory does not
depend on the number of samples. The result is `amax`, the magnitude that becomes 127.

*Two passes in one.* A histogram of fixed bins needs the range first and the counts after it. Here
the bins are dyadic: their width is a power of two, and where a value exceeds the range, the range
doubles and neighbours are merged. As the bins of one range nest in those of the next, the counts
are bit for bit those of a second pass over all data, in whatever order and portions they came.
"""

from __future__ import annotations

import abc
import enum
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx24.quant import _numba

BINS = 2048
"""At least as many bins lie between 0 and the largest magnitude; at most twice as many."""
_CAPACITY = 2 * BINS
_CHUNK_ELEMENTS = 1 << 16
_NUMBA_FROM = 1 << 16
"""Elements from which the compiled engine pays for its loading."""
SETTLED_VALUES = 100_000
"""Values from which a percentile of 99.99 says anything."""
LEVELS = 128
"""Magnitudes that INT8 tells apart."""


class Method(enum.Enum):
    AUTO = "auto"
    MAX = "max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


@dataclass(frozen=True)
class Range:
    """Of one activation. amax: the magnitude that becomes 127; method: how it was found, "" where
    that is not known; values, overflowed: as a Calibrator counts them."""

    amax: float
    method: str = ""
    values: int = 0
    overflowed: int = 0


class Calibrator(abc.ABC):
    """Observes one tensor: `observe` is called for every array, `amax` is asked at the end.

    overflowed: values that were NaN or infinite; they enter no range.
    """

    def __init__(self) -> None:
        self.overflowed = 0
        self.values = 0
        self.peak = 0.0

    @property
    @abc.abstractmethod
    def amax(self) -> float:
        """0 where no value differed from 0."""

    def range(self, amax: float | None = None, method: str = "") -> Range:
        """The result; `amax` and `method` where something else decided."""
        return Range(self.amax if amax is None else amax, method, self.values, self.overflowed)

    def observe(self, array: np.ndarray) -> None:
        if not array.size:
            return
        whole = _largest(array) if array.dtype == np.float32 else math.inf
        if math.isfinite(whole) and self._count_whole(array, whole):
            self.values += array.size
            self.peak = max(self.peak, whole)
            return
        self.values += array.size
        for part in _magnitudes(array):
            largest = float(part.max(initial=0.0))
            if not math.isfinite(largest):
                finite = np.isfinite(part)
                self.overflowed += part.size - int(np.count_nonzero(finite))
                part = part[finite]
                largest = float(part.max(initial=0.0))
            self.peak = max(self.peak, largest)
            self._count(part, largest)

    def _count(self, part: np.ndarray, largest: float) -> None:  # noqa: B027 - Max needs none
        """Finite magnitudes, and the largest of them."""

    def _count_whole(self, array: np.ndarray, largest: float) -> bool:
        """The same for a finite float32 array at once; False where that has to go by parts."""
        return True


class Max(Calibrator):
    """The largest magnitude of all."""

    @property
    def amax(self) -> float:
        return self.peak


@dataclass(frozen=True)
class Distribution:
    """`counts`: of the magnitudes above 0 in bins of equal `width` from 0 up; `peak`: the largest
    of them, which lies in the last bin."""

    counts: np.ndarray
    width: float
    peak: float

    def edge(self, bins: int) -> float:
        """The magnitude at which the first `bins` bins end, the peak at most."""
        return min(self.peak, bins * self.width)


class Histogram(Calibrator):
    """Magnitudes counted in dyadic bins. Zeros are not counted: behind a ReLU half of all values
    are 0, which would shift every percentile."""

    def __init__(self) -> None:
        super().__init__()
        self._counts = np.zeros(_CAPACITY, np.int64)
        self._exponent: int | None = None
        """The bins span 2 ** exponent."""

    def _count(self, part: np.ndarray, largest: float) -> None:
        if not largest:
            return
        self._widen(math.frexp(largest)[1])
        assert self._exponent is not None
        shift = _CAPACITY.bit_length() - 1 - self._exponent
        if part.dtype != np.float64 and abs(shift) > 100:  # a float32 could not hold the factor
            part = part.astype(np.float64)
        zeros = part.size - int(np.count_nonzero(part))
        # Exact, as a power of two only changes the exponent, so that bins do nest.
        bins = (part * part.dtype.type(math.ldexp(1.0, min(shift, 1000)))).astype(np.intp)
        np.minimum(bins, _CAPACITY - 1, out=bins)  # reached by denormal float64 only
        self._counts += np.bincount(bins, minlength=_CAPACITY)
        self._counts[0] -= zeros

    def _count_whole(self, array: np.ndarray, largest: float) -> bool:
        if not largest:
            return True
        exponent = math.frexp(largest)[1]
        if array.size < _NUMBA_FROM or not _numba.available():
            return False
        self._widen(exponent)
        assert self._exponent is not None
        shift = _CAPACITY.bit_length() - 1 - self._exponent
        if abs(shift) > 100:
            return False
        _numba.count(array.reshape(-1), np.float32(math.ldexp(1.0, shift)), self._counts)
        return True

    def _widen(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[:BINS], self._counts[BINS:] = merged, 0
            self._exponent += 1

    def distribution(self) -> Distribution | None:
        """None where no value differed from 0."""
        if self._exponent is None:
            return None
        width = math.ldexp(1.0, self._exponent) / _CAPACITY
        used = int(np.flatnonzero(self._counts)[-1]) + 1
        return Distribution(self._counts[:used], width, self.peak)

    @property
    def amax(self) -> float:
        found = self.distribution()
        return 0.0 if found is None else self.amax_of(found)

    def amax_of(self, found: Distribution) -> float:
        return found.peak


class Percentile(Histogram):
    """The magnitude that `percentile` % of the non-zero values do not exceed. With fewer than
    1 / (1 - percentile / 100) values this is the maximum.

    Raises: ValueError unless 0 < percentile <= 100.
    """

    def __init__(self, percentile: float = 99.99) -> None:
        super().__init__()
        if not 0 < percentile <= 100:
            raise ValueError(f"a percentile lies above 0 and at or below 100, not at {percentile}")
        self.percentile = percentile

    def amax_of(self, found: Distribution) -> float:
        return percentile_amax(found, self.percentile)


class Entropy(Histogram):
    """The clip that changes the distribution least, in the sense of Kullback and Leibler."""

    def amax_of(self, found: Distribution) -> float:
        return entropy_amax(found)


class Mse(Histogram):
    """The clip of the least squared error."""

    def amax_of(self, found: Distribution) -> float:
        return mse_amax(found)


class Auto(Percentile):
    """Every method's range, from one histogram. Which is taken, the error of the layers that read
    the tensor decides (`quant.choice`). For tensors that no layer reads `amax` is the largest
    magnitude, or that of MSE where it halves the squared error: a Softmax or a normalization
    behind it may live by the very values that a clip would cut."""

    _found: tuple[int, dict[Method, float]] | None = None
    """The candidates after that many values."""
    _before: tuple[float, float] = (0.0, 0.0)
    """Peak and percentile when `is_settled` was asked last."""

    def is_settled(self) -> bool:
        """Whether more of the same would hardly move the range: SETTLED_VALUES were seen, and
        since this was asked last, the peak grew by at most a quarter and the percentile moved by at
        most a twentieth."""
        found = self.distribution()
        now = (0.0, 0.0) if found is None else (found.peak, percentile_amax(found, self.percentile))
        before, self._before = self._before, now
        if self.overflowed or self.values < SETTLED_VALUES:
            return False
        return now[0] <= before[0] * 1.25 and abs(now[1] - before[1]) <= before[1] * 0.05

    def amax_of(self, found: Distribution) -> float:
        clipped = mse_amax(found)
        return (
            clipped
            if clip_error(found, clipped) <= clip_error(found, found.peak) / 2
            else (found.peak)
        )

    def candidates(self) -> dict[Method, float]:
        """Method → amax, the most cautious first; all 0 where no value differed from 0."""
        if self._found is None or self._found[0] != self.values:
            self._found = self.values, self._candidates()
        return self._found[1]

    def _candidates(self) -> dict[Method, float]:
        found = self.distribution()
        if found is None:
            return dict.fromkeys((m for m in Method if m is not Method.AUTO), 0.0)
        return {
            Method.MAX: found.peak,
            Method.PERCENTILE: percentile_amax(found, self.percentile),
            Method.MSE: mse_amax(found),
            Method.ENTROPY: entropy_amax(found),
        }


def make(method: Method, percentile: float = 99.99) -> Calibrator:
    """A fresh calibrator. Raises: ValueError as `Percentile`."""
    if method is Method.AUTO:
        return Auto(percentile)
    if method is Method.PERCENTILE:
        return Percentile(percentile)
    if method is Method.MAX:
        return Max()
    return Entropy() if method is Method.ENTROPY else Mse()


# --- from a distribution to a range --------------------------------------------------------
def percentile_amax(found: Distribution, percentile: float) -> float:
    """See `Percentile`."""
    below = np.cumsum(found.counts)
    wanted = math.ceil(int(below[-1]) * percentile / 100)
    return found.edge(int(np.searchsorted(below, wanted)) + 1)


def entropy_amax(found: Distribution, step: int = 16) -> float:
    """The clip whose distribution, told apart in 128 levels, diverges least from the clipped one.

    Candidates: from 128 bins up in steps of `step`, and all of them. The first bin counts as much
    as the second (zero-bin fix): what lies there is rounded to 0 whatever the range, and a peak of
    it would draw the range down. *Source:* Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    counts = found.counts.astype(np.float64)
    width = 1
    while len(counts) > BINS:  # the method is defined for 2,048 bins
        counts = np.append(counts, np.zeros(len(counts) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    if len(counts) <= LEVELS:
        return found.peak
    counts[0] = counts[1]
    sizes = [*range(LEVELS, len(counts), step), len(counts)]
    best = min(sizes, key=lambda size: _divergence(counts, size))
    return found.edge(best * width)


def _divergence(counts: np.ndarray, size: int) -> float:
    """KL(P ‖ Q) of the first `size` bins: P with all that lies beyond them in the last, Q as 128
    levels show it, each spread evenly over its bins that are not empty."""
    inside = counts[:size]
    clipped = inside.copy()
    clipped[-1] += counts[size:].sum()
    level = _levels(size)
    filled = inside > 0
    per_level = np.bincount(level, inside, LEVELS)
    bins_per_level = np.bincount(level, filled, LEVELS)
    spread = np.where(filled, per_level[level] / np.maximum(bins_per_level[level], 1), 0.0)
    total, kept = clipped.sum(), spread.sum()
    if not kept:
        return math.inf
    p, q = clipped / total, np.maximum(spread / kept, 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


@functools.lru_cache(maxsize=256)
def _levels(size: int) -> np.ndarray:
    """The level of each of `size` bins; the same sizes are asked for each activation."""
    level = np.arange(size) * LEVELS // size
    level.flags.writeable = False
    return level


def mse_amax(found: Distribution, candidates: int = 128) -> float:
    """The clip, among `candidates` equally spaced ones up to the peak, whose 128 levels have the
    least squared error; the larger of equals."""
    shares = range(candidates, candidates // 8 - 1, -1)
    clips = [found.peak * i / candidates for i in shares]
    errors = _clip_errors(found, clips)
    return clips[errors.index(min(errors))]


def clip_error(found: Distribution, amax: float) -> float:
    """The sum of squared errors of INT8 when `amax` becomes 127; bins count as their centres."""
    return _clip_errors(found, [amax])[0]


def _clip_errors(found: Distribution, clips: Sequence[float]) -> list[float]:
    used = np.flatnonzero(found.counts)
    values, counts = (used + 0.5) * found.width, found.counts[used].astype(np.float64)
    scales = np.array([[amax / (LEVELS - 1)] for amax in clips])
    error = values - np.minimum(np.rint(values / scales), LEVELS - 1) * scales
    return [float(np.dot(counts, each)) for each in error * error]


def _largest(array: np.ndarray) -> float:
    """The largest magnitude; NaN or infinity where one is."""
    return max(float(array.max()), -float(array.min()))


def _magnitudes(array: np.ndarray) -> Iterator[np.ndarray]:
    """|array| in float32 (float64 for that), flat, a chunk at a time."""
    flat = array.reshape(-1)
    wide = np.float64 if array.dtype == np.float64 else np.float32
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        part = flat[start : start + _CHUNK_ELEMENTS]
        yield np.abs(part if part.dtype == wide else part.astype(wide))
