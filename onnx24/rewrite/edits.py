"""What rewriters of the document itself share: renaming values, removing nodes and notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnx import GraphProto

from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import scopes


def rename_values(
    model: Model, index: Index, alias: dict[ValueKey, str], gone: Iterable[NodeSite]
) -> None:
    """Values take the names in `alias`, which may chain, wherever they are read or produced;
    nodes in `gone` are about to be removed."""

    def final(key: ValueKey | None) -> str | None:
        name = None
        while key is not None and key in alias:
            name = alias[key]
            key = index.resolve(name, key.scope)
        return name

    leaving = {(site.scope, site.position) for site in gone}
    for site in index.nodes:
        node = site.proto
        for i, value in enumerate(node.input):
            if value and (name := final(index.resolve(value, site.scope))):
                node.input[i] = name
        if (site.scope, site.position) in leaving:
            continue
        for i, value in enumerate(node.output):
            if value and (name := final(ValueKey(site.scope, value))):
                node.output[i] = name
    drop_infos(model, set(alias))


def drop_infos(model: Model, keys: set[ValueKey]) -> None:
    """Remove the value infos of values that are gone, or have another type now."""
    for scope in scopes(model.proto):
        if isinstance(scope.graph, GraphProto):
            infos = scope.graph.value_info
            dropped = {i for i, v in enumerate(infos) if ValueKey(scope.path, v.name) in keys}
            delete_at(infos, dropped)


def remove_nodes(model: Model, sites: Iterable[NodeSite]) -> None:
    """Remove nodes, given as an index of the present document has them."""
    gone: dict[str, set[int]] = {}
    for site in sites:
        gone.setdefault(site.scope, set()).add(site.position)
    # The paths of bodies depend on the nodes before them: find every graph first.
    for scope in list(scopes(model.proto)):
        delete_at(scope.graph.node, gone.get(scope.path, set()))


def delete_at(items: Any, positions: set[int]) -> None:
    """In place, so that what is held of the other items stays theirs."""
    for position in sorted(positions, reverse=True):
        del items[position]
