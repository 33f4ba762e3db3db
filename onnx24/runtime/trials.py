"""How a quantized model's outputs compare with the float model's, on some of the samples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import onnx
from onnx import ModelProto

from onnx24.diagnostics import Diagnostic
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.data import Calibration
from onnx24.runtime.difference import Differences, gap_finding, is_float, mean_rel_l2
from onnx24.runtime.ranges import doublings
from onnx24.runtime.session import Session

__all__ = ["Likeness", "Margins", "Reference", "best_candidate", "likeness_of"]

K = TypeVar("K", bound=Hashable)
Outputs = dict[str, np.ndarray]

FIRST_RUNS = 4
"""Of `doublings`. Candidates that are clearly worse after a quarter of the runs are dropped."""
CLEARLY = math.sqrt(1.5)
"""Times the least relative error."""
CHECK_RUNS = 16
"""Runs that the others are compared on, up to MAX_RUNS with small models, as WORK allows."""
MAX_RUNS = 64
WORK = 1 << 28
"""Weights times runs."""
OUTPUT_BYTES = 64 << 20
"""About how much of the float model's outputs is kept."""


@dataclass(frozen=True)
class Likeness:
    """rel_l2: root mean square over the outputs, and their faint channels, of ‖ŷ − y‖ / ‖y‖. top1:
    share of rows whose largest entry stands at the same place, where the model is a classifier (one
    output, [N, C]); else None. expected: share of rows that would change it, were the change of
    each row's margin drawn from a normal distribution: a few rows tell more by it than by counting.
    worst: (signal to noise [dB], name) of the output that has the least, of those whose shapes
    agree in every run; faint: the same of outputs' faint channels. runs: compared. gap: O24-037
    where an output was not compared in full."""

    rel_l2: float
    top1: float | None = None
    expected: float = 0.0
    worst: tuple[float, str] = (math.inf, "")
    faint: tuple[float, str] = (math.inf, "")
    runs: int = 0
    gap: Diagnostic | None = None

    @property
    def largest(self) -> float:
        """The relative error of all outputs or of the one that has the largest, whichever is
        larger."""
        return max(self.rel_l2, 10 ** (-self.worst[0] / 20))

    @property
    def sqnr_db(self) -> float:
        """The least of outputs and of their faint channels."""
        return min(self.worst[0], self.faint[0])


@dataclass
class Reference:
    """The float model's outputs on samples, run once and kept. Samples come in the order of
    `doublings`: the first so many are spread evenly over all.

    outputs: names of outputs or inner values to judge by; the model's outputs where empty.
    """

    model: Model
    data: Calibration
    outputs: tuple[str, ...] = ()
    _parts: list[Calibration] = field(default_factory=list)
    _kept: list[Outputs] = field(default_factory=list)
    _used: int = 0

    def __post_init__(self) -> None:
        self._parts = list(doublings(self.data.with_units_per_run(1), FIRST_RUNS))

    def runs(self, count: int) -> Iterator[tuple[Outputs, Outputs]]:
        """(what is fed, what the float model gives), for the first `count` runs, or as many as
        OUTPUT_BYTES hold. Raises: InputError O24-016."""
        session: Session | None = None
        samples = (feeds for part in self._parts for feeds in part.batches(self.model))
        for i, feeds in enumerate(islice(samples, count)):
            if i == len(self._kept):
                if self._used > OUTPUT_BYTES:
                    return
                session = session or Session(self.model, self.outputs or None)
                found = session.run(feeds)
                self._kept.append({name: y for name, y in found.items() if _is_real(y)})
                self._used += sum(y.nbytes for y in self._kept[-1].values())
            yield feeds, self._kept[i]

    def likeness(self, quantized: Model, count: int) -> Likeness:
        """Of a model of the same outputs, on that many runs. Raises: InputError O24-016."""
        return likeness_of(quantized, self.runs(count), self.outputs)


