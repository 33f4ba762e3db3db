"""upgrade-opset: raise the ai.onnx opset where a later pass needs a newer one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx24.diagnostics import diagnostic
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.opset import convert
from onnx24.ir.scopes import scopes
from onnx24.passmgr.base import Context, Effects, Pass


@dataclass(frozen=True, kw_only=True)
class UpgradeOpset(Pass):
    """Raise the model to opset `to`; a model that is there already is left alone.

    Per-channel QuantizeLinear and DequantizeLinear need opset 13, so `qdq` wants this pass
    before it. The work is done by onnx.version_converter on the model without its weights. Only
    the nodes whose definition changed are replaced; names, doc strings, metadata, initializers
    and the interface stay. The outputs are the same.

    Refuses with O24-331 (error) what the converter does not cover, naming the node: a
    BatchNormalization with spatial=0, a mask of Dropout that is read, Scan of opset 8, sparse
    attributes, local functions (inline them first). Operators of other domains keep their version.

    Example: `upgrade-opset{to=17}`.
    *Source:* onnx/docs/VersionConverter.md, onnx/docs/Changelog.md.
    """

    name: ClassVar[str] = "upgrade-opset"
    effects: ClassVar[Effects] = Effects.STRUCTURE
    codes: ClassVar[tuple[str, ...]] = ("O24-330", "O24-331")

    to: Annotated[int, "the ai.onnx opset to reach"] = 13

    def run(self, model: Model, ctx: Context) -> None:
        start = model.opset
        if start >= self.to or "" not in model.opsets or not ctx.admit(f"opset {start}"):
            return
        snapshot = model.snapshot()
        try:
            rewritten = convert(model.proto, self.to)
        except InputError:
            model.restore(snapshot)
            raise
        model.touch(Effects.STRUCTURE)
        labels = set(rewritten)
        ops = Counter(
            node.op_type
            for scope in scopes(model.proto)
            for node in scope.graph.node
            if node.name in labels or not labels.isdisjoint(node.output)
        )
        ctx.statistics["rewritten_nodes"] = len(labels)
        ctx.diagnostics.add(
            diagnostic(
                "O24-330",
                f"opset {start} → {self.to}, {len(labels)} nodes rewritten",
                facts={"from": start, "to": self.to, "operators": dict(sorted(ops.items()))},
            )
        )
