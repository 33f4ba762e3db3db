"""Nodes that only rearrange or convert initializers are computed once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from onnx24.analysis.folding import can_fold, fold
from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function
from onnx24.ir.weights import INLINE_BYTES, element_count, payload_bytes
from onnx24.rewrite.edits import drop_infos, remove_nodes, rename_values


@dataclass(frozen=True, eq=False)
class FoldGroup:
    """The nodes that can be folded into one initializer, `source`."""

    source: ValueKey
    sites: list[NodeSite]
    alike: bool
    """They all make the same of it and nothing else reads it, so that the result takes its place
    and its name. Otherwise each result is an initializer of its own."""


class Folds:
    """What can be folded in a model: the `groups`, `fold` some on the way, then `commit`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.index = model.index()
        self.folded: list[NodeSite] = []
        self._alias: dict[ValueKey, str] = {}
        self._replaced: set[ValueKey] = set()

    def groups(self, leave: Collection[ValueKey] = ()) -> Iterator[FoldGroup]:
        """Initializers with the nodes to fold into them; the nodes with results in `leave` stay.
        A weight that would have to be stored in several forms is left alone."""
        by_source: dict[ValueKey, list[NodeSite]] = {}
        for site in self.index.nodes:
            source = self._source(site)
            if source is not None and result_of(site) not in leave:
                by_source.setdefault(source, []).append(site)
        for source, sites in by_source.items():
            readers = self.index.consumers(source.name, source.scope)
            sole = source not in self.index.graph_outputs and len(readers) == len(sites)
            alike = sole and len({self._signature(site) for site in sites}) == 1
            if alike or not is_weight(self.index.initializers[source]):
                yield FoldGroup(source, sites, alike)

    def fold(self, group: FoldGroup) -> list[NodeSite]:
        """Compute the results. Returns: the nodes that have one; the others stay."""
        source, first = group.source, group.sites[0]
        values = fold(first.proto, self._inputs(first)) if group.alike else None
        if values is None:
            folded = [site for site in group.sites if self._fold_apart(site)]
        else:
            # One new tensor under the old name; every folded node's result becomes it.
            self.model.weights.set_values(self.index.initializers[source], values)
            self._alias.update({result_of(site): source.name for site in group.sites})
            self._replaced.add(source)
            folded = group.sites
        self.folded += folded
        return folded

    def commit(self) -> None:
        """Remove the nodes that were folded."""
        if not self.folded:
            return
        rename_values(self.model, self.index, self._alias, self.folded)
        drop_infos(self.model, self._replaced)
        remove_nodes(self.model, self.folded)
        self.model.touch(Effects.STRUCTURE | Effects.WEIGHTS)

    def _source(self, site: NodeSite) -> ValueKey | None:
        """The initializer that a node rearranges; None where the node cannot be folded."""
        node, index = site.proto, self.index
        if not can_fold(node) or is_in_function(site.scope):
            return None
        if result_of(site) in index.graph_outputs:
            return None
        keys = [index.resolve(name, site.scope) for name in node.input if name]
        if not keys or any(key not in index.initializers for key in keys):
            return None
        if any(key in index.graph_inputs for key in keys):
            return None  # a caller may override it
        tensor = index.initializers[keys[0]]  # type: ignore[index]
        if tensor.data_type == TensorProto.STRING:
            return None
        if ops.is_onnx(node, "Cast") and is_weight(tensor) and _is_packed(tensor):
            return None
        return keys[0]

    def _signature(self, site: NodeSite) -> tuple[str, bytes, tuple[ValueKey | None, ...]]:
        """Equal for nodes that make the same of the same input."""
        bare = NodeProto(attribute=site.proto.attribute)
        others = tuple(self.index.resolve(name, site.scope) for name in site.proto.input[1:])
        return ops.op(site), bare.SerializeToString(deterministic=True), others

    def _inputs(self, site: NodeSite) -> list[np.ndarray | None]:
        index, weights = self.index, self.model.weights
        keys = [index.resolve(name, site.scope) if name else None for name in site.proto.input]
        return [None if key is None else weights.read(index.initializers[key]) for key in keys]

    def _fold_apart(self, site: NodeSite) -> bool:
        """Fold one node into an initializer of its own, under the name of the node's output."""
        values = fold(site.proto, self._inputs(site))
        if values is None:
            return False
        graph = next(scope.graph for scope in self.model.scopes() if scope.path == site.scope)
        tensor = TensorProto()
        self.model.weights.set_values(tensor, values)
        tensor.name = site.proto.output[0]
        graph.initializer.append(tensor)  # type: ignore[union-attr]
        return True


def result_of(site: NodeSite) -> ValueKey:
    """The first output of a node."""
    return ValueKey(site.scope, site.proto.output[0])


def _is_packed(tensor: TensorProto) -> bool:
    """Stored in 8 bits or fewer, whatever type it is computed in: a Cast would store it wider."""
    return payload_bytes(tensor) <= element_count(tensor)


def is_weight(tensor: TensorProto) -> bool:
    """Worth not being stored twice: a matrix, or more than what stays in the document."""
    return len(tensor.dims) > 1 or payload_bytes(tensor) > INLINE_BYTES
