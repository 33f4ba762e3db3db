"""Models that come quantized, and not in the way that TensorRT takes."""

from __future__ import annotations

from collections import Counter

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.qdq_rules import Quantized, findings
from onnx24.codes import lookup
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model

__all__ = ["quantized_otherwise"]

_CURED = frozenset({"O24-630", "O24-631", "O24-633"})
"""What `lint --fix --symmetric` repairs."""


def quantized_otherwise(model: Model) -> Diagnostic | None:
    """What TensorRT refuses of a model's Q/DQ, in one sentence that names the cure; None where it
    takes them, or there are none. It costs no run of the model."""
    judged = Quantized.of(model, AnalysisCache())
    refused = [f for f in findings(judged, sparse_outputs=False) if _is_error(f.code)]
    if not refused:
        return None
    first = refused[0]
    codes = Counter(finding.code for finding in refused)
    listed = ", ".join(f"{count} by {code}" for code, count in codes.most_common())
    left = [code for code in codes if code not in _CURED]
    hint = "repair it first: `onnx24 lint MODEL --fix --symmetric -o REPAIRED`, and compile that"
    if left:
        hint = f"quantize the float model instead: nothing repairs {', '.join(left)}"
    return diagnostic(
        "O24-245",
        f"the model comes quantized, and TensorRT refuses that: {listed}; the first: "
        f"{first.message}",
        scope=first.site.scope,
        node=first.site.name,
        op=first.site.proto.op_type,
        facts=dict(codes),
        hint=hint,
    )


def _is_error(code: str) -> bool:
    return lookup(code).severity == "error"
