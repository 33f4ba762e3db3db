"""The tables of the vision study, from its lines of JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
RESAMPLES = 10_000
BAR = 0.3
"""Points that 2:4 INT8 may lose against dense fp32 after recovery."""
OURS = ("one-shot + recover", "one-shot + sparse-qat")
ORDER = (
    ("dense", "fp32"), ("dense", "fp16"), ("dense", "int8"),
    ("magnitude", "fp16"), ("basic", "fp16"), ("progressive", "fp16"), ("one-shot", "fp16"),
    ("one-shot + recover", "fp16"),
    ("magnitude", "int8"), ("basic", "int8"), ("progressive", "int8"), ("sparse-qat", "int8"),
    ("one-shot", "int8"), ("one-shot + recover", "int8"), ("one-shot + sparse-qat", "int8"),
)  # fmt: skip


def packed(right: NDArray[np.bool_]) -> str:
    """One bit an image, in hex."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, images: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=images).astype(bool)


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def signed(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap(values: NDArray[np.floating], seed: int = 0) -> Interval:
    """The mean of one value an image, with images drawn anew. values: [images], of few levels, so
    that how often each is drawn is enough: what `onnx24.metrics.bootstrap` draws image by image."""
    levels, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), RESAMPLES)
    low, high = np.percentile(draws @ levels / len(values), [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))


class Study:
    """Measurements of one model: [seeds, images] of what each method gets right."""

    def __init__(self, model: str, rows: list[Row]) -> None:
        self.model = model
        self.cells: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            if row["kind"] == "result" and row["model"] == model:
                self.cells.setdefault((row["method"], row["end"]), []).append(row)

    def right(self, cell: tuple[str, str]) -> NDArray[np.float64]:
        """Each image's share of seeds that get it right [points]."""
        rows = self.cells[cell]
        return 100 * np.mean([unpacked(r["right"], r["images"]) for r in rows], axis=0)

    def score(self, cell: tuple[str, str]) -> Interval:
        return bootstrap(self.right(cell))

    def gain(self, cell: tuple[str, str], over: tuple[str, str]) -> Interval:
        """The paired difference [points]."""
        return bootstrap(self.right(cell) - self.right(over))

    def by_seed(self, cell: tuple[str, str]) -> list[float]:
        rows = self.cells[cell]
        return [100 * unpacked(r["right"], r["images"]).mean() for r in rows]

    def mean(self, cell: tuple[str, str], name: str) -> float:
        values = [row[name] for row in self.cells[cell] if name in row]
        return float(np.mean(values)) if values else math.nan


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _model_table(study: Study) -> str:
    base = study.mean(("dense", "fp16"), "us")
    rows = []
    for cell in ORDER:
        after = study.mean(cell, "after")
        rate = study.mean(cell, "rate")
        rows.append(
            [
                cell[0],
                cell[1],
                str(study.score(cell)),
                study.gain(cell, ("dense", "fp32")).signed,
                " ".join(f"{s:.2f}" for s in study.by_seed(cell)),
                f"{study.mean(cell, 'bytes') / 1024:.0f}",
                "" if cell[1] == "fp32" else f"{base / study.mean(cell, 'us'):.2f}",
                f"{study.mean(cell, 'sparse'):.0f} / {study.mean(cell, 'int8'):.0f}",
                "" if math.isnan(rate) else f"{rate:.1e}",
                "" if math.isnan(after) else f"{after:.5f}",
            ]
        )
    head = ["method", "type", "accuracy %", "points to dense fp32", "seeds", "KiB", "speed",
            "2:4 / INT8", "rate", "divergence"]  # fmt: skip
    return _table(head, rows)


def _summary(studies: list[Study]) -> str:
    rows = []
    for cell in ORDER[1:]:
        gains = [study.gain(cell, ("dense", "fp32")).mean for study in studies]
        rows.append(
            [
                *cell,
                *(f"{value:+.2f}" for value in gains),
                f"{np.mean(gains):+.2f}",
                f"{np.min(gains):+.2f}",
            ]
        )
    head = ["method", "type", *(study.model for study in studies), "mean", "worst"]
    return _table(head, rows)


