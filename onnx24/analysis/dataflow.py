"""The two analyses that everything else asks: who reads what, and what shape it has."""

from __future__ import annotations

from dataclasses import dataclass

from onnx24.analysis.cache import Analysis, AnalysisCache
from onnx24.ir.index import Index
from onnx24.ir.model import Model
from onnx24.ir.shapes import Dim, ShapeTable, infer


@dataclass
class Dataflow(Analysis):
    """Producers, consumers and scopes (ir.index)."""

    index: Index

    @classmethod
    def compute(cls, model: Model, cache: AnalysisCache) -> Dataflow:
        return cls(model.index())


@dataclass
class Shapes(Analysis):
    """Shapes and dtypes (ir.shapes)."""

    table: ShapeTable

    @classmethod
    def compute(cls, model: Model, cache: AnalysisCache) -> Shapes:
        return cls(infer(model, model.index()))

    def shape(self, value: str, scope: str = "") -> tuple[Dim, ...] | None:
        return self.table.shape(value, scope)

    def dtype(self, value: str, scope: str = "") -> int | None:
        return self.table.dtype(value, scope)

    def rank(self, value: str, scope: str = "") -> int | None:
        return self.table.rank(value, scope)
