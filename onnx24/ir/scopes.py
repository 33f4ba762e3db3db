"""Every graph of a model: the main graph, bodies of nodes, local functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto


class Scope(NamedTuple):
    """`path` as in ValueKey.scope; `parent` is the enclosing scope's path, None for the main
    graph and for functions, which see no outer values."""

    path: str
    graph: GraphProto | FunctionProto
    parent: str | None

    @property
    def initializers(self):
        return self.graph.initializer if isinstance(self.graph, GraphProto) else ()


def node_label(node: NodeProto) -> str:
    """What a node is called in paths and messages: its name, else its first output."""
    return node.name or next((name for name in node.output if name), "") or node.op_type


class ScopeNames:
    """Paths for the bodies of one walk over a model, in document order. Nodes may share a name,
    so that a path met again gets "#2", "#3", …"""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def body(self, parent: str, node: NodeProto, attribute: str) -> str:
        step = f"{node_label(node)}.{attribute}"
        path = f"{parent}/{step}" if parent else step
        count = self._seen[path] = self._seen.get(path, 0) + 1
        return path if count == 1 else f"{path}#{count}"


FUNCTION = "function:"


def function_path(function: FunctionProto) -> str:
    """One for each function: two of one name differ by their overload."""
    path = f"{FUNCTION}{function.domain}:{function.name}"
    return f"{path}:{function.overload}" if function.overload else path


def is_in_function(path: str) -> bool:
    """Whether a scope is a local function's, or of a body in it."""
    return path.startswith(FUNCTION)


def scopes(model: ModelProto) -> Iterator[Scope]:
    """Outer scopes come before the bodies they hold, bodies in document order."""
    names = ScopeNames()
    if model.HasField("graph"):
        yield from _nested(Scope("", model.graph, None), names)
    for function in model.functions:
        yield from _nested(Scope(function_path(function), function, None), names)


def _nested(scope: Scope, names: ScopeNames) -> Iterator[Scope]:
    yield scope
    for node in scope.graph.node:
        for attribute, graph in bodies(node):
            path = names.body(scope.path, node, attribute)
            yield from _nested(Scope(path, graph, scope.path), names)


def nodes_of(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """Those of bodies too."""
    for node in graph.node:
        yield node
        for _, body in bodies(node):
            yield from nodes_of(body)


def bodies(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """(attribute name, body) of a node; several graphs of one attribute are numbered."""
    for attr in node.attribute:
        if attr.type == AttributeProto.GRAPH or attr.HasField("g"):
            yield attr.name, attr.g
        for i, graph in enumerate(attr.graphs):
            yield f"{attr.name}[{i}]", graph


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every TensorProto of the document: initializers and attributes of every scope."""
    for scope in scopes(model):
        yield from scope.initializers
        if isinstance(scope.graph, GraphProto):
            for sparse in scope.graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in scope.graph.node:
            for attr in node.attribute:
                yield from attribute_tensors(attr)


def attribute_tensors(attr: AttributeProto) -> Iterator[TensorProto]:
    if attr.HasField("t"):
        yield attr.t
    yield from attr.tensors
    for sparse in ([attr.sparse_tensor] if attr.HasField("sparse_tensor") else []) + list(
        attr.sparse_tensors
    ):
        yield from (sparse.values, sparse.indices)
