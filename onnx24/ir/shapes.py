"""Shapes and dtypes of every value, by ONNX's own inference on the weightless skeleton."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from onnx import GraphProto, ModelProto, TypeProto

from onnx24.ir.bounds import Bounds, within
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


def infer(model: Model, index: Index | None = None) -> ShapeTable:
    """Infer the shapes of a model. What it declares of inner values counts where inference does
    not contradict it: edited models hold what was true before. Where ONNX's inference fails (a
    node that contradicts its declared type), what the model itself declares is all there is.
    index: the document's, where there is one."""
    skeleton = _best(_without_contradictions(model.proto))
    table = ShapeTable(types=_types(skeleton), index=index or Index.of(model.proto))
    for scope in scopes(skeleton):
        for tensor in scope.initializers:
            table.types[ValueKey(scope.path, tensor.name)] = ValueType(
                tensor.data_type, tuple(tensor.dims)
            )
    return table


def _best(proto: ModelProto) -> ModelProto:
    """The document with what inference finds out; as it is where that fails."""
    for data_prop in (True, False):
        with contextlib.suppress(*INFERENCE_ERRORS):
            return inferred(proto, data_prop=data_prop)
    return proto


INFERENCE_ERRORS = (onnx.shape_inference.InferenceError, RuntimeError, ValueError, MemoryError)


def inferred(proto: ModelProto, **options: bool) -> ModelProto:
    """onnx.shape_inference.infer_shapes in bounded memory: of a value that shapes may be made of
    it holds each element as a message. Raises: INFERENCE_ERRORS."""
    with within(Bounds.default().nbytes // 2 + _BYTES_PER_BYTE * proto.ByteSize()):
        return onnx.shape_inference.infer_shapes(proto, **options)


_BYTES_PER_BYTE = 30
"""Measured: 7 to 12 for a graph of 100,000 nodes."""


def _without_contradictions(proto: ModelProto) -> ModelProto:
    """The document, or where some of its value infos are false a copy without these."""
    if not any(graph.value_info for graph in _graphs(proto)):
        return proto
    bare = ModelProto()
    bare.CopyFrom(proto)
    for graph in _graphs(bare):
        del graph.value_info[:]
    found = _types(_best(bare))
    declared = {
        ValueKey(scope.path, info.name): value_type(info.type)
        for scope in scopes(proto)
        if isinstance(scope.graph, GraphProto)
        for info in scope.graph.value_info
    }
    false = {key for key, value in declared.items() if _contradict(value, found.get(key))}
    if not false:
        return proto
    for scope, original in zip(scopes(bare), scopes(proto), strict=True):
        if isinstance(scope.graph, GraphProto) and isinstance(original.graph, GraphProto):
            infos = original.graph.value_info
            kept = [info for info in infos if ValueKey(scope.path, info.name) not in false]
            scope.graph.value_info.extend(kept)
    return bare


def _contradict(a: ValueType | None, b: ValueType | None) -> bool:
    """Whether no value can be of both types."""
    if a is None or b is None:
        return False
    if a.dtype and b.dtype and a.dtype != b.dtype:
        return True
    if a.shape is None or b.shape is None:
        return False
    if len(a.shape) != len(b.shape):
        return True
    sizes = zip(a.shape, b.shape, strict=True)
    return any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in sizes)


def _types(proto: ModelProto) -> dict[ValueKey, ValueType]:
    """What a document says of inputs, outputs and inner values."""
    found = {}
    for scope in scopes(proto):
        if isinstance(scope.graph, GraphProto):
            for info in (*scope.graph.value_info, *scope.graph.input, *scope.graph.output):
                if value := value_type(info.type):
                    found[ValueKey(scope.path, info.name)] = value
    return found


def _graphs(proto: ModelProto) -> list[GraphProto]:
    return [s.graph for s in scopes(proto) if isinstance(s.graph, GraphProto)]


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
