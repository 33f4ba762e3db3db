"""One layer's problem, against brute force and dense algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx24.sparsity.masks import is_24, mask_24
from onnx24.sparsity.solve import (
    Method,
    Moments,
    _inverse,
    _Product,
    make_problem,
    obs,
    refit,
    ria_scores,
    solve,
    sweep,
    wanda_scores,
)


def layer(R: int = 24, K: int = 32, rows: int = 2000, seed: int = 0, rank: int | None = None):
    """(weights, inputs) with correlated columns of different sizes."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((rank or K // 2, K))
    X = rng.standard_normal((rows, len(mix))) @ mix / 3 + 0.3 * rng.standard_normal((rows, K))
    X *= rng.uniform(0.2, 3, K)
    W = rng.standard_normal((R, K)) / np.sqrt(K)
    return W.astype(np.float32), X.astype(np.float32)


def moments(X: np.ndarray, V: np.ndarray | None = None, centred: bool = False) -> Moments:
    V = X if V is None else V
    U64, V64 = X.astype(np.float64), V.astype(np.float64)
    mean_u, mean_v = U64.mean(0), V64.mean(0)
    H, C = U64.T @ U64 / len(X), V64.T @ U64 / len(X)
    if centred:
        H, C = H - np.outer(mean_u, mean_u), C - np.outer(mean_v, mean_u)
    return Moments(rows=len(X), H=H, C=C, mean_u=mean_u, mean_v=mean_v, centred=centred)


def error(Q: np.ndarray, W: np.ndarray, X: np.ndarray) -> float:
    return float(np.linalg.norm(X @ (Q - W).T) / np.linalg.norm(X @ W.T))


@pytest.mark.parametrize("method", Method)
def test_the_result_is_24_and_better_than_magnitude(method):
    W, X = layer()
    problem = make_problem(W, moments(X), asymmetric=False)
    Q = solve(problem, method)
    assert Q.dtype == np.float32 and Q.shape == W.shape
    assert is_24(Q, 1)
    assert error(Q, W, X) < 0.75 * error(W * mask_24(W, 1), W, X)


def test_the_methods_rank_as_published():
    W, X = layer(R=64, K=64, rank=24)
    problem = make_problem(W, moments(X), asymmetric=False)
    by = {
        (method, steps): error(solve(problem, method, refit_steps=steps), W, X)
        for method, steps in itertools.product(Method, (0, 10))
    }
    assert by[Method.ADMM, 10] < by[Method.OBS, 10] < by[Method.WANDA, 10]
    assert by[Method.OBS, 10] < by[Method.OBS, 0] < by[Method.WANDA, 0] < by[Method.MAGNITUDE, 0]


def test_refit_reaches_the_least_squares_solution_of_each_row():
    W, X = layer(R=6, K=16)
    problem = make_problem(W, moments(X), asymmetric=False)
    mask = mask_24(problem.T, 1)
    Q = refit(problem.T, problem.A, mask, 60, _Product(None), start=problem.T * mask)
    A, TA = problem.A.astype(np.float64), problem.T.astype(np.float64) @ problem.A
    for row, support, wanted in zip(Q, mask, TA, strict=True):
        exact = np.linalg.solve(A[np.ix_(support, support)], wanted[support])
        np.testing.assert_allclose(row[support], exact, rtol=2e-3, atol=2e-4)
        assert not row[~support].any()


def test_admm_comes_near_the_best_mask_of_all():
    W, X = layer(R=4, K=8)
    problem = make_problem(W, moments(X), asymmetric=False)
    pairs = [list(c) for c in itertools.combinations(range(4), 2)]
    A = problem.A.astype(np.float64)
    for row, found in zip(problem.T, solve(problem, Method.ADMM, steps=90), strict=True):

        def cost(q: np.ndarray, row: np.ndarray = row) -> float:
            return float((q - row) @ A @ (q - row))

        best = np.inf
        for a, b in itertools.product(pairs, pairs):
            S = [*a, *(4 + i for i in b)]
            q = np.zeros(8)
            q[S] = np.linalg.solve(A[np.ix_(S, S)], (row @ A)[S])
            best = min(best, cost(q))
        assert cost(found * problem.scale) <= 1.35 * best + 1e-6


def test_obs_without_anything_to_spread_is_wanda():
    W, _ = layer(R=8, K=16)
    H = np.diag(np.linspace(1, 4, 16)).astype(np.float32)
    found = obs(W, H)
    np.testing.assert_array_equal(found != 0, mask_24(wanda_scores(W, np.sqrt(np.diag(H))), 1))
    kept = found != 0
    np.testing.assert_allclose(found[kept], W[kept], rtol=1e-6)


def test_ria_by_hand():
    W = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    scores = ria_scores(W, np.array([4.0, 9.0]))
    assert scores[0, 0] == pytest.approx((1 / 4 + 1 / 3) * 2)
    assert scores[1, 1] == pytest.approx((4 / 6 + 4 / 7) * 3)


