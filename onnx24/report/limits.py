"""Limits on how far a compiled model may be from the original: `sqnr=20,top1=0.01`."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import InputError
from onnx24.runtime.difference import OutputDiff


@dataclass(frozen=True)
class Metric:
    """`field` of an OutputDiff; `at_least`: larger is better; `low` and `high` bound a sensible
    limit."""

    field: str
    at_least: bool
    low: float
    high: float
    meaning: str


METRICS = {
    "max-abs": Metric(
        "max_abs", False, 0, math.inf, "largest absolute difference of any element, at most"
    ),
    "rel-l2": Metric(
        "rel_l2", False, 0, math.inf, "‖original − result‖ / ‖original‖ over all samples, at most"
    ),
    "cosine": Metric("cosine", True, -1, 1, "cosine of original and result, at least"),
    "sqnr": Metric(
        "sqnr_db", True, -math.inf, math.inf, "signal to quantization noise in dB, at least"
    ),
    "top1": Metric(
        "top1_agreement", True, 0, 1, "share of samples whose largest class changes, at most"
    ),
}

SCORED = {
    "accuracy": Metric(
        "accuracy_drop", False, 0, 1, "fall of the share of samples that get their label, at most"
    ),
    "metric": Metric(
        "metric_drop", False, 0, math.inf, "fall of the metric function's value, at most"
    ),
}
"""What needs labels or a function besides the outputs of two models (driver.scoring)."""


@dataclass(frozen=True)
class Limit:
    """`bound` as the user gave it; for top1 it is the share that may change. output: the output, or
    inner value, that it is for; every output where ""."""

    metric: str
    bound: float
    output: str = ""

    def __str__(self) -> str:
        return f"{self.metric}={self.bound:g}" + (f"@{self.output}" if self.output else "")

    @property
    def threshold(self) -> float:
        """What the measured value is compared with."""
        return 1 - self.bound if self.metric == "top1" else self.bound

    def is_for(self, name: str, outputs: Sequence[str]) -> bool:
        """Whether it judges the value `name` of a model of these outputs."""
        wanted = (self.output,) if self.output else outputs
        return any(name == one or name.startswith(f"{one}[") for one in wanted)


def metric_of(limit: Limit) -> Metric:
    return METRICS.get(limit.metric) or SCORED[limit.metric]


@dataclass(frozen=True)
class LimitResult:
    """The worst output under one limit. `value` is None where no output has the metric. compared,
    runs: in how many of how many runs that output was compared in full; unlike: runs whose shapes
    differ; gap: why not in all."""

    limit: Limit
    output: str
    value: float | None
    met: bool
    compared: int = 0
    runs: int = 0
    unlike: int = 0
    gap: str = ""

    @property
    def required(self) -> str:
        """`≥ 20`, `≤ 0.1`: what the measured value must be."""
        relation = "≥" if metric_of(self.limit).at_least else "≤"
        return f"{relation} {self.limit.threshold:g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "limit": str(self.limit),
            "metric": metric_of(self.limit).field,
            "relation": "at least" if metric_of(self.limit).at_least else "at most",
            "threshold": self.limit.threshold,
            "output": self.output,
            "value": self.value,
            "met": self.met,
            "compared": self.compared,
            "runs": self.runs,
        }

    def unmet(self) -> Diagnostic:
        """The diagnostic O24-600 for a limit that is not met."""
        metric = metric_of(self.limit)
        relation = "at least" if metric.at_least else "at most"
        hint = "raise the limit, calibrate on more samples, or exclude sensitive layers"
        if self.value is None:
            message = f"--max-drop {self.limit}: no output has a {metric.field}"
        else:
            message = (
                f"--max-drop {self.limit}: {metric.field} is {self.value:.6g}, "
                f"expected {relation} {self.limit.threshold:g}"
            )
        if self.gap:
            message += f"; {self.gap}"
        if self.unlike:
            hint = (
                f"name the output to judge, or a value before the operator that selects: "
                f"{self.limit.metric}={self.limit.bound:g}@NAME"
            )
        return diagnostic(
            "O24-600",
            message,
            severity=Severity.ERROR,
            tensor=self.output,
            facts=self.to_json(),
            hint=hint,
        )


_BETWEEN = re.compile(r",(?=[^,@=]*=|\s*$)")
"""A comma between limits; others belong to the name of an output."""


def parse_limits(texts: Iterable[str], *, scored: bool = False) -> list[Limit]:
    """Limits from `METRIC=NUMBER` and `METRIC=NUMBER@OUTPUT`, several joined by commas. scored:
    those of SCORED too.

    Raises: InputError O24-043, with the nearest name.
    """
    found: dict[tuple[str, str], Limit] = {}
    known = {**METRICS, **(SCORED if scored else {})}
    for text in texts:
        for part in filter(None, (piece.strip(" ,") for piece in _BETWEEN.split(text))):
            name, equals, rest = (piece.strip() for piece in part.partition("="))
            number, _, output = (piece.strip() for piece in rest.partition("@"))
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise _bad(f"there is no metric {name!r}", f"{hint}it is one of {', '.join(known)}")
            if (name, output) in found:
                raise _bad(f"{name!r} is given twice", "keep one of them, or name outputs: @OUTPUT")
            if not equals:
                raise _bad(f"{name!r} has no value", f"write {name}=NUMBER")
            found[name, output] = Limit(name, _number(name, known[name], number), output)
    return list(found.values())


def _number(name: str, metric: Metric, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not metric.low <= value <= metric.high:
        allowed = "a number"
        if math.isfinite(metric.low):
            upper = f" and at most {metric.high:g}" if math.isfinite(metric.high) else ""
            allowed = f"a number of at least {metric.low:g}{upper}"
        raise _bad(f"{name}: expected {allowed}, got {text!r}", f"{name}: {metric.meaning}")
    return value


def _bad(message: str, hint: str) -> InputError:
    return InputError.of("O24-043", f"--max-drop: {message}", hint=hint)


def named_values(limits: Iterable[Limit]) -> list[str]:
    """The outputs and inner values that limits name."""
    return list(dict.fromkeys(limit.output for limit in limits if limit.output))


def check_limits(
    limits: Sequence[Limit], outputs: Sequence[OutputDiff], names: Sequence[str] | None = None
) -> list[LimitResult]:
    """Each limit against its worst output. A value that is not a number meets nothing, and a limit
    is met by values that were compared only: `OutputDiff.is_complete`, but that the share of
    equal classes counts the others as changed.

    Those of SCORED are not looked at. names: of the model's outputs, which a limit that names none
    is for; all where None.
    """
    results = []
    for limit in limits:
        if limit.metric in SCORED:
            continue
        metric = metric_of(limit)
        every = [out.name for out in outputs] if names is None else names
        measured = [
            (float(value), out)
            for out in outputs
            if limit.is_for(out.name, every) and (value := getattr(out, metric.field)) is not None
        ]
        if not measured:
            results.append(LimitResult(limit, limit.output, None, False))
            continue
        value, worst = min(measured, key=lambda pair: _merit(limit, *pair))
        # A share counted in samples must meet a limit of exactly that share.
        slack = 1e-12 * max(1.0, abs(limit.threshold))
        sign = 1 if metric.at_least else -1
        met = _merit(limit, value, worst) >= sign * limit.threshold - slack
        results.append(
            LimitResult(
                limit,
                worst.name,
                value,
                met,
                compared=worst.compared,
                runs=worst.runs,
                unlike=worst.unlike,
                gap=worst.gap,
            )
        )
    return results


def _merit(limit: Limit, value: float, out: OutputDiff) -> float:
    """Larger is better; minus infinity for what meets nothing."""
    told = limit.metric == "top1" or out.is_complete
    if math.isnan(value) or not told:
        return -math.inf
    return value if metric_of(limit).at_least else -value
