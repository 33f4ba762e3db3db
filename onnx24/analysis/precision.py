"""Which operands of a node may be 16-bit floats: what the operator's definition allows, and which
constants a 16-bit type can hold.

Source: onnx.defs (type constraints per operator and opset); IEEE 754 binary16; bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto

_TYPE_STR: dict[int, str] = {
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}
_CHUNK = 1 << 20


_BY_BITS = frozenset(
    {"BitCast", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Unique"}
)
"""Operators whose input is not just a number: its bits, its type (where the values hardly count) or
which values are equal decide about the result. Source: onnx/docs/Operators.md."""


@dataclass(frozen=True)
class Slots:
    """For each operand whether it may change from float32 to the 16-bit type. Operands that share
    a type variable change together."""

    inputs: tuple[bool, ...]
    outputs: tuple[bool, ...]


@lru_cache(maxsize=4096)
def slots(
    op_type: str,
    domain: str,
    opset: int,
    inputs: tuple[bool, ...],
    outputs: tuple[bool, ...],
    to: int,
) -> Slots | None:
    """What the definition says; `inputs` and `outputs` tell which operands are float32 now.

    None where there is no definition. An output whose type no input determines (it comes from an
    attribute) may not change.
    """
    try:
        schema = onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    allowed = {
        c.type_param_str: _TYPE_STR[to] in c.allowed_type_strs for c in schema.type_constraints
    }
    in_vars = _variables(schema.inputs, len(inputs))
    out_vars = _variables(schema.outputs, len(outputs))
    if op_type == "DequantizeLinear" and domain == "" and out_vars[0] not in in_vars:
        out_vars = (in_vars[1],)  # Source: DequantizeLinear-23: by default the type of the scale
    if op_type in _BY_BITS and domain == "":
        return Slots((False,) * len(inputs), (False,) * len(outputs))
    driven = {var for var, is_float in zip(in_vars, inputs, strict=True) if is_float}
    return Slots(
        tuple(f and allowed.get(v, False) for v, f in zip(in_vars, inputs, strict=True)),
        tuple(
            f and allowed.get(v, False) and v in driven
            for v, f in zip(out_vars, outputs, strict=True)
        ),
    )


def result_types(node: NodeProto, opset: int, inputs: Sequence[int]) -> tuple[int, ...] | None:
    """The element types of a node's results for those of its inputs (0 for an omitted one), as
    onnx's own inference finds them, whatever attribute has a say: 0 where it finds none. None where
    it refuses them."""
    names = [f"i{i}" if dtype else "" for i, dtype in enumerate(inputs)]
    bare = NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
    bare.input.extend(names)
    bare.output.extend(f"o{i}" for i in range(len(node.output)))
    types = {
        name: onnx.helper.make_tensor_type_proto(dtype, None)
        for name, dtype in zip(names, inputs, strict=True)
        if name
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset, node.domain),
            bare,
            types,
            opset_imports=[onnx.helper.make_opsetid(node.domain, opset)],
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        onnx.defs.SchemaError,
        RuntimeError,
        ValueError,
    ):
        return None
    return tuple(found[name].tensor_type.elem_type if name in found else 0 for name in bare.output)


def _variables(
    formals: Sequence[onnx.defs.OpSchema.FormalParameter], count: int
) -> tuple[str, ...]:
    """The type variable of each operand, a literal type where there is none; the last formal
    parameter repeats (variadic). Non-homogeneous variadics have no common variable."""
    if not formals:
        return ("",) * count
    names = []
    for i in range(count):
        formal = formals[min(i, len(formals) - 1)]
        names.append(formal.type_str if formal.is_homogeneous else "")
    return tuple(names)


@dataclass(frozen=True)
class Range16:
    """Facts about a constant: its largest and smallest nonzero finite magnitude (0 if none)."""

    largest: float
    smallest: float

    @classmethod
    def of(cls, values: np.ndarray) -> Range16:
        """Streams over the values; infinities and NaN count for nothing."""
        flat = values.reshape(-1)
        largest, smallest = 0.0, np.inf
        for start in range(0, flat.size, _CHUNK):
            part = np.abs(flat[start : start + _CHUNK])
            part = part[np.isfinite(part) & (part > 0)]
            if part.size:
                largest = max(largest, float(part.max()))
                smallest = min(smallest, float(part.min()))
        return cls(largest, 0.0 if smallest == np.inf else smallest)

    def overflows(self, to: int) -> bool:
        """Rounds to infinity in the 16-bit type."""
        if self.largest == 0.0:
            return False
        with np.errstate(over="ignore"):
            return not bool(np.isfinite(np.float32(self.largest).astype(dtype16(to))))

    def vanishes(self, to: int) -> bool:
        """The smallest value is below the normal range, where precision fades to nothing."""
        return 0.0 < self.smallest < float(ml_dtypes.finfo(dtype16(to)).smallest_normal)


def rounding_loss(values: np.ndarray, to: int) -> float:
    """Relative L2 error of rounding a float array to the 16-bit type, over what stays finite.

    Well inside the type's range it is below half a unit in the last place (4.9e-4 for FP16);
    towards the subnormal numbers it grows, up to 1 where everything becomes zero.
    """
    flat = values.reshape(-1)
    error = size = 0.0
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float64)
            rounded = flat[start : start + _CHUNK].astype(dtype16(to)).astype(np.float64)
            finite = np.isfinite(rounded) & np.isfinite(part)
            error += float(np.sum((rounded[finite] - part[finite]) ** 2))
            size += float(np.sum(part[finite] ** 2))
    return float(np.sqrt(error / size)) if size else 0.0


def dtype16(to: int) -> np.dtype:
    """The numpy dtype of FLOAT16 or BFLOAT16."""
    return np.dtype(np.float16 if to == TensorProto.FLOAT16 else ml_dtypes.bfloat16)
