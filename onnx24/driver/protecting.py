"""The limit that `compile` keeps by leaving layers dense, or in float.

It goes to the budgets of prune24 and qdq, which each measure the model's outputs in their own pass:
where both are in the pipeline, each gets half of the error. Nothing is searched for; `tune` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.driver.samples import LimitsLike, limits_of
from onnx24.driver.usage import usage
from onnx24.ir.model import Model
from onnx24.layerwise.prune import can_be_judged
from onnx24.passmgr.pipeline import Pipeline
from onnx24.report.limits import Limit, check_limits

if TYPE_CHECKING:
    from onnx24.passmgr.manager import RunResult
    from onnx24.runtime.compare import Comparison
    from onnx24.runtime.split import Split

__all__ = ["NONE", "Guarded", "default_limits", "within_error"]

NONE = "none"
DEFAULT_TOP1, DEFAULT_SQNR, FEWEST = 0.01, 20.0, 100
"""Where no limit is given: labels that may change, for classifiers with so many samples to judge
by; decibels for all others."""
MOST_SQNR = 400.0
"""Decibels beyond which a limit is a typing error; no error would be left, or any."""
CONFIDENCE = 0.95
"""Of so few labels as are held out, one more or less says little: a share of 1 % of 64 is no
label at all. As many may change as would at that share in 95 of 100 draws."""
_STEPS = ("prune24", "qdq")


def default_limits(model: Model, samples: int) -> list[Limit]:
    """See DEFAULT_TOP1. samples: to judge by."""
    outputs = model.proto.graph.output
    if len(outputs) == 1 and samples >= FEWEST:
        dims = outputs[0].type.tensor_type.shape.dim
        if len(dims) == 2 and dims[1].dim_value > 1:
            return [Limit("top1", DEFAULT_TOP1)]
    return [Limit("sqnr", DEFAULT_SQNR)]


def within_error(limits: Sequence[Limit], samples: int) -> list[Limit]:
    """The limits for samples that nothing was chosen by: labels within their sampling error (see
    CONFIDENCE), all others as they are."""
    from scipy.stats import binom

    found = []
    for limit in limits:
        if limit.metric in ("top1", "accuracy") and 0 < limit.bound < 1:
            most = float(binom.ppf(CONFIDENCE, samples, limit.bound)) / samples
            limit = replace(limit, bound=max(limit.bound, most))
        found.append(limit)
    return found


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """limits: what layers are left dense or in float for; none where `reason` says why."""

    limits: tuple[Limit, ...] = ()
    is_default: bool = False
    reason: str = ""

    @classmethod
    def of(
        cls,
        given: LimitsLike,
        model: Model,
        pipeline: Pipeline,
        split: Split | None,
        *,
        named: bool,
    ) -> Guarded:
        """given: what the user said, None for the default. named: whether the pipeline is the
        user's own, which says itself what is protected. split: of the calibration samples.

        Raises: InputError O24-043 for a limit without real samples, or that no pass can keep.
        """
        if given == NONE or (not isinstance(given, str) and given is not None and NONE in given):
            return cls(reason="as asked for")
        limits = limits_of(given)
        why = ""
        if not any(step.name in _STEPS for step in pipeline):
            why = "the pipeline neither prunes nor quantizes"
        elif split is None:
            why = "there are no calibration samples"
        elif split.fitted.is_random:
            why = "the calibration samples are random"
        elif not can_be_judged(split.fitted):
            why = "there are too few calibration samples"
        elif named and not limits:
            why = "the pipeline was given"
        if why and limits:
            raise usage(f"--limit {limits[0]}: {why}", "pass --calib DATA with real samples")
        if why or split is None:
            return cls(reason=why)
        for limit in limits:
            _relative_error(limit)
        chosen = limits or default_limits(model, len(split.fitted))
        return cls(limits=tuple(chosen), is_default=not limits)

    def applied(self, pipeline: Pipeline) -> Pipeline:
        """The pipeline with the limits as budgets of its passes."""
        if not self.limits:
            return pipeline
        share = 1 / max(1, len({step.name for step in pipeline} & set(_STEPS)))
        errors = [_relative_error(limit) for limit in self.limits]
        budget = min((e for e in errors if e is not None), default=0.0) * math.sqrt(share)
        labels = min((x.bound for x in self.limits if x.metric == "top1"), default=None)
        values: dict[str, Any] = {"budget": float(f"{budget:.4g}")}
        if labels is not None:
            values["min_agreement"] = round(100 * (1 - share * labels), 6)
        if all(limit.output for limit in self.limits):
            values["outputs"] = tuple(dict.fromkeys(limit.output for limit in self.limits))
        return Pipeline(
            tuple(replace(s, **values) if s.name in _STEPS else s for s in pipeline)  # type: ignore[type-var]
        )

    def missed(self, comparison: Comparison | None, samples: int) -> list[Diagnostic]:
        """O24-601 for each limit that the samples held out do not confirm."""
        if comparison is None or not self.limits:
            return []
        limits = within_error(self.limits, samples)
        return [
            diagnostic(
                "O24-601",
                f"{each.limit}: expected {each.required}, found {each.value:.6g}",
                tensor=each.output,
            )
            for each in check_limits(limits, comparison.outputs, comparison.names)
            if not each.met and each.value is not None
        ]

    def document(self, result: RunResult) -> dict[str, Any]:
        """For the report: what the limits did. without: relative error of the outputs, and labels
        kept, had nothing been left out, by pass."""
        without: dict[str, dict[str, float]] = {}
        for step in result.passes:
            if step.name in _STEPS and (found := _without(step.name, step.statistics)):
                without[step.name] = found
        return {
            "limits": [str(limit) for limit in self.limits],
            "default": self.is_default,
            "reason": self.reason,
            "dense": _left(result, "O24-134"),
            "float": _left(result, "O24-237"),
            "without": without,
        }


def _without(name: str, statistics: Mapping[str, Any]) -> dict[str, float]:
    found = {
        key.removesuffix("_before"): float(value)
        for key, value in statistics.items()
        if key.endswith("_before")
    }
    if name == "qdq" and "agreement" in found:  # which counts in per cent
        found["agreement"] /= 100
    return found


def _left(result: RunResult, code: str) -> list[str]:
    return [record.weight for record in result.records if record.code == code]


def _relative_error(limit: Limit) -> float | None:
    """‖ŷ − y‖ / ‖y‖ that the limit allows; None where it is one of labels.

    Raises: InputError O24-043 for a limit that none follows from.
    """
    if limit.metric == "top1":
        return None
    if limit.metric == "sqnr" and abs(limit.bound) <= MOST_SQNR:
        return float(10 ** (-limit.bound / 20))
    if limit.metric == "rel-l2" and limit.bound > 0:
        return limit.bound
    if limit.metric == "cosine" and 1e-9 < limit.bound < 1:  # of noise at right angles
        return math.sqrt(1 / limit.bound**2 - 1)
    raise usage(
        f"--limit {limit}: prune24 and qdq keep sqnr of up to {MOST_SQNR:g} dB, top1, and rel-l2 "
        "and cosine within 0 to 1",
        "pass it as --max-drop, which is only looked at, or use tune",
    )
