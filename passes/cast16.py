"""cast16: compute in 16-bit floats where that is safe."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx import TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.mixed_precision import (
    LIMIT,
    NO_FORM,
    PRODUCTS,
    SENSITIVE,
    Finding,
    Plan,
)
from onnx24.analysis.precision import Range16
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function
from onnx24.ir.surgeon import label
from onnx24.ir.weights import INLINE_BYTES
from onnx24.passmgr.base import Context, Effects, Numeric, Pass
from onnx24.rewrite.precision import Rewriter, Stored
from onnx24.rewrite.shared import move_claims_of_products
from onnx24.runtime.ranges import largest_magnitudes


class Dtype(str, enum.Enum):
    FP16 = "fp16"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class Cast16(Pass):
    """Compute in FP16 (or BF16) instead of FP32: weights are stored in 16 bit, and a Cast stands
    where a value crosses from one precision to the other, one for each value and direction.
    Inputs and outputs keep their types. TensorRT 11 and TensorRT-RTX take the types of the model
    as they are, so there this pass decides what is computed in which precision.

    Kept in FP32, each with a record O24-241: the operators of `fp32-ops` (long sums, Softmax,
    normalizations, steep functions); operators that have no 16-bit form in the model's opset (a
    warning, O24-248, of products: Conv has BF16 from opset 22 on) or no definition at all;
    operators whose result depends on the bits or the type of the input (BitCast, EyeLike, Unique)
    or gets its type from an attribute (an output_dtype of DequantizeLinear is changed with it);
    nodes with bodies and what is in the bodies (O24-248 of products); arithmetic on values that
    came from integers (sizes, positions); quantized layers below opset 19, where QuantizeLinear and
    DequantizeLinear know only FP32 (upgrade-opset{to=19} changes that); nodes that read a constant
    of one element below the 16-bit type's normal range (an epsilon). What lies between two such
    nodes stays FP32 too, to save the Casts, and so does a patch without a matrix product.

    Activations beyond half of FP16's range on the calibration data keep their node and its readers
    in FP32 (O24-243, warning), and so do those that lie below its normal range altogether. Without
    data nothing is known of them, which O24-244 notes.

    A constant beyond the 16-bit range stays FP32 with all that reads it, up to the next Softmax,
    Clip or other bounding operator (O24-242, warning): in masks the value would become -inf and
    a fully masked row NaN.

    A weight that is read in both precisions is stored twice. A weight recorded as 2:4 stays so.
    Local functions are not entered (canonicalize inlines them). ONNX Runtime's CPU provider runs
    FP16 by casting back; for BF16 it has few kernels.

    Example: `cast16{dtype=bf16}`.
    *Source:* onnx.defs type constraints; PyTorch's autocast lists; NVIDIA TensorRT developer guide,
    strongly typed networks.
    """

    name: ClassVar[str] = "cast16"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    codes: ClassVar[tuple[str, ...]] = (
        "O24-240",
        "O24-241",
        "O24-242",
        "O24-243",
        "O24-244",
        "O24-248",
    )
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "prune24", "matmul-to-conv1x1")
    numeric: ClassVar[Numeric] = "close"
    enters_functions: ClassVar[bool] = False

    dtype: Annotated[Dtype, "the 16-bit type"] = Dtype.FP16
    fp32_ops: Annotated[tuple[str, ...], "operators that stay in FP32"] = SENSITIVE

    def run(self, model: Model, ctx: Context) -> None:
        to = TensorProto.FLOAT16 if self.dtype is Dtype.FP16 else TensorProto.BFLOAT16
        shapes = ctx.analysis(model, Shapes)
        if not _has_float32(model, shapes):
            return
        with model.surgeon() as root:
            plan = Plan(model, shapes, root, to, frozenset(self.fp32_ops))
            _warn_of_constants(ctx, plan.keep_by_rules())
            _observe(model, ctx, plan)
            plan.keep_for_neighbours()
            for node in plan.changing():
                if not ctx.admit(label(node)):
                    plan.keep(node)
            formless = []
            for node, reason in plan.reasons():
                ctx.record("kept", "O24-241", node=label(node), op=node.op, reason=reason)
                if reason == NO_FORM and ops.is_onnx(node, *PRODUCTS):
                    formless.append(label(node))
            if formless:
                message = (
                    f"{len(formless):,} products, such as {formless[0]!r}, stay float32: opset "
                    f"{model.opset} has no {self.dtype.value} form of them"
                )
                ctx.diagnostics.add(
                    diagnostic("O24-248", message, facts={"products": len(formless)})
                )
            rewriter = Rewriter(plan)
            stored = rewriter.run()
        _warn_of_bodies(model, ctx, self.dtype)
        self._record(ctx, stored)
        if rewriter.casts:
            ctx.statistics["casts"] = rewriter.casts
        if stored:
            ctx.statistics["weights"] = len(stored)
        twice = [(w.key, ValueKey(w.key.scope, w.name)) for w in stored if w.twice]
        move_claims_of_products(model, twice, lambda: ctx.analysis(model, WeightUses))

    def _record(self, ctx: Context, stored: Sequence[Stored]) -> None:
        """One line for each weight; small vectors and numbers need none."""
        for weight in stored:
            if len(weight.shape) > 1 or math.prod(weight.shape) * 4 > INLINE_BYTES:
                ctx.record(
                    "cast",
                    "O24-240",
                    weight=weight.key.name,
                    scope=weight.key.scope,
                    reason="stored twice: float32 is read too" if weight.twice else "",
                    dtype=self.dtype.value,
                )


def _has_float32(model: Model, shapes: Shapes) -> bool:
    return any(
        shapes.dtype(name, "") == TensorProto.FLOAT
        for node in model.proto.graph.node
        for name in (*node.input, *node.output)
        if name
    )


def _warn_of_bodies(model: Model, ctx: Context, dtype: Dtype) -> None:
    """Products and recurrent layers in bodies, which nothing else is said of."""
    shapes, sites = ctx.analysis(model, Shapes), model.index().nodes
    layers = [
        site for site in sites if ops.is_onnx(site, *PRODUCTS) and not is_in_function(site.scope)
    ]
    left = [
        site
        for site in layers
        if site.scope and shapes.dtype(site.proto.input[0], site.scope) == TensorProto.FLOAT
    ]
    if left:
        where = ", ".join(sorted({site.scope for site in left})[:3])
        ctx.diagnostics.add(
            diagnostic(
                "O24-248",
                f"{len(left)} of {len(layers)} products and recurrent layers lie in bodies "
                f"({where}) and stay float32, not {dtype.value}",
                hint="export with the loop unrolled, or the branch taken",
            )
        )


def _warn_of_constants(ctx: Context, found: Sequence[Finding]) -> None:
    for constant in found:
        ctx.diagnostics.add(
            diagnostic(
                "O24-242",
                f"holds {constant.largest:.4g}, which is beyond the 16-bit range; it and "
                "what reads it stay float32",
                tensor=constant.tensor,
                node=label(constant.node),
                op=constant.node.op,
                facts={"largest": constant.largest},
            )
        )


def _observe(model: Model, ctx: Context, plan: Plan) -> None:
    """Run the model on the calibration data, and keep what leaves the 16-bit range."""
    names = plan.to_observe()
    if not names:
        return
    if ctx.calibration is None:
        ctx.diagnostics.add(
            diagnostic("O24-244", "no calibration data: activations were not looked at")
        )
        return
    # An input with a default value may not be in the data: the default stands for it.
    defaults = [name for name in names if ValueKey("", name) in model.weights]
    computed = [name for name in names if name not in set(defaults)]
    largest = largest_magnitudes(model, computed, ctx.calibration)
    for name in defaults:
        largest[name] = Range16.of(model.weights[name]).largest
    for value in plan.keep_observed(largest):
        ctx.diagnostics.add(
            diagnostic(
                "O24-243",
                f"reaches {value.largest:.4g} on the calibration data; it stays float32",
                tensor=value.tensor,
                node=label(value.node),
                op=value.node.op,
                facts={"largest": value.largest, "limit": LIMIT},
            )
        )
