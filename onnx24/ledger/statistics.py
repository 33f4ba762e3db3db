"""Times as samples: a median with its spread, and whether two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SAMPLES = 5
"""Fewer say nothing about their own spread."""
BOOTSTRAPS = 2000
CONFIDENCE = 0.95


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
    """How many times faster `new` is than `base`: the ratio of medians, with an interval that
    holds the true ratio in 95 of 100 repetitions. `significant`: the interval excludes 1 and the
    two were sampled often enough to say so."""

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


def gain(base_ms: Sequence[float], new_ms: Sequence[float], *, seed: int = 0) -> Gain:
    """Compare two series that were measured in turns: sample i of one belongs to sample i of the
    other, so that a clock that drifts moves both.

    The interval is a paired bootstrap of the ratio of medians in blocks of neighbours, since
    neighbouring times resemble each other. *Source:* B. Efron, R. Tibshirani, An Introduction to
    the Bootstrap, ch. 8 and 13; H. Künsch, Ann. Statist. 17 (1989), for blocks.
    Raises: ValueError as Summary.of, and for series of different length.
    """
    base, new = np.asarray(base_ms, np.float64), np.asarray(new_ms, np.float64)
    Summary.of(base), Summary.of(new)  # type: ignore[arg-type]
    if base.size != new.size:
        raise ValueError(f"{base.size} times against {new.size}: they were not taken in turns")
    ratio = float(np.median(base) / max(np.median(new), 1e-12))
    if base.size < MIN_SAMPLES:
        return Gain(ratio, 0.0, math.inf, False)
    rng = np.random.default_rng(seed)
    block = max(1, round(base.size ** (1 / 3)))
    starts = rng.integers(0, base.size - block + 1, (BOOTSTRAPS, math.ceil(base.size / block)))
    picks = (starts[:, :, None] + np.arange(block)).reshape(BOOTSTRAPS, -1)[:, : base.size]
    ratios = np.median(base[picks], axis=1) / np.maximum(np.median(new[picks], axis=1), 1e-12)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(v) for v in np.percentile(ratios, [tail, 100 - tail]))
    return Gain(ratio, low, high, not low <= 1.0 <= high)
