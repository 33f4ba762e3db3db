from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx24.sparsity import metrics


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_energy_zeros_and_nonfinite(dtype: type):
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal((300, 257)) * 3).astype(dtype)
    exact = values.astype(np.float64)
    assert metrics.energy(values) == pytest.approx((exact**2).sum(), rel=1e-12)
    assert metrics.count_zeros(values) == (exact == 0).sum()
    assert metrics.count_nonfinite(values) == 0


def test_energy_of_int8_does_not_wrap():
    assert metrics.energy(np.full(4, -128, np.int8)) == 4 * 128.0**2


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_counted(dtype: type):
    values = np.array([1, np.nan, np.inf, -np.inf, 0]).astype(dtype)
    assert metrics.count_nonfinite(values) == 3


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.float64, ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "stride"), [(1 << 17, 1), (36 * 500, 9), (4 * 1111, 1111), (4, 1)]
)
def test_a_survey_by_both_engines(dtype: type, size: int, stride: int):
    pytest.importorskip("numba")
    values = np.round(np.random.default_rng(0).standard_normal(size) * 3).astype(dtype)
    exact = values.astype(np.float64)
    found = metrics.survey(values)
    assert (found.zeros, found.nonfinite) == ((exact == 0).sum(), 0)
    assert found.energy == pytest.approx((exact**2).sum(), rel=1e-6)
    assert metrics.survey(values, compiled=True) == found
    sparse = values.reshape(-1, 4, stride).copy()
    sparse[:, 1:3] = 0
    for array, is_24 in ((values, metrics.count_violating(values, stride) == 0), (sparse, True)):
        flat = array.reshape(-1)
        seen = metrics.survey_24(flat, stride)
        assert seen == metrics.survey_24(flat, stride, compiled=True)
        assert seen == (metrics.survey(flat).energy, is_24)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("stride", [1, 9, 16, 49, 64, 100, 700])
def test_a_survey_finds_one_broken_group_anywhere(compiled: bool, stride: int):
    if compiled:
        pytest.importorskip("numba")
    size = 4 * stride * max(8, 1500 // stride)
    for group in range(0, size // 4, max(1, size // 999)):
        values = np.zeros((size // 4 // stride, 4, stride), np.float32)
        values[group // stride, :3, group % stride] = -1
        assert not metrics.survey_24(values.reshape(-1), stride, compiled=compiled)[1]
        values[group // stride, 1, group % stride] = -0.0
        assert metrics.survey_24(values.reshape(-1), stride, compiled=compiled)[1]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_survey_of_extremes(compiled: bool, dtype: type):
    if compiled:
        pytest.importorskip("numba")
    bad = np.array([1, np.nan, np.inf, -np.inf, 0, -0.0, 2, 3]).astype(dtype)
    found = metrics.survey(bad, compiled=compiled)
    assert (found.zeros, found.nonfinite) == (2, 3)
    for factor in (1e-30, 1e25) if dtype != np.float16 else ():  # squares leave float32's range
        values = (np.array([1, -2, 3, 0]) * factor).astype(np.float32).astype(dtype)
        exact = (values.astype(np.float64) ** 2).sum()
        assert metrics.survey(values, compiled=compiled).energy == pytest.approx(exact, rel=1e-12)
    assert metrics.survey(np.zeros(8, dtype), compiled=compiled).energy == 0.0
