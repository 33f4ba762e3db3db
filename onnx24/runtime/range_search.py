"""Where the ranges of activations come from: a cache, or the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx24.analysis.int8_weights import PairedWeight
from onnx24.ir.model import Model
from onnx24.quant.calibrators import Calibrator, Method, Range, make
from onnx24.quant.rounding import WeightRange
from onnx24.runtime.data import Calibration
from onnx24.runtime.quantization import Measured, measure, moments
from onnx24.runtime.range_cache import RangeCache, model_digest

__all__ = ["RangeSearch"]


@dataclass(frozen=True)
class RangeSearch:
    """calibrator, percentile: of activations; weights: of weights. cache: a file to take ranges
    from, or to write them to, "" for none. wants_samples: they are needed whatever it holds.
    all_samples: look at every one, as calibrators but `auto` always do. digest: of the samples
    there are, None without any, asked for where a cache is compared.

    Raises: ValueError for a percentile out of range.
    """

    calibrator: Method
    percentile: float
    weights: WeightRange
    cache: str
    wants_samples: bool
    all_samples: bool
    digest: Callable[[], str | None]

    def __post_init__(self) -> None:
        self.make()

    def make(self) -> Calibrator:
        return make(self.calibrator, self.percentile)

    def find(
        self,
        model: Model,
        names: Sequence[str],
        weights: Sequence[PairedWeight],
        data: Callable[[], Calibration],
        progress: Callable[..., Any],
        second: Sequence[PairedWeight] = (),
    ) -> tuple[dict[str, Range], Measured | None]:
        """The range of each activation, and what was measured on the way; None where the cache
        says it all. Weights are narrowed on the way. second: as `quantization.measure`.

        Raises: InputError O24-016, O24-030 to O24-033, O24-035, O24-223.
        """
        cache = RangeCache.load(self.cache) if self.cache and Path(self.cache).exists() else None
        if cache is not None:
            self._check(cache, model, names)
            if not self.wants_samples:
                return cache.ranges, None
        if self.weights is WeightRange.MSE:
            for weight, power in moments(model, weights, data(), progress, whole=False):
                weight.narrow(power)
        stops = self.calibrator is Method.AUTO and not self.all_samples
        measured = measure(
            model,
            names,
            weights,
            data(),
            self.make,
            progress,
            all_samples=not stops,
            second=second,
        )
        if cache is not None:
            measured.ranges, measured.cached = cache.ranges, True
        else:
            measured.find_ranges(self.calibrator, weights)
        return measured.ranges, measured

    def save(self, ranges: dict[str, Range], model: Model, data: Calibration) -> None:
        """Raises: InputError O24-223."""
        if self.cache:
            RangeCache(ranges, model_digest(model), data.digest(), self.options).save(self.cache)

    @property
    def options(self) -> dict[str, Any]:
        """Those that decide the ranges."""
        options: dict[str, Any] = {"calibrator": self.calibrator.value}
        if self.calibrator in (Method.AUTO, Method.PERCENTILE):
            options["percentile"] = self.percentile
        return options

    def _check(self, cache: RangeCache, model: Model, names: Sequence[str]) -> None:
        cache.check(self.cache, model=model_digest(model), data=self.digest(), options=self.options)
        if cache.model:
            cache.require(self.cache, list(names))
        for name in names:  # TensorRT computes in float what its cache has no scale of
            cache.ranges.setdefault(name, Range(0.0, "none"))
