"""Harmless defects that exporters leave and runtimes overlook, and their repair.

- "unsorted": a node stands before one whose result it needs (ONNX demands topological order);
- "no-output-shape": a graph output without a shape field (onnx.checker demands one);
- "no-graph-name": a graph without a name (likewise);
- "duplicate-names": two nodes of one graph with one name (ONNX Runtime refuses the model, nobody
  else minds);
- "duplicate-opsets": two imports of one domain, of which readers take another one each;
- "ahead-of-opset": LayerNormalization in a model whose opset is below 17. ONNX Runtime has
  registered it for all opsets since it was a contrib op, and its transformer exporters use it so.
  Only raising the opset repairs that; the checker is shown another domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, NodeProto

from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.scopes import Scope, bodies, scopes
from onnx24.ir.shapes import infer

if TYPE_CHECKING:
    import networkx as nx

    from onnx24.ir.model import Model


def reads(node: NodeProto) -> set[str]:
    """Names that a node reads, those that its bodies take from outside included."""
    names = {name for name in node.input if name}
    for _, body in bodies(node):
        own = {value.name for value in body.input} | {t.name for t in body.initializer}
        own |= {sparse.values.name for sparse in body.sparse_initializer}
        inner: set[str] = {value.name for value in body.output}
        for child in body.node:
            inner |= reads(child)
            own |= set(child.output)
        names |= inner - own
    return names


def dependencies(nodes: Sequence[NodeProto]) -> nx.DiGraph:
    """Positions of nodes; an edge from each producer to each reader."""
    import networkx as nx

    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from(
        (producer[name], i)
        for i, node in enumerate(nodes)
        for name in reads(node) & producer.keys()
    )
    return graph


def is_sorted(nodes: Sequence[NodeProto]) -> bool:
    """Whether every node stands behind the producers of what it reads. Asked after every pass, so
    no graph is built for it."""
    producer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    return all(producer.get(name, -1) < i for i, node in enumerate(nodes) for name in reads(node))


def find_defects(proto: ModelProto) -> frozenset[str]:
    found = set()
    opset = ops.opset(proto)
    if len(ops.opsets(proto)) < len(proto.opset_import):
        found.add("duplicate-opsets")
    for scope in scopes(proto):
        if not is_sorted(scope.graph.node):
            found.add("unsorted")
        if isinstance(scope.graph, GraphProto) and not scope.graph.name:
            found.add("no-graph-name")
        if _repeats_name(scope.graph.node):
            found.add("duplicate-names")
        if any(_is_ahead(node, opset) for node in scope.graph.node):
            found.add("ahead-of-opset")
        if any(_lacks_shape(value.type) for value in _main_outputs(scope)):
            found.add("no-output-shape")
    return frozenset(found)


def repair(model: Model) -> list[str]:
    """Repair the defects of a model for good. Returns those that were there.

    A missing output shape is filled in where inference knows it, else it stays missing.
    """
    found = sorted(find_defects(model.proto))
    if not found:
        return []
    repair_proto(model.proto, frozenset(found) & _FOR_GOOD)
    if "no-output-shape" in found:
        table = infer(model)
        for value in model.proto.graph.output:
            shape = table.shape(value.name)
            if not _lacks_shape(value.type) or shape is None:
                continue
            dims = value.type.tensor_type.shape
            dims.SetInParent()
            for dim in shape:
                entry = dims.dim.add()
                if isinstance(dim, int):
                    entry.dim_value = dim
                elif dim:
                    entry.dim_param = dim
    model.touch(Effects.STRUCTURE)
    model.defects = find_defects(model.proto)
    return found


def runnable(model: Model) -> Model:
    """The model, or a throw-away copy without the defect that ONNX Runtime minds."""
    if "duplicate-names" not in model.defects:
        return model
    proto = model.skeleton()
    repair_proto(proto, frozenset({"duplicate-names"}))
    return model.variant(proto)


def repair_proto(proto: ModelProto, defects: frozenset[str]) -> None:
    """Repair in place, with placeholders where the model does not say: an unknown output shape
    becomes rank 0 and an operator ahead of its opset moves to another domain, so the result is
    for the checker's eyes only in those cases."""
    opset = ops.opset(proto)
    if "duplicate-opsets" in defects:
        ops.one_import_each(proto)
    if "ahead-of-opset" in defects:
        proto.opset_import.add(domain=_AHEAD_DOMAIN, version=1)
    for scope in scopes(proto) if defects else ():
        if "unsorted" in defects and not is_sorted(scope.graph.node):
            _sort(scope)
        if "no-graph-name" in defects and isinstance(scope.graph, GraphProto):
            scope.graph.name = scope.graph.name or "graph"
        if "duplicate-names" in defects:
            _name_apart(scope.graph.node)
        if "ahead-of-opset" in defects:
            for node in scope.graph.node:
                if _is_ahead(node, opset):
                    node.domain = _AHEAD_DOMAIN
        if "no-output-shape" in defects:
            for value in _main_outputs(scope):
                if _lacks_shape(value.type):
                    value.type.tensor_type.shape.SetInParent()


def _sort(scope: Scope) -> None:
    nodes = scope.graph.node
    import networkx as nx

    order = nx.lexicographical_topological_sort(dependencies(nodes))
    copies = GraphProto()
    copies.node.extend(nodes[i] for i in list(order))
    del nodes[:]
    nodes.extend(copies.node)


def _repeats_name(nodes: Sequence[NodeProto]) -> bool:
    names = [node.name for node in nodes if node.name]
    return len(set(names)) < len(names)


def _name_apart(nodes: Sequence[NodeProto]) -> None:
    """The first node keeps a name, later ones get `_2`, `_3`, …"""
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for node in nodes:
        name, count = node.name, 1
        while node.name and node.name in seen:
            count += 1
            candidate = f"{name}_{count}"
            if candidate not in taken:
                node.name = candidate
                taken.add(candidate)
        seen.add(node.name)


_AHEAD_DOMAIN = "onnx24.ahead"
_FOR_GOOD = frozenset({"unsorted", "no-graph-name", "duplicate-names", "duplicate-opsets"})


def _is_ahead(node: NodeProto, opset: int) -> bool:
    return opset < 17 and ops.is_onnx(node, "LayerNormalization")


def _main_outputs(scope: Scope):
    """The values that the checker wants shapes of: a body may leave them to its node."""
    if scope.path or not isinstance(scope.graph, GraphProto):
        return []
    return [*scope.graph.output, *scope.graph.input]


def _lacks_shape(type_proto) -> bool:
    return type_proto.HasField("tensor_type") and not type_proto.tensor_type.HasField("shape")