def test_the_asymmetric_target_undoes_what_the_prefix_did():
    """Compressed inputs that are a known linear map of the dense ones: the target is the dense
    layer behind the inverse map."""
    W, V = layer(R=8, K=16, rows=20000, rank=16)
    rng = np.random.default_rng(3)
    change = np.eye(16) + 0.1 * rng.standard_normal((16, 16))
    U = (V @ change).astype(np.float32)
    problem = make_problem(W, moments(U, V), asymmetric=True, towards_dense=1e-6)
    target = problem.T / problem.scale
    np.testing.assert_allclose(U @ target.T, V @ W.T, atol=0.02 * np.abs(V @ W.T).max())


def test_an_outlier_channel_costs_nothing():
    """Function kept: a channel 32 times as large, its weights 32 times as small. Only the prior,
    which is in the inputs' own units, moves a few masks."""
    W, X = layer(R=16, K=32, rank=32)
    scale = np.ones(32, np.float32)
    scale[5] = 32.0  # a power of two, so that only exponents move
    one = solve(make_problem(W, moments(X), asymmetric=False), Method.ADMM)
    other = solve(make_problem(W / scale, moments(X * scale), asymmetric=False), Method.ADMM)
    assert np.mean((one != 0) == (other != 0)) > 0.97
    assert error(other * scale, W, X) == pytest.approx(error(one, W, X), rel=0.02)


def test_inputs_that_are_always_zero_keep_their_weights():
    W, X = layer()
    X[:, 3] = 0
    problem = make_problem(W, moments(X), asymmetric=True)
    assert problem.dead[3] and problem.dead.sum() == 1
    Q = solve(problem, Method.ADMM)
    kept = Q[:, 3] != 0
    np.testing.assert_allclose(Q[kept, 3], W[kept, 3], rtol=1e-6)
    assert np.isfinite(Q).all() and is_24(Q, 1)


def test_an_input_that_one_sample_lit_stays_near_the_dense_weights():
    """Its second moment says nothing: without the prior its weights would be fitted to one row."""
    W, X = layer(R=16, K=32, rows=200)
    X[:, 7] = 0
    X[11, 7] = 0.01
    problem = make_problem(W, moments(X), asymmetric=True)
    assert np.abs(problem.T / problem.scale - W)[:, 7].max() < np.abs(W).max()


def test_all_inputs_zero_is_magnitude():
    W, X = layer(R=4, K=8, rows=50)
    Q = solve(make_problem(W, moments(np.zeros_like(X)), asymmetric=True), Method.ADMM)
    np.testing.assert_array_equal(Q, W * mask_24(W, 1))


def test_threads_change_no_bit():
    from concurrent.futures import ThreadPoolExecutor

    W, X = layer(R=700, K=32)
    problem = make_problem(W, moments(X), asymmetric=False)
    alone = solve(problem, Method.ADMM)
    with ThreadPoolExecutor(3) as pool:
        together = solve(problem, Method.ADMM, each=lambda f, s: list(pool.map(f, s)) and None)
    np.testing.assert_array_equal(alone, together)


def test_inverse_falls_back_to_double_and_then_says_so():
    A = np.diag([1.0, 1e-9]).astype(np.float32)
    np.testing.assert_allclose(_inverse(A, 0.0), np.diag([1.0, 1e9]), rtol=1e-6)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        _inverse(-np.eye(4, dtype=np.float32), 0.0)


def objective(Q: np.ndarray, problem) -> float:
    off = (Q - problem.T).astype(np.float64)
    return float(np.sum((off @ problem.A) * off))


def test_a_sweep_finds_the_best_pair_of_a_single_group():
    W, X = layer(R=40, K=4)
    problem = make_problem(W, moments(X), asymmetric=False)
    start = problem.T * mask_24(problem.T, axis=1)
    Q = sweep(problem.T, problem.A, start, _Product(None))
    pairs = [list(pair) for pair in itertools.combinations(range(4), 2)]
    for row, found in zip(problem.T, Q, strict=True):
        best = np.inf
        for pair in pairs:
            q = np.zeros(4)
            q[pair] = np.linalg.solve(problem.A[np.ix_(pair, pair)], (row @ problem.A)[pair])
            best = min(best, float((q - row) @ problem.A @ (q - row)))
        assert (found - row) @ problem.A @ (found - row) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("K", [32, 128, 260])  # within a block, one, and more than two
def test_sweeps_only_lower_the_error(K):
    W, X = layer(R=300, K=K)
    problem = make_problem(W, moments(X), asymmetric=False)
    Q, product = problem.T * mask_24(problem.T, axis=1), _Product(None)
    errors = [objective(Q, problem)]
    for _ in range(4):
        Q = sweep(problem.T, problem.A, Q, product)
        assert is_24(Q, 1)
        errors.append(objective(Q, problem))
    assert errors[1] < 0.9 * errors[0]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_more_steps_of_admm_are_better_at_every_damping(damping):
    W, X = layer(R=64, K=64, rank=24)
    problem = make_problem(W, moments(X), asymmetric=False).damped(damping)
    few, default, many = (
        objective(solve(problem, Method.ADMM, steps=n) * problem.scale, problem)
        for n in (8, 20, 60)
    )
    swept = objective(solve(problem, Method.ADMM, steps=8, sweeps=1) * problem.scale, problem)
    assert many < default < few and swept < few
