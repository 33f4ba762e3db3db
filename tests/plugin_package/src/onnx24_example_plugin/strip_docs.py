"""The pass `example-strip-docs`."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.passmgr.base import Code, Context, Pass


@dataclass(frozen=True, kw_only=True)
class StripDocs(Pass):
    """Remove the nodes' doc strings, in which exporters leave stack traces and file names.

    Example: `example-strip-docs{keep=encoder.*}`.
    """

    name: ClassVar = "example-strip-docs"
    effects: ClassVar = Effects.STRUCTURE
    numeric: ClassVar = "exact"
    codes: ClassVar = (
        Code("EX-001", "note", "doc string removed", "The node's doc string was removed."),
    )

    keep: Annotated[tuple[str, ...], "patterns of nodes that keep theirs"] = ()

    def run(self, model: Model, ctx: Context) -> None:
        stripped = 0
        for scope in model.scopes():
            for node in scope.graph.node:
                kept = any(fnmatchcase(node.name, pattern) for pattern in self.keep)
                if node.doc_string and not kept and ctx.admit(node.name):
                    node.ClearField("doc_string")
                    ctx.record("stripped", "EX-001", node=node.name, op=node.op_type)
                    stripped += 1
        ctx.statistics["stripped"] = stripped
        if stripped:
            model.touch(Effects.STRUCTURE)
