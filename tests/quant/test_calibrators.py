"""Ranges from streams of activations."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx24.quant import calibrators
from onnx24.quant.calibrators import BINS, Max, Method, Percentile


def sweep(calibrator, arrays):
    for array in arrays:
        calibrator.observe(array)
    return calibrator


def test_max_over_batches():
    found = sweep(Max(), [np.array([1.0, -3.0], np.float32), np.array([[2.0]], np.float32)])
    assert found.amax == 3 and found.values == 3 and found.overflowed == 0


@pytest.mark.parametrize("method", list(Method))
def test_the_split_into_batches_does_not_matter(method):
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    whole = sweep(calibrators.make(method), [x])
    parts = sweep(calibrators.make(method), np.array_split(x, 37))
    assert whole.amax == parts.amax


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_within_a_bin_of_the_exact_one(percentile):
    x = np.random.default_rng(1).standard_normal(500_000).astype(np.float32)
    found = sweep(Percentile(percentile), [x])
    exact = np.percentile(np.abs(x), percentile)
    width = np.abs(x).max() / BINS
    assert 0 <= found.amax - exact + width * 1e-3 <= width * 1.01


def test_percentile_ignores_the_zeros_behind_a_relu():
    x = np.random.default_rng(2).standard_normal(300_000).astype(np.float32)
    relu = np.maximum(x, 0)
    assert sweep(Percentile(99.0), [relu]).amax == sweep(Percentile(99.0), [relu[relu > 0]]).amax
    with_zeros = np.percentile(relu, 99.0)
    assert sweep(Percentile(99.0), [relu]).amax > with_zeros * 1.05


def test_percentile_clips_an_outlier_and_100_does_not():
    x = np.concatenate([np.linspace(0, 1, 100_000), [1000.0]]).astype(np.float32)
    assert sweep(Percentile(99.99), [x]).amax <= 1000 / BINS * 3
    assert sweep(Percentile(100), [x]).amax == 1000


def test_few_values_give_the_maximum():
    x = np.array([0.25, -4.0, 1.0], np.float32)
    assert sweep(Percentile(99.99), [x]).amax == 4


@pytest.mark.parametrize("method", list(Method))
def test_nothing_but_zeros_and_nothing_at_all(method):
    assert sweep(calibrators.make(method), [np.zeros(10, np.float32)]).amax == 0
    assert sweep(calibrators.make(method), []).amax == 0
    assert sweep(calibrators.make(method), [np.zeros((0, 4), np.float32)]).amax == 0


@pytest.mark.parametrize("method", list(Method))
def test_nan_and_infinity_are_counted_and_enter_no_range(method):
    x = np.array([1.0, np.nan, np.inf, -np.inf, -2.0], np.float32)
    found = sweep(calibrators.make(method), [x])
    assert found.overflowed == 3
    assert found.amax == 2


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types(dtype):
    x = np.array([0.5, -1.5, 0.0]).astype(dtype)
    assert sweep(Max(), [x]).amax == 1.5
    assert sweep(Percentile(), [x]).amax == 1.5


def test_denormal_ranges_do_not_divide_by_zero():
    x = np.array([1e-45, 5e-45], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert sweep(Percentile(), [x]).amax == float(x[1])


@pytest.mark.parametrize("percentile", [0, -1, 100.1])
def test_a_percentile_out_of_range(percentile):
    with pytest.raises(ValueError, match="percentile"):
        Percentile(percentile)
