"""Ranges from streams of activations."""

from __future__ import annotations

import pickle

import ml_dtypes
import numpy as np
import pytest

from onnx24.quant import calibrators
from onnx24.quant.calibrators import BINS, Auto, Entropy, Max, Method, Mse, Percentile


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


# --- histograms ----------------------------------------------------------------------------
def direct_counts(x: np.ndarray, width: float) -> np.ndarray:
    """Range first, counts in a second pass, in float64."""
    magnitudes = np.abs(x[x != 0]).astype(np.float64)
    return np.bincount((magnitudes / width).astype(np.int64))


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_one_sweep_counts_what_two_would(order, scale):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal(100_000) * scale).astype(np.float32)
    x[::3] = 0
    x.sort() if order != "shuffled" else None
    parts = np.array_split(x if order != "falling" else x[::-1], 23)
    found = sweep(Mse(), parts).distribution()
    assert BINS <= len(found.counts) <= 2 * BINS
    assert np.log2(found.width).is_integer()
    np.testing.assert_array_equal(found.counts, direct_counts(x, found.width))
    assert found.peak == np.abs(x).max()


def test_entropy_clips_a_far_tail_and_keeps_a_uniform_one():
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, 400_000).astype(np.float32)
    assert sweep(Entropy(), [x]).amax > 0.97
    tail = np.concatenate([rng.standard_normal(400_000), [200.0, -180.0]]).astype(np.float32)
    assert sweep(Entropy(), [tail]).amax < 20


def test_the_zero_bin_fix():
    """A peak of values that round to 0 anyway does not draw the range down."""
    rng = np.random.default_rng(5)
    x = np.abs(rng.standard_normal(200_000)).astype(np.float32)
    near_zero = np.full(2_000_000, 1e-4, np.float32)
    plain, peaked = sweep(Entropy(), [x]).amax, sweep(Entropy(), [x, near_zero]).amax
    assert peaked == plain


def error(x: np.ndarray, amax: float) -> float:
    scale = amax / 127
    return float(np.mean((np.clip(np.rint(x / scale), -127, 127) * scale - x) ** 2))


@pytest.mark.parametrize("shape", ["normal", "laplace", "outliers"])
def test_mse_is_the_best_of_all(shape):
    rng = np.random.default_rng(6)
    x = getattr(rng, "laplace" if shape == "laplace" else "normal")(size=300_000)
    if shape == "outliers":
        x[:300] *= 40
    x = x.astype(np.float32)
    found = sweep(Mse(), [x]).amax
    best = min(error(x, amax) for amax in np.linspace(0.1, 1, 200) * np.abs(x).max())
    assert error(x, found) < best * 1.01


def test_auto_has_every_candidate_and_clips_only_for_half_the_error():
    rng = np.random.default_rng(7)
    x = rng.standard_normal(300_000).astype(np.float32)
    auto = sweep(Auto(), [x])
    assert auto.amax == auto.peak
    for method, amax in auto.candidates().items():
        assert amax == sweep(calibrators.make(method), [x]).amax
    x[:3] = 100, -80, 60
    auto = sweep(Auto(), [x])
    assert auto.amax == sweep(Mse(), [x]).amax < auto.peak


def test_memory_does_not_grow_with_the_samples():
    auto = Auto()
    before = len(pickle.dumps(auto))
    for _ in range(50):
        auto.observe(np.random.default_rng(0).standard_normal(10_000).astype(np.float32))
    assert len(pickle.dumps(auto)) < before + 200


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_compiled_engine_counts_the_same(scale, monkeypatch):
    pytest.importorskip("numba")
    rng = np.random.default_rng(8)
    arrays = [(rng.standard_normal(200_000) * scale * k).astype(np.float32) for k in (1, 7, 0.1)]
    arrays[1][::2] = 0
    compiled = sweep(Auto(), arrays)
    monkeypatch.setattr(calibrators._numba, "available", lambda: False)
    plain = sweep(Auto(), arrays)
    np.testing.assert_array_equal(compiled.distribution().counts, plain.distribution().counts)
    assert compiled.candidates() == plain.candidates() and compiled.values == plain.values
