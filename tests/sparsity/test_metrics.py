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
