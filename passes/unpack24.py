"""unpack24: the inverse of pack24."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.ir.packed import unpack
from onnx24.passmgr.base import Context, Pass


@dataclass(frozen=True, kw_only=True)
class Unpack24(Pass):
    """Make the weights that pack24 stored without their zeros whole again, bit for bit, and drop
    the function `onnx24::Unpack24`.

    Passes that work on weights do not look behind the function: run this before them. canonicalize,
    which the presets begin with, does it by itself, and so do `inspect`, `check`, `diff` and
    `build`, in memory. Packed arrays that do not belong together are refused (O24-357), and
    nothing is written then.

    Example: `unpack24,lint`.
    """

    name: ClassVar[str] = "unpack24"
    effects: ClassVar[Effects] = Effects.STRUCTURE | Effects.WEIGHTS
    codes: ClassVar[tuple[str, ...]] = ("O24-355", "O24-357")

    def run(self, model: Model, ctx: Context) -> None:
        for _, weight in unpack(model):
            ctx.record("unpacked", "O24-355", weight=weight.name, scope=weight.scope)
            ctx.statistics["unpacked"] = ctx.statistics.get("unpacked", 0) + 1
