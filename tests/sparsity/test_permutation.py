"""The search: a permutation, never worse, the same every time, whatever order it is given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx24.sparsity.masks import prune_24
from onnx24.sparsity.permutation import kept, lost, most_rows, search


def saliency(rows: int, k: int, seed: int = 0, spread: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, k)) * np.exp(spread * rng.standard_normal(k))
    return np.square(values).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 24), st.floats(0.0, 2.0))
def test_a_permutation_that_is_never_worse(
    seed: int, rows: int, groups: int, spread: float
) -> None:
    matrix = saliency(rows, 4 * groups, seed, spread)
    order = search(matrix)
    np.testing.assert_array_equal(np.sort(order), np.arange(4 * groups))
    assert kept(matrix, order) >= kept(matrix)
    np.testing.assert_array_equal(search(matrix), order)


def test_kept_is_what_pruning_keeps() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((33, 64)).astype(np.float32)
    order = rng.permutation(64)
    pruned = prune_24(w[:, order], 1)
    assert kept(np.square(w), order) == pytest.approx(float(np.square(pruned).sum()), rel=1e-5)
    assert lost(np.square(w), order) == pytest.approx(
        float(np.square(w[:, order] - pruned).sum()), rel=1e-4
    )


def test_many_rows_are_measured_in_parts() -> None:
    matrix = saliency(70_000, 32)
    whole = np.sort(matrix.reshape(-1, 8, 4), axis=2)[:, :, 2:].sum(dtype=np.float64)
    assert kept(matrix) == pytest.approx(float(whole), rel=1e-6)


def test_the_worst_order_is_mended() -> None:
    """All that is large stands in the same groups: half of it can be saved."""
    matrix = np.full((16, 64), 1e-3, np.float32)
    matrix[:, :32] = 1.0
    order = search(matrix)
    assert lost(matrix) > 200
    assert lost(matrix, order) < 1


def test_nothing_to_gain_is_the_identity() -> None:
    np.testing.assert_array_equal(search(np.ones((8, 32), np.float32)), np.arange(32))
    np.testing.assert_array_equal(search(np.zeros((8, 32), np.float32)), np.arange(32))
    np.testing.assert_array_equal(search(np.zeros((0, 32), np.float32)), np.arange(32))
    np.testing.assert_array_equal(search(np.ones((8, 4), np.float32)), np.arange(4))
    two_large = np.tile(np.float32([5, 4, 0, 0]), (8, 8))
    np.testing.assert_array_equal(search(two_large), np.arange(32))


def test_small_matrices_come_near_the_optimum() -> None:
    """Two groups of four: 35 ways to divide eight columns."""
    from itertools import combinations

    for seed in range(20):
        matrix = saliency(6, 8, seed)
        best = max(
            kept(matrix, np.array([0, *c, *(set(range(1, 8)) - set(c))]))
            for c in combinations(range(1, 8), 3)
        )
        assert kept(matrix, search(matrix)) > best * 0.98


@pytest.mark.parametrize("k", [32, 128, 256])
def test_neither_the_order_of_rows_nor_that_of_columns_matters(k: int) -> None:
    matrix = saliency(96, k)
    rng = np.random.default_rng(3)
    rows, columns = rng.permutation(96), rng.permutation(k)
    here = kept(matrix, search(matrix))
    there = matrix[np.ix_(rows, columns)]
    # The given order is one of the starts, and here it is another one.
    assert kept(there, search(there)) == pytest.approx(here, rel=1e-2 if k < 64 else 2e-3)


@pytest.mark.parametrize("k", [32, 128, 256])
def test_a_second_search_finds_nothing(k: int) -> None:
    matrix = saliency(64, k)
    found = matrix[:, search(matrix)]
    np.testing.assert_array_equal(search(found), np.arange(k))


def test_error_falls_on_gaussian_weights() -> None:
    """Without any structure to use: what choosing among orders gives by itself."""
    matrix = saliency(512, 512, spread=0.0)
    gain = 1 - np.sqrt(lost(matrix, search(matrix)) / lost(matrix))
    assert gain > 0.05


def test_more_rows_than_are_looked_at() -> None:
    rows = most_rows(128) + 1000
    matrix = saliency(rows, 128)
    assert lost(matrix, search(matrix)) < lost(matrix)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 6)), "multiple of 4"),
        (np.ones(8), "multiple of 4"),
        (np.full((3, 8), np.nan), "not finite"),
        (np.full((3, 8), -1.0), "negative"),
    ],
)
def test_what_can_not_be_searched(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(matrix)
