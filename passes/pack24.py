"""pack24: store 2:4 weights without their zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.selection import Selection
from onnx24.analysis.weight_uses import WeightUses
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.packed import DOMAIN, OP, function_conflict
from onnx24.passmgr.base import Context, Pass
from onnx24.rewrite.packing import candidates, pack_weights


@dataclass(frozen=True, kw_only=True)
class Pack24(Pass):
    """Store 2:4 weights as half of their values and two bits for the place of each: 9/16 of a
    16-bit weight, 10/16 of an int8 one, 17/32 of a float32 one.

    Each weight becomes a call of the local function `onnx24::Unpack24`, which consists of standard
    operators: any runtime runs the file. One that folds constants (ONNX Runtime by default) unpacks
    when it loads the model and computes as before; without such folding the weights are unpacked
    in every run. Values stay the same bit for bit. unpack24 is the inverse; canonicalize,
    `inspect`, `check`, `diff` and `build` unpack by themselves, the other passes see no weight
    behind the function, so this one comes last.

    Taken: float32, float16, bfloat16, int8 and uint8 initializers that a product reduces and that
    are 2:4 along the axis of that reduction, recorded or not, behind Q/DQ, Transpose, Reshape and
    Cast as well. Left as they are, with a record each (O24-354): other types; weights that are not
    2:4 in every group; Constant nodes; initializers that are inputs; opsets below 13; what 2:4
    drops holding -0. Weights below `min-bytes` are passed over. What include and exclude leave out
    gives O24-120.

    A function of that name with another body is refused (O24-357). Compression behind (zip, zstd)
    gains less than on the file with zeros, and the sum is still smaller:
    benchmarks/results/packed_sizes.md.

    Example: `prune24,qdq,fold-qdq,pack24`.
    *Source:* sparsity/pack.py for the form; onnx/docs/IR.md (model-local functions).
    """

    name: ClassVar[str] = "pack24"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    after: ClassVar[tuple[str, ...]] = (
        "upgrade-opset",
        "permute24",
        "prune24",
        "qdq",
        "fold-qdq",
        "matmul-to-conv1x1",
        "conv1x1-to-matmul",
        "cast16",
        "lint",
        "check24",
    )
    codes: ClassVar[tuple[str, ...]] = ("O24-120", "O24-353", "O24-354", "O24-357")

    include: Annotated[
        tuple[str, ...], "pack only weights whose name, or whose node's, matches a pattern"
    ] = ()
    exclude: Annotated[
        tuple[str, ...], "leave out weights whose name, or whose node's, matches a pattern"
    ] = ()
    min_bytes: Annotated[int, "pass over weights that are smaller [bytes]"] = 1024

    def run(self, model: Model, ctx: Context) -> None:
        found = ctx.analysis(model, WeightUses)
        if function_conflict(model):
            raise InputError.of("O24-357", f"the model has another function {DOMAIN}::{OP}")
        every = list(candidates(model, found, self.min_bytes))
        selection = Selection(self.include, self.exclude)
        names = [name for each in every for name in (each.key.name, str(each.key), each.node)]
        selection.check("pack24", names, "weight of a product and no node of one")
        sites = []
        for each in every:
            names = [each.key.name, str(each.key), each.node]
            objection = selection.objection(names)
            if objection or each.reason:
                ctx.record(
                    "refused",
                    "O24-120" if objection else "O24-354",
                    weight=each.key.name,
                    scope=each.key.scope,
                    node=each.node,
                    op=each.op,
                    reason=objection or each.reason,
                )
            elif ctx.admit(str(each.key)):
                sites.append(each)
        if not sites:
            return
        for site, values, nbytes in pack_weights(model, sites):
            ctx.record(
                "packed",
                "O24-353",
                weight=site.key.name,
                scope=site.key.scope,
                node=site.node,
                op=site.op,
                reason=f"{site.nbytes:,} to {nbytes:,} bytes",
                values=values.name,
                before_bytes=site.nbytes,
                after_bytes=nbytes,
            )
        ctx.statistics["packed"] = len(sites)
