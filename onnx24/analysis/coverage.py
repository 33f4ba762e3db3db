"""Is this weight 2:4, and how much of the model is: the one answer, of the values as they are
stored. Who made a weight 2:4 makes no difference, nor does which pass ran last: reports, `inspect`,
`check` and `diff` ask here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import SparseTarget, Verdict, judge
from onnx24.analysis.invariants import seen_violations
from onnx24.analysis.packed24 import packed_problem, packed_product
from onnx24.analysis.weight_uses import COMPUTED, WeightUses
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import has_packed, unpack

__all__ = ["Coverage", "Covered", "covered", "is_24", "whole"]


def is_24(model: Model, uses: WeightUses, verdict: Verdict) -> bool | None:
    """For every product that reads the values; None where none groups them by four, or no tensor
    holds them."""
    if verdict.key not in uses.tensors:
        return None
    packed = packed_product(uses.index, verdict.key)
    if packed is not None:
        return packed_problem(model, uses.index, packed) is None
    read = [use for use in verdict.products if use.k_axis_consumer is not None and use.K % 4 == 0]
    if not read:
        return None
    return not any(seen_violations(model, uses, verdict.key, use).violating for use in read)


@dataclass(frozen=True)
class Coverage:
    """How much of what could be 2:4 is 2:4. Counts of weights and of their elements; `elements` are
    those of all weights. A product's operand that is computed from constants could be 2:4 and is
    not: `canonicalize` makes it a weight where it can."""

    eligible: int = 0
    eligible_elements: int = 0
    sparse: int = 0
    sparse_elements: int = 0
    elements: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[tuple[Verdict, bool | None]]) -> Coverage:
        """Each with the answer of `is_24`."""
        every = list(verdicts)
        could = [(v, found) for v, found in every if v.eligible or v.code == COMPUTED]
        sparse = [v for v, found in could if found]
        return cls(
            len(could),
            sum(_elements(v) for v, _ in could),
            len(sparse),
            sum(_elements(v) for v in sparse),
            sum(_elements(v) for v, _ in every),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "eligible_weights": self.eligible,
            "eligible_elements": self.eligible_elements,
            "sparse_weights": self.sparse,
            "sparse_elements": self.sparse_elements,
            "all_elements": self.elements,
            "share": self.share,
        }

    @property
    def share(self) -> float | None:
        """Sparse elements by eligible elements; None where nothing is eligible."""
        return self.sparse_elements / self.eligible_elements if self.eligible_elements else None


def _elements(verdict: Verdict) -> int:
    return math.prod(verdict.facts["shape"])


@dataclass(frozen=True)
class Covered:
    """A model's coverage, and `is_24` of each of its weights."""

    coverage: Coverage
    patterns: Mapping[ValueKey, bool | None]


def whole(model: Model) -> tuple[Model, set[ValueKey]]:
    """The model with the weights that pack24 stored made whole, and which those are."""
    if not has_packed(model):
        return model, set()
    copy = model.reading_copy()
    return copy, {weight for _, weight in unpack(copy)}


def covered(model: Model, target: SparseTarget, cache: AnalysisCache | None = None) -> Covered:
    """Reads every weight of a product once, unless it was looked at before."""
    cache = AnalysisCache() if cache is None else cache
    model, _ = whole(model)
    uses = cache.get(model, WeightUses)
    verdicts = judge(model, cache, target)
    patterns = {}
    for key, verdict in verdicts.items():
        patterns[key] = is_24(model, uses, verdict)
        model.weights.release_pages()
    return Covered(Coverage.of((v, patterns[k]) for k, v in verdicts.items()), patterns)