def _bars(studies: list[Study]) -> str:
    lines = []
    for name in OURS:
        short = []
        for study in studies:
            gain = study.gain((name, "int8"), ("dense", "fp32"))
            if gain.mean < -BAR:
                short.append(f"{study.model} {gain.signed}")
        verdict = f"**missed** on {', '.join(short)}" if short else "met on all"
        lines.append(f"- *{name}*, int8, within {BAR} points of dense fp32: {verdict}.")
    for end in ("fp16", "int8"):
        for other in ("basic", "progressive"):
            lines.append(f"- {_compared(studies, OURS[0], other, end)}")
    for end in ("fp16", "int8"):
        lines.append(f"- {_compared(studies, 'progressive', 'basic', end)}")
    lines.append(f"- {_compared(studies, 'sparse-qat', 'progressive', 'int8')}")
    lines.append(f"- {_compared(studies, OURS[1], OURS[0], 'int8')}")
    return "\n".join(lines) + "\n"


def _compared(studies: list[Study], ours: str, other: str, end: str) -> str:
    """Wins and losses: whether the interval of the paired difference excludes 0."""
    words = []
    better = worse = 0
    for study in studies:
        gain = study.gain((ours, end), (other, end))
        better += gain.low > 0
        worse += gain.high < 0
        words.append(f"{study.model} {gain.signed}")
    level = len(studies) - better - worse
    return (
        f"*{ours}* against *{other}*, {end}: better on {better}, worse on {worse}, not told apart "
        f"on {level}: {'; '.join(words)}."
    )


def _trials(rows: list[Row]) -> str:
    trials = [row for row in rows if row["kind"] == "trial"]
    rates = sorted({row["rate"] for row in trials})
    body = []
    pairs = dict.fromkeys((row["model"], row["method"]) for row in trials)
    for model, method in sorted(pairs, key=lambda pair: pair[0]):
        mine = {r["rate"]: r for r in trials if (r["model"], r["method"]) == (model, method)}
        before = next(iter(mine.values()))["before"]
        best = min(row["after"] for row in mine.values())
        cells = []
        for rate in rates:
            after = mine[rate]["after"] if rate in mine else math.nan
            text = "" if math.isnan(after) else f"{after:.5f}"
            text = f"**{text}**" if after == best < before else text
            cells.append(text if rate else f"{text} ({mine[rate]['used']:.1g})")
        body.append([model, method, f"{before:.5f}", *cells])
    names = [f"{rate:g}" if rate else "the recipe's own" for rate in rates]
    return _table(["model", "method", "start", *names], body)


def render(rows: list[Row]) -> str:
    """All tables, as markdown."""
    models = sorted({row["model"] for row in rows if row["kind"] == "result"})
    begun = [Study(model, rows) for model in models]
    studies = [s for s in begun if all(cell in s.cells for cell in ORDER)]
    if not studies:
        return "No model is measured by every method yet.\n"
    steps = ", ".join(sorted({str(row["steps"]) for row in rows}))
    parts = [
        HEAD.format(steps=steps),
        f"## Points to dense fp32, mean of the seeds\n\n{_summary(studies)}",
        f"## Bars\n\n{_bars(studies)}",
    ]
    for study in studies:
        images = next(iter(study.cells.values()))[0]["images"]
        parts.append(f"## {study.model}, {images} test images\n\n{_model_table(study)}")
    parts.append(
        "## Learning rates tried\n\nDivergence from the dense model on held-out unlabelled samples "
        f"of the first seed, best\nweights of each run.\n\n{_trials(rows)}"
    )
    return "\n".join(parts)


HEAD = """# 2:4 and INT8 on image classifiers

Made by `python benchmarks/vision/vision_study.py`; `benchmarks/vision/README.md` says what the
models, data and methods are, and what was learnt. What trains takes {steps} steps of 32 images. No
label is used anywhere but in the scores.

Accuracy [%] with the 95 % interval of a bootstrap over test images, of the mean over seeds;
*points to dense fp32* is the paired difference on the same images. *speed*: dense fp16's roofline
bound over this model's, all products with a weight at 64 images on an A10: an **estimate** from
data-sheet peaks, not a measurement (no GPU was at hand). *2:4 / INT8*: layers that are. *rate*:
the learning rate that was chosen on held-out unlabelled samples. *divergence*: from the dense
model, on them.
A file holds the zeros of 2:4 weights, so it is no smaller; an engine stores 9/16 (fp16) or 10/16
(INT8) of the dense bytes.
"""
