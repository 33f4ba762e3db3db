"""Measurements as lines of JSON, and the tables made of them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import json_lines

Row = dict[str, Any]
Column = tuple[str, int]
"""Method and samples; 0 samples where a method takes none."""

BASELINE = "magnitude"
HEAD = """# The accuracy of one-shot 2:4

Made by `python benchmarks/accuracy/run.py`; `benchmarks/accuracy/README.md` says what the models,
data and scores are. A point is one percent of accuracy, label agreement or box F1, and 0.01 nats a
byte for the byte LM. Losses are against the dense model. The number beside a method is that of its
calibration samples.

"""


def key(row: Row) -> tuple:
    """What makes two measurements the same."""
    return tuple(row[name] for name in ("model", "method", "pipeline", "samples", "seed"))


def read(path: Path) -> list[Row]:
    """All measurements; of several with the same key the last."""
    return list({key(row): row for row in json_lines.read(path)}.values())


class Study:
    """Measurements by model and column, averaged over seeds."""

    def __init__(self, rows: list[Row]) -> None:
        cells: dict[tuple[str, Column], list[Row]] = defaultdict(list)
        for row in rows:
            cells[row["model"], (row["method"], row["samples"])].append(row)
        self._cells = cells
        self.models = list(dict.fromkeys(row["model"] for row in rows))
        self.columns = list(dict.fromkeys((row["method"], row["samples"]) for row in rows))
        self.columns.sort(key=lambda column: column[1] > 0)  # what needs no data comes first
        self.dense = {row["model"]: (row["dense"], row["unit"]) for row in rows}

    def get(self, model: str, column: Column, name: str) -> float | None:
        rows = self._cells.get((model, column))
        return mean(row[name] for row in rows) if rows else None

    def share(self, model: str, column: Column) -> float | None:
        """The loss over the baseline's on the same model."""
        loss, base = self.get(model, column, "loss"), self.get(model, (BASELINE, 0), "loss")
        return None if loss is None or base is None or base <= 0 else loss / base

    def common(self, column: Column) -> list[str]:
        """Models measured both by the baseline and in this column."""
        return [m for m in self.models if self.share(m, column) is not None]

    def mean_loss(self, column: Column, models: list[str]) -> float:
        return mean(self.get(m, column, "loss") or 0.0 for m in models) if models else math.nan

    def share_of_means(self, column: Column) -> float:
        models = self.common(column)
        base = self.mean_loss((BASELINE, 0), models)
        return self.mean_loss(column, models) / base if models else math.nan


def _title(column: Column) -> str:
    return f"{column[0]} {column[1]}" if column[1] else column[0]


def _text(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def render(rows: list[Row]) -> str:
    """All tables, as markdown."""
    study = Study(rows)
    head = ["model", "dense", *map(_title, study.columns)]

    def body(name: str, form: str) -> list[list[str]]:
        return [
            [m, f"{study.dense[m][0]:.4g}", *(_text(study.get(m, c, name), form)
             for c in study.columns)]
            for m in study.models
        ]  # fmt: skip

    def footer(title: str, values: list[float], form: str) -> list[str]:
        return [title, "", *(_text(value, form) for value in values)]

    columns = study.columns
    losses = body("loss", ".2f")
    losses.append(footer("**mean**", [study.mean_loss(c, study.common(c)) for c in columns], ".2f"))
    shares = [[m, "", *(_text(study.share(m, c), ".2f") for c in columns)] for m in study.models]
    ratios = {c: [study.share(m, c) or 0.0 for m in study.common(c)] for c in columns}
    shares += [
        footer("**mean loss / magnitude's**", [study.share_of_means(c) for c in columns], ".3f"),
        footer("mean of the shares", [_mean(ratios[c]) for c in columns], ".3f"),
        footer("worst share", [max(ratios[c], default=math.nan) for c in columns], ".2f"),
        footer("models", [float(len(ratios[c])) for c in columns], ".0f"),
    ]
    units = [[m, *map(str, (f"{value:.5g}", unit))] for m, (value, unit) in study.dense.items()]
    parts = [
        ("Dense scores", _table(["model", "score", "unit"], units)),
        ("Loss in points", _table(head, losses)),
        ("Loss as a share of magnitude's on the same model", _table(head, shares)),
        ("Score", _table(head, body("score", ".2f"))),
        ("Agreement with the dense model, %", _table(head, body("agreement", ".2f"))),
        ("Relative output error", _table(head, body("output_error", ".3f"))),
        ("Seconds in the passes", _table(head, body("seconds", ".1f"))),
        ("Bars", bars(study)),
    ]
    return "\n".join(f"## {title}\n\n{text}" for title, text in parts)


def _mean(values: list[float]) -> float:
    return mean(values) if values else math.nan


def bars(study: Study) -> str:
    """The project's own bars, for each column of calibrated methods."""
    lines = []
    obs = {c[1]: c for c in study.columns if c[0] == "obs"}
    for column in study.columns:
        if column[0] in (BASELINE, "obs", "wanda", "ria") or not study.common(column):
            continue
        models = study.common(column)
        limit = 0.20 if column[1] < 1000 else 0.15
        share = study.share_of_means(column)
        over = [m for m in models if (study.share(m, column) or 0) > 1 / 3]
        verdict = [f"mean loss {share:.1%} of magnitude's ({_met(share <= limit)}, {limit:.0%})"]
        verdict.append(
            f"above a third of magnitude's: {', '.join(over) or 'none'} ({_met(not over)})"
        )
        if column[1] in obs:
            both = [m for m in models if study.share(m, obs[column[1]]) is not None]
            ratio = study.mean_loss(column, both) / study.mean_loss(obs[column[1]], both)
            verdict.append(f"{ratio:.2f} of obs's loss ({_met(ratio < 0.5)}, 0.5)")
        lines.append(f"- {_title(column)}, {len(models)} models: " + "; ".join(verdict) + ".")
    return "\n".join(lines) + "\n" if lines else "Nothing but magnitude is measured yet.\n"


def _met(condition: bool) -> str:
    return "met" if condition else "**missed**"
