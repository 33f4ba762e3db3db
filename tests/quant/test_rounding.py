"""Scales and rounding of weights."""

from __future__ import annotations

import numpy as np
import pytest

from onnx24.quant.rounding import adaptive, mse_amax
from onnx24.quant.scales import channel_amax, quantize, symmetric_scale
from onnx24.sparsity.masks import is_24, prune_24


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def inputs(rows: int, width: int) -> np.ndarray:
    """Correlated rows of very different power."""
    mixing = normal(width, width, seed=1) + 2 * np.eye(width, dtype=np.float32)
    return normal(rows, width) @ mixing * np.geomspace(0.1, 10, width).astype(np.float32)


def error(x: np.ndarray, w: np.ndarray, rounded: np.ndarray) -> np.ndarray:
    return np.square(x @ (w - rounded).T).sum(axis=0)


def test_mse_ranges_weigh_the_inputs():
    w, power = normal(8, 64), np.geomspace(1e-4, 100, 64)
    w[:, 0] = 6  # widest where the inputs are weakest
    largest, found = channel_amax(w, 0), mse_amax(w, power)
    assert (found <= largest).all() and (found < largest).all()

    def total(amax):
        scale = symmetric_scale(amax)
        return (np.square(w - quantize(w, scale, 0) * scale[:, None]) @ power).sum()

    assert total(found) < total(largest)
    np.testing.assert_array_equal(mse_amax(np.zeros((3, 4), np.float32)), np.zeros(3))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(16, 32), (24, 200)])
def test_adaptive_rounding_is_better_in_every_row_and_keeps_zeros(sparse, shape):
    w = normal(*shape)
    if sparse:
        w = prune_24(w, 1)
    x = inputs(4000, shape[1])
    second = x.T @ x / len(x)
    scale = symmetric_scale(channel_amax(w, 0))
    steps = adaptive(w, scale, second)
    nearest = quantize(w, scale, 0)
    ours = error(x, w, steps * scale[:, None])
    theirs = error(x, w, nearest * scale[:, None])
    assert (ours <= theirs * 1.0001).all() and ours.sum() < theirs.sum() * (0.75 if sparse else 0.3)
    assert not steps[w == 0].any()
    assert not sparse or is_24(steps, 1)


def test_independent_inputs_round_to_the_nearest():
    w = normal(8, 16)
    scale = symmetric_scale(channel_amax(w, 0))
    steps = adaptive(w, scale, np.eye(16))
    np.testing.assert_array_equal(steps, quantize(w, scale, 0))


def test_inputs_that_are_always_zero():
    w = normal(4, 8)
    second = np.zeros((8, 8))
    second[0, 0] = 1.0
    scale = symmetric_scale(channel_amax(w, 0))
    np.testing.assert_array_equal(adaptive(w, scale, second), quantize(w, scale, 0))
