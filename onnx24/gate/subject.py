"""The model that is judged, and what the rules ask of it, each computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.dataflow import Dataflow, Shapes
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.report.inspection import Inspection, WeightRow, inspect
from onnx24.report.model import ModelFacts
from onnx24.report.policy import Policy
from onnx24.targets import Target


@dataclass
class Subject:
    """`path`: what the user called the file. `stored`: the model as it is in the file, whose packed
    weights (ir.packed) are whole in `model`."""

    model: Model
    path: str
    target: Target
    policy: Policy
    stored: Model | None = None
    cache: AnalysisCache = field(default_factory=AnalysisCache)
    measured: dict[str, float] = field(default_factory=dict)
    """Numbers that rules measured, for reports and for comparing models."""

    @cached_property
    def facts(self) -> ModelFacts:
        return ModelFacts.of(self.stored or self.model, self.path)

    @cached_property
    def inspection(self) -> Inspection:
        return inspect(self.model, self.target, self.path)

    @property
    def index(self) -> Index:
        return self.cache.get(self.model, Dataflow).index

    @property
    def shapes(self) -> Shapes:
        return self.cache.get(self.model, Shapes)

    @property
    def uses(self) -> WeightUses:
        return self.cache.get(self.model, WeightUses)

    @property
    def eligible(self) -> list[WeightRow]:
        return [row for row in self.inspection.rows if row.eligible]

    def nodes(self) -> Iterator[tuple[str, NodeProto]]:
        """(scope, node) of every graph and every function."""
        for scope in self.model.scopes():
            for node in scope.graph.node:
                yield scope.path, node

    def constant(self, name: str, scope: str) -> np.ndarray | None:
        """The values behind a name; None where they are computed at run time."""
        tensor = self._tensor(name, scope)
        return None if tensor is None else self.model.weights.read(tensor)

    def _tensor(self, name: str, scope: str) -> TensorProto | None:
        key: ValueKey | None = self.index.resolve(name, scope)
        return None if key is None else self.uses.tensors.get(key)

    def finding(self, code: str, message: str, rule: str, **where: Any) -> Diagnostic:
        """A diagnostic of this file; `rule` is the policy's key that it comes from."""
        facts = {"rule": rule, **where.pop("facts", {})}
        return diagnostic(code, message, file=self.path, facts=facts, **where)
