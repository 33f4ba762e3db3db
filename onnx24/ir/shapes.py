"""Shapes and dtypes of every value, by ONNX's own inference on the weightless skeleton."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from onnx import GraphProto, TypeProto

from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.scopes import scopes

if TYPE_CHECKING:
    from onnx24.ir.model import Model

Dim = int | str | None


@dataclass(frozen=True)
class ValueType:
    """`dtype`: an onnx.TensorProto.DataType. `shape`: None where not even the rank is known; a
    dimension is a size, a symbol, or None."""

    dtype: int
    shape: tuple[Dim, ...] | None


@dataclass
class ShapeTable:
    """What is known of every tensor value; sequences, maps and optionals are left out."""

    types: dict[ValueKey, ValueType] = field(default_factory=dict)
    index: Index = field(default_factory=Index)

    def get(self, value: str, scope: str = "") -> ValueType | None:
        key = self.index.resolve(value, scope)
        return self.types.get(key) if key else None

    def shape(self, value: str, scope: str = "") -> tuple[Dim, ...] | None:
        found = self.get(value, scope)
        return found.shape if found else None

    def dtype(self, value: str, scope: str = "") -> int | None:
        found = self.get(value, scope)
        return found.dtype if found else None

    def rank(self, value: str, scope: str = "") -> int | None:
        shape = self.shape(value, scope)
        return None if shape is None else len(shape)


def infer(model: Model) -> ShapeTable:
    """Infer the shapes of a model. Where ONNX's inference fails (a node that contradicts its
    declared type), what the model itself declares is all there is."""
    skeleton = model.proto
    for data_prop in (True, False):
        try:
            skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=data_prop)
            break
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            continue
    table = ShapeTable(index=Index.of(model.proto))
    for scope in scopes(skeleton):
        if isinstance(scope.graph, GraphProto):
            for info in (*scope.graph.value_info, *scope.graph.input, *scope.graph.output):
                if value := value_type(info.type):
                    table.types[ValueKey(scope.path, info.name)] = value
        for tensor in scope.initializers:
            table.types[ValueKey(scope.path, tensor.name)] = ValueType(
                tensor.data_type, tuple(tensor.dims)
            )
    return table


def value_type(proto: TypeProto) -> ValueType | None:
    """The tensor type of a TypeProto; None for anything else.

    Some exporters write -1 for a dimension that they do not know.
    """
    if not proto.HasField("tensor_type"):
        return None
    tensor = proto.tensor_type
    if not tensor.HasField("shape"):
        return ValueType(tensor.elem_type, None)
    return ValueType(
        tensor.elem_type,
        tuple(
            dim.dim_value
            if dim.dim_value >= 0 and dim.HasField("dim_value")
            else dim.dim_param or None
            for dim in tensor.shape.dim
        ),
    )
