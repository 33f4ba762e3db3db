"""Which of several ranges of an activation leaves the least error in what its layers compute."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnx24.quant.scales import INT8_MAX

K = TypeVar("K", bound=Hashable)

_ROW_BLOCK = 128


@dataclass(frozen=True)
class Reader:
    """A layer that reads the activation: `rows` `[n, G, K]` of it, each standing for `weights`
    `[n]` rows; `exact` and `rounded`: its weight `[G, R, K]` before and after quantization."""

    rows: np.ndarray
    weights: np.ndarray
    exact: np.ndarray
    rounded: np.ndarray


def fake_quantized(x: np.ndarray, amax: float) -> np.ndarray:
    """What INT8 leaves of float32 values when `amax` becomes 127."""
    scale = np.float32(amax / INT8_MAX)
    out = x / scale
    np.rint(out, out=out)
    np.clip(out, -INT8_MAX - 1, INT8_MAX, out=out)
    out *= scale
    return out


def output_noise(reader: Reader, ranges: Sequence[float]) -> tuple[float, list[float]]:
    """(energy of the layer's output, energy of the error that each range leaves in it), both as
    weighted sums over the sample of rows."""
    signal, noise = 0.0, [0.0] * len(ranges)
    exact = reader.exact.astype(np.float32).transpose(0, 2, 1)
    rounded = reader.rounded.astype(np.float32).transpose(0, 2, 1)
    for start in range(0, len(reader.rows), _ROW_BLOCK):
        span = slice(start, start + _ROW_BLOCK)
        rows, weights = reader.rows[span].transpose(1, 0, 2), reader.weights[span]
        wanted = rows @ exact
        signal += _energy(wanted, weights)
        for i, amax in enumerate(ranges):
            noise[i] += _energy(fake_quantized(rows, amax) @ rounded - wanted, weights)
    return signal, noise


def _energy(y: np.ndarray, weights: np.ndarray) -> float:
    """y: [G, n, R]"""
    return float(np.dot(np.einsum("gnr,gnr->n", y, y, dtype=np.float64), weights))


def choose(candidates: Mapping[K, float], readers: Iterable[Reader]) -> tuple[K, dict[K, float]]:
    """The candidate of the least error, summed over the readers' relative errors; the first of
    equals. Returns: (it, candidate → that sum). Candidates of equal range are measured once.

    Raises: ValueError where a range is not above 0, or there is no candidate.
    """
    if not candidates or min(candidates.values()) <= 0:
        raise ValueError(f"expected ranges above 0, found {list(candidates.values())}")
    ranges = list(dict.fromkeys(candidates.values()))
    totals = [0.0] * len(ranges)
    for reader in readers:
        signal, noise = output_noise(reader, ranges)
        if signal > 0:
            totals = [total + each / signal for total, each in zip(totals, noise, strict=True)]
    by_range = dict(zip(ranges, totals, strict=True))
    errors = {key: by_range[amax] for key, amax in candidates.items()}
    return min(errors, key=lambda key: errors[key]), errors


def decibel(signal: float, noise: float) -> float:
    """10 · log10(signal / noise), infinite where there is no noise."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
