"""What is asked of a compiled model: scores on held-out queries; and samples to compile it by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from corpora import Banking, Lexical, Queries, Ranked, Ranking, candidates, data_folder
from wordpieces import WordPieces

from onnx24.ir.model import Model
from onnx24.metrics import ndcg_by_query, pair_counts, pair_counts_by_query
from onnx24.runtime.session import Session

Part = Literal["validation", "test"]
TASKS = ("bi-encoder", "cross-encoder", "learning-to-rank")
ROWS = 256
"""Fed at once."""
RERANKED_QUERIES = 500
FOUND, RELEVANT = 12, 4
"""Candidates of each query: lexical ones, and further ones of the right intent."""


@dataclass(frozen=True)
class Scores:
    """What each query adds. hits: [Q], whether the best document is a right one; pairs: [Q, 2],
    ranked with and against the labels; ndcg: [Q], NDCG@10; confidence: [Q] or none, how much
    better than anything else the best one is."""

    hits: np.ndarray
    pairs: np.ndarray
    ndcg: np.ndarray
    confidence: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.hits)

    def accuracy(self, chosen: np.ndarray | slice = slice(None)) -> float:
        return 100 * float(self.hits[chosen].mean())

    def pnr(self, chosen: np.ndarray | slice = slice(None)) -> float:
        with_, against = self.pairs[chosen].sum(0)
        return float(with_ / against) if against else float("inf")

    def ndcg_at_10(self, chosen: np.ndarray | slice = slice(None)) -> float:
        return float(np.nanmean(self.ndcg[chosen]))

    def performance_prediction(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """Of pairs of a query that was answered rightly and one that was not, the share in which
        the first has the higher confidence [%]."""
        if self.confidence is None:
            return float("nan")
        hits = self.hits[chosen].astype(np.int64)
        counts = pair_counts(self.confidence[chosen], hits, np.zeros(len(hits)))
        return 100 * counts.accuracy

    def save(self, path: Path) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        np.savez_compressed(path, **given)

    @classmethod
    def load(cls, path: Path) -> Scores:
        with np.load(path) as held:
            return cls(**dict(held))


class Task(Protocol):
    """One application. `samples(count)`: unlabelled inputs, the training queries in an order that
    the seed decides; all of them without a count."""

    name: str

    def samples(self, count: int | None = None) -> dict[str, np.ndarray]: ...

    def score(self, model: Model, part: Part) -> Scores: ...


def _run(model: Model, name: str, rows: np.ndarray) -> np.ndarray:
    session = Session(model)
    parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    return np.concatenate([next(iter(session.run({name: part}).values())) for part in parts])


def _first(rows: np.ndarray, count: int | None) -> np.ndarray:
    return rows[np.random.default_rng(0).permutation(len(rows))[:count]]


class Retrieval(Task):
    """Document retrieval: a query is right where the document nearest to it has its intent. The
    confidence is the distance of that document to the best one of another intent."""

    name = "bi-encoder"

    def __init__(self, banking: Banking, pieces: WordPieces, length: int) -> None:
        self._banking, self._pieces, self._length = banking, pieces, length

    def samples(self, count: int | None = None) -> dict[str, np.ndarray]:
        return {"tokens": _first(self._ids(self._banking.train), count)}

    def score(self, model: Model, part: Part) -> Scores:
        asked: Queries = getattr(self._banking, part)
        documents = self._banking.documents
        vectors = _run(model, "tokens", self._ids(documents))
        cosines = _run(model, "tokens", self._ids(asked)) @ vectors.T
        best = documents.intents[cosines.argmax(1)]
        others = np.where(best[:, None] == documents.intents[None], -2, cosines)
        relevant = asked.intents[:, None] == documents.intents[None]
        rows = _flat(cosines, relevant)
        return Scores(
            hits=best == asked.intents,
            pairs=pair_counts_by_query(*rows),
            ndcg=ndcg_by_query(*rows, 10),
            confidence=cosines.max(1) - others.max(1),
        )

    def _ids(self, queries: Queries) -> np.ndarray:
        return self._pieces.ids(queries.texts, self._length)


class Reranking(Task):
    """Query relevance: each query's candidates are ordered by the cross-encoder; a query is right
    where the first has its intent."""

    name = "cross-encoder"

    def __init__(self, banking: Banking, pieces: WordPieces, half_length: int) -> None:
        self._banking, self._pieces, self._half = banking, pieces, half_length
        self._documents = self._ids(banking.documents)
        self._lexical = Lexical(self._documents, len(pieces))

    def samples(self, count: int | None = None) -> dict[str, np.ndarray]:
        """Each training query with one of the candidates that words alone find, drawn among the
        nearest `FOUND`: labels play no part."""
        tokens = self._ids(self._banking.train)
        near = self._lexical.best(tokens, FOUND)
        ranks = np.random.default_rng(1).integers(0, FOUND, (len(tokens), 1))
        shown = self._documents[np.take_along_axis(near, ranks, 1)]
        return {"tokens": _first(self._pairs(tokens, shown), count)}

    def score(self, model: Model, part: Part) -> Scores:
        asked: Queries = getattr(self._banking, part)
        every = max(len(asked) // RERANKED_QUERIES, 1)
        asked = asked.take(np.arange(0, len(asked), every)[:RERANKED_QUERIES])
        tokens = self._ids(asked)
        places = candidates(
            self._lexical, tokens, asked, self._banking.documents, found=FOUND, relevant=RELEVANT
        )
        pairs = self._pairs(tokens, self._documents[places])
        logits = _run(model, "tokens", pairs).reshape(places.shape)
        relevant = asked.intents[:, None] == self._banking.documents.intents[places]
        rows = _flat(logits, relevant)
        return Scores(
            hits=relevant[np.arange(len(logits)), logits.argmax(1)],
            pairs=pair_counts_by_query(*rows),
            ndcg=ndcg_by_query(*rows, 10),
        )

    def _ids(self, queries: Queries) -> np.ndarray:
        return self._pieces.ids(queries.texts, self._half)

    def _pairs(self, tokens: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """[Q, half] and [Q, C, half] → [Q·C, 2·half]."""
        repeated = np.broadcast_to(tokens[:, None], shown.shape)
        return np.concatenate([repeated, shown], -1).reshape(-1, 2 * self._half)


class LearningToRank(Task):
    """Graded relevance; a query is right where its first document has the best grade there is."""

    name = "learning-to-rank"

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    def samples(self, count: int | None = None) -> dict[str, np.ndarray]:
        return {"features": _first(self._ranking.train.features, count)}

    def score(self, model: Model, part: Part) -> Scores:
        ranked: Ranked = getattr(self._ranking, part)
        scores = _run(model, "features", ranked.features)[:, 0]
        rows = (scores, ranked.labels, ranked.queries)
        hits = []
        for query in np.unique(ranked.queries):
            labels = ranked.labels[ranked.queries == query]
            first = scores[ranked.queries == query].argmax()
            hits.append(labels[first] == labels.max())
        return Scores(np.array(hits), pair_counts_by_query(*rows), ndcg_by_query(*rows, 10))


def _flat(scores: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[Q, D] of both → scores, labels and queries, [Q·D]."""
    queries = np.repeat(np.arange(len(scores)), scores.shape[1])
    return scores.reshape(-1), relevant.reshape(-1).astype(np.int64), queries


def make_task(
    name: str, data: Path | None, pieces: WordPieces, query_length: int, half_length: int
) -> Task:
    folder = data_folder(data)
    if name == "learning-to-rank":
        return LearningToRank(Ranking.read(folder))
    banking = Banking.read(folder)
    if name == "bi-encoder":
        return Retrieval(banking, pieces, query_length)
    return Reranking(banking, pieces, half_length)
