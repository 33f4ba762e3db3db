"""How far one model's outputs are from another's, over a stream of samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import Session

__all__ = ["Accumulator", "Comparison", "OutputDiff", "compare", "leaves", "mean_rel_l2"]

_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True, kw_only=True)
class OutputDiff:
    """One output (an element of it, where it is a sequence or a map), over all samples.

    max_abs: largest |b - a|. rel_l2: ‖b - a‖ / ‖a‖. cosine: of a and b, 1 where both are 0.
    sqnr_db: 20·log10(‖a‖ / ‖b - a‖), infinite where they are equal. top1_agreement: share of
    rows (last axis) whose largest entry stands at the same place; None where the output is no
    float of two or more entries a row. shape: of the last run. mismatches: elements where NaN,
    an infinity or a string is met by something else, or elements of runs whose shapes differ.
    They make max_abs and rel_l2 infinite, sqnr_db minus infinity and cosine NaN.
    """

    name: str
    max_abs: float
    rel_l2: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    shape: tuple[int, ...]
    mismatches: int = 0

    @property
    def identical(self) -> bool:
        return self.max_abs == 0 and not self.mismatches

    def to_json(self) -> dict[str, Any]:
        """Numbers that JSON has none for are "inf", "-inf" and "nan"."""
        out = {k: _json_number(v) if isinstance(v, float) else v for k, v in vars(self).items()}
        out["shape"] = list(self.shape)
        return out


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`samples`: how many the outputs were measured on; `data`: which, in words."""

    outputs: list[OutputDiff]
    samples: int
    data: str = ""
    is_random: bool = False

    @property
    def worst(self) -> OutputDiff:
        """The output of the largest relative error. Raises: ValueError where there is none."""
        return max(self.outputs, key=lambda out: out.rel_l2)

    def to_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "data": self.data,
            "random": self.is_random,
            "outputs": [out.to_json() for out in self.outputs],
        }


def compare(
    a: Model,
    b: Model,
    data: Calibration,
    *,
    outputs: Sequence[str] | None = None,
    optimize: bool = True,
) -> Comparison:
    """Run both models on the same samples in ONNX Runtime; `a` is the reference.

    outputs: names of values of both main graphs; the models' outputs where None. optimize: as for
    Session. Only one run's outputs are held at a time.
    Raises: InputError O24-016; O24-031 to O24-033 where the samples do not fit both models;
    O24-801 where the outputs' names differ.
    """
    sessions = Session(a, outputs, optimize=optimize), Session(b, outputs, optimize=optimize)
    ours, theirs = (session.outputs for session in sessions)
    if sorted(ours) != sorted(theirs):
        raise InputError.of("O24-801", f"expected the outputs {ours}, found {theirs}")
    accumulators: dict[str, Accumulator] = {}
    for feeds, feeds_b in zip(data.batches(a), data.batches(b), strict=True):
        first, second = sessions[0].run(feeds), sessions[1].run(feeds_b)
        for name in ours:
            for label, x, y in leaves(name, first[name], second[name]):
                accumulators.setdefault(label, Accumulator()).add(x, y)
    return Comparison(
        outputs=[accumulators[name].result(name) for name in accumulators],
        samples=len(data),
        data=data.describe(),
        is_random=data.is_random,
    )


def mean_rel_l2(outputs: Sequence[OutputDiff]) -> float:
    """Root mean square over the outputs of ‖b - a‖ / ‖a‖; 0 without any."""
    errors = [out.rel_l2 for out in outputs]
    return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else 0.0


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
    """Sums in float64, so that the number of samples does not matter."""

    def __init__(self) -> None:
        self.max_abs = 0.0
        self.noise = self.signal = self.other = self.dot = 0.0
        self.mismatches = 0
        self.rows = self.agreeing = 0
        self.shape: tuple[int, ...] = ()

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        self.shape = a.shape
        if a.shape != b.shape:
            self.mismatches += max(a.size, b.size, 1)
            return
        if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
            self.mismatches += int(np.count_nonzero(np.asarray(a != b)))
            return
        if _is_float(a) and _is_float(b) and a.ndim and a.shape[-1] > 1:
            same = _widened(a).argmax(-1) == _widened(b).argmax(-1)
            self.rows += same.size
            self.agreeing += int(np.count_nonzero(same))
        x, y = a.reshape(-1), b.reshape(-1)
        for start in range(0, x.size, _CHUNK_ELEMENTS):
            span = slice(start, start + _CHUNK_ELEMENTS)
            self._add_chunk(_widened(x[span]), _widened(y[span]))

    def _add_chunk(self, x: np.ndarray, y: np.ndarray) -> None:
        finite = np.isfinite(x) & np.isfinite(y)
        if not finite.all():
            odd_x, odd_y = x[~finite], y[~finite]
            same = (odd_x == odd_y) | (np.isnan(odd_x) & np.isnan(odd_y))
            self.mismatches += int(np.count_nonzero(~same))
            x, y = x[finite], y[finite]
        difference = np.abs(y - x)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.noise += float(np.vdot(difference, difference).real)
        self.signal += float(np.vdot(x, x).real)
        self.other += float(np.vdot(y, y).real)
        self.dot += float(np.vdot(x, y).real)

    def result(self, name: str) -> OutputDiff:
        top1 = self.agreeing / self.rows if self.rows else None
        if self.mismatches:
            metrics = (math.inf, math.inf, math.nan, -math.inf)
        else:
            metrics = (self.max_abs, self._rel_l2(), self._cosine(), self._sqnr_db())
        return OutputDiff(
            name=name,
            max_abs=metrics[0],
            rel_l2=metrics[1],
            cosine=metrics[2],
            sqnr_db=metrics[3],
            top1_agreement=top1,
            shape=self.shape,
            mismatches=self.mismatches,
        )

    def _rel_l2(self) -> float:
        if not self.noise:
            return 0.0
        return math.sqrt(self.noise / self.signal) if self.signal else math.inf

    def _sqnr_db(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def _cosine(self) -> float:
        if not self.noise:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.other)
        return max(-1.0, min(1.0, self.dot / norms)) if norms else 0.0


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or (array.dtype.kind == "V" and array.dtype.names is None)


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
