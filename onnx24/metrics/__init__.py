"""Task metrics of classification and ranking, in numpy alone.

*Accuracy*: the share of rows whose largest score stands at the label.

*PNR* (positive-negative rate): over all pairs of rows of one query whose labels differ, the number
of pairs that the scores rank as the labels do, divided by the number that they rank the other way.
Pairs with equal scores count for neither; the counts are pooled over all queries. With pairs P for
and N against, PNR = P / N, and the pair accuracy is P / (P + N) = PNR / (1 + PNR). Where no pair
is ranked against its labels, PNR is infinite if any is ranked with them, and NaN if there is no
pair at all.

*NDCG@k*: per query DCG@k / IDCG@k with DCG@k = Σ (2^rel − 1) / log2(rank + 1) over ranks 1 to k,
rows ordered by falling score; IDCG@k is that of the order by falling label. Rows of equal score
share the mean gain of the ranks that they take, so that the order of rows does not matter.
The mean is over the queries whose IDCG is not 0 (a query without a relevant row has no order to
get right); NaN where there is none.

*Confidence intervals* are percentiles of the bootstrap: the queries (or rows) are drawn anew with
replacement, as many as there are, and the metric is taken of what was drawn. What belongs to one
query stays together; two systems are compared by drawing the same queries for both.

*Source:* accuracy, PNR and NDCG as in web search ranking; the treatment of ties of NDCG is that of
McSherry and Najork, Computing information retrieval performance measures efficiently in the
presence of tied scores (ECIR 2008); Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = [
    "PairCounts",
    "accuracy",
    "bootstrap",
    "ndcg",
    "ndcg_by_query",
    "pair_counts",
    "pair_counts_by_query",
    "pnr",
]


class PairCounts(tuple):
    """(concordant, discordant) pairs."""

    __slots__ = ()

    @property
    def pnr(self) -> float:
        concordant, discordant = self
        if discordant:
            return concordant / discordant
        return math.inf if concordant else math.nan

    @property
    def accuracy(self) -> float:
        total = sum(self)
        return self[0] / total if total else math.nan


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest score stands at the label.

    scores: [N, classes], or [N] or [N, 1] where the label is 1 for a score above 0 (a logit).
    labels: [N] of integers.
    Raises: ValueError for shapes that do not fit, and for no rows.
    """
    scores, labels = np.asarray(scores), np.asarray(labels).reshape(-1)
    if scores.ndim == 2 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim not in (1, 2) or len(scores) != len(labels) or not len(labels):
        raise ValueError(f"scores {list(scores.shape)} do not fit {len(labels)} labels")
    predicted = scores.argmax(-1) if scores.ndim == 2 else (scores > 0).astype(labels.dtype)
    hit = predicted == labels
    if scores.dtype.kind == "f":  # NaN is no answer
        hit &= ~(np.isnan(scores).any(-1) if scores.ndim == 2 else np.isnan(scores))
    return float(np.mean(hit))


def pair_counts(scores: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> PairCounts:
    """Pairs of one query with different labels that the scores rank with and against them.

    scores, labels, queries: [N]. Raises: ValueError for shapes that do not fit.
    """
    with_, against = pair_counts_by_query(scores, labels, queries).sum(axis=0)
    return PairCounts((int(with_), int(against)))


def pair_counts_by_query(scores: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """`pair_counts` of each query, [Q, 2] of int64, in the order of `np.unique(queries)`.

    Raises: ValueError for shapes that do not fit.
    """
    scores, labels, queries = _rows(scores, labels, queries)
    counts = [_pairs(scores[rows], labels[rows]) for rows in _groups(queries)]
    return np.array(counts, np.int64).reshape(-1, 2)


def _pairs(scores: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """By bisection, one label after the other: what is worse and scores less, and more."""
    concordant = discordant = 0
    for label in np.unique(labels)[1:]:
        worse = np.sort(scores[labels < label])
        better = scores[labels == label]
        concordant += int(np.searchsorted(worse, better, "left").sum())
        discordant += int((len(worse) - np.searchsorted(worse, better, "right")).sum())
    return concordant, discordant


def pnr(scores: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> float:
    """Positive-negative rate; see the module."""
    return pair_counts(scores, labels, queries).pnr


def ndcg(
    scores: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int | None = None
) -> float:
    """Mean NDCG@k over the queries that have a relevant row; k None: all ranks.

    scores, labels, queries: [N]; labels are relevances of at least 0.
    Raises: ValueError for shapes that do not fit, negative labels, k below 1.
    """
    values = ndcg_by_query(scores, labels, queries, k)
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if len(values) else math.nan


def ndcg_by_query(
    scores: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int | None = None
) -> np.ndarray:
    """NDCG@k of each query, [Q], in the order of `np.unique(queries)`; NaN where no row is
    relevant.

    Raises: as `ndcg`.
    """
    scores, labels, queries = _rows(scores, labels, queries)
    if len(labels) and labels.min() < 0:
        raise ValueError("a relevance is no negative number")
    if k is not None and k < 1:
        raise ValueError(f"k is {k}, expected 1 or more")
    values = []
    for rows in _groups(queries):
        gains = np.exp2(labels[rows].astype(np.float64)) - 1
        discounts = 1 / np.log2(np.arange(2, len(rows) + 2, dtype=np.float64))
        if k is not None:
            discounts[k:] = 0
        ideal = float(np.dot(np.sort(gains)[::-1], discounts))
        values.append(_tied_dcg(scores[rows], gains, discounts) / ideal if ideal > 0 else math.nan)
    return np.array(values, np.float64)


def bootstrap(
    count: int,
    statistic: Callable[[np.ndarray], float],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The bounds between which `statistic` lies in the share `level` of all resamples.

    count: queries (or rows). statistic: of the chosen ones, [count] indices of which some occur
    more than once. Resamples where it is NaN are left out; NaN where all are.
    Raises: ValueError for a count or a number of resamples below 1, a level outside (0, 1).
    """
    if count < 1 or resamples < 1:
        raise ValueError(f"{count} queries and {resamples} resamples: expected 1 or more of each")
    if not 0 < level < 1:
        raise ValueError(f"a level lies between 0 and 1, not at {level}")
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(0, count, count)) for _ in range(resamples)])
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _tied_dcg(scores: np.ndarray, gains: np.ndarray, discounts: np.ndarray) -> float:
    """DCG in which rows of equal score share the mean gain of their ranks."""
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    mean_gain = np.bincount(group.reshape(-1), gains) / counts
    ends = np.cumsum(counts)
    summed = np.concatenate([[0.0], np.cumsum(discounts)])
    return float(np.dot(mean_gain, summed[ends] - summed[ends - counts]))


def _rows(*arrays: np.ndarray) -> list[np.ndarray]:
    flat = [np.asarray(array).reshape(-1) for array in arrays]
    if len({len(array) for array in flat}) != 1:
        raise ValueError(f"lengths differ: {[len(array) for array in flat]}")
    if flat[0].dtype.kind == "f" and np.isnan(flat[0]).any():
        raise ValueError("a score is NaN, so that there is no order")
    return flat


def _groups(queries: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each query."""
    order = np.argsort(queries, kind="stable")
    edges = np.flatnonzero(queries[order][1:] != queries[order][:-1]) + 1
    return [rows for rows in np.split(order, edges) if len(rows)]
