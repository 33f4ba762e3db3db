"""A model's quantization, step by step: measure, refuse, settle the ranges, write the pairs.

What is quantized and what a refusal is called was decided before (`analysis.format_choice`); whom
to tell is the pass's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from onnx24.analysis.format_choice import Choice, Objection
from onnx24.analysis.formats import Format
from onnx24.analysis.int8_weights import Bias, PairedWeight, bias_of, paired_weights
from onnx24.analysis.placement import (
    Flow,
    Layer,
    Placement,
    Request,
    place,
    range_objection,
)
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.quant.calibrators import Method, Range
from onnx24.quant.rounding import Correction, Rounding
from onnx24.quant.scales import INT8_MAX, symmetric_scale
from onnx24.rewrite.qdq import FP8, INT8, Int4, Pairs, insert_pairs
from onnx24.runtime.data import Calibration
from onnx24.runtime.quantization import Measured, moments
from onnx24.runtime.range_search import RangeSearch
from onnx24.runtime.trials import Likeness, Reference, best_candidate

__all__ = ["Quantizer", "Written"]

ADAPTIVE_WORK = 1 << 27
"""N · K² of the weights that rounding=auto rounds adaptively, summed: about a second."""
JUDGED = 16
"""Samples that tell whether corrected biases bring the outputs nearer."""
MeanErrors = list[tuple[Bias, np.ndarray]]
PairedWeights = dict[tuple[str, int], PairedWeight]


@dataclass
class Written:
    """What stands in the model. `int8`, `fp8`: the pairs of each format; `int4`: weight → the
    names of its INT4 forms."""

    int8: Pairs
    fp8: Pairs
    int4: Mapping[ValueKey, list[str]] = field(default_factory=dict)

    @property
    def activation_pairs(self) -> int:
        return len(self.int8.placement.edges) + len(self.fp8.placement.edges)


@dataclass
class Quantizer:
    """samples: asked for when they are needed. search: how ranges are found. outputs: values to
    judge by; the model's outputs where empty."""

    model: Model
    flow: Flow
    choice: Choice
    samples: Callable[[], Calibration]
    search: RangeSearch
    progress: Callable[..., Any]
    outputs: tuple[str, ...] = ()
    ranges: dict[str, Range] = field(default_factory=dict)
    measured: Measured | None = None
    ranges_by: str = ""
    """The method that all ranges are found by, or auto, where the model's outputs decided."""
    seen: int = 0
    """Samples that ranges were found on."""

    @cached_property
    def data(self) -> Calibration:
        return self.samples()

    @cached_property
    def reference(self) -> Reference:
        """What the float model gives; the weights must not have changed yet."""
        return Reference(self.model, self.data, self.outputs)

    @cached_property
    def _weights(self) -> PairedWeights:
        return paired_weights(self.model, self.flow.found, self.choice.of(Format.INT8))

    # --- ranges ----------------------------------------------------------------------------
    def measure(self, rounding: Rounding) -> None:
        """Find the range of every activation that any rule looks at, and what `rounding` takes.

        Raises: InputError O24-016, O24-030 to O24-033, O24-035, O24-223.
        """
        observed: dict[str, None] = {}
        for element in (Format.INT8, Format.FP8):
            request, fp8 = self.choice.request(element), element is Format.FP8
            observed.update(place(self.flow, request, fp8=fp8).considered)
        weights = list(self._weights.values())
        if self.choice.of(Format.FP8):  # whose range is the largest magnitude of all
            self.search = replace(self.search, all_samples=True)
        cheap = _cheap(weights) if rounding is Rounding.AUTO else []
        self.ranges, self.measured = self.search.find(
            self.model, list(observed), weights, lambda: self.data, self.progress, cheap
        )

    def objection(self, layer: Layer) -> Objection | None:
        """Why a layer stays in float now that its activation was seen."""
        if self.choice.formats[layer] is Format.INT4:
            return None
        found = self.ranges[layer.data]
        if found.method == "none":
            return "O24-219", f"{self.search.cache} has no range of {layer.data!r}"
        return range_objection(found) or self._too_small(layer)

    def _too_small(self, layer: Layer) -> Objection | None:
        """A scale below the smallest normal number would round everything to 0."""
        weight = self._weights.get(layer.pair)
        if weight is None:
            return None
        tiny = float(ml_dtypes.finfo(layer.dtype).tiny)
        ranges = {
            "weight": weight.amax.max(initial=0.0),
            "activation": self.ranges[layer.data].amax,
        }
        for what, amax in ranges.items():
            if 0 < amax < tiny * INT8_MAX:
                return "O24-224", f"{what} up to {amax:.3g}: a step of {layer.dtype} is no smaller"
        return None

    def sqnr_db(self, layer: Layer, amax: float | None = None) -> float | None:
        """Of an INT8 layer's output on the sample; None where that is not followed."""
        weight = self._weights.get(layer.pair)
        if self.measured is None or weight is None:
            return None
        amax = self.ranges[layer.data].amax if amax is None else amax
        return self.measured.sqnr_db(weight, layer, amax)

    def settle(self) -> None:
        """The ranges to take in the end, kept in the cache: those of each activation, or, for auto,
        those of one method for all where that brings the model's own outputs nearer. A layer's mean
        error cannot know that a pooling behind it looks at nothing but its largest values."""
        measured = self.measured
        if measured is None or measured.cached:
            return
        self.seen = measured.seen
        policies = measured.policies() if self.search.calibrator is Method.AUTO else {}
        int8 = self._pairs(Format.INT8, self.choice)
        request = self.choice.request(Format.INT8)
        if len(policies) > 1 and int8.placement.edges:
            trial = self.model.variant(self.model.skeleton())
            with trial.surgeon() as graph:
                scales = insert_pairs(graph, self.flow, [int8])
            candidates = {}
            for method, ranges in policies.items():
                by_value = self._shared_amax(int8.placement, ranges, request, Format.INT8)
                candidates[method] = {
                    name: symmetric_scale(by_value[value], dtype)
                    for name, (value, dtype) in scales.items()
                }
            best = best_candidate(self.reference, trial, candidates)
            self.ranges_by = best.value
            self.ranges = measured.ranges = policies[best]
        self.search.save(self.ranges, self.model, self.data)

    def likeness(self, choice: Choice, rows: int) -> Likeness:
        """Of the outputs, were these layers quantized with the ranges as they are, on about so
        many samples. Raises: InputError O24-016 where ONNX Runtime does not run it."""
        return self._tried(*self._formats(choice), rows)

    def _tried(self, formats: list[Pairs], int4: Int4, rows: int) -> Likeness:
        trial = self.model.variant(self.model.skeleton())
        with trial.surgeon() as graph:
            insert_pairs(graph, self.flow, formats, int4)
        return self.reference.likeness(trial, rows)

    # --- pairs -----------------------------------------------------------------------------
    def write(self, rounding: Rounding, correction: Correction) -> Written:
        """Quantize what the choice still names. correction: `auto` takes the biases' back where
        the outputs on JUDGED samples do not come nearer by it."""
        formats, int4 = self._formats(self.choice)
        int8, fp8 = formats
        written = Written(int8, fp8, int4.made)
        if int8.placement.edges:
            self._round(int8, rounding)
            errors = [] if correction is Correction.FALSE else self._mean_errors(int8)
            if errors and correction is Correction.AUTO:
                self._correct_if_better(errors, formats, int4)
            else:
                self._correct(errors)
        if written.activation_pairs or int4.layers:
            with self.model.surgeon() as graph:
                insert_pairs(graph, self.flow, [int8, fp8], int4)
        return written

    def _formats(self, choice: Choice) -> tuple[list[Pairs], Int4]:
        int8, fp8 = self._pairs(Format.INT8, choice), self._pairs(Format.FP8, choice)
        _give_way(int8.placement, fp8.placement)
        layers, found = choice.of(Format.INT4), self.flow.found
        values = {layer.weight: found.read(self.model, layer.weight) for layer in layers}
        return [int8, fp8], Int4(layers, values)

    def _round(self, pairs: Pairs, rounding: Rounding) -> None:
        """Round weights otherwise than to the nearest."""
        weights = list(pairs.weights.values())
        if rounding is Rounding.ADAPTIVE:
            found = moments(self.model, weights, self.data, self.progress, whole=True)
            for weight, second in found:
                weight.adapt(second)
        elif rounding is Rounding.AUTO and self.measured is not None:
            for weight in weights:
                if (moment := self.measured.second_moments(weight)) is not None:
                    weight.adapt(moment)

    def _correct_if_better(self, errors: MeanErrors, formats: list[Pairs], int4: Int4) -> None:
        try:
            before = self._tried(formats, int4, JUDGED)
        except InputError:  # nothing to judge by, so nothing is moved
            return
        kept = {bias.key: self.flow.found.read(self.model, bias.key) for bias, _ in errors}
        self._correct(errors)
        if self._tried(formats, int4, JUDGED).rel_l2 > before.rel_l2:
            for key, values in kept.items():
                self.flow.found.replace(self.model, key, values)

    def _correct(self, errors: MeanErrors) -> None:
        for bias, error in errors:
            bias.shift(self.model, self.flow.found, -error)

    def _mean_errors(self, pairs: Pairs) -> MeanErrors:
        """Of each layer that has a bias to take it out of."""
        found: MeanErrors = []
        if self.measured is None:
            return found
        for weight in pairs.weights.values():
            for layer in weight.readers:
                bias = bias_of(self.flow, layer)
                amax = pairs.amax[pairs.placement.seat(layer.data)]
                error = self.measured.mean_error(weight, layer, amax)
                if bias is not None and error is not None:
                    found.append((bias, error))
        return found

    def _pairs(self, element: Format, choice: Choice) -> Pairs:
        """The pairs of one format, with the ranges as they are now."""

        def range_of(value: str) -> float | None:
            found = self.ranges[value]
            return None if range_objection(found) else found.amax

        layers, request = choice.of(element), choice.request(element)
        placement = place(self.flow, request, range_of, fp8=element is Format.FP8)
        amax = self._shared_amax(placement, self.ranges, request, element)
        if element is Format.FP8:
            weights = paired_weights(self.model, self.flow.found, layers)
            return Pairs(FP8, placement, amax, weights)
        kept = {key: weight.kept(layers) for key, weight in self._weights.items()}
        return Pairs(INT8, placement, amax, {k: w for k, w in kept.items() if w is not None})

    def _shared_amax(
        self,
        placement: Placement,
        ranges: Mapping[str, Range],
        request: Request,
        element: Format,
    ) -> dict[str, float]:
        """Activation with a pair → its range: the widest of those that the shared scale serves.
        FP8's is the largest magnitude, where that was seen: clipping gains nothing there."""

        def amax_of(name: str) -> float:
            if element is Format.FP8 and self.measured is not None:
                return max(ranges[name].amax, self.measured.calibrators[name].peak)
            return ranges[name].amax

        sources = placement.sources(request.reads())
        return {
            value: max(amax_of(name) for member in group for name in sources[member])
            for value, group in placement.groups().items()
        }


def _cheap(weights: Sequence[PairedWeight]) -> list[PairedWeight]:
    """Those that can be rounded adaptively at little cost, the cheapest first."""
    left = ADAPTIVE_WORK
    cost = {}
    for weight in weights:
        if weight.form is not None and weight.form.kind != "deconv":
            cost[weight] = weight.layer.use.N * weight.form.K**2
    found = []
    for weight in sorted(cost, key=lambda each: cost[each]):
        left -= cost[weight]
        if left < 0:
            break
        found.append(weight)
    return found


def _give_way(placement: Placement, other: Placement) -> None:
    """Leave reads to another format. A result that nothing else reads then needs no pair."""
    for value, taken in other.edges.items():
        if value not in placement.edges:
            continue
        placement.edges[value] -= taken
        if not placement.edges[value]:
            del placement.edges[value]
            for layer in [each for each, name in placement.results.items() if name == value]:
                del placement.results[layer]