def likeness_of(
    quantized: Model, runs: Iterable[tuple[Outputs, Outputs]], outputs: Sequence[str] = ()
) -> Likeness:
    """runs: as `Reference.runs`. Raises: InputError O24-016."""
    session = Session(quantized, outputs or None)
    sums, margins = Differences(), Margins()
    for feeds, exact in runs:
        found = session.run(feeds)
        sums.add(exact, found)
        margins.add(exact, found)
    results = sums.results()
    rel_l2 = mean_rel_l2(results, faint=True)
    alike = [(out.sqnr_db, out.name) for out in results if not out.unlike and out.elements]
    worst = min(alike, default=(math.inf, ""))
    faint = min(
        ((out.faint.sqnr_db, out.name) for out in results if out.faint is not None),
        default=(math.inf, ""),
    )
    count = max((out.runs for out in results), default=0)
    if not margins.rows:
        return Likeness(rel_l2, worst=worst, faint=faint, runs=count, gap=gap_finding(results))
    top1 = results[0].top1_agreement
    return Likeness(rel_l2, top1, margins.expected, worst, faint, count, gap_finding(results))


class Margins:
    """How clearly a classifier decides (one output, [N, C]), and how much that moves."""

    def __init__(self) -> None:
        self._margins: list[np.ndarray] = []
        self._moves: list[np.ndarray] = []
        self.rows = 0

    def add(self, exact: Outputs, found: Mapping[str, object]) -> None:
        """One run's outputs; those of no classifier are passed over."""
        if not _is_classifier(exact):
            return
        y, z = (np.asarray(v, np.float64) for v in (*exact.values(), found[next(iter(exact))]))
        margin, move = _margins(y, z)
        self._margins.append(margin)
        self._moves.append(move)
        self.rows += len(margin)

    @property
    def expected(self) -> float:
        """Share of rows that change their class, were the change of each row's margin drawn from a
        normal distribution; 0 without rows."""
        if not self.rows:
            return 0.0
        move = np.concatenate(self._moves)
        spread = math.sqrt(float(np.mean(move * move)))
        if not spread:
            return 0.0
        return sum(
            0.5 * math.erfc(m / spread / math.sqrt(2)) for m in np.concatenate(self._margins)
        ) / len(move)


def _is_classifier(outputs: Outputs) -> bool:
    return len(outputs) == 1 and all(y.ndim == 2 and y.shape[1] > 1 for y in outputs.values())


def _margins(y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how far the largest entry of each row lies above the second, how that changed in z)"""
    if y.shape != z.shape or not (np.isfinite(y).all() and np.isfinite(z).all()):
        return np.zeros(len(y)), np.full(len(y), np.inf)
    order = np.argpartition(y, -2, axis=1)
    second, first = order[:, -2], order[:, -1]
    rows = np.arange(len(y))
    margin = y[rows, first] - y[rows, second]
    return margin, z[rows, first] - z[rows, second] - margin


def best_candidate(
    reference: Reference, quantized: Model, candidates: Mapping[K, Mapping[str, np.ndarray]]
) -> K:
    """Of several sets of values for initializers of `quantized` the one that brings its outputs
    nearest to the reference: the least relative error (`mean_rel_l2`); the first of equals, and
    where ONNX Runtime cannot run one of the models. What is CLEARLY worse after a quarter of the
    runs is run no more.

    candidates: all name the same initializers.
    """
    first = next(iter(candidates))
    elements = sum(math.prod(tensor.dims) for tensor in reference.model.proto.graph.initializer)
    count = max(CHECK_RUNS, min(MAX_RUNS, WORK // max(1, elements)))
    sums = {key: Differences() for key in candidates}
    try:
        list(reference.runs(count))  # one session after the other: each holds the weights
        trial = Session(_with_inputs(quantized, list(candidates[first])), reference.outputs or None)
        for i, (feeds, exact) in enumerate(reference.runs(count)):
            if i == count // 4:
                errors = {
                    key: mean_rel_l2(found.results(), faint=True) for key, found in sums.items()
                }
                least = min(errors.values())
                sums = {key: sums[key] for key, e in errors.items() if e <= CLEARLY * least}
                if len(sums) == 1:
                    break
            for key in sums:
                sums[key].add(exact, trial.run({**feeds, **candidates[key]}))
    except InputError:  # a type that ONNX Runtime has no kernels for
        return first
    return min(sums, key=lambda key: mean_rel_l2(sums[key].results(), faint=True))


def _is_real(y: object) -> bool:
    return isinstance(y, np.ndarray) and is_float(y)


def _with_inputs(model: Model, names: Sequence[str]) -> Model:
    """The model with these initializers as inputs, so that one session takes any values of them."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    wanted = set(names)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in wanted]
    for tensor in proto.graph.initializer:
        if tensor.name in wanted:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(value)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return model.variant(proto)
