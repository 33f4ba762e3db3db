"""Limits on how far a compiled model may be from the original: `sqnr=20,top1=0.01`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import InputError


class Diff(Protocol):
    """One output of a numeric comparison, as `runtime.compare` measures it."""

    @property
    def name(self) -> str: ...
    @property
    def max_abs(self) -> float | None: ...
    @property
    def rel_l2(self) -> float | None: ...
    @property
    def cosine(self) -> float | None: ...
    @property
    def sqnr_db(self) -> float | None: ...
    @property
    def top1_agreement(self) -> float | None: ...


@dataclass(frozen=True)
class Metric:
    """`field` of a Diff; `at_least`: larger is better; `low` and `high` bound a sensible limit."""

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


@dataclass(frozen=True)
class Limit:
    """`bound` as the user gave it; for top1 it is the share that may change."""

    metric: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}={self.bound:g}"

    @property
    def threshold(self) -> float:
        """What the measured value is compared with."""
        return 1 - self.bound if self.metric == "top1" else self.bound


@dataclass(frozen=True)
class LimitResult:
    """The worst output under one limit. `value` is None where no output has the metric."""

    limit: Limit
    output: str
    value: float | None
    met: bool

    @property
    def required(self) -> str:
        """`≥ 20`, `≤ 0.1`: what the measured value must be."""
        relation = "≥" if METRICS[self.limit.metric].at_least else "≤"
        return f"{relation} {self.limit.threshold:g}"

    def to_json(self) -> dict[str, Any]:
        return {
            "limit": str(self.limit),
            "metric": METRICS[self.limit.metric].field,
            "relation": "at least" if METRICS[self.limit.metric].at_least else "at most",
            "threshold": self.limit.threshold,
            "output": self.output,
            "value": self.value,
            "met": self.met,
        }

    def unmet(self) -> Diagnostic:
        """The diagnostic O24-600 for a limit that is not met."""
        metric = METRICS[self.limit.metric]
        relation = "at least" if metric.at_least else "at most"
        if self.value is None:
            message = f"--max-drop {self.limit}: no output has a {metric.field}"
        else:
            message = (
                f"--max-drop {self.limit}: {metric.field} is {self.value:.6g}, "
                f"expected {relation} {self.limit.threshold:g}"
            )
        return diagnostic(
            "O24-600",
            message,
            severity=Severity.ERROR,
            tensor=self.output,
            facts=self.to_json(),
            hint="raise the limit, calibrate on more samples, or exclude sensitive layers",
        )


def parse_limits(texts: Iterable[str]) -> list[Limit]:
    """Limits from `NAME=NUMBER`, several joined by commas.

    Raises: InputError O24-043, with the nearest name.
    """
    found: dict[str, Limit] = {}
    for text in texts:
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if name not in METRICS:
                near = difflib.get_close_matches(name, METRICS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise _bad(f"there is no metric {name!r}", f"{hint}it is one of {_names()}")
            if name in found:
                raise _bad(f"{name!r} is given twice", "keep one of them")
            if not equals:
                raise _bad(f"{name!r} has no value", f"write {name}=NUMBER")
            found[name] = Limit(name, _number(name, number))
    return list(found.values())


def _number(name: str, text: str) -> float:
    metric = METRICS[name]
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


def _names() -> str:
    return ", ".join(METRICS)


def check_limits(limits: Sequence[Limit], outputs: Sequence[Diff]) -> list[LimitResult]:
    """Each limit against its worst output; a value that is not a number meets nothing."""
    results = []
    for limit in limits:
        metric = METRICS[limit.metric]
        measured = [
            (float(value), diff.name)
            for diff in outputs
            if (value := getattr(diff, metric.field)) is not None
        ]
        if not measured:
            results.append(LimitResult(limit, "", None, False))
            continue
        sign = 1 if metric.at_least else -1
        value, output = min(
            measured, key=lambda pair: -math.inf if math.isnan(pair[0]) else sign * pair[0]
        )
        # A share counted in samples must meet a limit of exactly that share.
        slack = 1e-12 * max(1.0, abs(limit.threshold))
        met = sign * value >= sign * limit.threshold - slack
        results.append(LimitResult(limit, output, value, met))
    return results
