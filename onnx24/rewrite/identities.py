"""Identity nodes go, and the values on both sides become one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import is_in_function
from onnx24.rewrite.edits import remove_nodes, rename_values


@dataclass(frozen=True, eq=False)
class Removal:
    """An Identity that can go: the value `old` takes the name `new`."""

    site: NodeSite
    old: ValueKey
    new: str

    @property
    def result(self) -> ValueKey:
        return ValueKey(self.site.scope, self.site.proto.output[0])


class Identities:
    """The Identity nodes of a model: `find` them, `remove` some on the way, then `commit`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.index = model.index()
        self.removals: list[Removal] = []
        self._alias: dict[ValueKey, str] = {}

    def find(self) -> Iterator[Removal]:
        """Each Identity that can go beside those that were removed before it. Not one that gives
        an input or an initializer the name of an output."""
        for site in self.index.nodes:
            node = site.proto
            if not ops.is_onnx(node, "Identity"):
                continue
            source = self.index.resolve(node.input[0], site.scope)
            result = ValueKey(site.scope, node.output[0])
            if source is None or source in self._alias or is_in_function(site.scope):
                continue
            if result not in self.index.graph_outputs:
                yield Removal(site, result, source.name)
            elif _may_take_name(self.index, source, site):
                yield Removal(site, source, result.name)

    def remove(self, removal: Removal) -> None:
        self._alias[removal.old] = removal.new
        self.removals.append(removal)

    def commit(self) -> None:
        """Carry out the removals."""
        if not self.removals:
            return
        gone = [removal.site for removal in self.removals]
        rename_values(self.model, self.index, self._alias, gone)
        remove_nodes(self.model, gone)
        self.model.touch(Effects.STRUCTURE)


def _may_take_name(index: Index, source: ValueKey, site: NodeSite) -> bool:
    """Whether the value before an Identity can take the output's name from it: a node of the
    same scope computes it, and it is no output itself."""
    return (
        source.scope == site.scope
        and index.producer(source.name, source.scope) is not None
        and source not in index.graph_outputs
    )
