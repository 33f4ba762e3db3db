"""The study's data: BANKING77's queries, and the ranking sample of LightGBM.

Both come as plain files, `banking77/train.csv`, `banking77/test.csv` and
`lightgbm_rank/rank.{train,test}[.query]`, in one folder. README.md says where to get them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VALIDATION = 10
"""Every so manieth training query of BANKING77 is kept for choosing options."""
RANK_VALIDATION = 5
"""The same for the queries of the ranking sample."""
DOCUMENTS_PER_INTENT = 20


def data_folder(given: Path | None) -> Path:
    """Raises: SystemExit where the data are missing."""
    shared = Path(os.environ.get("ONNX24_SHARED", ROOT.parent / "shared"))
    folder = given or shared / "data" / "eval"
    for name in ("banking77/train.csv", "banking77/test.csv", "lightgbm_rank/rank.train"):
        if not (folder / name).is_file():
            raise SystemExit(f"{folder / name} is missing; README.md says where to get it")
    return folder


@dataclass(frozen=True)
class Queries:
    """texts: [N]; intents: [N] of numbers that index the corpus's `intents`."""

    texts: list[str]
    intents: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, places: np.ndarray | Sequence[int]) -> Queries:
        chosen = np.asarray(places, np.int64)
        return Queries([self.texts[i] for i in chosen], self.intents[chosen])


@dataclass(frozen=True)
class Banking:
    """train, validation: a division of the training file; test: the test file. documents: what is
    searched, the first `DOCUMENTS_PER_INTENT` training queries of each intent."""

    intents: list[str]
    train: Queries
    validation: Queries
    test: Queries
    documents: Queries

    @classmethod
    def read(cls, folder: Path) -> Banking:
        rows, test = (_rows(folder / "banking77" / f"{name}.csv") for name in ("train", "test"))
        intents = sorted({intent for _, intent in rows})
        numbers = {intent: i for i, intent in enumerate(intents)}

        def queries(given: list[tuple[str, str]]) -> Queries:
            return Queries([t for t, _ in given], np.array([numbers[i] for _, i in given]))

        every = queries(rows)
        apart = np.arange(len(every)) % VALIDATION == VALIDATION - 1
        train = every.take(np.flatnonzero(~apart))
        first = [
            np.flatnonzero(train.intents == i)[:DOCUMENTS_PER_INTENT] for i in range(len(intents))
        ]
        return cls(
            intents,
            train,
            every.take(np.flatnonzero(apart)),
            queries(test),
            train.take(np.concatenate(first)),
        )


def _rows(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


@dataclass(frozen=True)
class Ranked:
    """Rows of one query stand together. features: [N, F] float32; labels, queries: [N]."""

    features: np.ndarray
    labels: np.ndarray
    queries: np.ndarray

    def where(self, mask: np.ndarray) -> Ranked:
        return Ranked(self.features[mask], self.labels[mask], self.queries[mask])


@dataclass(frozen=True)
class Ranking:
    train: Ranked
    validation: Ranked
    test: Ranked

    @classmethod
    def read(cls, folder: Path) -> Ranking:
        folder = folder / "lightgbm_rank"
        parts = [_light_svm(folder / f"rank.{name}") for name in ("train", "test")]
        width = max(max(max(row, default=0) for row in rows) for _, rows in parts)
        every, test = (
            _ranked(labels, rows, folder / f"rank.{name}.query", width)
            for name, (labels, rows) in zip(("train", "test"), parts, strict=True)
        )
        apart = every.queries % RANK_VALIDATION == RANK_VALIDATION - 1
        return cls(every.where(~apart), every.where(apart), test)


def _light_svm(path: Path) -> tuple[list[int], list[dict[int, float]]]:
    """Labels, and for each row feature number (from 1) → value."""
    labels, rows = [], []
    for line in path.read_text("utf-8").splitlines():
        label, *pairs = line.split()
        labels.append(int(label))
        found = (pair.split(":") for pair in pairs)
        rows.append({int(number): float(value) for number, value in found})
    return labels, rows


def _ranked(labels: list[int], rows: list[dict[int, float]], lengths: Path, width: int) -> Ranked:
    features = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        for number, value in row.items():
            features[i, number - 1] = value
    sizes = [int(line) for line in lengths.read_text("utf-8").split()]
    return Ranked(features, np.array(labels), np.repeat(np.arange(len(sizes)), sizes))


class Lexical:
    """Candidates by the words they share: cosines of tf-idf weights over token ids.

    documents: [D, length] token ids, 0 for padding.
    """

    def __init__(self, documents: np.ndarray, size: int) -> None:
        counts = _counts(documents, size)
        self._idf = np.log((1 + len(counts)) / (1 + (counts > 0).sum(0))).astype(np.float32)
        self._documents = self._weigh(counts)
        self._size = size

    def best(self, queries: np.ndarray, k: int) -> np.ndarray:
        """[Q, k] places of documents, the nearest first; equal ones in their order."""
        found = []
        for start in range(0, len(queries), 512):
            part = self._weigh(_counts(queries[start : start + 512], self._size))
            found.append(np.argsort(-(part @ self._documents.T), axis=1, kind="stable")[:, :k])
        return np.concatenate(found)

    def _weigh(self, counts: np.ndarray) -> np.ndarray:
        weighed = np.log1p(counts) * self._idf
        norms = np.linalg.norm(weighed, axis=1, keepdims=True)
        return weighed / np.maximum(norms, 1e-9)


def _counts(rows: np.ndarray, size: int) -> np.ndarray:
    counts = np.zeros((len(rows), size), np.float32)
    np.add.at(counts, (np.arange(len(rows))[:, None], rows), 1)
    counts[:, 0] = 0
    return counts


def candidates(
    lexical: Lexical,
    tokens: np.ndarray,
    queries: Queries,
    documents: Queries,
    *,
    found: int,
    relevant: int,
    seed: int = 0,
) -> np.ndarray:
    """What is re-ranked for each query, [Q, found + relevant] places of documents: the lexically
    nearest ones, and some of the right intent that are not among them."""
    nearest = lexical.best(tokens, found)
    rng = np.random.default_rng(seed)
    rows = []
    for near, intent in zip(nearest, queries.intents, strict=True):
        others = np.setdiff1d(np.flatnonzero(documents.intents == intent), near)
        rows.append(np.concatenate([near, rng.choice(others, relevant, replace=False)]))
    return np.array(rows)
