"""Nodes, initializers and notes that no output needs."""

from __future__ import annotations

import onnx
from onnx import GraphProto, NodeProto

from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function, scopes
from onnx24.rewrite.edits import delete_at


def dead_nodes(model: Model) -> list[NodeSite]:
    """Nodes whose results nothing reads; those in front of them are dead once they are removed.
    Unknown operators may have effects that no output shows: they stay, as local functions do."""
    index = model.index()
    needed = {
        site
        for site in index.nodes
        if is_in_function(site.scope)
        or not _is_known(site.proto)
        or any(
            ValueKey(site.scope, name) in index.graph_outputs or index.consumers(name, site.scope)
            for name in site.proto.output
            if name
        )
    }
    dead = [site for site in index.nodes if site not in needed]
    # A body inside a node that goes, goes with it: positions in it mean nothing then.
    inside = {
        scope
        for scope in {site.scope for site in dead}
        if any(_lies_in(scope, site) for site in dead)
    }
    return [site for site in dead if site.scope not in inside]


def _is_known(node: NodeProto) -> bool:
    return onnx.defs.has(*reversed(ops.type_of(node)))


def _lies_in(scope: str, site: NodeSite) -> bool:
    prefix = f"{site.scope}/{site.name}." if site.scope else f"{site.name}."
    return scope.startswith(prefix)


def unused_initializers(model: Model) -> list[ValueKey]:
    """Initializers that nothing reads, and that are neither output nor input."""
    index = model.index()
    return [
        key
        for key in index.initializers
        if key not in index.graph_outputs
        and key not in index.graph_inputs
        and not index.consumers(key.name, key.scope)
    ]


def remove_initializers(model: Model, keys: set[ValueKey]) -> None:
    """Remove initializers, and what is claimed of them."""
    model.claims.discard(*keys)
    for scope in scopes(model.proto):
        if not isinstance(scope.graph, GraphProto):
            continue
        tensors = scope.graph.initializer
        unused = {i for i, t in enumerate(tensors) if ValueKey(scope.path, t.name) in keys}
        delete_at(tensors, unused)
    model.touch(Effects.STRUCTURE)


def remove_stale_notes(model: Model) -> None:
    """Remove the value infos and quantization annotations of values that are gone."""
    for scope in scopes(model.proto):
        graph = scope.graph
        if not isinstance(graph, GraphProto):
            continue
        names = {name for node in graph.node for name in node.output}
        names |= {v.name for v in (*graph.input, *graph.output)}
        names |= {tensor.name for tensor in graph.initializer}
        names |= {sparse.values.name for sparse in graph.sparse_initializer}
        infos, annotations = graph.value_info, graph.quantization_annotation
        delete_at(infos, {i for i, v in enumerate(infos) if v.name not in names})
        delete_at(annotations, {i for i, a in enumerate(annotations) if a.tensor_name not in names})
