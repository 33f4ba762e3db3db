"""What a model wants to be fed: names, dtypes, shapes, and bounds of its indices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from onnx24.errors import InputError
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite, Use
from onnx24.ir.model import Model
from onnx24.ir.shapes import Dim, value_type
from onnx24.ir.weights import numpy_dtype

_LAYOUT_ONLY = frozenset(
    {"Cast", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)
"""Operators whose result holds values of the first operand: an index stays an index behind them."""


@dataclass(frozen=True)
class InputSpec:
    """One graph input. `dims`: None where not even the rank is known. `required`: it has no
    initializer that stands in for it."""

    name: str
    element: int
    dims: tuple[Dim, ...] | None
    required: bool

    @property
    def dtype(self) -> np.dtype:
        return numpy_dtype(self.element)

    @property
    def dtype_text(self) -> str:
        return "string" if self.element == TensorProto.STRING else self.dtype.name

    @property
    def dims_text(self) -> str:
        return shape_text(self.dims)


def shape_text(dims: tuple[Dim, ...] | None) -> str:
    if dims is None:
        return "[*]"
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"


def input_specs(model: Model) -> list[InputSpec]:
    """Raises: InputError O24-030 for an input that is no tensor."""
    graph = model.proto.graph
    defaults = {tensor.name for tensor in graph.initializer}
    specs = []
    for value in graph.input:
        known = value_type(value.type)
        if known is None:
            kind = value.type.WhichOneof("value") or "untyped"
            raise InputError.of(
                "O24-030",
                f"input {value.name!r}: expected a tensor, the model wants a "
                f"{kind.removesuffix('_type')}; such inputs cannot be fed",
                tensor=value.name,
            )
        dims = known.shape
        if dims is not None:  # some exporters write -1 where a dimension is dynamic
            dims = tuple(None if isinstance(d, int) and d < 0 else d for d in dims)
        specs.append(InputSpec(value.name, known.dtype, dims, value.name not in defaults))
    return specs


def index_bound(model: Model, index: Index, name: str) -> int | None:
    """The smallest table that values of the input `name` select from; None where they select
    from none that is known."""
    bounds: list[int] = []
    seen: set[tuple[str, str]] = set()
    work = [("", name)]
    while work:
        scope, value = work.pop()
        if (scope, value) in seen:
            continue
        seen.add((scope, value))
        for use in index.consumers(value, scope):
            bound = _bound_of(model, index, use.site, use.input)
            if bound is not None:
                bounds.append(bound)
            elif _passes_on(use):
                work.append((use.site.scope, use.site.proto.output[0]))
    return min(bounds, default=None)


def _passes_on(use: Use) -> bool:
    node = use.site.proto
    first = use.input == 0 and ops.op(node) in _LAYOUT_ONLY
    return bool(node.output) and (first or ops.is_onnx(node, "Concat"))


def _bound_of(model: Model, index: Index, site: NodeSite, position: int) -> int | None:
    node = site.proto
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if ops.is_onnx(node, "Gather", "GatherElements") and position == 1:
        key = index.resolve(node.input[0], site.scope)
        if key in index.initializers:
            dims = tuple(index.initializers[key].dims)
            return dims[axis] if -len(dims) <= axis < len(dims) else None
    if ops.is_onnx(node, "OneHot") and position == 0:
        key = index.resolve(node.input[1], site.scope)
        if key in index.initializers:
            return int(model.weights[key].reshape(-1)[0])
    return None


def element_name(element: int) -> str:
    """As the ONNX standard writes it: FLOAT, INT64, …"""
    return onnx.TensorProto.DataType.Name(element)  # type: ignore[arg-type]
