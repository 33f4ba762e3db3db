"""The pass lint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.dataflow import Dataflow
from onnx24.analysis.qdq_rules import Finding, Quantized, findings, quantized_products
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import Diagnostic, Severity, diagnostic
from onnx24.effects import Effects
from onnx24.errors import NotMetError
from onnx24.ir.model import Model
from onnx24.ir.verify import make_constant
from onnx24.passmgr.base import Context, Pass
from onnx24.rewrite.qdq_repairs import Repairs, parameters_that_are_inputs


@dataclass(frozen=True, kw_only=True)
class Lint(Pass):
    """Judge the Q/DQ of a model by TensorRT's rules, and repair on request what is safe.

    For models that were quantized elsewhere (PyTorch, ModelOpt, ONNX Runtime). The rules are those
    that `check` applies and that `qdq` follows, onnx24/analysis/qdq_rules.py, and agree form by
    form with what tensorrt-rtx builds (benchmarks/rtx_forms.py): a zero point that is not 0
    (O24-630) or not written out (O24-228), UINT8 and other types (O24-631), FP8 without kernels
    (O24-255), a scale that is 0 or negative (O24-250), an activation's scale that is no scalar
    (O24-632), Q/DQ of other domains (O24-251), a quantized bias (O24-633, O24-256), a quantized
    scalar (O24-252) or constant that something else than DQ reads (O24-253), INT4 beside INT8 where
    it fails (O24-254), a convolution whose scale is computed (O24-260), a weight quantized along
    another axis than its output channels or as a whole (O24-634), integer operators (O24-635), a Q
    that something else than DQ reads (O24-636), a product with one operand quantized (O24-637), a
    pair on the wrong branch of a residual Add (O24-638), a 2:4 INT8 product with a float result on
    targets that want it INT8 (O24-639).

    Without `fix` nothing is changed, and the exit code is 1 where a finding is an error. With it
    (O24-226) UINT8 becomes INT8 and its zero point 128 less; INT32 and quantized biases, and
    quantized scalars, become floats; scales of shape [1] scalars; zero points are written out;
    Clip, Transpose, Reshape and Identity of a stored INT8 weight are computed; what moves numbers
    between an activation's Q and DQ (Transpose, MaxPool, Slice) stands behind DQ; a Clip between an
    activation's Q and DQ, as Brevitas and PyTorch write it, becomes INT8's own saturation, or a
    Clip of the floats; Q/DQ of com.microsoft and TensorRT's FP8 ones become ONNX's (O24-258);
    stored integers behind Cast and Mul stand behind DequantizeLinear (O24-257); weights, scales and
    zero points of Q/DQ that are inputs as well are constants alone (O24-347). Outputs stay the same
    in every bit. What is left is reported, and fails nothing.

    `symmetric` makes zero points 0 besides (O24-227), which TensorRT asks for and which is not
    exact: the step grows to cover the wider side of the range, up to twice its size, and a value
    may move by half of the old and half of the new step (`moves_by`). Where the old range ended at
    0 and so did a Relu's work (ONNX Runtime drops a Relu before such a Q), a Relu is put back.
    Beyond the narrower side of other ranges values are no longer clipped.

    Not repaired: what needs the floats or the data that are gone; quantize the float model with
    qdq instead.

    Example: `lint{fix}`.

    *Source:* TensorRT documentation, explicit quantization; experiments with tensorrt-rtx 1.7.1;
    NVIDIA/TensorRT issues 1992, 3270; ONNX operators QuantizeLinear and DequantizeLinear.
    """

    name: ClassVar = "lint"
    effects: ClassVar = Effects.STRUCTURE | Effects.WEIGHTS
    enters_functions: ClassVar = False  # what a call hands in is not known inside
    after: ClassVar = ("qdq", "fold-qdq")
    numeric: ClassVar = "close"
    codes: ClassVar = (
        "O24-226",
        "O24-227",
        "O24-228",
        "O24-250",
        "O24-251",
        "O24-252",
        "O24-253",
        "O24-254",
        "O24-255",
        "O24-256",
        "O24-257",
        "O24-258",
        "O24-260",
        "O24-347",
        "O24-630",
        "O24-631",
        "O24-632",
        "O24-633",
        "O24-634",
        "O24-635",
        "O24-636",
        "O24-637",
        "O24-638",
        "O24-639",
    )

    fix: Annotated[bool, "repair what can be said otherwise with the same outputs"] = False
    symmetric: Annotated[bool, "make zero points 0, too, which rounds otherwise"] = False

    def touches(self) -> Effects:
        return self.effects if self.fix or self.symmetric else Effects.NONE

    def run(self, model: Model, ctx: Context) -> None:
        if self.fix or self.symmetric:
            ctx.statistics["repaired"] = self._repair(model, ctx)
        judged = Quantized.of(model, ctx.analyses)
        sparse, fp8 = ctx.target.output_qdq_for_sparse, ctx.target.fp8
        found = list(findings(judged, sparse_outputs=sparse, fp8=fp8))
        quantized, products = quantized_products(judged)
        ctx.statistics.update(findings=len(found), quantized=quantized, products=products)
        problems = [_diagnostic(finding) for finding in found]
        fails = any(problem.severity is Severity.ERROR for problem in problems)
        if fails and not (self.fix or self.symmetric):
            raise NotMetError(problems)
        for finding in found:
            ctx.record(
                "found",
                finding.code,
                weight=finding.tensor,
                node=finding.site.name,
                op=finding.site.proto.op_type,
                scope=finding.site.scope,
                reason=finding.message,
                rule=finding.rule,
            )

    def _repair(self, model: Model, ctx: Context) -> int:
        count = self._make_constant(model, ctx)
        uses = ctx.analysis(model, WeightUses)
        with model.surgeon() as root:
            for repair in Repairs(model, uses, root, ctx.admit).run(symmetric=self.symmetric):
                count += 1
                ctx.record(
                    "repaired",
                    repair.code,
                    node=repair.node,
                    op=repair.op,
                    scope=repair.scope,
                    reason=repair.reason,
                    **repair.facts,
                )
        return count

    def _make_constant(self, model: Model, ctx: Context) -> int:
        names = parameters_that_are_inputs(model, ctx.analysis(model, Dataflow).index)
        names = [name for name in names if ctx.admit(f"input {name}")]
        if names:
            make_constant(model, frozenset(names))
        for name in names:
            ctx.record("made constant", "O24-347", weight=name)
        return len(names)


def _diagnostic(finding: Finding) -> Diagnostic:
    return diagnostic(
        finding.code,
        finding.message,
        scope=finding.site.scope,
        node=finding.site.name,
        op=finding.site.proto.op_type,
        tensor=finding.tensor,
        facts={"rule": finding.rule},
    )
