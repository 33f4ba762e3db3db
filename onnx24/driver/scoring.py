"""Limits that need more than two models' outputs: labels, or a metric function of the caller's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx24.driver.usage import usage
from onnx24.errors import InputError
from onnx24.ir.archives import UNREADABLE
from onnx24.ir.model import Model
from onnx24.report.limits import SCORED, Limit, LimitResult
from onnx24.runtime.data import Calibration
from onnx24.runtime.session import Session

__all__ = ["LabelsLike", "MetricLike", "Scoring", "labels_of"]

LabelsLike = np.ndarray | str | os.PathLike[str] | None
MetricLike = Callable[[Mapping[str, np.ndarray], Any], float] | None
"""`metric(outputs, labels)`: outputs by name, of all samples along the first axis; a number, the
larger the better."""


def labels_of(labels: Any, *, integers: bool = True) -> np.ndarray | None:
    """An array, or that of an .npy. integers: no others. Raises: InputError O24-030."""
    if labels is None:
        return None
    file = ""
    if isinstance(labels, str | os.PathLike):
        file = os.fspath(labels)
        try:
            labels = np.load(Path(file), allow_pickle=False)
        except UNREADABLE as err:
            raise InputError.of("O24-030", f"labels: {err}", file=file) from err
    if not isinstance(labels, np.ndarray) or (integers and labels.dtype.kind not in "iu"):
        kind = " of integers" if integers else ""
        raise InputError.of("O24-030", f"labels are an .npy{kind}", file=file)
    return labels


@dataclass(kw_only=True)
class Scoring:
    """labels: one a sample of the whole data, of which samples that judge are a part."""

    labels: np.ndarray | None
    metric: MetricLike
    _known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: LabelsLike, metric: MetricLike) -> Scoring:
        """Raises: InputError O24-030."""
        if metric is not None and not callable(metric):
            raise usage(f"metric {metric!r}", "a function of (outputs, labels) that gives a number")
        return cls(labels=labels_of(labels, integers=metric is None), metric=metric)

    @property
    def defaults(self) -> list[Limit]:
        """What is asked for where labels or a function are given and no limit."""
        if self.metric is not None:
            return [Limit("metric", 0.01)]
        return [Limit("accuracy", 0.01)] if self.labels is not None else []

    def require(self, limits: Sequence[Limit]) -> None:
        """Raises: InputError O24-043 for a limit that nothing is given for, and the reverse."""
        asked = {limit.metric for limit in limits}
        if self.metric is not None and "metric" not in asked:
            raise usage("metric without a limit", "say how much may be lost: metric=0.01")
        if self.labels is not None and not asked & set(SCORED):
            raise usage("labels without a limit", "say how much may be lost: accuracy=0.01")
        for limit in limits:
            if limit.metric == "accuracy" and self.labels is None:
                raise usage(f"{limit} without labels", "pass --labels FILE.npy, one a sample")
            if limit.metric == "metric" and self.metric is None:
                raise usage(f"{limit} without a function", "pass metric= from Python")

    def check(
        self, limits: Sequence[Limit], original: Model, made: Model, data: Calibration
    ) -> list[LimitResult]:
        """The limits of SCORED; the others are `check_limits`'s."""
        found = []
        for limit in limits:
            if limit.metric not in SCORED:
                continue
            key = f"{limit} {data.digest()}"
            if key not in self._known:  # tune asks for many models
                self._known[key] = self._score(limit, original, data)
            drop = self._known[key] - self._score(limit, made, data)
            runs = data.runs
            found.append(
                LimitResult(limit, limit.output, drop, drop <= limit.bound + 1e-12, runs, runs)
            )
        return found

    def _score(self, limit: Limit, model: Model, data: Calibration) -> float:
        session = Session(model, [limit.output] if limit.output else None)
        runs = [session.run(feeds) for feeds in data.batches(model)]
        try:
            outputs = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
        except (ValueError, TypeError) as err:
            raise usage(f"{limit}: outputs that do not stack: {err}", "give samples alike") from err
        labels = None if self.labels is None else data.picked(self.labels)
        if limit.metric == "accuracy":
            return _accuracy(limit, next(iter(outputs.values())), labels)
        assert self.metric is not None
        try:
            return float(self.metric(outputs, labels))
        except InputError:
            raise
        except Exception as err:  # somebody else's code
            name = getattr(self.metric, "__qualname__", "metric")
            raise usage(f"{name} fails: {type(err).__name__}: {err}", "see what it gets") from err


def _accuracy(limit: Limit, output: np.ndarray, labels: np.ndarray | None) -> float:
    """The share of samples whose largest class is their label; NaN is no class."""
    assert labels is not None
    rows = output.reshape(-1, output.shape[-1]) if output.ndim else output.reshape(1, 1)
    if rows.shape[1] < 2:
        raise usage(
            f"{limit}: an output of {list(output.shape)} has one class",
            "pass metric= from Python, with what its one number means",
        )
    if len(rows) != labels.size:
        raise usage(
            f"{limit}: {labels.size} labels for an output of {list(output.shape)}",
            "one label a sample; name the output of classes: accuracy=0.01@OUTPUT",
        )
    hits = (rows.argmax(axis=1) == labels.reshape(-1)) & ~np.isnan(rows).any(axis=1)
    return float(np.mean(hits))
