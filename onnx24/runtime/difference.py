"""How far two outputs are apart: the one answer, for comparisons, budgets, the guard and bisection.

A number says something about the values that were compared and about nothing else. So a run whose
shapes differ makes the output as wrong as can be, a NaN is equal to no value and is no class, and
how many of the runs were compared in full stands beside every number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.quant.choice import decibel

NAME_OUTPUTS = (
    "name what to judge by, such as a value before the operator that selects: outputs=NAME"
)
"""What helps a budget whose outputs differ in shape."""

__all__ = [
    "Accumulator",
    "Differences",
    "Faint",
    "OutputDiff",
    "difference",
    "is_float",
    "leaves",
    "mean_rel_l2",
    "widened",
]

_CHUNK_ELEMENTS = 1 << 18
FAINT = 32.0
"""Between the root mean square of one channel and the next larger: 30 dB hide what is below."""


@dataclass(frozen=True)
class Faint:
    """What an output's numbers hide: of its channels in the order of their root mean squares, those
    below the first gap of FAINT, taken together, as a detector's scores below its boxes in pixels.

    channels: how many they are, `of` so many. rel_l2, sqnr_db: of them, as of an output.
    """

    channels: int
    of: int
    rel_l2: float
    sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class OutputDiff:
    """One output (an element of it, where it is a sequence or a map), over all runs.

    max_abs: largest |b - a|. rel_l2: ‖b - a‖ / ‖a‖. cosine: of a and b, 1 where both are 0.
    sqnr_db: 20·log10(‖a‖ / ‖b - a‖), infinite where they are equal. top1_agreement: share of
    rows (last axis) without a NaN whose largest entry stands at the same place, rows of runs whose
    shapes differ among the others; None where the output is no float of two or more entries a row.
    shape: of the last run.

    runs: how many there were. compared: those of one shape and without a NaN in either. unlike:
    those whose shapes differ. elements: values compared, over all runs. mismatches: elements where
    NaN, an infinity or a string is met by something else, or elements of runs whose shapes differ.
    They make max_abs and rel_l2 infinite, sqnr_db minus infinity and cosine NaN. undefined:
    elements that are NaN in both, of which the four say nothing; they are NaN where no element
    was compared. lost: elements that are finite in `a` and NaN or infinite in `b`. faint: None
    where no channel is, and of outputs of less than three axes.
    """

    name: str
    max_abs: float
    rel_l2: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    shape: tuple[int, ...]
    mismatches: int = 0
    undefined: int = 0
    lost: int = 0
    elements: int = 0
    runs: int = 1
    compared: int = 1
    unlike: int = 0
    faint: Faint | None = None

    @property
    def identical(self) -> bool:
        """Whether no value of `b` is another one; NaN in the same places is the same."""
        return not self.mismatches and (self.max_abs == 0 or not self.elements)

    @property
    def badness(self) -> float:
        """rel_l2 to judge and order by: infinite where nothing was compared."""
        return math.inf if math.isnan(self.rel_l2) else self.rel_l2

    @property
    def is_complete(self) -> bool:
        """Whether there were values, and all of them were compared. Else no limit is met."""
        return self.compared == self.runs and self.elements > 0

    @property
    def gap(self) -> str:
        """Why the output is not `is_complete`, in words; "" where it is."""
        if self.is_complete:
            return ""
        parts = []
        if self.unlike:
            parts.append(f"shapes differ in {self.unlike} of {self.runs} runs")
        if odd := self.runs - self.compared - self.unlike:
            parts.append(f"NaN in {odd} of {self.runs} runs")
        return ", ".join(parts) or f"no value in {self.runs} runs"

    def to_json(self) -> dict[str, Any]:
        """Numbers that JSON has none for are "inf", "-inf" and "nan"."""
        out = _json_object(self)
        out["shape"] = list(self.shape)
        out["faint"] = None if self.faint is None else _json_object(self.faint)
        return out


def _json_object(found: OutputDiff | Faint) -> dict[str, Any]:
    return {k: _json_number(v) if isinstance(v, float) else v for k, v in vars(found).items()}


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def difference(a: Any, b: Any, name: str = "") -> OutputDiff:
    """Of one output of one run; the worst element where it is a sequence or a map.

    a: the reference, as Session.run gives it.
    """
    found = Differences()
    found.add({name: a}, {name: b})
    return max(found.results(), key=lambda out: out.badness, default=Accumulator().result(name))


def mean_rel_l2(outputs: Sequence[OutputDiff], *, faint: bool = False) -> float:
    """Root mean square over the outputs of ‖b - a‖ / ‖a‖; 0 without any, infinite where one has
    no value that could be compared. faint: an output's faint channels count as one more."""
    errors = [out.badness for out in outputs]
    if faint:
        errors += [out.faint.rel_l2 for out in outputs if out.faint is not None]
    return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else 0.0


