"""upgrade-opset: raise the ai.onnx opset where a later pass needs a newer one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, ClassVar

from onnx import TensorProto

from onnx24.diagnostics import diagnostic
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.opset import convert
from onnx24.ir.scopes import scopes
from onnx24.passmgr.base import Context, Effects, Pass


@dataclass(frozen=True, kw_only=True)
class UpgradeOpset(Pass):
    """Raise the model to opset `to`; a model that is there already is left alone.

    Per-channel QuantizeLinear and DequantizeLinear need opset 13, and 19 for 16-bit floats, so
    `qdq` wants this pass before it: `to16` is for models that store such floats. The work is done
    by onnx.version_converter on the model without its weights. Only the nodes whose definition
    changed are replaced; names, doc strings, metadata, initializers and the interface stay. The
    outputs are the same.

    Refuses with O24-331 (error) what the converter does not cover, naming the node: a
    BatchNormalization with spatial=0, a mask of Dropout that is read, Scan of opset 8, sparse
    attributes, local functions (inline them first). Operators of other domains keep their version.

    Example: `upgrade-opset{to=17}`, `upgrade-opset{to=13 to16=19}`.
    *Source:* onnx/docs/VersionConverter.md, onnx/docs/Changelog.md.
    """

    name: ClassVar[str] = "upgrade-opset"
    effects: ClassVar[Effects] = Effects.STRUCTURE
    codes: ClassVar[tuple[str, ...]] = ("O24-330", "O24-331")

    to: Annotated[int, "the ai.onnx opset to reach"] = 13
    to16: Annotated[
        int, "that of models with 16-bit floats, where the target has it; 0: as the others"
    ] = 0

    def run(self, model: Model, ctx: Context) -> None:
        start, to = model.opset, self._opset(model, ctx)
        if start >= to or "" not in model.opsets or not ctx.admit(f"opset {start}"):
            return
        snapshot = model.snapshot()
        try:
            rewritten = convert(model.proto, to)
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
                f"opset {start} → {to}, {len(labels)} nodes rewritten",
                facts={"from": start, "to": to, "operators": dict(sorted(ops.items()))},
            )
        )

    def _opset(self, model: Model, ctx: Context) -> int:
        if not self.to < self.to16 <= ctx.target.opset_max:
            return self.to
        stored = {tensor.data_type for tensor in model.proto.graph.initializer}
        return self.to16 if stored & {TensorProto.FLOAT16, TensorProto.BFLOAT16} else self.to
