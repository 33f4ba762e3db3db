"""matmul-to-conv1x1: write matrix products with a constant operand as 1x1 convolutions."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.products import Products, Refusal, has_products
from onnx24.ir.model import Model
from onnx24.ir.repair import repair
from onnx24.ir.surgeon import label
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.rewrite.conv1x1 import Layout, rewrite_as_conv1x1
from onnx24.rewrite.shared import admitted_by_weight, move_claims


class When(str, enum.Enum):
    TARGET = "target"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, kw_only=True)
class MatmulToConv1x1(Pass):
    """Rewrite MatMul and Gemm with a constant weight into
    `Reshape[-1,K,1,1] → Conv(W[N,K,1,1], bias) → Reshape` back: all tokens become the batch.

    TensorRT 8 considers sparse kernels for convolutions and hardly for matrix products. From
    TensorRT 10 on MatMul itself is eligible and the convolution costs reformats, so by default
    (`when=target`) the target's row decides.

    Covered: a constant on either side, a matrix or a vector, also behind a Transpose; activations
    of any rank with any dynamic dimensions; Gemm with all its attributes. A bias, whether a Gemm
    has it or an Add behind a MatMul, goes into the convolution; other addends become an Add.
    Q/DQ of the weight stays, its axis moves from N's old to its new place. Neighbours that read
    one activation share its Reshape, and elementwise nodes between two convolutions (activation
    functions, scales, per-tensor Q/DQ, residual sums of two token forms) work on tokens, so that
    the Reshapes between go; a normalization stays outside. The weight keeps its name, the Conv the
    layer's; a weight recorded as 2:4 stays so, along C now.

    `form=tokens` is the cheapest or near it (benchmarks/results/conv1x1.md). A weight on the left,
    whose activation has K before its last axis, becomes `Reshape[batch,K,M,1] → Conv → Reshape`
    there, which needs no Transpose. `form=nchw` writes every product so, `form=conv1d` as
    `[batch,K,M] → Conv(W[N,K,1])`; both put Transposes around a weight on the right. An activation
    that is empty at run time only stays empty as tokens (with several dynamic sizes from opset 14
    on); as an image, ONNX Runtime refuses an M of 0.

    Refused, with a record each: O24-310 where the target prefers the MatMul, O24-312 where both
    operands are computed, O24-311 for other forms (one matrix a batch, which would be a grouped
    convolution and get no sparse kernels; an activation of unknown rank; blocked scales; a dtype
    that Conv lacks in this opset; a weight that something else reads too: it would have to be
    stored twice). Local functions are not entered (canonicalize inlines them). The outputs are
    equal to rounding. conv1x1-to-matmul is the inverse.

    Example: `matmul-to-conv1x1{when=always}`.
    *Source:* NVIDIA/TensorRT issues 2271, 4054, 3849; onnxsim pull request 1764; onnx Conv.
    """

    name: ClassVar[str] = "matmul-to-conv1x1"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    enters_functions: ClassVar[bool] = False
    codes: ClassVar[tuple[str, ...]] = ("O24-300", "O24-310", "O24-311", "O24-312")
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    when: Annotated[When, "target: as the target's row says; always; never"] = When.TARGET
    form: Annotated[
        Layout, "what becomes the batch: tokens (all but K), or the leading axes (nchw, conv1d)"
    ] = Layout.TOKENS

    def run(self, model: Model, ctx: Context) -> None:
        if self.when is When.NEVER or not has_products(model):
            return
        if "unsorted" in model.defects and (self.when is When.ALWAYS or ctx.target.conv1x1):
            repair(model)  # shapes are inferred, and nodes written anew, in order
        shapes = ctx.analysis(model, Shapes)
        with model.surgeon() as view:
            products = Products(model, shapes, view)
            sites, refusals = products.find()
            for refusal in refusals:
                _refuse(ctx, refusal)
            if self.when is When.TARGET and not ctx.target.conv1x1:
                for site in sites:
                    reason = f"{ctx.target.name} takes the MatMul as it is"
                    _refuse(ctx, site.refused("O24-310", reason))
                return
            admitted = admitted_by_weight(sites, ctx.admit)
            kept = rewrite_as_conv1x1(products, admitted, self.form)
        move_claims(model, admitted)
        for site in admitted:
            ctx.record(
                "rewritten",
                "O24-300",
                weight=site.name,
                node=site.label,
                op=site.node.op,
                scope=site.scope,
                k=site.k,
                n=site.n,
                bias=site.bias is not None,
                form=self.form.value,
            )
        if admitted:
            ctx.statistics["rewritten"] = len(admitted)
            ctx.statistics["kept_between"] = kept


def _refuse(ctx: Context, refusal: Refusal) -> None:
    ctx.record(
        "refused",
        refusal.code,
        weight=refusal.weight,
        node=label(refusal.node),
        op=refusal.node.op,
        scope=refusal.graph.scope,
        reason=refusal.reason,
    )
