"""Weights to INT8: scales by channel, and which way each value is rounded.

Matrices are `[R, K]`, rows are output channels; `second` is the second moment of the inputs. A zero
stays a zero under all of it, so that a 2:4 pattern survives.
"""

from __future__ import annotations

import enum

import numpy as np

from onnx24.quant.scales import INT8_MAX, symmetric_scale

DAMPING = 0.01
"""Added to the diagonal of second moments, as a share of it. Relative to each input's own power,
not to the mean: with outlier channels the mean says nothing of the others."""


class WeightRange(str, enum.Enum):
    MAX = "max"
    MSE = "mse"


class Rounding(str, enum.Enum):
    AUTO = "auto"
    NEAREST = "nearest"
    ADAPTIVE = "adaptive"


class Correction(str, enum.Enum):
    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


def mse_amax(
    matrix: np.ndarray, power: np.ndarray | None = None, *, lowest: float = 0.5, steps: int = 26
) -> np.ndarray:
    """For each row the range, from its largest magnitude down to `lowest` of it, that rounds to
    the least error Σ_k power_k · (w - ŵ)²; the larger of equals.

    matrix: [R, K]; power: [K], the inputs' second moments, 1 where None. Returns: [R] float32.
    """
    w = matrix.astype(np.float32)
    largest = np.abs(w).max(axis=1, initial=0.0).astype(np.float32)
    weight = np.ones(w.shape[1], np.float32) if power is None else power.astype(np.float32)
    best, least = largest.copy(), np.full(len(w), np.inf)
    for share in np.linspace(1.0, lowest, steps):
        amax = (largest * np.float32(share)).astype(np.float32)
        scale = symmetric_scale(amax)[:, None]
        error = w - np.clip(np.rint(w / scale), -INT8_MAX, INT8_MAX) * scale
        total = (error * error) @ weight
        better = total < least
        best[better], least[better] = amax[better], total[better]
    return best


def adaptive(
    matrix: np.ndarray, scale: np.ndarray, second: np.ndarray, *, sweeps: int = 3, block: int = 128
) -> np.ndarray:
    """INT8 steps `[R, K]` int8 of `matrix`, rounded so that the errors cancel in the output.

    First inputs are taken one after another, the strongest first, and the error of each is fed back
    into the weights of the later ones by how they go together (second: [K, K]). Then, `sweeps`
    times, each step is moved to where the error of its row is least while the others stand. Only
    the support is used: what is zero stays zero and takes no error. No row ends worse than rounding
    to the nearest leaves it.

    scale: [R]. *Source:* Frantar and others, GPTQ (2210.17323); coordinate descent on the support
    (after pruning, feedback alone gains next to nothing: half of the inputs can take no error).
    """
    order = np.argsort(-np.diag(second), kind="stable")
    h = second[np.ix_(order, order)].astype(np.float64)
    h[np.diag_indices_from(h)] *= 1 + DAMPING
    w = matrix[:, order].astype(np.float64)
    step = scale.astype(np.float64)[:, None]
    nearest = np.clip(np.rint(w / step), -INT8_MAX, INT8_MAX)
    fed_back = _with_feedback(w, step, h, block)
    better = _row_error(fed_back * step - w, h) < _row_error(nearest * step - w, h)
    steps = np.where(better[:, None], fed_back, nearest)
    for _ in range(sweeps):
        _descend(steps, w, step, h, block)
    out = np.empty(matrix.shape, np.int8)
    out[:, order] = steps
    return out


def _with_feedback(w: np.ndarray, step: np.ndarray, h: np.ndarray, block: int) -> np.ndarray:
    """Steps [R, K], the rounding errors fed back from each column into the later ones."""
    size = np.sqrt(np.diag(h))
    size[size == 0] = 1.0
    normalized = h / np.outer(size, size)
    normalized[np.diag_indices_from(h)] += DAMPING
    upper = _inverse_factor(normalized)
    support = w != 0
    left, unit = w * size, step * size
    steps = np.zeros_like(w)
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        errors = np.zeros((len(w), stop - start))
        for k in range(start, stop):
            q = np.clip(np.rint(left[:, k] / unit[:, k]), -INT8_MAX, INT8_MAX) * support[:, k]
            steps[:, k] = q
            error = (left[:, k] - q * unit[:, k]) / upper[k, k] * support[:, k]
            rest = slice(k + 1, stop)
            left[:, rest] -= np.outer(error, upper[k, rest]) * support[:, rest]
            errors[:, k - start] = error
        left[:, stop:] -= (errors @ upper[start:stop, stop:]) * support[:, stop:]
    return steps


def _descend(steps: np.ndarray, w: np.ndarray, step: np.ndarray, h: np.ndarray, block: int) -> None:
    """Move each step of the support, in place, to where its row's error is least."""
    support = w != 0
    pull = (steps * step - w) @ h  # half the gradient
    for start in range(0, w.shape[1], block):
        stop = min(start + block, w.shape[1])
        moved = np.zeros((len(w), stop - start))
        for k in range(start, stop):
            if h[k, k] <= 0:
                continue
            wanted = steps[:, k] - np.rint(pull[:, k] / (h[k, k] * step[:, 0])) * support[:, k]
            change = np.clip(wanted, -INT8_MAX, INT8_MAX) - steps[:, k]
            steps[:, k] += change
            moved[:, k - start] = change * step[:, 0]
            pull[:, k:stop] += np.outer(moved[:, k - start], h[k, k:stop])
        pull[:, stop:] += moved @ h[start:stop, stop:]


def _inverse_factor(h: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of h⁻¹: h⁻¹ = UᵀU."""
    inverse = np.linalg.inv(h)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T


def _row_error(difference: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The expected squared error of each output: [R]"""
    return np.einsum("rk,rk->r", difference @ second.astype(np.float64), difference)
