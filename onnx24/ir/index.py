"""Who produces a value, who reads it, and in which scope it is defined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx import GraphProto, NodeProto, TensorProto

from onnx24.ir.keys import ValueKey
from onnx24.ir.scopes import Scope, node_label, scopes

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, eq=False)
class NodeSite:
    """A node and where it stands: `position` in the node list of `scope`."""

    scope: str
    position: int
    proto: NodeProto

    @property
    def name(self) -> str:
        """The node's name, or its first output's where it has none."""
        return node_label(self.proto)


@dataclass(frozen=True, eq=False)
class Use:
    """A node that reads a value, and as which input."""

    site: NodeSite
    input: int


@dataclass
class Index:
    """Producers and consumers of one state of a document. A name that a body reads from outside
    resolves to the scope that defines it."""

    nodes: list[NodeSite] = field(default_factory=list)
    initializers: dict[ValueKey, TensorProto] = field(default_factory=dict)
    graph_inputs: set[ValueKey] = field(default_factory=set)
    graph_outputs: set[ValueKey] = field(default_factory=set)
    undefined: list[Use] = field(default_factory=list)
    """Reads of names that no visible scope defines."""

    def __post_init__(self) -> None:
        self._producers: dict[ValueKey, NodeSite] = {}
        self._consumers: dict[ValueKey, list[Use]] = {}
        self._parents: dict[str, str | None] = {}
        self._defined: dict[str, set[str]] = {}

    @classmethod
    def of(cls, proto: ModelProto) -> Index:
        index = cls()
        found = list(scopes(proto))
        for scope in found:
            index._define(scope)
        for site in index.nodes:
            for i, name in enumerate(site.proto.input):
                if not name:
                    continue
                key = index.resolve(name, site.scope)
                if key is None:
                    index.undefined.append(Use(site, i))
                else:
                    index._consumers.setdefault(key, []).append(Use(site, i))
        for scope in found:
            for name in _output_names(scope):
                # A body's output may be a value of an outer scope.
                index.graph_outputs.add(
                    index.resolve(name, scope.path) or ValueKey(scope.path, name)
                )
        return index

    def _define(self, scope: Scope) -> None:
        path, graph = scope.path, scope.graph
        self._parents[path] = scope.parent
        names = self._defined[path] = set(_input_names(scope))
        self.graph_inputs |= {ValueKey(path, name) for name in names}
        for tensor in scope.initializers:
            self.initializers[ValueKey(path, tensor.name)] = tensor
            names.add(tensor.name)
        if isinstance(graph, GraphProto):
            names |= {sparse.values.name for sparse in graph.sparse_initializer}
        for position, node in enumerate(graph.node):
            site = NodeSite(path, position, node)
            self.nodes.append(site)
            for name in node.output:
                if name:
                    names.add(name)
                    self._producers[ValueKey(path, name)] = site

    def resolve(self, value: str, scope: str = "") -> ValueKey | None:
        """The key of the definition that `value` means in `scope`; None where there is none."""
        at: str | None = scope
        while at is not None:
            if value in self._defined.get(at, ()):
                return ValueKey(at, value)
            at = self._parents.get(at)
        return None

    def producer(self, value: str, scope: str = "") -> NodeSite | None:
        """The node that computes `value`; None for inputs, initializers and unknown names."""
        key = self.resolve(value, scope)
        return self._producers.get(key) if key else None

    def consumers(self, value: str, scope: str = "") -> list[Use]:
        """Every read of `value`, those by nested bodies included, in document order."""
        key = self.resolve(value, scope)
        return list(self._consumers.get(key, ())) if key else []

    def parent(self, scope: str) -> str | None:
        return self._parents.get(scope)


def _input_names(scope: Scope) -> list[str]:
    if isinstance(scope.graph, GraphProto):
        return [value.name for value in scope.graph.input]
    return list(scope.graph.input)


def _output_names(scope: Scope) -> list[str]:
    if isinstance(scope.graph, GraphProto):
        return [value.name for value in scope.graph.output]
    return list(scope.graph.output)
