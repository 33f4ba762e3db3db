"""The pass check24."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.analysis.eligibility import judge
from onnx24.analysis.invariants import broken_weights
from onnx24.analysis.packed24 import packed_product
from onnx24.analysis.weight_uses import WeightUses
from onnx24.diagnostics import diagnostic
from onnx24.effects import Effects
from onnx24.errors import NotMetError
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass


class Require(str, enum.Enum):
    CLAIMS = "claims"
    ELIGIBLE = "eligible"


@dataclass(frozen=True, kw_only=True)
class Check24(Pass):
    """Fail unless the weights are 2:4 in the values that their consumers see.

    With require=claims, every weight that is recorded as 2:4 is checked (O24-807); with
    require=eligible, every weight that could be 2:4 on the target as well (O24-610). What a
    consumer sees is what is left behind Transpose, Reshape, Cast, QuantizeLinear and
    DequantizeLinear, so the pattern is checked after folding, quantizing and rewriting; of weights
    that spmm-plugin packed, the metadata are checked. The message says how many groups of how many
    violate it, and where the first one is. Nothing is changed; the exit code is 1 where the check
    fails.

    Example: `prune24,qdq,fold-qdq,check24{require=eligible}`.
    """

    name: ClassVar = "check24"
    effects: ClassVar = Effects.NONE
    numeric: ClassVar = "exact"
    codes: ClassVar = ("O24-102", "O24-610", "O24-612", "O24-807")

    require: Annotated[Require, "which weights must be 2:4"] = Require.CLAIMS

    def run(self, model: Model, ctx: Context) -> None:
        keys = model.claims.keys()
        problems = broken_weights(model, ctx.analyses, keys, "O24-807")
        if self.require is Require.ELIGIBLE:
            verdicts = judge(model, ctx.analyses, ctx.target)
            claimed = set(keys)
            more = [k for k, v in verdicts.items() if v.eligible and k not in claimed]
            problems += broken_weights(model, ctx.analyses, more, "O24-610")
            keys = [*keys, *more]
        if problems:
            raise NotMetError(problems)
        if not keys:
            message = "nothing to check: no weight is recorded as 2:4"
            ctx.diagnostics.add(diagnostic("O24-612", message))
        found = ctx.analysis(model, WeightUses)
        for key in keys:
            packed = packed_product(found.index, key)
            use = next(iter(found.products(key)), None)
            ctx.record(
                "checked",
                "O24-102",
                weight=key.name,
                scope=key.scope,
                node=packed.name if packed else use.node if use else "",
                op=packed.proto.op_type if packed else use.op if use else "",
                reason="packed 2:4" if packed else "2:4 in the values that its consumers see",
            )
        ctx.statistics["checked"] = len(keys)
