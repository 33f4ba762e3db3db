"""Measuring engines against each other: in turns, several rounds, medians with their spread.

This module has never run on a GPU: its statistics and its order of measurement are tested on
synthetic times, and its programs on stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx24.ledger.statistics import Gain, Summary, gain
from onnx24.lines import Block, block
from onnx24.report.jsontext import plain
from onnx24.report.table import table

Run = Callable[[str, Path], Sequence[float]]
"""(variant, engine) → the times of several runs [ms]."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The engines of one batch size. `rounds`: variant → one median a round [ms], in order."""

    batch: str
    rounds: Mapping[str, tuple[float, ...]]
    base: str = "dense"

    def summary(self, variant: str) -> Summary:
        return Summary.of(self.rounds[variant])

    def gain(self, variant: str) -> Gain:
        """Against the base, round by round."""
        return gain(self.rounds[self.base], self.rounds[variant])

    def to_json(self) -> dict[str, Any]:
        others = [v for v in self.rounds if v != self.base]
        return plain(
            {
                "batch": self.batch,
                "times": {v: self.summary(v).to_json() for v in self.rounds},
                "gains": {v: self.gain(v).to_json() for v in others},
                "rounds_ms": {v: list(times) for v, times in self.rounds.items()},
            }
        )


def in_turns(run: Run, engines: Mapping[str, Path], *, rounds: int, batch: str) -> Measurement:
    """Each round measures every engine once, in one order and then in the other, so that a clock
    that drifts within a round is even over two. A first round warms up and is not counted.

    Raises: what `run` raises; ValueError for times that are none.
    """
    order = list(engines)
    taken: dict[str, list[float]] = {variant: [] for variant in order}
    for number in range(rounds + 1):
        for variant in order if number % 2 == 0 else reversed(order):
            times = Summary.of(run(variant, engines[variant]))
            if number:
                taken[variant].append(times.median)
    return Measurement(batch=batch, rounds={v: tuple(times) for v, times in taken.items()})


def from_interleaved(times: Mapping[str, Sequence[Sequence[float]]], *, batch: str) -> Measurement:
    """From a program that took the turns itself: variant → rounds → times [ms]."""
    rounds = {v: tuple(float(np.median(r)) for r in taken) for v, taken in times.items()}
    return Measurement(batch=batch, rounds=rounds)


def render_measurements(
    title: str, found: Sequence[Measurement], skipped: Mapping[str, str]
) -> Block:
    """A table for each batch; a gain that the noise could have made has no number."""
    lines = [title]
    for item in found:
        rows = []
        for variant in item.rounds:
            summary = item.summary(variant)
            rows.append(
                (
                    variant,
                    f"{summary.median:.4g}",
                    f"{summary.low:.4g}–{summary.high:.4g}",
                    str(summary.count),
                    "–" if variant == item.base else str(item.gain(variant)),
                )
            )
        header = ("variant", "median ms", "10–90 %", "rounds", f"gain over {item.base}")
        lines += [f"  batch {item.batch}", table(header, rows, right=(1, 3))]
    lines += [f"  {variant} was not measured: {why}" for variant, why in skipped.items()]
    return block(lines)
