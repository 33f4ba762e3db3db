"""What an edit makes stale, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.dataflow import Dataflow
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.weight_uses import WeightUses
from onnx24.effects import Effects
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

RESHAPED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 8] x) => (float[N, 4] y)
  <float[4, 8] w = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8,
                    1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, int64[2] shape = {8, 4}>
{ v = Reshape(w, shape) y = MatMul(x, v) }
"""

EDITS = {
    "values of a weight": lambda m: m.weights.replace("w", np.zeros((4, 8), np.float32)),
    "metadata": lambda m: m.claims.add("w"),
    "a shape": lambda m: m.weights.replace("shape", np.array([-1, 4])),
    "values that nobody names": lambda m: m.touch(Effects.WEIGHTS),
    "structure": lambda m: m.touch(Effects.STRUCTURE),
    "going back": lambda m: m.restore(m.snapshot()),
}
"""The first two leave every fact of the graph as it is."""


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", [WeightUses, Eligibility])
def test_facts_are_kept_where_nothing_that_they_rest_on_changed(kind, edit: str) -> None:
    model, cache = Model.from_text(RESHAPED), AnalysisCache()
    before = cache.get(model, kind)
    EDITS[edit](model)
    assert (cache.get(model, kind) is before) == (edit in list(EDITS)[:2])
    assert cache.get(model, kind) is cache.get(model, kind)


def test_kept_facts_go_once_something_else_changes() -> None:
    """The edits since the facts were first found count, not those since they were last asked."""
    model, cache = Model.from_text(RESHAPED), AnalysisCache()
    before = cache.get(model, WeightUses)
    EDITS["a shape"](model)
    EDITS["values of a weight"](model)
    after = cache.get(model, WeightUses)
    assert after is not before and after.looked_at == {ValueKey("", "shape")}
    assert after.products(ValueKey("", "w"))[0].eligible


def test_an_index_is_made_once_a_structure() -> None:
    model, cache = Model.from_text(RESHAPED), AnalysisCache()
    first = cache.get(model, Dataflow).index
    model.claims.add("w")
    model.weights.replace("w", np.ones((4, 8), np.float32))
    assert model.index() is first
    model.proto.graph.node[1].input[1] = "w"
    model.touch(Effects.STRUCTURE)
    assert [use.site.name for use in model.index().consumers("w")] == ["v", "y"]
    assert model.variant(model.skeleton()).index() is not model.index()
