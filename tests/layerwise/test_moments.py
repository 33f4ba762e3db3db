"""Sums over chunks against numpy over everything."""

from __future__ import annotations

import numpy as np
import pytest

from onnx24.layerwise import moments as module
from onnx24.layerwise.moments import MomentSums


def one_by_one(function, pieces):
    for piece in pieces:
        function(piece)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("differs_from", [0, 3, 99])
def test_moments(monkeypatch, centred, differs_from):
    """The two sides agree up to a batch, as they do before the first compressed layer."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 64)
    monkeypatch.setattr(module, "COLUMNS", 8)
    rng = np.random.default_rng(0)
    sums, us, vs, ss = MomentSums(20, one_by_one, R=6), [], [], []
    for i in range(9):
        u = (rng.standard_normal((23, 20)) * 2 + 50).astype(np.float32)
        v = u if i < differs_from else u + rng.standard_normal((23, 20)).astype(np.float32)
        s = rng.standard_normal((23, 6)).astype(np.float32)
        sums.add(u, v, s)
        us.append(u)
        vs.append(v)
        ss.append(s)
    U, V, S = (np.concatenate(x).astype(np.float64) for x in (us, vs, ss))
    found = sums.moments(centred=centred)
    G, mean_s = sums.extra(centred=centred)
    point_u = U.mean(0) if centred else 0
    point_v = V.mean(0) if centred else 0
    point_s = S.mean(0) if centred else 0
    n = len(U)
    assert found.rows == n
    np.testing.assert_allclose(found.mean_u, U.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean_v, V.mean(0), rtol=1e-6)
    np.testing.assert_allclose(mean_s, S.mean(0), atol=1e-6)
    limit = {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(found.H, (U - point_u).T @ (U - point_u) / n, **limit)
    np.testing.assert_allclose(found.C, (V - point_v).T @ (U - point_u) / n, **limit)
    np.testing.assert_allclose(G, (S - point_s).T @ (U - point_u) / n, **limit)


def test_a_large_mean_costs_no_accuracy():
    rng = np.random.default_rng(1)
    U = (rng.standard_normal((5000, 4)) * 0.01 + 1000).astype(np.float32)
    sums = MomentSums(4, one_by_one)
    sums.add(U, U)
    H = sums.moments(centred=True).H
    np.testing.assert_allclose(H, np.cov(U.astype(np.float64).T, bias=True), rtol=1e-3, atol=1e-8)


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        MomentSums(4, one_by_one).moments(centred=True)
