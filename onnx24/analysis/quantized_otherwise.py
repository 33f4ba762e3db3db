"""Models that come quantized, and not in the way that TensorRT takes."""

from __future__ import annotations

from collections import Counter

from onnx import TensorProto

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.qdq_rules import Finding, Quantized, findings
from onnx24.codes import lookup
from onnx24.diagnostics import Diagnostic, diagnostic
from onnx24.ir.model import Model

__all__ = ["quantized_otherwise"]

_CURED = frozenset({"O24-252", "O24-630", "O24-633"})


def quantized_otherwise(
    model: Model, cache: AnalysisCache | None = None, *, fp8: bool = True
) -> Diagnostic | None:
    """What TensorRT refuses of a model's Q/DQ, in one sentence that names the cure; None where it
    takes them, or there are none. It costs no run of the model. fp8: the target has FP8 kernels."""
    judged = Quantized.of(model, cache or AnalysisCache())
    refused = [f for f in findings(judged, sparse_outputs=False, fp8=fp8) if _is_error(f.code)]
    if not refused:
        return None
    first = refused[0]
    codes = Counter(finding.code for finding in refused)
    listed = ", ".join(f"{count} by {code}" for code, count in codes.most_common())
    left = dict.fromkeys(f.code for f in refused if not _is_repaired(judged, f))
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


def _is_repaired(judged: Quantized, finding: Finding) -> bool:
    """Whether `lint --fix --symmetric` repairs it."""
    if finding.code == "O24-631":
        return judged.element(finding.site) == TensorProto.UINT8
    return finding.code in _CURED


def _is_error(code: str) -> bool:
    return lookup(code).severity == "error"
