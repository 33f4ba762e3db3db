"""That weights recorded as 2:4 are 2:4 in the values that their consumers see.

Folding, casting, quantizing and rewriting may not lose the pattern. What lies between the stored
tensor and the consumer (Transpose, Reshape, Cast, Q, DQ) either moves whole groups or keeps zeros,
so the stored tensor decides where it is 2:4; where it is not, the chain is computed, since rounding
may still have made zeros. Weights that pack24 stored are unpacked for that; one that is
packed for onnx24::SpMM24 is 2:4 where its metadata are.
"""

from __future__ import annotations

from typing import Any

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.packed24 import packed_problem, packed_product
from onnx24.analysis.weight_uses import WeightUse, WeightUses, consumer_view
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import has_packed, unpack
from onnx24.sparsity.masks import Violations, violations

__all__ = ["broken_claims", "broken_weights", "is_seen_24", "seen_violations", "stale_claims"]


def broken_claims(model: Model, cache: AnalysisCache) -> list[Diagnostic]:
    """O24-807 for every recorded weight that is gone, that no product reads any more, or that is
    not 2:4 for one that does."""
    keys = model.claims.keys()
    return broken_weights(model, cache, keys, "O24-807") if keys else []


def broken_weights(
    model: Model, cache: AnalysisCache, keys: list[ValueKey], code: str
) -> list[Diagnostic]:
    """A diagnostic with `code` for each of the weights that is not 2:4 for its consumers.

    Messages do not name the consumer (the facts do), so that the same defect reads the same after
    a pass that renames nodes.
    """
    if has_packed(model):
        copy = model.reading_copy()
        try:
            whole = dict(unpack(copy))
        except InputError as err:
            return [diagnostic(code, str(err), severity=Severity.ERROR)]
        return broken_weights(copy, AnalysisCache(), [whole.get(key, key) for key in keys], code)
    found = cache.get(model, WeightUses)
    problems = []
    for key in keys:
        where: dict[str, Any] = {"tensor": key.name, "scope": key.scope, "severity": Severity.ERROR}
        if key not in found.uses:
            message = "is recorded as 2:4, and is no weight of the model any more"
            problems.append(diagnostic(code, message, **where))
            continue
        if (packed := packed_product(found.index, key)) is not None:
            if reason := packed_problem(model, found.index, packed):
                problems.append(diagnostic(code, f"is recorded as 2:4: {reason}", **where))
            continue
        uses = [use for use in found.products(key) if use.k_axis_consumer is not None]
        followed = [use for use in uses if use.code not in ("O24-113", "O24-121")]
        if not followed:
            reason = uses[0].reason if uses else "no product reads it"
            message = f"is recorded as 2:4, and can't be: {reason}"
            problems.append(diagnostic(code, message, **where))
            continue
        for use in followed:
            result = seen_violations(model, found, key, use)
            if not result.violating:
                continue
            problems.append(
                diagnostic(
                    code,
                    f"{result.violating:,} of {result.groups:,} groups of four have more than two "
                    f"nonzeros, the first at {list(result.first or ())}",
                    **where,
                    facts={
                        "groups": result.groups,
                        "violating": result.violating,
                        "first": list(result.first or ()),
                        "consumer": use.node,
                    },
                )
            )
            break
    return problems


def stale_claims(model: Model, found: WeightUses) -> list[ValueKey]:
    """Records of weights that the model does not have (any more)."""
    return [key for key in model.claims if key not in found.tensors]


def is_seen_24(model: Model, found: WeightUses, key: ValueKey) -> bool:
    """Whether a weight is 2:4, recorded or not, for every product that reads it along an axis, of
    which there must be one."""
    grouped = [u for u in found.products(key) if u.k_axis_consumer is not None]
    return bool(grouped) and all(
        use.K % 4 == 0 and not seen_violations(model, found, key, use).violating for use in grouped
    )


def seen_violations(model: Model, found: WeightUses, key: ValueKey, use: WeightUse) -> Violations:
    """Violations of 2:4 in the values that a product sees; `first` is an index of its operand
    unless no step stands between. The stored values are read piece by piece, and once where
    several ask."""
    if use.k_stride is not None and use.code != "O24-124":
        stored = model.weights.violations(found.tensors[key], use.k_stride)
        if not stored.violating or not use.chain:
            return stored
    assert use.k_axis_consumer is not None
    return violations(consumer_view(found.read(model, key), use), use.k_axis_consumer)
