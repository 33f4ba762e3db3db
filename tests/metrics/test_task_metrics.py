"""Task metrics, against values computed by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, ndcg_score

from onnx24.metrics import (
    accuracy,
    bootstrap,
    ndcg,
    ndcg_by_query,
    pair_counts,
    pair_counts_by_query,
    pnr,
)


def test_accuracy_of_classes_and_of_a_logit() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    assert accuracy(scores, np.array([1, 0, 0, 1])) == 0.75
    assert accuracy(np.array([[2.0], [-1.0], [0.5]]), np.array([1, 1, 1])) == pytest.approx(2 / 3)
    labels = np.arange(50) % 3
    rng = np.random.default_rng(0)
    random = rng.normal(size=(50, 3))
    assert accuracy(random, labels) == accuracy_score(labels, random.argmax(-1))


def test_a_row_with_nan_is_wrong() -> None:
    assert accuracy(np.array([[np.nan, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0.5


def test_pnr_by_hand() -> None:
    """Query 1: labels 2, 1, 0 and scores 3, 1, 2: pairs (2,1) and (2,0) with, (1,0) against.
    Query 2: labels 1, 0 with equal scores: neither. Query 3: one row, no pair."""
    labels = np.array([2, 1, 0, 1, 0, 5])
    scores = np.array([3.0, 1.0, 2.0, 0.5, 0.5, 9.0])
    queries = np.array([1, 1, 1, 2, 2, 3])
    assert pair_counts(scores, labels, queries) == (2, 1)
    assert pnr(scores, labels, queries) == 2.0
    assert pair_counts(scores, labels, queries).accuracy == pytest.approx(2 / 3)


def test_what_each_query_adds() -> None:
    """Query 7 as in the test above; query 2 has its one pair tied, query 9 none. NDCG@1 of query 7
    is 1 (the best is first), of query 2 (1 and 0 share the first rank) 1/2, of query 9 none."""
    labels = np.array([2, 1, 0, 1, 0, 0])
    scores = np.array([3.0, 1.0, 2.0, 0.5, 0.5, 9.0])
    queries = np.array([7, 7, 7, 2, 2, 9])
    assert pair_counts_by_query(scores, labels, queries).tolist() == [[0, 0], [2, 1], [0, 0]]
    of_each = ndcg_by_query(scores, labels, queries, k=1)
    assert of_each[:2].tolist() == [0.5, 1.0] and math.isnan(of_each[2])


def test_bootstrap_of_a_share_is_that_of_the_normal_distribution() -> None:
    """A mean of 400 zeros and ones, half each: 0.5 ± 1.96 · 0.025."""
    values = np.arange(400) % 2
    low, high = bootstrap(400, lambda chosen: float(values[chosen].mean()), resamples=4000)
    assert low == pytest.approx(0.5 - 0.049, abs=0.005)
    assert high == pytest.approx(0.5 + 0.049, abs=0.005)
    again = bootstrap(400, lambda chosen: float(values[chosen].mean()), resamples=4000)
    assert again == (low, high), "the seed decides"
    narrow = bootstrap(400, lambda chosen: float(values[chosen].mean()), level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_without_a_value() -> None:
    assert all(math.isnan(bound) for bound in bootstrap(3, lambda _: math.nan))
    with pytest.raises(ValueError, match="0 queries"):
        bootstrap(0, lambda _: 0.0)
    with pytest.raises(ValueError, match="level"):
        bootstrap(3, lambda _: 0.0, level=1.0)


def test_pnr_is_pooled_over_queries_and_not_a_mean() -> None:
    labels = np.array([1, 0, 3, 2, 1, 0])
    scores = np.array([0.0, 1.0, 4.0, 3.0, 2.0, 1.0])
    queries = np.array([0, 0, 1, 1, 1, 1])
    assert pair_counts(scores, labels, queries) == (6, 1)
    assert pnr(scores, labels, queries) == 6.0


def test_pnr_without_discordant_pairs_and_without_pairs() -> None:
    one = np.zeros(2, int)
    assert pnr(np.array([2.0, 1.0]), np.array([1, 0]), one) == math.inf
    assert math.isnan(pnr(np.array([1.0, 1.0]), np.array([1, 0]), one))
    assert math.isnan(pnr(np.array([2.0, 1.0]), np.array([1, 1]), one))


def test_ndcg_by_hand() -> None:
    """Labels 3, 2, 0 ranked 2, 3, 0: DCG = 3/log2(2) + 7/log2(3), IDCG = 7/1 + 3/log2(3)."""
    labels, scores, queries = np.array([3, 2, 0]), np.array([1.0, 2.0, 0.0]), np.zeros(3, int)
    expected = (3 + 7 / math.log2(3)) / (7 + 3 / math.log2(3))
    assert ndcg(scores, labels, queries) == pytest.approx(expected, rel=1e-12)
    assert ndcg(scores, labels, queries, k=1) == pytest.approx(3 / 7, rel=1e-12)


def test_ndcg_leaves_out_queries_without_a_relevant_row() -> None:
    labels, queries = np.array([1, 0, 0, 0]), np.array([0, 0, 1, 1])
    assert ndcg(np.array([1.0, 0.0, 1.0, 0.0]), labels, queries) == 1.0
    assert math.isnan(ndcg(np.zeros(2), np.zeros(2, int), np.zeros(2, int)))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(-6, 6)), min_size=2, max_size=30).filter(
            lambda rows: any(label for label, _ in rows)
        ),
        min_size=1,
        max_size=5,
    ),
    st.one_of(st.none(), st.integers(1, 12)),
)
def test_ndcg_is_that_of_scikit_learn_ties_included(rows: list, k: int | None) -> None:
    """scikit-learn takes gains, and is asked for each query."""
    labels = [np.array([label for label, _ in query]) for query in rows]
    scores = [np.array([float(score) for _, score in query]) for query in rows]
    expected = np.mean(
        [
            ndcg_score((np.exp2(y) - 1)[None], s[None], k=k)
            for y, s in zip(labels, scores, strict=True)
        ]
    )
    queries = np.repeat(np.arange(len(rows)), [len(query) for query in rows])
    actual = ndcg(np.concatenate(scores), np.concatenate(labels), queries, k)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_pairs_are_those_of_the_definition(rows: list[tuple[int, int, int]]) -> None:
    queries, labels, scores = (np.array([row[i] for row in rows]) for i in range(3))
    with_, against = 0, 0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if queries[i] == queries[j] and labels[i] > labels[j]:
                with_ += scores[i] > scores[j]
                against += scores[i] < scores[j]
    assert pair_counts(scores, labels, queries) == (with_, against)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        accuracy(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(ValueError, match="lengths differ"):
        pnr(np.zeros(3), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        ndcg(np.array([np.nan, 1.0]), np.array([1, 0]), np.zeros(2))
    with pytest.raises(ValueError, match="negative"):
        ndcg(np.zeros(2), np.array([-1, 0]), np.zeros(2))
    with pytest.raises(ValueError, match="k is 0"):
        ndcg(np.zeros(2), np.zeros(2, int), np.zeros(2), k=0)
