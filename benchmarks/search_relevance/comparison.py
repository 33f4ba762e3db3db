"""Measurements as lines of JSON, and the tables made of them and of each query's scores."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1] / "accuracy"))

import json_lines
from relevance import TASKS, Scores
from relevance_methods import Method

from onnx24.metrics import bootstrap

Row = dict[str, Any]
LABELS = ("task", "seed", "method", "precision", "part", "steps", "options")
VARIANT = {"fp16": ("dense", "sparse"), "int8": ("int8", "sparse-int8")}
"""Precision → the ledger's variants, dense and 2:4."""
LIMITS = {"accuracy": 0.3, "ndcg": 0.003}
"""How far below dense fp32 the issue allows 2:4 INT8 to be [points; of 1]."""
RESAMPLES = 1000
HEAD = """# Search relevance before and after 2:4

Made by `OMP_NUM_THREADS=1 python benchmarks/search_relevance/run.py --markdown FILE`;
`benchmarks/search_relevance/README.md` says what the tasks, methods and columns are, and what the
tables show. *Speed* is an **estimate**: the ratio of roofline bounds on an A10 (`onnx24 bench
--estimate`), 64 rows, products with a weight only, dense fp16 = 1. Nothing ran on a GPU.

"""


def key(row: Row) -> str:
    """What a measurement is of."""
    text = json.dumps({name: row[name] for name in LABELS}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Variant:
    """One method in one precision on one task: the rows of its seeds, and their scores."""

    def __init__(self, rows: list[Row], folder: Path) -> None:
        self.rows = sorted(rows, key=lambda row: row["seed"])
        self.scores = [Scores.load(folder / f"{key(row)}.npz") for row in self.rows]
        self.queries = len(self.scores[0])

    @property
    def seeds(self) -> list[int]:
        return [row["seed"] for row in self.rows]

    def metric(self, name: str, chosen: np.ndarray | slice = slice(None)) -> float:
        """Mean over the seeds, on the chosen queries."""
        return float(np.mean([_METRICS[name](scores, chosen) for scores in self.scores]))

    def interval(self, name: str, than: Variant | None = None) -> tuple[float, float]:
        """95 % of the metric, or of what it is above another variant's, over resampled queries; all
        seeds are asked the same queries."""

        def statistic(chosen: np.ndarray) -> float:
            base = than.metric(name, chosen) if than else 0.0
            return self.metric(name, chosen) - base

        return bootstrap(self.queries, statistic, resamples=RESAMPLES)


_METRICS: dict[str, Callable[[Scores, np.ndarray | slice], float]] = {
    "accuracy": Scores.accuracy,
    "pnr": Scores.pnr,
    "ndcg": Scores.ndcg_at_10,
    "prediction": Scores.performance_prediction,
}


def variants(
    out: Path, task: str, chosen: Sequence[Method], steps: int, part: str
) -> dict[tuple[str, str], Variant]:
    """By method and precision, in the methods' order, over the seeds that all of them have; what
    has not been measured at all is left out."""
    rows = {key(row): row for row in json_lines.read(out / "rows.jsonl")}.values()
    found: dict[tuple[str, str], list[Row]] = {}
    for method in (method.for_task(task) for method in chosen):
        for precision in method.precisions:
            wanted = {
                "task": task, "method": method.name, "precision": precision, "part": part,
                "steps": steps if method.train else 0,
                "options": method.options if method.train else {},
            }  # fmt: skip
            mine = [row for row in rows if all(row[name] == v for name, v in wanted.items())]
            if mine:
                found[method.name, precision] = mine
    seeds = [{row["seed"] for row in mine} for mine in found.values()]
    common = set.intersection(*seeds) if seeds else set()
    if not common:
        return {}
    return {
        name: Variant([row for row in mine if row["seed"] in common], out / "scores")
        for name, mine in found.items()
    }


# --- text -----------------------------------------------------------------------------------
def render(out: Path, chosen: Sequence[Method], steps: int, part: str) -> str:
    parts = []
    for task in TASKS:
        found = variants(out, task, chosen, steps, part)
        if ("dense", "fp32") in found:
            parts.append(_task(task, found))
    return "\n".join(parts)


def _task(task: str, found: dict[tuple[str, str], Variant]) -> str:
    dense = found["dense", "fp32"]
    seeds = ", ".join(map(str, dense.seeds))
    lines = [
        f"## {task}",
        "",
        f"{dense.queries} queries, seeds {seeds}; ± is half of the 95 % interval, Δ the difference "
        "from dense fp32 on the same queries, bold where the bar is met.",
        "",
        "| method | precision | accuracy@1 [%] | PNR | NDCG@10 | Δ accuracy [points] | Δ NDCG@10 | "
        "prediction [%] | divergence | KB | speed (estimate) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (method, precision), variant in found.items():
        is_dense = method == "dense"
        cells = [
            method,
            precision if is_dense else f"2:4 {precision}",
            _with_half(variant, "accuracy", 2),
            _with_half(variant, "pnr", 1 if dense.metric("pnr") > 10 else 2),
            _with_half(variant, "ndcg", 4),
            "" if variant is dense else _difference(variant, dense, "accuracy", 2),
            "" if variant is dense else _difference(variant, dense, "ndcg", 4),
            _prediction(variant),
            _divergence(variant),
            f"{np.mean([row['bytes'] for row in variant.rows]) / 1000:.0f}",
            _speed(variant.rows[0], precision, is_dense),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _with_half(variant: Variant, name: str, digits: int) -> str:
    low, high = variant.interval(name)
    return f"{variant.metric(name):.{digits}f} ± {(high - low) / 2:.{digits}f}"


def _difference(variant: Variant, dense: Variant, name: str, digits: int) -> str:
    low, high = variant.interval(name, dense)
    value = variant.metric(name) - dense.metric(name)
    met = value >= -LIMITS[name]
    text = f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if met else text


def _prediction(variant: Variant) -> str:
    return "" if variant.scores[0].confidence is None else f"{variant.metric('prediction'):.1f}"


def _divergence(variant: Variant) -> str:
    """From the dense model on held-out samples before and after training, before rounding."""
    if "divergence" not in variant.rows[0]:
        return ""
    before, after = np.mean([row["divergence"] for row in variant.rows], axis=0)
    return f"{before:.4f} → {after:.4f}"


def _speed(row: Row, precision: str, is_dense: bool) -> str:
    """Of the roofline bounds, dense fp16 being 1."""
    if precision not in VARIANT:
        return ""
    bounds = row["estimate_us"]
    return f"{bounds['dense'] / bounds[VARIANT[precision][not is_dense]]:.2f}"
