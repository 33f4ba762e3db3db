"""Analyses: lazy, cached, and keyed by the generations of what they depend on, so that a stale
one can't be had."""

from __future__ import annotations

import abc
from collections.abc import Set
from typing import ClassVar, TypeVar
from weakref import WeakKeyDictionary

from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

A = TypeVar("A", bound="Analysis")


class Analysis(abc.ABC):
    """A fact base about one state of a model's graph. `depends`: which changes make it stale;
    metadata are none."""

    depends: ClassVar[Effects] = Effects.STRUCTURE

    def rests_on(self, replaced: Set[ValueKey]) -> bool:
        """Whether new values of these initializers may make it stale; asked where it depends on
        values and nothing else has changed."""
        return True

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
        if hit is not None and (hit[0] == key or _still_holds(model, hit[1], hit[0], key)):
            of_model[kind] = (key, hit[1])
            return hit[1]  # type: ignore[return-value]
        result = kind.compute(model, self)
        of_model[kind] = (key, result)
        return result


def _still_holds(model: Model, found: Analysis, was: tuple[int, ...], now: tuple[int, ...]) -> bool:
    """Whether the facts are those of the present state, though values were replaced since."""
    (structure, weights), (structure_now, _) = was, now
    if structure != structure_now:
        return False
    replaced = model.replaced_since(weights)
    return replaced is not None and not found.rests_on(replaced)
