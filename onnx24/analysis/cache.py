"""Analyses: lazy, cached, and keyed by the generations of what they depend on, so that a stale
one can't be had."""

from __future__ import annotations

import abc
from typing import ClassVar, TypeVar
from weakref import WeakKeyDictionary

from onnx24.effects import Effects
from onnx24.ir.model import Model

A = TypeVar("A", bound="Analysis")


class Analysis(abc.ABC):
    """A fact base about one state of a model. `depends`: which changes make it stale."""

    depends: ClassVar[Effects] = Effects.STRUCTURE

    @classmethod
    @abc.abstractmethod
    def compute(cls: type[A], model: Model, cache: AnalysisCache) -> A: ...


class AnalysisCache:
    """At most one result per model and kind of analysis."""

    def __init__(self) -> None:
        self._cached: WeakKeyDictionary[
            Model, dict[type[Analysis], tuple[tuple[int, ...], Analysis]]
        ] = WeakKeyDictionary()

    def get(self, model: Model, kind: type[A]) -> A:
        of_model = self._cached.setdefault(model, {})
        key = model.generation_key(kind.depends)
        hit = of_model.get(kind)
        if hit is not None and hit[0] == key:
            return hit[1]  # type: ignore[return-value]
        result = kind.compute(model, self)
        of_model[kind] = (key, result)
        return result
