"""A weight whose readers want different things becomes one copy for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, GraphProto, NodeProto, TensorProto

from onnx24.analysis.eligibility import Verdict
from onnx24.analysis.weight_uses import WeightUse, WeightUses, followed
from onnx24.effects import Effects
from onnx24.ir.index import NodeSite, Use
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import scopes
from onnx24.ir.weights import payload_bytes

__all__ = ["reader_classes", "split_bytes", "split_weight", "split_weights"]

_REST = 0
"""The class of the readers that could not be sparse; it keeps the weight's name and values."""


def reader_classes(verdict: Verdict) -> list[list[WeightUse]]:
    """The readers of a weight, by what they want: first those that could not be sparse, if there
    are any, then those of each reduction axis, in the order of the document. The first class
    keeps the weight, each other one would get a copy."""
    rest = [use for use in verdict.uses if not use.eligible]
    axes: dict[int | None, list[WeightUse]] = {}
    for use in verdict.uses:
        if use.eligible:
            axes.setdefault(use.k_stride, []).append(use)
    return [*([rest] if rest else []), *axes.values()]


def split_bytes(found: WeightUses, verdict: Verdict) -> int:
    """What the copies of a weight add to the model [bytes]; 0 where there is nothing to split."""
    copies = len(reader_classes(verdict)) - 1
    return max(copies, 0) * payload_bytes(found.tensors[verdict.key])


def split_weight(model: Model, found: WeightUses, verdict: Verdict) -> list[ValueKey]:
    """`split_weights` of one weight. `found` is out of date afterwards."""
    return split_weights(model, found, [verdict])[verdict.key]


def split_weights(
    model: Model, found: WeightUses, verdicts: Sequence[Verdict]
) -> dict[ValueKey, list[ValueKey]]:
    """Give each class of readers (`reader_classes`) its own copy of the weight.

    The copies are called `<name>.24.<n>`, in order, by names that nothing in the model has; nodes
    between weight and readers that several classes share are copied with it. The values are those
    of the original, and so are all outputs, bit for bit. Copies lie in the scope of the original
    and share its bytes until one of them is replaced. A record of 2:4 goes to those whose readers
    are products.

    found: of the present state; it is out of date afterwards. verdicts: of weights that a tensor
    holds and whose values nobody outside of the graph sees (none with O24-126).
    Returns: for each weight its copies, without the original; none where all readers agree.
    """
    split = _Split(model, found)
    copies = {verdict.key: split.copy(verdict) for verdict in verdicts}
    if any(copies.values()):
        split.commit()
    return copies


