"""spmm-plugin: write 2:4 matrix products as onnx24::SpMM24, for the cuSPARSELt plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.packable import Packable, Refusal, find_packable
from onnx24.analysis.packed24 import OP
from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUse, WeightUses
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.weights import payload_bytes
from onnx24.passmgr.base import Context, Numeric, Pass
from onnx24.rewrite.shared import move_claims_of_products
from onnx24.rewrite.spmm24 import (
    MIN_OPSET,
    declare_spmm24,
    drop_function,
    function_conflict,
    rewrite_as_spmm24,
)


@dataclass(frozen=True, kw_only=True)
class SpmmPlugin(Pass):
    """Write MatMul and Gemm whose weight is recorded as 2:4 as `onnx24::SpMM24`: half of the
    values, and two bits for the place of each.

    TensorRT times sparse kernels at the optimization profile's opt shapes and often keeps the
    dense ones. The plugin in `plugin/` runs this operator with cuSPARSELt for every number of rows.
    The model holds the weights as initializers of [N, K/2] and int32 [N, K/32], a float32 scale,
    and the operator as a local function of standard operators: in ONNX Runtime and wherever the
    plugin is not, the model computes what it did before. With float32 the outputs stay equal to the
    last bit (a Gemm's addend is added behind); with int8 sums are exact and the scales are applied
    once, so that outputs move by the rounding of the type they have.

    Taken: float16 and bfloat16 weights, and int8 weights behind DequantizeLinear (one scale, or one
    an output channel) whose activation comes out of a DequantizeLinear of one scale and zero point
    0: then the integers are multiplied. Both through Transpose, Reshape and Cast, in bodies of If,
    Loop and Scan as well. Run prune24 and, for float32 models, cast16 before, and fold-qdq.

    Left as they are, with a record each: weights not recorded as 2:4 (O24-336); types that
    cuSPARSELt has no 2:4 product of (O24-334): float32, int8 with float32 results or activations;
    sizes that it does not take (O24-335): K and N must be multiples of 16, for int8 of 32; weights
    on the left, stacks of matrices, scales along K, Q/DQ at run time, opsets below 13, local
    functions (O24-333); what include and exclude leave out (O24-120). `storage` packs float32
    and int8 with float32 results all the same, to make the file smaller (17/32, 20/32); the plugin
    refuses those.

    TensorRT's parser prefers a local function to a plugin of that name and would import the dense
    product. `fallback=false` therefore leaves the function out, also that of an earlier run: write
    the model with it, compare it in ONNX Runtime, and hand TensorRT the one without.

    The record of 2:4 moves to the packed values, and check24 and the verifier check there that the
    metadata are those of a 2:4 array. canonicalize inlines every function but this one; passes that
    work on weights do not see into it, so this is the last one. `upgrade-opset` does not convert
    models with functions: run it before.

    Example: `prune24,cast16,spmm-plugin{exclude=head.*}`.
    *Source:* cuSPARSELt documentation (types, sizes); onnx/docs/IR.md (model-local functions);
    onnx-tensorrt 10.1, ModelImporter.cpp (functions before plugins).
    """

    name: ClassVar[str] = "spmm-plugin"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    after: ClassVar[tuple[str, ...]] = ("upgrade-opset", "prune24", "cast16", "fold-qdq")
    numeric: ClassVar[Numeric] = "close"
    codes: ClassVar[tuple[str, ...]] = (
        "O24-120",
        "O24-332",
        "O24-333",
        "O24-334",
        "O24-335",
        "O24-336",
        "O24-337",
    )

    include: Annotated[
        tuple[str, ...], "pack only weights whose name, or whose node's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out weights whose name, or whose node's, matches a pattern"
    ] = ()
    fallback: Annotated[bool, "keep the local function that says what the operator means"] = True
    storage: Annotated[bool, "also pack what cuSPARSELt can't multiply, for a smaller file"] = False

    def run(self, model: Model, ctx: Context) -> None:
        if not self.fallback and drop_function(model):
            ctx.statistics["function_dropped"] = 1
        found = ctx.analysis(model, WeightUses)
        judged = list(find_packable(model, found, storage=self.storage))
        if not judged:
            return
        selection = Selection(self.include, self.exclude)
        names = [name for each in judged for name in _names(each)]
        selection.check("spmm-plugin", names, "weight of a MatMul or Gemm and no node of one")
        if function_conflict(model):
            raise InputError.of("O24-337", f"the model has another function onnx24::{OP}")
        sites = []
        for each in judged:
            if isinstance(each, Refusal):
                _refuse(ctx, each.key, each.use, each.code, each.reason)
            elif objection := selection.objection(_names(each)):
                _refuse(ctx, each.key, each.use, "O24-120", objection)
            elif model.opset < MIN_OPSET:
                reason = f"opset {model.opset}, expected {MIN_OPSET} or more; upgrade-opset"
                _refuse(ctx, each.key, each.use, "O24-333", reason)
            elif ctx.admit(f"{each.key} {each.site.name}"):
                sites.append(each)
        if not sites:
            return
        declare_spmm24(model, with_function=self.fallback)
        before = {site.key: payload_bytes(found.tensors[site.key]) for site in sites}
        placed = rewrite_as_spmm24(model, found, sites)
        moved = [(site.key, key) for site, key, _ in placed]
        move_claims_of_products(
            model, moved, lambda: ctx.analysis(model, WeightUses), known_24=True
        )
        for site, key, nbytes in placed:
            ctx.record(
                "packed",
                "O24-332",
                weight=site.key.name,
                scope=site.key.scope,
                node=site.site.name,
                op=site.site.proto.op_type,
                reason=f"{before[site.key]:,} to {nbytes:,} bytes",
                k=site.K,
                n=site.N,
                dtype=site.dtype.name,
                values=key.name,
            )
        ctx.statistics["packed"] = len(placed)


def _names(each: Packable | Refusal) -> list[str]:
    return [each.key.name, str(each.key), each.use.node]


def _refuse(ctx: Context, key: ValueKey, use: WeightUse, code: str, reason: str) -> None:
    ctx.record(
        "refused",
        code,
        weight=key.name,
        scope=key.scope,
        node=use.node,
        op=use.op,
        reason=reason,
    )
