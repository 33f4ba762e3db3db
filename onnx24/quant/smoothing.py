"""Factors that even out the channels of an activation, or of two weights in a row."""

from __future__ import annotations

import numpy as np

OUTLIER = 8.0
"""How often a channel's largest magnitude exceeds the median of all channels' before smoothing
pays. Below, the calibrators alone lose next to nothing."""
UPWARD = 0.25
"""A factor is rounded up from 2 ** 0.25 on: a channel that stays too wide costs all channels of the
activation their bits, one that becomes too narrow only the rows of the weight that it dominates."""
MAX_EXPONENT = 24
"""Factors lie between 2 ** -24 and 2 ** 24: beyond float32's digits nothing is gained."""


def outlier_ratio(peaks: np.ndarray) -> float:
    """The largest of the channels' largest magnitudes over the median of those that are not 0.

    peaks: [C]. 0 where all are 0.
    """
    alive = peaks[peaks > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 0.0


def smoothing_scales(peaks: np.ndarray, weights: np.ndarray, alpha: float) -> np.ndarray:
    """What to divide each channel of the activation by: peaks ** alpha / weights ** (1 - alpha),
    over its median, as a power of two: [C] float32. 1 where a channel or its weights are 0.

    peaks, weights: [C], the largest magnitudes of the activation and of the weights that multiply
    it. *Source:* Xiao and others, SmoothQuant (2211.10438), equation 4.
    """
    return _powers(alpha, peaks, 1.0 - alpha, weights, UPWARD)


def equalizing_scales(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What to divide output channel j of the first weight by, and multiply input channel j of the
    second by, so that both reach equally far: sqrt(first / second), over its median, as a power of
    two: [C] float32. 1 where either is 0.

    *Source:* Nagel and others, data-free quantization (1906.04721), equation 11.
    """
    return _powers(0.5, first, 0.5, second)


def _powers(
    a: float, above: np.ndarray, b: float, below: np.ndarray, upward: float = 0.0
) -> np.ndarray:
    """above ** a / below ** b rounded to a power of two, over the median of these. upward: added to
    the exponent before it is rounded.

    A median of 1 keeps the channels that are like most as they are; powers of two keep every bit of
    what the model computes, for at most a factor of sqrt(2) of evenness. Rounding comes before the
    median, so that what was scaled once is scaled no more.
    """
    alive = (above > 0) & (below > 0)
    exponents = np.zeros(len(above))
    if alive.any():
        exact = a * np.log2(above[alive], dtype=np.float64) - b * np.log2(
            below[alive], dtype=np.float64
        )
        rounded = np.rint(exact + upward)
        exponents[alive] = rounded - np.sort(rounded)[len(rounded) // 2]
    return np.exp2(np.clip(exponents, -MAX_EXPONENT, MAX_EXPONENT)).astype(np.float32)


class ChannelPeaks:
    """The largest magnitude of each index along `axis`, over a stream of arrays: `peaks` [C].
    rows: how many values of each index were seen."""

    def __init__(self, axis: int, channels: int) -> None:
        self._axis = axis
        self.peaks = np.zeros(channels, np.float32)
        self.rows = 0

    def observe(self, array: np.ndarray) -> None:
        if not array.size:
            return
        axis = self._axis % array.ndim
        others = tuple(i for i in range(array.ndim) if i != axis)
        self.rows += array.size // array.shape[axis]
        values = array if array.dtype == np.float32 else array.astype(np.float32)
        found = np.maximum(values.max(axis=others), -values.min(axis=others))
        np.fmax(self.peaks, np.where(np.isfinite(found), found, 0), out=self.peaks)
