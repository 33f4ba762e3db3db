"""What a node that only rearranges or converts a constant makes of it, bit for bit.

Only operators whose result no runtime computes differently: data movement, and casts that are
exact or rounded to nearest even.
Source: onnx/docs/Operators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from onnx24.ir import ops
from onnx24.ir.weights import numpy_dtype

Array = np.ndarray
_Attributes = dict[str, Any]


def can_fold(node: NodeProto) -> bool:
    """Whether the operator is one that `fold` knows."""
    return ops.op(node) in _FOLDERS and len(node.output) == 1 and not ops.open_attribute(node)


def fold(node: NodeProto, inputs: Sequence[Array | None]) -> Array | None:
    """The node's output for constant inputs (None for an omitted one); None where the result is
    not certain to the last bit, or the node is invalid."""
    attributes = {attr.name: _value(attr) for attr in node.attribute}
    try:
        return _FOLDERS[ops.op(node)](list(inputs), attributes)
    except (ValueError, IndexError, TypeError, KeyError):
        return None  # an invalid node: whoever runs the model says so


def _value(attr: AttributeProto) -> Any:
    if attr.type == AttributeProto.INT:
        return attr.i
    if attr.type == AttributeProto.INTS:
        return list(attr.ints)
    if attr.type == AttributeProto.STRING:
        return attr.s.decode()
    return None


def _identity(inputs: list[Array | None], _: _Attributes) -> Array | None:
    return inputs[0]


def _transpose(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    x = inputs[0]
    return None if x is None else x.transpose(attributes.get("perm"))


def _reshape(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    x, target = inputs[0], inputs[1]
    if x is None or target is None:
        return None
    shape = [int(size) for size in target]
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    x = inputs[0]
    if x is None:
        return None
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return x.reshape(rows, x.size // rows if rows else 0)


def _axes(inputs: list[Array | None], attributes: _Attributes) -> list[int] | None:
    """An input from opset 13 on, an attribute before."""
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].reshape(-1)]
    return attributes.get("axes")


def _squeeze(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    x, axes = inputs[0], _axes(inputs, attributes)
    if x is None:
        return None
    return x.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    x, axes = inputs[0], _axes(inputs, attributes)
    return None if x is None or axes is None else np.expand_dims(x, tuple(axes))


def _clip(inputs: list[Array | None], _: _Attributes) -> Array | None:
    """Of integers, whose bounds are inputs."""
    x, *bounds = inputs
    if x is None or x.dtype.kind not in "iu":
        return None
    low, high = (*bounds, None, None)[:2]
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


_FLOATS = tuple(np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))


def _cast(inputs: list[Array | None], attributes: _Attributes) -> Array | None:
    """Between floats, rounding to nearest even; from bool and integers; to integers where every
    value fits. Overflow, NaN to integer, and 8-bit floats are left to the runtime."""
    x, to = inputs[0], attributes["to"]
    if x is None or to == TensorProto.STRING:
        return None
    target = numpy_dtype(to)
    if x.dtype == target:
        return x
    source_ok = x.dtype in _FLOATS or x.dtype.kind in "biu"
    if not source_ok or not (target in _FLOATS or target.kind in "iu"):
        return None
    if target in _FLOATS:
        if x.dtype == np.float64 and target.itemsize == 2:
            return None  # runtimes go through float32, which rounds twice
        if x.dtype.kind in "iu" and target.itemsize == 2:
            y = x.astype(np.float32).astype(target)
            return y if np.array_equal(y.astype(np.float64), x.astype(np.float64)) else None
        with np.errstate(over="ignore"):
            return x.astype(target)
    if x.dtype == np.bool_:
        return x.astype(target)
    if x.dtype in _FLOATS and not bool(np.isfinite(x).all()):
        return None
    limits = np.iinfo(target)
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if not (limits.min <= low and high < float(limits.max)):
        return None
    return x.astype(target)


_FOLDERS: dict[str, Callable[[list[Array | None], _Attributes], Array | None]] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Clip": _clip,
}
