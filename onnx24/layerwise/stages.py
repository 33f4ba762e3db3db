"""Where a model is cut so that it can be solved layer by layer, each piece run once.

A layer's stage is the number of solved layers that its input depends on, one after the other.
Layers of one stage do not depend on each other: query, key and value, the two convolutions of a
residual block's branches. Segment `s` holds the nodes whose values are known once every layer of
a stage below `s` is solved, so that a walk over the segments runs each node once for the dense and
once for the compressed model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, NodeProto

from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir import ops
from onnx24.ir.index import Index
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import bodies, node_label
from onnx24.ir.weights import numpy_dtype
from onnx24.layerwise.sites import Site, site_of

__all__ = ["Bias", "Layer", "Plan", "Residual", "Segment", "draws", "make_plan"]

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike"}
    | {"RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True, eq=False)
class Bias:
    """The bias of a layer, which may be moved.

    node: which takes it, as its `input`. name: under which it is fed while solving, and stored
    afterwards. stored: the initializer that holds it today, None where the node takes none; it
    is `name` itself unless others read it too. factor: Gemm's beta.
    """

    node: NodeProto
    input: int
    name: str
    stored: str | None
    values: np.ndarray
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Residual:
    """What is added to a layer's output: the value's name, and what the output is multiplied
    with before ([R], of a BatchNormalization), None for nothing."""

    value: str
    factor: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight that is solved, with the products that read it. boundary: the last of them; the
    solved weight is used from there on. stage: see the module."""

    key: ValueKey
    sites: tuple[Site, ...]
    boundary: NodeProto
    stage: int
    bias: Bias | None = None
    residual: Residual | None = None

    @property
    def name(self) -> str:
        return str(self.key)


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of the main graph. inputs: values of earlier segments and of the graph; outputs:
    what later segments, or layers of this stage and later, need; layers: those of this stage."""

    stage: int
    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """segments: in order. last_use: after which segment a value is not needed any more.
    unsolved: weights that can't be solved here → why."""

    segments: tuple[Segment, ...]
    last_use: dict[str, int]
    unsolved: dict[ValueKey, str]
    layers: tuple[Layer, ...] = field(default=())


def draws(model: Model) -> str | None:
    """A node, bodies included, that gives other values each time it is run; None where none
    does."""

    def first(nodes: Iterable[NodeProto]) -> str | None:
        for node in nodes:
            if ops.op(node) in _RANDOM:
                return f"{node_label(node)} ({node.op_type})"
            for _, graph in bodies(node):
                if inner := first(graph.node):
                    return inner
        return None

    return first(model.proto.graph.node)


def make_plan(model: Model, found: WeightUses, keys: Iterable[ValueKey]) -> Plan:
    """The order in which the weights `keys` are solved."""
    graph = _Graph(model, found)
    unsolved: dict[ValueKey, str] = {}
    sites: dict[ValueKey, tuple[Site, ...]] = {}
    for key in keys:
        try:
            sites[key] = _sites(key, found, graph)
        except _Unsolvable as why:
            unsolved[key] = str(why)
    layers = graph.layers(sites)
    return _segments(graph, layers, unsolved)


class _Unsolvable(Exception):
    pass


def _sites(key: ValueKey, found: WeightUses, graph: _Graph) -> tuple[Site, ...]:
    uses = [use for use in found.products(key) if use.eligible]
    out = []
    for use in uses:
        assert use.consumer is not None
        if key.scope or use.consumer.scope:
            raise _Unsolvable(f"{use.node} ({use.op}) stands in a body, whose values can't be seen")
        site = site_of(use)
        if site is None:
            raise _Unsolvable(f"{use.node} ({use.op}) reads no activation as rows")
        if site.data in graph.fixed:
            raise _Unsolvable(f"the other operand of {use.node} ({use.op}) is constant")
        out.append(site)
    return tuple(out)


