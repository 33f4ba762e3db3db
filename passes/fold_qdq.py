"""The pass fold-qdq."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx24.analysis.weight_uses import WeightUses
from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass
from onnx24.rewrite.qdq_folding import Edit, fold
from onnx24.rewrite.shared import move_claims_of_products

_CODES = {"folded": "O24-230", "kept": "O24-231", "removed": "O24-232"}


@dataclass(frozen=True, kw_only=True)
class FoldQdq(Pass):
    """Compute weights' QuantizeLinear at compile time, and remove Q/DQ pairs that do nothing.

    A weight behind QuantizeLinear becomes an int8 or fp8 initializer, a quarter of its size, or an
    int4 one, an eighth, by tensor, axis or blocks; the DequantizeLinear stays, since it is what
    tells TensorRT that the layer is quantized. What stands between the two (Clip, Transpose,
    Reshape and their kin) is computed into the integers. Where that can't be, and for constants of
    rank 0, the weight stays in float (O24-231): TensorRT takes quantized constants before
    DequantizeLinear alone. So do unsigned bytes, of which it stores none. The float weight goes
    where nothing else reads it, and a record of 2:4 moves on: symmetric quantization keeps zeros.
    On targets that take no int8 initializers (TensorRT 8 and 9) the weight stays in float behind
    Q/DQ (O24-231).

    Of identical Q or DQ one is kept. A Q behind a DQ of the same scale and zero point gives the
    integers back that went in, so that its readers take those. What nothing reads goes. All of it
    in bodies of If, Loop and Scan as well, in INT8, FP8 and 4 bits, by tensor, axis or blocks. Q
    without an explicit zero point are left alone, and pairs whose scale is so small or large that
    the float between them would not hold every value.

    The outputs stay bit-identical: the integers are the ones that ONNX Runtime computes.

    Example: `qdq,fold-qdq`.

    *Source:* TensorRT 10 documentation, explicit quantization (int8 weights behind
    DequantizeLinear).
    """

    name: ClassVar = "fold-qdq"
    effects: ClassVar = Effects.STRUCTURE
    enters_functions: ClassVar = False
    numeric: ClassVar = "exact"
    after: ClassVar = ("qdq",)
    codes: ClassVar = ("O24-008", "O24-230", "O24-231", "O24-232")

    def run(self, model: Model, ctx: Context) -> None:
        takes = ctx.target.int8_initializers
        why = "" if takes else f"{ctx.target.name} takes no int8 initializers"
        edits = fold(model, ctx.analysis(model, WeightUses), ctx.admit, why)
        for edit in edits:
            _record(ctx, edit)
        folded = [edit for edit in edits if edit.action == "folded"]
        by_name = {key.name: key for key in model.weights}
        moved = [
            (edit.weight, by_name[edit.tensor])
            for edit in folded
            if edit.weight is not None and edit.tensor in by_name
        ]
        move_claims_of_products(model, moved, lambda: ctx.analysis(model, WeightUses))
        ctx.statistics.update(
            folded=len(folded),
            removed=sum(edit.action == "removed" for edit in edits),
            weight_bytes_before=sum(edit.before for edit in folded),
            weight_bytes_after=sum(edit.after for edit in folded),
        )


def _record(ctx: Context, edit: Edit) -> None:
    ctx.record(
        edit.action,
        _CODES[edit.action],
        weight=edit.weight.name if edit.weight else "",
        scope=edit.scope,
        node=edit.node,
        op=edit.op,
        reason=edit.reason,
        **({"tensor": edit.tensor} if edit.tensor else {}),
    )
