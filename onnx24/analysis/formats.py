"""Which layers are quantized to which format: INT8, FP8 or INT4.

FP8 (E4M3) quantizes weight and activation as INT8 does; INT4 the weight alone, by blocks along K,
for layers that are bound by reading it. *Source:* TensorRT documentation, quantized types (FP8 from
sm89 on; INT4 weights by blocks of 64 or 128, behind DequantizeLinear alone); ONNX operators
QuantizeLinear 19 (FP8) and DequantizeLinear 21 (INT4, blocks).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnx24.analysis.placement import REFUSALS, Flow, Layer
from onnx24.errors import InputError

__all__ = ["BLOCK", "MIN_OPSETS", "Format", "Formats", "weight_only_objection"]

BLOCK = 128
"""Elements along K that share an INT4 scale."""


class Format(str, enum.Enum):
    INT8 = "int8"
    FP8 = "fp8"
    INT4 = "int4"


MIN_OPSETS = {Format.INT8: 13, Format.FP8: 19, Format.INT4: 21}
_WEIGHT_ONLY_RULES = frozenset({"O24-213", "O24-214", "O24-216", "O24-219"})
"""Of `placement.REFUSALS` those that mean weights: matrix-vector products are what INT4 is for."""


@dataclass(frozen=True)
class Formats:
    """`default`: of layers that no pattern names. `patterns`: format → shell patterns of layers'
    and weights' names. `none`: of layers that stay in float."""

    default: Format
    patterns: Mapping[Format, tuple[str, ...]]
    none: tuple[str, ...]

    def of(self, names: Sequence[str]) -> Format | None:
        """The format of a layer of these names; None for float. Raises: InputError O24-023 where
        two options name the layer."""
        options = {"none": self.none, **{f.value: p for f, p in self.patterns.items()}}
        named = [
            option
            for option, patterns in options.items()
            if any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
        ]
        if len(named) > 1:
            raise InputError.of(
                "O24-023",
                f"qdq: {named[0]}= and {named[1]}= both name the layer {names[0]!r}",
                hint="name each layer in one of them",
            )
        if not named:
            return self.default
        return None if named == ["none"] else Format(named[0])

    def check(self, names: Sequence[str]) -> None:
        """Raises: InputError O24-023 for a pattern that matches none of all layers' names."""
        options = {"none": self.none, **{f.value: p for f, p in self.patterns.items()}}
        for option, patterns in options.items():
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise InputError.of(
                        "O24-023",
                        f"qdq{{{option}={pattern}}} matches no layer and no layer's weight",
                        hint="`onnx24 inspect` lists the names",
                    )


def weight_only_objection(flow: Flow, layer: Layer) -> tuple[str, str] | None:
    """(code, reason) why a layer's weight does not become INT4."""
    for rule in REFUSALS:
        if rule.code not in _WEIGHT_ONLY_RULES or rule.check is None:
            continue
        if reason := rule.check(flow, layer):
            return rule.code, reason
    shape = tuple(flow.found.tensors[layer.weight].dims)
    if layer.op not in ("MatMul", "Gemm") or len(shape) != 2 or layer.use.chain:
        return "O24-236", f"{layer.op} with a weight of {list(shape)}: a matrix is expected, as is"
    if layer.use.K % BLOCK:
        return "O24-236", f"K = {layer.use.K} is no multiple of the block, {BLOCK}"
    return None