class _Graph:
    """The main graph, in topological order."""

    def __init__(self, model: Model, found: WeightUses) -> None:
        self.model = model
        self.found = found
        self.index: Index = found.index
        self.reads = {id(node): _reads(node) for node in model.proto.graph.node}
        self.inputs = {v.name for v in model.proto.graph.input}
        initializers = {t.name for t in model.proto.graph.initializer}
        initializers |= {t.values.name for t in model.proto.graph.sparse_initializer}
        self.initializers = initializers
        self.fixed = initializers - self.inputs
        self.inputs -= self.fixed
        self.order = _sorted(model.proto.graph, self.reads, self.inputs | initializers)
        self.producer: dict[str, NodeProto] = {}
        for node in self.order:
            self.producer.update((name, node) for name in node.output if name)
            if ops.op(node) in _RANDOM:
                continue
            if all(name in self.fixed for name in self.reads[id(node)]):
                self.fixed.update(name for name in node.output if name)

    def layers(self, sites: dict[ValueKey, tuple[Site, ...]]) -> list[Layer]:
        readers: dict[int, list[ValueKey]] = {}
        for key, of_key in sites.items():
            for site in of_key:
                readers.setdefault(id(_node(site)), []).append(key)
        position = {id(node): i for i, node in enumerate(self.order)}
        boundary = {
            key: max((_node(site) for site in of_key), key=lambda n: position[id(n)])
            for key, of_key in sites.items()
        }
        self.named: set[str] = set()
        self.depth: dict[str, int] = {}
        self.runs_in: dict[int, int] = {}
        seen: dict[ValueKey, int] = {}
        layers = []
        for node in self.order:
            names = self.reads[id(node)]
            depth = max((self.depth.get(name, 0) for name in names), default=0)
            for key in readers.get(id(node), ()):
                seen[key] = max(seen.get(key, 0), depth)
                if boundary[key] is node:
                    depth = max(depth, seen[key] + 1)
                    layers.append(self._layer(key, sites[key], node, seen[key]))
            self.runs_in[id(node)] = depth
            if not all(name in self.fixed for name in node.output if name):
                self.depth.update((name, depth) for name in node.output if name)
        return layers

    def _layer(self, key: ValueKey, sites: tuple[Site, ...], node: NodeProto, stage: int) -> Layer:
        bias = residual = None
        if len(sites) == 1 and sites[0].batch == 1:
            chain, tensor = sites[0].use.chain, self.found.tensors[key]
            dtype = chain[-1].dtype if chain else numpy_dtype(tensor.data_type)
            bias = self._bias(sites[0], node, dtype)
            residual = self._residual(node, bias, stage)
        return Layer(key, sites, node, stage, bias, residual)

    def _bias(self, site: Site, node: NodeProto, dtype: np.dtype) -> Bias | None:
        """dtype: what the product computes in."""
        size = site.use.N
        if ops.is_onnx(node, "Conv", "Gemm"):
            beta = 1.0
            if ops.is_onnx(node, "Gemm"):
                if site.use.input == 0:
                    return None
                beta = next((float(a.f) for a in node.attribute if a.name == "beta"), 1.0)
                if beta == 0:
                    return None
            given = node.input[2] if len(node.input) > 2 else ""
            if not given:
                name = self._fresh(f"{node_label(node)}.24.bias")
                return Bias(node, 2, name, None, np.zeros(size, dtype), beta)
            return self._stored_bias(node, 2, given, size, beta)
        if not ops.is_onnx(node, "MatMul") or site.use.input != 1:
            return None
        add = self._only_reader(node.output[0])
        if add is None or not ops.is_onnx(add, "Add"):
            return None
        position = 1 if add.input[0] == node.output[0] else 0
        return self._stored_bias(add, position, add.input[position], size, 1.0)

    def _stored_bias(
        self, node: NodeProto, position: int, name: str, size: int, factor: float
    ) -> Bias | None:
        key = ValueKey("", name)
        tensor = self.found.tensors.get(key)
        if tensor is None or name not in self.fixed:
            return None
        values = self.model.weights.read(tensor)
        if values.shape[-1:] != (size,) or values.size != size or values.dtype.kind not in "fV":
            return None
        alone = len(self.index.consumers(name)) == 1 and key not in self.index.graph_outputs
        own = name if alone and name in self.initializers else self._fresh(f"{name}.24")
        return Bias(node, position, own, name, values, factor)

    def _fresh(self, name: str) -> str:
        taken, n = name, 1
        while self.index.resolve(taken) is not None or taken in self.named:
            n += 1
            taken = f"{name}.{n}"
        self.named.add(taken)
        return taken

    def _only_reader(self, value: str) -> NodeProto | None:
        uses = self.index.consumers(value)
        if len(uses) != 1 or uses[0].site.scope or ValueKey("", value) in self.index.graph_outputs:
            return None
        node = uses[0].site.proto
        return node if ops.is_onnx(node) else None

    def _residual(self, node: NodeProto, bias: Bias | None, stage: int) -> Residual | None:
        """The other operand of an Add behind the layer, where it is known before the layer is."""
        if bias is not None and bias.node is not node:
            node = bias.node
        value, factor = node.output[0], None
        after = self._only_reader(value)
        if (
            after is not None
            and ops.is_onnx(after, "BatchNormalization")
            and ops.is_onnx(node, "Conv")
        ):
            factor = self._batch_norm_factor(after)
            if factor is None:
                return None
            value, after = after.output[0], self._only_reader(after.output[0])
        if after is None or not ops.is_onnx(after, "Add") or after.input[0] == after.input[1]:
            return None
        other = after.input[1 if after.input[0] == value else 0]
        known = 0 if other in self.inputs else self.depth.get(other, stage + 1)
        if other in self.fixed or known > stage:
            return None
        return Residual(other, factor)

    def _batch_norm_factor(self, node: NodeProto) -> np.ndarray | None:
        tensors = [self.found.tensors.get(ValueKey("", node.input[i])) for i in (1, 4)]
        stored = [self.model.weights.read(t) for t in tensors if t is not None]
        if len(stored) < 2:
            return None
        gamma, variance = (np.asarray(values, np.float64) for values in stored)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        return factor if np.all(np.abs(factor) > 1e-6) else None


