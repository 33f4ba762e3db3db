"""The rules of a policy's section [qdq]: analysis.qdq_rules, as diagnostics of a subject."""

from __future__ import annotations

from collections.abc import Iterator

from onnx24.analysis import qdq_rules
from onnx24.analysis.qdq_rules import Quantized
from onnx24.diagnostics import Diagnostic
from onnx24.gate.subject import Subject


def findings(subject: Subject) -> Iterator[Diagnostic]:
    """Every finding of every rule, whatever the policy says of its severity. `facts["rule"]` is
    the rule's key in the policy's section [qdq]."""
    target = subject.target
    sparse, fp8 = target.output_qdq_for_sparse, target.fp8
    for found in qdq_rules.findings(_quantized(subject), sparse_outputs=sparse, fp8=fp8):
        yield subject.finding(
            found.code,
            found.message,
            f"qdq.{found.rule}",
            scope=found.site.scope,
            node=found.site.name,
            op=found.site.proto.op_type,
            tensor=found.tensor,
        )


def quantized_products(subject: Subject) -> tuple[int, int]:
    """(products with both operands behind DQ, products with a constant weight)."""
    return qdq_rules.quantized_products(_quantized(subject))


def _quantized(subject: Subject) -> Quantized:
    return Quantized.of(subject.model, subject.cache)
