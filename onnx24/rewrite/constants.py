"""Constant nodes become initializers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import scopes
from onnx24.ir.weights import INLINE_BYTES, numpy_dtype
from onnx24.rewrite.edits import remove_nodes


@dataclass(frozen=True, eq=False)
class ConstantNode:
    """A Constant node of `graph`, and the initializer that it could be."""

    graph: GraphProto
    site: NodeSite
    tensor: TensorProto

    @property
    def key(self) -> ValueKey:
        return ValueKey(self.site.scope, self.tensor.name)


def constant_nodes(model: Model) -> Iterator[ConstantNode]:
    """The Constant nodes that can be initializers. Not so strings, large sparse tensors, and
    values that are an output."""
    outputs = model.index().graph_outputs
    for scope in list(scopes(model.proto)):
        graph = scope.graph
        if not isinstance(graph, GraphProto):
            continue
        for position, node in enumerate(graph.node):
            if not ops.is_onnx(node, "Constant"):
                continue
            if ValueKey(scope.path, node.output[0]) in outputs:
                continue
            tensor = _constant_tensor(model, node)
            if tensor is not None:
                yield ConstantNode(graph, NodeSite(scope.path, position, node), tensor)


def make_initializers(model: Model, constants: Sequence[ConstantNode]) -> None:
    """Replace Constant nodes by initializers of their graphs."""
    if not constants:
        return
    for constant in constants:
        constant.graph.initializer.append(constant.tensor)
    remove_nodes(model, [constant.site for constant in constants])
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


def _constant_tensor(model: Model, node: NodeProto) -> TensorProto | None:
    """The value of a Constant node as an initializer; None for strings, sparse tensors that are
    large, and what is invalid."""
    name = node.output[0]
    for attr in node.attribute:
        if attr.name == "value" and attr.t.data_type != TensorProto.STRING:
            tensor = TensorProto()
            tensor.CopyFrom(attr.t)
            tensor.name = name
            return tensor
        if attr.name in _PLAIN_VALUES:
            tensor = TensorProto(name=name)
            model.weights.set_values(tensor, _PLAIN_VALUES[attr.name](attr))
            return tensor
        if attr.name == "sparse_value":
            return _densified(model, attr, name)
    return None


_PLAIN_VALUES: dict[str, Callable[[AttributeProto], np.ndarray]] = {
    "value_float": lambda attr: np.array(attr.f, np.float32),
    "value_floats": lambda attr: np.array(list(attr.floats), np.float32),
    "value_int": lambda attr: np.array(attr.i, np.int64),
    "value_ints": lambda attr: np.array(list(attr.ints), np.int64),
}


def _densified(model: Model, attr: AttributeProto, name: str) -> TensorProto | None:
    """A sparse constant written out, where that stays small."""
    sparse = attr.sparse_tensor
    shape = tuple(sparse.dims)
    dtype = numpy_dtype(sparse.values.data_type)
    if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > INLINE_BYTES:
        return None
    dense = np.zeros(shape, dtype)
    indices = model.weights.read(sparse.indices)
    values = model.weights.read(sparse.values)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    tensor = TensorProto(name=name)
    model.weights.set_values(tensor, dense)
    return tensor