def _segments(graph: _Graph, layers: list[Layer], unsolved: dict[ValueKey, str]) -> Plan:
    stages = max((layer.stage for layer in layers), default=-1) + 1
    wanted: list[set[str]] = [set() for _ in range(stages)]
    last_use: dict[str, int] = {}
    for layer in layers:
        values = [site.data for site in layer.sites]
        values += [layer.residual.value] if layer.residual else []
        for value in values:
            wanted[layer.stage].add(value)
            last_use[value] = max(last_use.get(value, -1), layer.stage)
    by_stage: list[list[NodeProto]] = [[] for _ in range(stages)]
    needed = set().union(*wanted) if wanted else set()
    for node in reversed(graph.order):
        stage = graph.runs_in[id(node)]
        names = [name for name in node.output if name]
        if stage >= stages or all(name in graph.fixed for name in names):
            continue
        if not any(name in needed for name in names):
            continue
        by_stage[stage].append(node)
        reads = graph.reads[id(node)]
        needed.update(reads)
        for name in reads:
            last_use[name] = max(last_use.get(name, -1), stage)
    segments = []
    for stage in range(stages):
        nodes = by_stage[stage][::-1]
        made = {name for node in nodes for name in node.output if name}
        reads = [name for node in nodes for name in graph.reads[id(node)]]
        helpers = _fixed_nodes(reads, graph)
        inputs = [n for n in dict.fromkeys(reads) if n not in made and n not in graph.fixed]
        outputs = [
            name
            for node in nodes
            for name in node.output
            if name and (last_use.get(name, -1) > stage or name in wanted[stage])
        ]
        of_stage = tuple(layer for layer in layers if layer.stage == stage)
        segments.append(Segment(stage, (*helpers, *nodes), tuple(inputs), tuple(outputs), of_stage))
    return Plan(tuple(segments), last_use, unsolved, tuple(layers))


def _fixed_nodes(reads: list[str], graph: _Graph) -> list[NodeProto]:
    """The nodes that compute constants that a segment reads, in order."""
    wanted = {name for name in reads if name in graph.fixed}
    found = []
    for node in reversed(graph.order):
        names = {name for name in node.output if name}
        if names & wanted and names <= graph.fixed:
            found.append(node)
            wanted.update(graph.reads[id(node)])
    return found[::-1]


def _node(site: Site) -> NodeProto:
    assert site.use.consumer is not None
    return site.use.consumer.proto


def _reads(node: NodeProto) -> list[str]:
    """What a node reads of the main graph, the values that its bodies capture included."""
    return list(dict.fromkeys([*(name for name in node.input if name), *_captured(node)]))


def _captured(node: NodeProto) -> Iterator[str]:
    for _, graph in bodies(node):
        defined = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        defined |= {t.values.name for t in graph.sparse_initializer}
        for inner in graph.node:
            for name in (*inner.input, *_captured(inner)):
                if name and name not in defined:
                    yield name
            defined.update(inner.output)
        for value in graph.output:
            if value.name not in defined:
                yield value.name


def _sorted(graph: GraphProto, reads: dict[int, list[str]], known: set[str]) -> list[NodeProto]:
    """The nodes so that each stands behind those it reads; document order where there is a
    choice."""
    ready, order, left = set(known), [], list(graph.node)
    while left:
        waiting = []
        for node in left:
            if all(name in ready for name in reads[id(node)]):
                ready.update(node.output)
                order.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(left):
            return [*order, *waiting]
        left = waiting
    return order
