"""Ranges of the activations around layers, judged by what the layers make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnx24.analysis.int8_weights import PairedWeight
from onnx24.analysis.placement import Layer
from onnx24.ir.model import Model
from onnx24.quant.calibrators import Auto, Calibrator, Method, Range
from onnx24.quant.choice import Reader, choose, decibel, fake_quantized, output_noise
from onnx24.quant.rows import Form, Moments, RowSample
from onnx24.runtime.data import Calibration
from onnx24.runtime.ranges import Observation, Observer, doublings

__all__ = ["Measured", "measure", "moments"]

MOMENT_BYTES = 256 << 20
"""Of second moments that are held at once; more of them take more rounds over the data."""

ROWS_PER_INPUT = 4
FIRST_SAMPLES = 32
"""After which, and after twice, four times as many, `auto` asks whether ranges still move."""
Progress = Callable[..., Iterator[Any]]


@dataclass
class Measured:
    """What the samples said. ranges: by activation, empty until `find_ranges`; samples: of the
    rows that layers read; cached: the ranges come from a file; seen: how many samples were run;
    second: moments that were collected on the way."""

    calibrators: dict[str, Calibrator]
    samples: dict[tuple[str, Form], RowSample]
    ranges: dict[str, Range] = field(default_factory=dict)
    cached: bool = False
    seen: int = 0
    second: dict[tuple[str, Form], Moments] = field(default_factory=dict)

    def policies(self) -> dict[Method, dict[str, Range]]:
        """`ranges`, and those of each single method for all activations, where all were kept."""
        found = {Method.AUTO: self.ranges}
        if not all(isinstance(each, Auto) for each in self.calibrators.values()):
            return found
        candidates = {n: each.candidates() for n, each in self.calibrators.items()}  # type: ignore[attr-defined]
        for method in next(iter(candidates.values()), {}):
            found[method] = {
                name: self.calibrators[name].range(by_method[method], method.value)
                for name, by_method in candidates.items()
            }
        return found

    def find_ranges(self, method: Method, weights: Sequence[PairedWeight]) -> None:
        """`auto` takes, for each activation that layers read, the range of the least error in
        their outputs: the sum of ‖ŷ - y‖² / ‖y‖² over them, y of the floats and ŷ of the INT8
        activation and weight, on the sample of rows (`quant.rows.RowSample`). An activation that
        no layer reads row by row gets that of `quant.calibrators.Auto`."""
        readers: dict[str, list[tuple[PairedWeight, Layer]]] = {}
        for weight in weights:
            for layer in weight.readers:
                readers.setdefault(layer.data, []).append((weight, layer))
        for name, calibrator in self.calibrators.items():
            if method is not Method.AUTO or not isinstance(calibrator, Auto):
                self.ranges[name] = calibrator.range(method=method.value)
                continue
            own = [pair for pair in readers.get(name, []) if self._sample(*pair) is not None]
            candidates = calibrator.candidates()
            if not own or not calibrator.peak:
                self.ranges[name] = calibrator.range(method=Method.AUTO.value)
                continue
            # One reader at a time: its matrices are not small.
            best, _ = choose(candidates, filter(None, (self._reader(w, layer) for w, layer in own)))
            self.ranges[name] = calibrator.range(candidates[best], best.value)

    def sqnr_db(self, weight: PairedWeight, layer: Layer, amax: float) -> float | None:
        """Signal to noise of the layer's output on the sample; None where it is not followed."""
        reader = self._reader(weight, layer)
        if reader is None or not amax > 0:
            return None
        signal, (noise,) = output_noise(reader, [amax])
        return decibel(signal, noise)

    def mean_error(self, weight: PairedWeight, layer: Layer, amax: float) -> np.ndarray | None:
        """How much the layer's product grows by quantization on average, by output channel [N];
        None where it is not followed.

        Rows count by their share, and less where their output is large: a few tokens of an encoder
        have outputs many times the others', whose range cuts them, and normalization hides what
        they lose; their error is no reason to move all others.
        """
        reader = self._reader(weight, layer)
        if reader is None or weight.form is None or weight.form.kind == "deconv":
            return None
        rows = reader.rows.transpose(1, 0, 2)
        size = np.square(rows @ reader.exact.transpose(0, 2, 1), dtype=np.float64).sum((0, 2))
        common = max(float(np.median(size)), np.finfo(np.float32).tiny)
        share = reader.weights / (1 + np.square(size / common))
        share = share / share.sum()
        exact = np.einsum("n,gnk->gk", share, rows, dtype=np.float64)
        rounded = np.einsum("n,gnk->gk", share, fake_quantized(rows, amax), dtype=np.float64)
        change = np.einsum("gk,grk->gr", rounded, reader.rounded)
        return (change - np.einsum("gk,grk->gr", exact, reader.exact)).reshape(-1)

    def second_moments(self, weight: PairedWeight) -> np.ndarray | None:
        """Of the weight's inputs, [G, K, K]; None where they were not collected, or from fewer
        than ROWS_PER_INPUT rows for each input, which rounding would be fitted to."""
        found = [self.second[key] for key in _keys(weight) if key in self.second]
        if not found or len(found) < len(_keys(weight)):
            return None
        if sum(each.count for each in found) < ROWS_PER_INPUT * found[0].form.K:
            return None
        return np.sum([each.second for each in found], axis=0)

    def _sample(self, weight: PairedWeight, layer: Layer) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows and weights; None where there are none to judge by."""
        form = weight.form_for(layer)
        sample = None if form is None else self.samples.get((layer.data, form))
        if sample is None:
            return None
        rows, share = sample.rows()
        return (rows, share) if len(rows) and np.isfinite(rows).all() else None

    def _reader(self, weight: PairedWeight, layer: Layer) -> Reader | None:
        sample = self._sample(weight, layer)
        form = weight.form
        if sample is None or form is None:
            return None
        return Reader(*sample, form.matrix(weight.exact()), form.matrix(weight.rounded()))


def measure(
    model: Model,
    names: Sequence[str],
    weights: Sequence[PairedWeight],
    data: Calibration,
    make: Callable[[], Calibrator],
    progress: Progress,
    *,
    all_samples: bool = True,
    second: Sequence[PairedWeight] = (),
) -> Measured:
    """Run the model over the samples once. names: the activations whose ranges are wanted.
    all_samples: False to stop where more of them would hardly move any range of `Auto`, which is
    asked after FIRST_SAMPLES, twice, four times as many. second: weights whose inputs' second
    moments are collected as well.

    Raises: InputError O24-016, O24-030 to O24-033.
    """
    observation = Observation(model, names, data)
    calibrators = {name: make() for name in names}
    samples = {
        key: RowSample(key[1], 0)
        for weight in weights
        for key in _keys(weight)
        if key[0] in calibrators
    }
    observers: dict[str, list[Observer]] = {name: [each] for name, each in calibrators.items()}
    for (name, _), sample in samples.items():
        observers[name].append(sample)
    collected = {key: Moments(key[1], whole=True) for weight in second for key in _keys(weight)}
    for (name, _), each in collected.items():
        observers[name].append(each)
    seen = 0
    for part in [data] if all_samples else doublings(data, FIRST_SAMPLES):
        for sample in samples.values():
            sample.expect(observation.runs_of(part))
        observation.show(observers, progress, part=part)
        seen += len(part)
        settled = [isinstance(each, Auto) and each.is_settled() for each in calibrators.values()]
        if all(settled):  # each was asked: it compares with the last time
            break
    return Measured(calibrators, samples, seen=seen, second=collected)


def moments(
    model: Model,
    weights: Sequence[PairedWeight],
    data: Calibration,
    progress: Progress,
    *,
    whole: bool,
) -> Iterator[tuple[PairedWeight, np.ndarray]]:
    """The second moments of each weight's inputs, over all its readers: `[G, K, K]` where
    `whole`, else `[G, K]`. Weights whose products are not followed are left out.

    Raises: InputError O24-016, O24-030 to O24-033.
    """
    for part in _portions([w for w in weights if w.form is not None], whole):
        keys = dict.fromkeys(key for weight in part for key in _keys(weight))
        found = {key: Moments(key[1], whole=whole) for key in keys}
        observers: dict[str, list[Observer]] = {}
        for (name, _), each in found.items():
            observers.setdefault(name, []).append(each)
        Observation(model, list(observers), data).show(observers, progress, "second moments")
        for weight in part:
            yield weight, np.sum([found[key].second for key in _keys(weight)], axis=0)


def _keys(weight: PairedWeight) -> list[tuple[str, Form]]:
    """(activation, how it makes rows) of each reader that is followed."""
    pairs = ((layer.data, weight.form_for(layer)) for layer in weight.readers)
    return list(dict.fromkeys((name, form) for name, form in pairs if form is not None))


def _portions(weights: Sequence[PairedWeight], whole: bool) -> Iterator[list[PairedWeight]]:
    """In order, so many at once that their moments stay below MOMENT_BYTES."""
    part: list[PairedWeight] = []
    used = 0
    for weight in weights:
        assert weight.form is not None
        size = 4 * weight.form.groups * weight.form.K * (weight.form.K if whole else 1)
        if part and used + size > MOMENT_BYTES:
            yield part
            part, used = [], 0
        part.append(weight)
        used += size
    if part:
        yield part
