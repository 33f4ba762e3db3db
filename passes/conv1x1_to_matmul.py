"""conv1x1-to-matmul: write 1x1 convolutions as matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.pointwise import PointwiseConvs
from onnx24.analysis.products import conflicts
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.ir.surgeon import label
from onnx24.passmgr.base import Context, Effects, Pass
from onnx24.rewrite.matmul import between_reshapes, rewrite_as_matmul
from onnx24.rewrite.shared import admitted_by_weight, move_claims


@dataclass(frozen=True, kw_only=True)
class Conv1x1ToMatmul(Pass):
    """Rewrite 1x1 convolutions as MatMul and Add: the inverse of matmul-to-conv1x1, for a model
    that was written for TensorRT 8 and is to run on a later release.

    By default only convolutions whose input a Reshape made of a matrix operand are rewritten, as
    matmul-to-conv1x1 leaves them in each of its forms; the Reshapes around them go, and elementwise
    nodes between them work on the matrices again. With `all=true` every convolution with a constant
    1x1 kernel, stride 1, no padding and one group is. Where the images have one position, the
    weight becomes [K, N] on the right, else [N, K] on the left, which needs no Transpose. Q/DQ of
    the weight stays, its axis moves; the weight keeps its name, the MatMul the Conv's; a weight
    recorded as 2:4 stays so. A Gemm comes back as MatMul and Add.

    Refused with a record: O24-313 for other 1x1 kernels (grouped, strided, padded, of unknown
    rank, read by something else too). The outputs are equal to rounding.

    Example: `conv1x1-to-matmul`.
    *Source:* onnx Conv, MatMul; NVIDIA/TensorRT release 10 takes MatMul as it is (docs/targets.md).
    """

    name: ClassVar[str] = "conv1x1-to-matmul"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    enters_functions: ClassVar[bool] = False
    codes: ClassVar[tuple[str, ...]] = ("O24-301", "O24-313")
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    all: Annotated[bool, "also convolutions that no Reshape shows to have been products"] = False

    def run(self, model: Model, ctx: Context) -> None:
        if not any(ops.is_onnx(n, "Conv") for s in model.scopes() for n in s.graph.node):
            return
        shapes = ctx.analysis(model, Shapes)
        with model.surgeon() as view:
            convs = PointwiseConvs(model, shapes, view)
            sites, refusals = convs.find()
            for refusal in refusals:
                ctx.record(
                    "refused",
                    refusal.code,
                    weight=refusal.weight,
                    node=label(refusal.node),
                    op=refusal.node.op,
                    scope=refusal.graph.scope,
                    reason=refusal.reason,
                )
            if not self.all:
                sites = between_reshapes(convs, sites)
            admitted = admitted_by_weight(sites, ctx.admit)
            torn = conflicts(admitted, convs.outputs)
            admitted = [site for site in admitted if id(site.node) not in torn]
            rewrite_as_matmul(convs, admitted)
        move_claims(model, admitted)
        for site in admitted:
            ctx.record(
                "rewritten",
                "O24-301",
                weight=site.name,
                node=site.label,
                op="Conv",
                scope=site.scope,
                k=site.k,
                n=site.n,
            )
        if admitted:
            ctx.statistics["rewritten"] = len(admitted)