@dataclass
class _Split:
    """Readers are rewired at once; nodes and initializers are added by `commit`, since positions
    in the index hold until then."""

    model: Model
    found: WeightUses
    added: list[tuple[NodeSite, NodeProto]] = field(default_factory=list)
    tensors: list[tuple[str, TensorProto]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._taken = {name for scope in scopes(self.model.proto) for name in _names(scope.graph)}

    def copy(self, verdict: Verdict) -> list[ValueKey]:
        classes = reader_classes(verdict)
        if len(classes) < 2:
            return []
        # The class of each final reader: (its node, input) → number.
        wanted = {
            (id(use.consumer.proto), use.input): number
            for number, uses in enumerate(classes)
            for use in uses
            if use.consumer is not None
        }
        names = {number: self._fresh(verdict.key.name) for number in range(1, len(classes))}
        for name in names.values():
            self._add_copy(verdict.key, name)
        tree = _Tree(self.found, wanted)
        left = [(verdict.key, names)]
        while left:
            key, renamed = left.pop()
            for use in self.found.index.consumers(key.name, key.scope):
                left.extend(self._rewire(tree, use, renamed))
        copies = [ValueKey(verdict.key.scope, name) for name in names.values()]
        if verdict.key in self.model.claims:
            self.model.claims.update(copies)
            if any(not use.eligible for use in classes[_REST]):
                self.model.claims.discard(verdict.key)
        return copies

    def _rewire(
        self, tree: _Tree, use: Use, names: dict[int, str]
    ) -> Iterator[tuple[ValueKey, dict[int, str]]]:
        """Let one reader read what its class is to read. names: what each class but the keeper
        reads instead of the value. Yields the value behind a node of the chain, in the same way."""
        node, reads = use.site.proto, tree.classes(use)
        if len(reads) == 1:
            (number,) = reads
            if number in names:
                node.input[use.input] = names[number]
            return
        if not reads:  # Shape and the like, for which any copy does
            return
        keeper = min(reads)
        behind = {}
        for number in sorted(reads - {keeper}):
            made = NodeProto()
            made.CopyFrom(node)
            made.input[use.input] = names[number]
            made.output[0] = behind[number] = self._fresh(node.output[0])
            if node.name:
                made.name = self._fresh(node.name)
            self.added.append((use.site, made))
        if keeper in names:
            node.input[use.input] = names[keeper]
        yield ValueKey(use.site.scope, node.output[0]), behind

    def _add_copy(self, key: ValueKey, name: str) -> None:
        if key not in self.found.constants:
            tensor = TensorProto()
            tensor.CopyFrom(self.found.tensors[key])
            tensor.name = name
            self.tensors.append((key.scope, tensor))
            return
        site = self.found.index.producer(key.name, key.scope)
        assert site is not None
        made = NodeProto()
        made.CopyFrom(site.proto)
        made.output[0] = name
        if made.name:
            made.name = self._fresh(made.name)
        self.added.append((site, made))

    def _fresh(self, name: str) -> str:
        n = 1
        while (fresh := f"{name}.24.{n}") in self._taken:
            n += 1
        self._taken.add(fresh)
        return fresh

    def commit(self) -> None:
        # The paths of bodies depend on the nodes before them: find every graph first.
        graphs = {scope.path: scope.graph for scope in scopes(self.model.proto)}
        for path, tensor in self.tensors:
            graphs[path].initializer.append(tensor)  # type: ignore[union-attr]
        # Each behind the node that it is a copy of, later ones first, so that positions hold.
        numbered = list(enumerate(self.added))
        for _, (site, node) in sorted(numbered, key=lambda i: (i[1][0].position, i[0]))[::-1]:
            graphs[site.scope].node.insert(site.position + 1, node)
        self.model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


class _Tree:
    """What lies behind each node of the chains of one weight."""

    def __init__(self, found: WeightUses, wanted: dict[tuple[int, int], int]) -> None:
        self._found, self._wanted = found, wanted
        self._known: dict[int, set[int]] = {}

    def classes(self, use: Use) -> set[int]:
        """The classes of the final readers that get the values through this one."""
        left, order = [use], []
        while left:  # no recursion: chains may be longer than Python's stack
            order.append(at := left.pop())
            left.extend(self._behind(at))
        for at in reversed(order):
            if id(at) in self._known:
                continue
            leaf = (id(at.site.proto), at.input)
            if leaf in self._wanted:
                self._known[id(at)] = {self._wanted[leaf]}
                continue
            known = (self._known[id(after)] for after in self._behind(at))
            self._known[id(at)] = set().union(*known) | self._shown(at)
        return self._known[id(use)]

    def _behind(self, use: Use) -> list[Use]:
        node = use.site.proto
        if id(use) in self._known or (id(node), use.input) in self._wanted:
            return []
        if not followed(node) or use.input != 0:
            return []
        return self._found.index.consumers(node.output[0], use.site.scope)

    def _shown(self, use: Use) -> set[int]:
        """A value that leaves a body belongs to the rest, which keeps the names."""
        node = use.site.proto
        if not followed(node) or use.input != 0:
            return set()
        shown = ValueKey(use.site.scope, node.output[0]) in self._found.index.graph_outputs
        return {_REST} if shown else set()


def _names(graph: GraphProto | FunctionProto) -> Iterator[str]:
    """Every name of a value or node that one graph defines."""
    if isinstance(graph, GraphProto):
        yield from (value.name for value in (*graph.input, *graph.output, *graph.value_info))
        yield from (tensor.name for tensor in graph.initializer)
        yield from (sparse.values.name for sparse in graph.sparse_initializer)
    else:
        yield from (*graph.input, *graph.output)
    for node in graph.node:
        yield node.name
        yield from node.output
