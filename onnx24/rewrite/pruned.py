"""Giving one weight its 2:4 values, solved or by magnitude, and saying what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model
from onnx24.layerwise.prune import Solved
from onnx24.layerwise.results import LayerResult
from onnx24.rewrite.magnitude import Magnitude
from onnx24.rewrite.solved import put_solved

__all__ = ["Outcome", "by_magnitude_note", "prune_weight", "require_finite"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is to be recorded of one weight. seconds: spent on solving it, None where it was not."""

    action: str
    code: str
    reason: str
    facts: dict[str, Any]
    warnings: list[Diagnostic] = field(default_factory=list)
    seconds: float | None = None


def require_finite(magnitude: Magnitude, verdicts: Iterable[Verdict]) -> None:
    """Raises: InputError O24-008 where a weight holds NaN or infinity."""
    for verdict in verdicts:
        magnitude.search_nonfinite(verdict)
    magnitude.check_finite()


def prune_weight(
    model: Model, found: WeightUses, verdict: Verdict, magnitude: Magnitude, solved: Solved
) -> Outcome | None:
    """Write one weight's new values, and its layer's bias where that moves. Nothing is changed,
    and None returned, where values are NaN or infinite: `magnitude` tells once all are searched."""
    key = verdict.key
    if key in solved.dense_again:
        return _left_dense(verdict, solved)
    result = solved.results.get(key)
    if result is None:
        return _by_magnitude(verdict, magnitude, solved)
    facts = put_solved(model, found, verdict, result, solved.layers[key].bias)
    return Outcome(
        action="pruned",
        code="O24-100",
        reason=_errors(result),
        facts=facts,
        warnings=_warnings(verdict, result, facts),
        seconds=round(result.seconds, 3),
    )


def by_magnitude_note(pruned: Iterable[Verdict], solved: Solved) -> list[Diagnostic]:
    """O24-125, once for all weights that no activations were looked at for, with the reasons
    where there were data."""
    left = [verdict.key for verdict in pruned if verdict.key not in solved.results]
    if not left:
        return []
    n, were = len(left), "weight was" if len(left) == 1 else "weights were"
    message = f"{n} {were} pruned by magnitude, which looks at no activations"
    facts: dict[str, Any] = {"weights": n}
    reasons = Counter(solved.unsolved[key] for key in left if key in solved.unsolved)
    if reasons:
        facts["reasons"] = dict(reasons.most_common())
        message += f": {'; '.join(f'{why} ({count})' for why, count in reasons.most_common(3))}"
    return [diagnostic("O24-125", message, facts=facts)]


def _left_dense(verdict: Verdict, solved: Solved) -> Outcome:
    reason = "dense within the budget"
    if verdict.key in solved.unsolved:
        reason += f": {solved.unsolved[verdict.key]}"
    gain = solved.dense_again[verdict.key]
    return Outcome(action="refused", code="O24-134", reason=reason, facts={"gain": gain})


def _by_magnitude(verdict: Verdict, magnitude: Magnitude, solved: Solved) -> Outcome | None:
    facts = magnitude.prune(verdict)
    if not facts:
        return None
    reason = f"energy kept {facts['energy_kept']:.1%}"
    if why := solved.unsolved.get(verdict.key):
        facts["unsolved"] = why
        reason += f"; by magnitude: {why}"
    return Outcome(action="pruned", code="O24-100", reason=reason, facts=facts)


def _warnings(verdict: Verdict, result: LayerResult, facts: dict[str, Any]) -> list[Diagnostic]:
    where: dict[str, Any] = {"tensor": verdict.key.name, "node": verdict.node, "facts": facts}
    found = []
    if "rows_not_finite" in facts:
        message = f"{facts['rows_not_finite']:,} rows of its input hold NaN or infinity"
        found.append(diagnostic("O24-136", message, **where))
    if result.magnitude:
        message = "solved, the layer erred more on held-back samples than by magnitude"
        found.append(diagnostic("O24-132", message, **where))
    if facts["rows"] < facts["columns"]:
        message = f"{facts['rows']:,} calibration rows for K = {facts['columns']:,}"
        found.append(diagnostic("O24-131", message, **where))
    return found


def _errors(result: LayerResult) -> str:
    error = result.facts.get("output_error")
    if error is None:
        return "no sample could be held back to judge it by"
    return f"output error {error:.1%}, {result.facts['output_error_magnitude']:.1%} by magnitude"
