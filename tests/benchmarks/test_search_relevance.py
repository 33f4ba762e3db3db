"""The search-relevance study: its parts, and all of it on a small made-up corpus."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

FOLDERS = ("search_relevance",)
THINGS = ("card", "transfer", "pin", "rate", "refund")
ASKED = ("where is my {}", "my {} did not work", "change the {} please", "why was a {} made", "{}?")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five intents with 60 queries each, and 25 ranked queries of ten rows."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / "banking77").mkdir(parents=True)
    (folder / "lightgbm_rank").mkdir()
    for name, count in (("train", 60), ("test", 12)):
        with (folder / "banking77" / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "category"])
            for i in range(count * len(THINGS)):
                thing = THINGS[i % len(THINGS)]
                text = ASKED[rng.integers(len(ASKED))].format(thing)
                writer.writerow([f"{text} {rng.integers(100)}", thing])
        rows, sizes = [], []
        for _ in range(20 if name == "train" else 5):
            x = rng.random((10, 32))
            labels = np.digitize(x[:, 0] + x[:, 1], [0.7, 1.0, 1.4])
            rows += [
                f"{y} " + " ".join(f"{i + 1}:{v:.2f}" for i, v in enumerate(row))
                for y, row in zip(labels, x, strict=True)
            ]
            sizes.append("10")
        (folder / "lightgbm_rank" / f"rank.{name}").write_text("\n".join(rows) + "\n")
        (folder / "lightgbm_rank" / f"rank.{name}.query").write_text("\n".join(sizes) + "\n")
    return folder


def test_word_pieces(module, tmp_path: Path) -> None:
    pieces = module("wordpieces").WordPieces.learn(["low lower lowest low"] * 3, 16)
    assert "low_" in pieces.pieces and len(pieces) <= 16
    ids = pieces.ids(["low", "lower low", "q"], 4)
    assert ids.shape == (3, 4) and ids[0].tolist() == [pieces.pieces.index("low_"), 0, 0, 0]
    assert ids[2, 0] == 1, "an unknown character"
    pieces.save(tmp_path / "pieces.json")
    again = module("wordpieces").WordPieces.load(tmp_path / "pieces.json")
    assert np.array_equal(again.ids(["lowest lower"], 8), pieces.ids(["lowest lower"], 8))


def test_the_corpus_is_divided(module, data: Path) -> None:
    corpora = module("corpora")
    banking = corpora.Banking.read(data)
    assert (len(banking.train), len(banking.validation), len(banking.test)) == (270, 30, 60)
    assert Counter(banking.documents.intents.tolist()).most_common()[0][1] == 20
    ranking = corpora.Ranking.read(data)
    assert ranking.train.features.shape == (160, 32) and len(ranking.validation.labels) == 40


def test_lexical_candidates_hold_relevant_ones(module, data: Path) -> None:
    corpora = module("corpora")
    banking = corpora.Banking.read(data)
    pieces = module("wordpieces").WordPieces.learn(banking.train.texts, 200)
    lexical = corpora.Lexical(pieces.ids(banking.documents.texts, 16), len(pieces))
    itself = lexical.best(pieces.ids(banking.documents.texts, 16), 1)[:, 0]
    same = [
        banking.documents.texts[i] == t
        for i, t in zip(itself, banking.documents.texts, strict=False)
    ]
    assert np.mean(same) > 0.9
    tokens = pieces.ids(banking.test.texts, 16)
    found = corpora.candidates(
        lexical, tokens, banking.test, banking.documents, found=3, relevant=2
    )
    assert found.shape == (60, 5)
    assert all(len(set(row)) == 5 for row in found)
    right = banking.documents.intents[found[:, 3:]] == banking.test.intents[:, None]
    assert right.all()


def test_intervals_of_paired_differences(module, tmp_path: Path) -> None:
    """The same system in both places differs by 0; one that is right where the other is wrong on
    the first tenth of the queries is 10 points better."""
    comparison, scores = module("comparison"), module("relevance").Scores
    hits = np.arange(200) >= 20
    pairs = np.stack([np.full(200, 9), np.ones(200, int)], 1)
    ndcg = np.linspace(0, 1, 200)
    found = []
    for seed, given in enumerate((hits, np.ones(200, bool))):
        row = {
            "task": "t", "seed": seed, "method": "m", "precision": "fp32", "part": "test",
            "steps": 0, "options": {},
        }  # fmt: skip
        scores(given, pairs, ndcg).save(tmp_path / f"{comparison.key(row)}.npz")
        found.append(comparison.Variant([row], tmp_path))
    worse, better = found
    assert worse.metric("accuracy") == 90 and worse.metric("pnr") == 9
    assert worse.interval("accuracy", worse) == (0, 0)
    low, high = better.interval("accuracy", worse)
    assert 5 < low < 10 < high < 15


def test_all_of_it(module, data: Path, tmp_path: Path) -> None:
    """Every task and method end to end; a second run measures nothing anew."""
    run, training, methods = module("run"), module("training"), module("relevance_methods")
    comparison, relevance = module("comparison"), module("relevance")
    json_lines = module("json_lines")
    settings = training.Settings(
        vocabulary=200, width=32, heads=2, depth=1, query_length=12, half_length=10,
        bi_steps=20, cross_steps=4, rank_steps=40, hidden=(32, 32),
    )  # fmt: skip
    study = run.Study(tmp_path / "out", data, settings, steps=4, part="test")
    study.run(list(relevance.TASKS), list(methods.METHODS), [0])
    rows = json_lines.read(study.rows)
    assert len(rows) == 3 * sum(len(method.precisions) for method in methods.METHODS)
    study.run(list(relevance.TASKS), list(methods.METHODS), [0])
    assert json_lines.read(study.rows) == rows
    by = {(row["task"], row["method"], row["precision"]): row for row in rows}
    for task in relevance.TASKS:
        dense = by[task, "dense", "fp32"]
        assert by[task, "one-shot", "fp16"]["bytes"] < 0.7 * dense["bytes"]
        assert abs(by[task, "dense", "fp16"]["ndcg"] - dense["ndcg"]) < 0.02
    assert by["bi-encoder", "dense", "fp32"]["accuracy"] > 60
    text = comparison.render(study.out, methods.METHODS, 4, "test")
    assert text.count("| one-shot + recover | 2:4 int8 |") == 3
