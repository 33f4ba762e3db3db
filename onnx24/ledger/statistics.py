"""Times as samples: a median with its spread, and whether two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

MIN_SAMPLES = 8
"""Fewer say too little about their own spread."""
CONFIDENCE = 0.99
MIN_EFFECT = 0.01
"""A smaller difference is none, however steady the series are."""


@dataclass(frozen=True)
class Summary:
    """Times [ms] of one thing, repeated. `low` and `high`: the 10th and 90th percentile."""

    count: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Summary:
        """Raises: ValueError for no samples, or one that is no positive number."""
        values = np.asarray(samples_ms, np.float64)
        if values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError("times must be one or more finite numbers of at least 0")
        low, median, high = np.percentile(values, [10, 50, 90])
        return cls(int(values.size), float(median), float(low), float(high))

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "median_ms": self.median, "p10_ms": self.low,
                "p90_ms": self.high}  # fmt: skip

    def __str__(self) -> str:
        return f"{self.median:.4g} ms ({self.low:.4g}–{self.high:.4g})"


@dataclass(frozen=True)
class Gain:
    """How many times faster `new` is than `base`: the median of the ratios, pair by pair, with an
    interval that is to hold the true ratio in 99 of 100 repetitions. `significant`: the interval
    excludes 1, the difference is no smaller than MIN_EFFECT, and the two were sampled often
    enough to say so."""

    ratio: float
    low: float
    high: float
    significant: bool

    def __str__(self) -> str:
        """The gain where it is one; never a number that noise could have made."""
        if not self.significant:
            return "within the noise"
        return f"{self.ratio:.2f}x ({self.low:.2f}–{self.high:.2f})"

    def to_json(self) -> dict[str, Any]:
        """`ratio` is null where it lies inside the noise."""
        return {
            "ratio": self.ratio if self.significant else None,
            "interval": [self.low, self.high],
            "significant": self.significant,
        }


def gain(base_ms: Sequence[float], new_ms: Sequence[float]) -> Gain:
    """Compare two series that were measured in turns: sample i of one belongs to sample i of the
    other, so that a clock that drifts moves both.

    The interval is Student's, for the median of the logarithms of the ratios; neighbouring times
    resemble each other, so the number of samples is reduced to that of independent ones by their
    correlation with the next one, which short series underestimate and which is corrected for.
    *Source:* standard error of a median, 1.2533 s/√n; effective size n(1 - r)/(1 + r) of an AR(1)
    series; bias of r, F. Marriott, J. Pope, Biometrika 41 (1954).
    Raises: ValueError as Summary.of, and for series of different length.
    """
    base, new = np.asarray(base_ms, np.float64), np.asarray(new_ms, np.float64)
    Summary.of(base), Summary.of(new)  # type: ignore[arg-type]
    if base.size != new.size:
        raise ValueError(f"{base.size} times against {new.size}: they were not taken in turns")
    steps = np.log(np.maximum(base, 1e-12) / np.maximum(new, 1e-12))
    center = float(np.median(steps))
    if base.size < MIN_SAMPLES:
        return Gain(math.exp(center), 0.0, math.inf, False)
    independent = _independent(steps)
    error = 1.2533 * float(np.std(steps, ddof=1)) / math.sqrt(independent)
    half = error * float(student.ppf((1 + CONFIDENCE) / 2, max(1.0, independent - 1)))
    low, high = math.exp(center - half), math.exp(center + half)
    moved = abs(math.exp(center) - 1) >= MIN_EFFECT
    return Gain(math.exp(center), low, high, moved and not low <= 1.0 <= high)


def _independent(steps: np.ndarray) -> float:
    """How many independent samples a series is worth, 2 at least."""
    centered = steps - steps.mean()
    power = float(centered @ centered)
    if power == 0:
        return float(steps.size)
    r = float(centered[:-1] @ centered[1:]) / power
    r = min(0.95, max(0.0, r + (1 + 3 * r) / steps.size))
    return max(2.0, steps.size * (1 - r) / (1 + r))