def gap_finding(outputs: Sequence[OutputDiff]) -> Diagnostic | None:
    """O24-037 of the first output that was not compared in full."""
    out = next((out for out in outputs if not out.is_complete), None)
    if out is None:
        return None
    return diagnostic(
        "O24-037",
        f"output {out.name!r} was compared in {out.compared} of {out.runs} runs: {out.gap}",
        severity=Severity.WARNING,
        tensor=out.name,
        facts={"compared": out.compared, "runs": out.runs, "unlike": out.unlike},
        hint=None if out.unlike else "",
    )


class Differences:
    """Of all outputs of two models, run after run."""

    def __init__(self) -> None:
        self._sums: dict[str, Accumulator] = {}

    def add(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        """One run's outputs by name, as Session.run gives them; those of `a` are judged."""
        for name, value in a.items():
            for label, x, y in leaves(name, value, b[name]):
                self._sums.setdefault(label, Accumulator()).add(x, y)

    def results(self) -> list[OutputDiff]:
        return [self._sums[name].result(name) for name in self._sums]


def leaves(label: str, a: Any, b: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The arrays of an output. An element that one side lacks is compared with an empty array."""
    nothing = np.zeros(0)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        for i in range(max(len(a), len(b))):
            x, y = (side[i] if i < len(side) else nothing for side in (a, b))
            yield from leaves(f"{label}[{i}]", x, y)
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            yield from leaves(f"{label}[{key!r}]", a.get(key, nothing), b.get(key, nothing))
    else:
        yield label, np.asarray(a), np.asarray(b)


class Accumulator:
    """One output's sums, in float64, so that the number of samples does not matter."""

    def __init__(self) -> None:
        self.max_abs = 0.0
        self.noise = self.signal = self.other = self.dot = 0.0
        self.elements = self.mismatches = self.undefined = self.lost = 0
        self.runs = self.compared = self.unlike = 0
        self.rows = self.agreeing = 0
        self.shape: tuple[int, ...] = ()
        self._channels: np.ndarray | None = np.zeros((2, 0))
        """[signal and noise, channels]; None where runs differ in channels or are not finite."""

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.shape = a.shape
        self.runs += 1
        if a.shape != b.shape:
            self.unlike += 1
            self.mismatches += max(a.size, b.size, 1)
            self.rows += max(_rows(a), _rows(b))
            return
        if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
            self.mismatches += int(np.count_nonzero(np.asarray(a != b)))
            self.elements += a.size
            self.compared += 1
            return
        if rows := min(_rows(a), _rows(b)):
            self.rows += rows
            self.agreeing += _agreeing(a, b)
        self._add_channels(a, b)
        x, y = a.reshape(-1), b.reshape(-1)
        nans = 0
        for start in range(0, x.size, _CHUNK_ELEMENTS):
            span = slice(start, start + _CHUNK_ELEMENTS)
            nans += self._add_chunk(widened(x[span]), widened(y[span]))
        self.compared += not nans

    def _add_chunk(self, x: np.ndarray, y: np.ndarray) -> int:
        """Returns: elements that are NaN in one of them."""
        finite = np.isfinite(x) & np.isfinite(y)
        nans = 0
        if not finite.all():
            odd_x, odd_y = x[~finite], y[~finite]
            self.lost += int(np.count_nonzero(np.isfinite(odd_x)))
            both = np.isnan(odd_x) & np.isnan(odd_y)
            nans = int(np.count_nonzero(np.isnan(odd_x) | np.isnan(odd_y)))
            self.undefined += int(np.count_nonzero(both))
            self.mismatches += int(np.count_nonzero((odd_x != odd_y) & ~both))
            self.elements += int(np.count_nonzero(~both))
            x, y = x[finite], y[finite]
        self.elements += x.size
        difference = np.abs(y - x)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.noise += float(np.vdot(difference, difference).real)
        self.signal += float(np.vdot(x, x).real)
        self.other += float(np.vdot(y, y).real)
        self.dot += float(np.vdot(x, y).real)
        return nans

    def _add_channels(self, a: np.ndarray, b: np.ndarray) -> None:
        """Channels are the second axis or the last, whichever is shorter."""
        if self._channels is None or a.ndim < 3 or not (a.size and is_float(a) and is_float(b)):
            return
        axis = 1 if a.shape[1] <= a.shape[-1] else -1
        found = np.zeros((2, a.shape[axis]))
        for i, (x, y) in enumerate(zip(*(np.moveaxis(v, axis, 0) for v in (a, b)), strict=True)):
            x, y = widened(x).reshape(-1), widened(y).reshape(-1)
            found[:, i] = np.vdot(x, x), np.vdot(y - x, y - x)
        known = self._channels if self._channels.size else np.zeros_like(found)
        alike = known.shape == found.shape and np.isfinite(found).all()
        self._channels = known + found if alike else None

    def _faint(self) -> Faint | None:
        if self._channels is None or not self._channels.size or self.unlike:
            return None
        signal, noise = self._channels[:, np.argsort(-self._channels[0])]
        gaps = np.flatnonzero((signal[:-1] > FAINT**2 * signal[1:]) & (signal[1:] > 0))
        if not gaps.size:
            return None
        below = slice(gaps[0] + 1, None)
        quiet, error = float(signal[below].sum()), float(noise[below].sum())
        counts = len(signal[below]), len(signal)
        return Faint(*counts, math.sqrt(error / quiet), decibel(quiet, error))

    def result(self, name: str) -> OutputDiff:
        if self.mismatches:
            metrics = (math.inf, math.inf, math.nan, -math.inf)
        elif not self.elements:
            metrics = (math.nan,) * 4
        else:
            metrics = (
                self.max_abs,
                self._rel_l2(),
                self._cosine(),
                decibel(self.signal, self.noise),
            )
        return OutputDiff(
            name=name,
            max_abs=metrics[0],
            rel_l2=metrics[1],
            cosine=metrics[2],
            sqnr_db=metrics[3],
            top1_agreement=self.agreeing / self.rows if self.rows else None,
            shape=self.shape,
            mismatches=self.mismatches,
            undefined=self.undefined,
            lost=self.lost,
            elements=self.elements,
            runs=self.runs,
            compared=self.compared,
            unlike=self.unlike,
            faint=self._faint(),
        )

    def _rel_l2(self) -> float:
        if not self.noise:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    def _cosine(self) -> float:
        if not self.noise:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.other)
        return max(-1.0, min(1.0, self.dot / norms)) if norms else 0.0


def is_float(array: np.ndarray) -> bool:
    """Of any width: bfloat16 and the small floats have numpy's kind V."""
    return array.dtype.kind == "f" or (array.dtype.kind == "V" and array.dtype.names is None)


def _rows(array: np.ndarray) -> int:
    """Rows of which each has a largest entry; 0 where that is not asked."""
    if not is_float(array) or not array.ndim or array.shape[-1] < 2:
        return 0
    return math.prod(array.shape[:-1])


def _agreeing(a: np.ndarray, b: np.ndarray) -> int:
    """Rows whose largest entry stands at the same place. A NaN is no class."""
    x, y = widened(a), widened(b)
    same = x.argmax(-1) == y.argmax(-1)
    # argmax stands at a NaN where there is one
    at = np.expand_dims(x.argmax(-1), -1)
    same &= ~np.isnan(np.take_along_axis(x, at, -1)[..., 0])
    return int(np.count_nonzero(same & ~np.isnan(np.take_along_axis(y, at, -1)[..., 0])))


def widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
