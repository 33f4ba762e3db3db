"""A text of the document for people and for tests: structure, dtypes, shapes, digests, 2:4
state; never values. The same document gives the same text.

    model ir=8 opset{ai.onnx=17}
    graph "g" (x: f32[1,64]) -> (y: f32[1,32])
      init w: f32[64,32] sha=1f0c2a7e 2:4
      matmul0: y = MatMul(x, w)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx
from onnx import AttributeProto, GraphProto, TensorProto

from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.scopes import Scope, ScopeNames, bodies, function_path
from onnx24.ir.shapes import ValueType, value_type
from onnx24.lines import block

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto

    from onnx24.ir.model import Model

_SHORT = {
    "FLOAT": "f32",
    "FLOAT16": "f16",
    "BFLOAT16": "bf16",
    "DOUBLE": "f64",
    "FLOAT8E4M3FN": "f8e4m3",
    "FLOAT8E5M2": "f8e5m2",
    "INT8": "i8",
    "INT16": "i16",
    "INT32": "i32",
    "INT64": "i64",
    "UINT8": "u8",
    "BOOL": "bool",
    "INT4": "i4",
}


def dtype_name(data_type: int) -> str:
    """A short name for an onnx.TensorProto.DataType: f32, bf16, i8, …"""
    name = TensorProto.DataType.Name(data_type)  # type: ignore[arg-type]
    return _SHORT.get(name, name.lower())


def type_text(value: ValueType) -> str:
    if value.shape is None:
        return f"{dtype_name(value.dtype)}[*]"
    return (
        f"{dtype_name(value.dtype)}[{','.join('?' if d is None else str(d) for d in value.shape)}]"
    )


def dump(model: Model) -> str:
    """The whole model as text, one node or initializer a line."""
    proto = model.proto
    opsets = ", ".join(f"{domain or 'ai.onnx'}={v}" for domain, v in sorted(model.opsets.items()))
    lines = [f"model ir={proto.ir_version} opset{{{opsets}}}"]
    lines += [f"meta {key}={value!r}" for key, value in sorted(model.metadata.items())]
    names = ScopeNames()
    claimed = set(model.claims.keys())
    lines += _scope(model, Scope("", proto.graph, None), names, claimed, "")
    for function in proto.functions:
        scope = Scope(function_path(function), function, None)
        lines += _scope(model, scope, names, claimed, "")
    return block(lines, longest=sys.maxsize) + "\n"


def _scope(
    model: Model, scope: Scope, names: ScopeNames, claimed: set[ValueKey], indent: str
) -> Iterator[str]:
    graph = scope.graph
    if isinstance(graph, GraphProto):
        inputs = ", ".join(_value(v) for v in graph.input)
        outputs = ", ".join(_value(v) for v in graph.output)
        yield f'{indent}graph "{scope.path or graph.name}" ({inputs}) -> ({outputs})'
    else:
        yield f"{indent}{scope.path} ({', '.join(graph.input)}) -> ({', '.join(graph.output)})"
    indent += "  "
    for tensor in scope.initializers:
        mark = " 2:4" if ValueKey(scope.path, tensor.name) in claimed else ""
        yield f"{indent}init {tensor.name}: {_tensor(model, tensor)}{mark}"
    if isinstance(graph, GraphProto):
        for sparse in graph.sparse_initializer:
            yield f"{indent}sparse {sparse.values.name}: {list(sparse.dims)}"
    for node in graph.node:
        yield indent + _node(model, node)
        for attribute, body in bodies(node):
            path = names.body(scope.path, node, attribute)
            yield from _scope(model, Scope(path, body, scope.path), names, claimed, indent + "  ")


def _value(value: ValueInfoProto) -> str:
    known = value_type(value.type)
    return f"{value.name}: {type_text(known)}" if known else value.name


def _tensor(model: Model, tensor: TensorProto) -> str:
    text = type_text(ValueType(tensor.data_type, tuple(tensor.dims)))
    return f"{text} sha={model.weights.digest_of(tensor)[:8]}"


def _node(model: Model, node: NodeProto) -> str:
    op = ops.full_name(node)
    attrs = [
        f"{a.name}={_attribute(model, a)}"
        for a in sorted(node.attribute, key=lambda a: a.name)
        if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    ]
    attributes = f" {{{', '.join(attrs)}}}" if attrs else ""
    name = f"{node.name}: " if node.name else ""
    return f"{name}{', '.join(node.output)} = {op}({', '.join(node.input)}){attributes}"


def _attribute(model: Model, attr: AttributeProto) -> str:
    if attr.ref_attr_name:
        return f"@{attr.ref_attr_name}"
    if attr.type == AttributeProto.TENSOR:
        return _tensor(model, attr.t)
    try:
        value = onnx.helper.get_attribute_value(attr)
    except ValueError:
        return "?"
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, int | float):
        return repr(value)
    return str(list(value)) if hasattr(value, "__iter__") else type(value).__name__
