"""Values that nodes compute from constants alone are computed once.

weight_norm, unmerged LoRA, `w * gain`, a scale that is the weight's largest magnitude: exporters
leave these in the graph, and what they make of a weight is then no initializer that could be pruned
or quantized. ONNX Runtime itself computes them, node by node as written, so that the result is its
own to the last bit. Nodes that only rearrange a constant are `folds`' business.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from onnx24.analysis.folding import can_fold
from onnx24.analysis.forms import is_product
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.index import NodeSite
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.ops import is_onnx, op
from onnx24.ir.scopes import bodies, is_in_function
from onnx24.ir.shapes import ShapeTable, infer
from onnx24.ir.weights import numpy_dtype, payload_bytes
from onnx24.rewrite.edits import remove_nodes
from onnx24.rewrite.folds import is_weight
from onnx24.runtime.session import Session

GROWTH_BYTES = 4 << 20
"""What a result may be larger than the constants that it is computed from."""
SMALL_BYTES = 64 << 10
"""A result below it may be kept beside the weight that it is computed from."""
WORK_BYTES = 64 << 20
"""Of results that are computed in one session."""
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True, eq=False)
class Expression:
    """A node whose results become initializers. `nodes`: it and all that it needs, in order;
    `sources`: the initializers behind them."""

    site: NodeSite
    nodes: tuple[NodeSite, ...]
    sources: tuple[ValueKey, ...]
    nbytes: int

    @property
    def results(self) -> list[ValueKey]:
        site = self.site
        return [ValueKey(site.scope, name) for name in site.proto.output if name]


class Expressions:
    """What can be computed: `find` it, `compute` some of it, then `commit`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.index = model.index()
        self._made: dict[ValueKey, NodeSite] = {}
        """Constant values that nodes compute."""
        self._shapes: ShapeTable | None = None
        self._gone: list[NodeSite] = []
        self._new: list[tuple[ValueKey, TensorProto]] = []

    # --- what there is -------------------------------------------------------------------
    def find(self, leave: Collection[ValueKey] = ()) -> list[Expression]:
        """Not those whose first result is in `leave`."""
        ordered = [site for site in self.index.nodes if self._is_constant(site)]
        if not any(not can_fold(site.proto) for site in ordered):
            return []
        self._shapes = infer(self.model)
        found = []
        for site in ordered:
            results = [ValueKey(site.scope, name) for name in site.proto.output if name]
            if can_fold(site.proto) or results[0] in leave:
                continue
            if any(key in self.index.graph_outputs for key in results):
                continue
            if not any(self._leads_out(key) for key in results):
                continue
            expression = self._expression(site, results)
            if expression is not None:
                found.append(expression)
        return found

    def _is_constant(self, site: NodeSite) -> bool:
        """Whether a node computes the same whatever is fed; notes what it makes."""
        node = site.proto
        keys = [self.index.resolve(name, site.scope) for name in node.input if name]
        if not keys or not all(key is not None and self._is_fixed(key) for key in keys):
            return False
        if is_in_function(site.scope) or not _is_pure(node, self.model.opset):
            return False
        self._made.update((ValueKey(site.scope, name), site) for name in node.output if name)
        return True

    def _is_fixed(self, key: ValueKey) -> bool:
        tensor = self.index.initializers.get(key)
        if tensor is None:
            return key in self._made
        return key not in self.index.graph_inputs and tensor.data_type != TensorProto.STRING

    def _readers(self, key: ValueKey) -> Iterator[NodeSite]:
        """Through nodes that rearrange it: `folds` will compute those."""
        left = [key]
        while left:
            value = left.pop()
            for use in self.index.consumers(value.name, value.scope):
                moved = ValueKey(use.site.scope, use.site.proto.output[0])
                if can_fold(use.site.proto) and moved in self._made:
                    left.append(moved)
                yield use.site

    def _leads_out(self, key: ValueKey) -> bool:
        """Whether a node that is not computed here reads it."""
        return any(
            not site.proto.output or ValueKey(site.scope, site.proto.output[0]) not in self._made
            for site in self._readers(key)
        )

    def _expression(self, site: NodeSite, results: Sequence[ValueKey]) -> Expression | None:
        """None where it would be too large, on the way or in the end."""
        nodes, sources = self._cone(site)
        stored = [self.index.initializers[key] for key in sources]
        room = sum(payload_bytes(t) for t in stored)
        small = any(is_weight(t) and numpy_dtype(t.data_type).itemsize < 2 for t in stored)
        # A weight that is stored in 8 bits would become one of floats.
        limit = room if small else room + GROWTH_BYTES
        sizes = [
            self._bytes(ValueKey(at.scope, name))
            for at in nodes
            for name in at.proto.output
            if name
        ]
        if any(size is None or size > 2 * limit for size in sizes):
            return None
        nbytes = sum(self._bytes(key) or 0 for key in results)
        if nbytes > limit:
            return None
        multiplied = any(
            is_product(reader, 0) or is_product(reader, 1)
            for key in results
            for reader in self._readers(key)
        )
        if nbytes > SMALL_BYTES and not multiplied and any(self._stays(key) for key in sources):
            return None
        return Expression(site, nodes, sources, nbytes)

    def _stays(self, source: ValueKey) -> bool:
        readers = (use.site for use in self.index.consumers(source.name, source.scope))
        return is_weight(self.index.initializers[source]) and any(
            ValueKey(site.scope, site.proto.output[0]) not in self._made
            for site in readers
            if site.proto.output
        )

    def _cone(self, site: NodeSite) -> tuple[tuple[NodeSite, ...], tuple[ValueKey, ...]]:
        nodes: dict[int, NodeSite] = {}
        sources: dict[ValueKey, None] = {}
        left = [site]
        while left:
            at = left.pop()
            if id(at) in nodes:
                continue
            nodes[id(at)] = at
            for name in filter(None, at.proto.input):
                key = self.index.resolve(name, at.scope)
                assert key is not None
                if key in self.index.initializers:
                    sources[key] = None
                else:
                    left.append(self._made[key])
        order = {id(node): i for i, node in enumerate(self.index.nodes)}
        return tuple(sorted(nodes.values(), key=lambda node: order[id(node)])), tuple(sources)

    def _bytes(self, key: ValueKey) -> int | None:
        assert self._shapes is not None
        shape = self._shapes.shape(key.name, key.scope)
        dtype = self._shapes.dtype(key.name, key.scope)
        if shape is None or not dtype or not all(isinstance(size, int) for size in shape):
            return None
        if dtype == TensorProto.STRING:
            return None
        return math.prod(shape) * numpy_dtype(dtype).itemsize  # type: ignore[arg-type]

    # --- what becomes of it ----------------------------------------------------------------
    def compute(self, expressions: Sequence[Expression]) -> list[Expression]:
        """Returns: those that ONNX Runtime could compute."""
        done: list[Expression] = []
        batch: list[Expression] = []
        for expression in expressions:
            if batch and sum(e.nbytes for e in (*batch, expression)) > WORK_BYTES:
                done += self._run(batch)
                batch = []
            batch.append(expression)
        return done + self._run(batch)

    def _run(self, batch: list[Expression]) -> list[Expression]:
        if not batch:
            return []
        try:
            values = self._values(batch)
        except InputError:  # no kernel, or a node that fails
            return [] if len(batch) == 1 else [e for one in batch for e in self._run([one])]
        for expression in batch:
            self._gone.append(expression.site)
            for key in expression.results:
                tensor = TensorProto()
                self.model.weights.set_values(tensor, values[key])
                tensor.name = key.name
                self._new.append((key, tensor))
        return batch

    def _values(self, batch: Sequence[Expression]) -> dict[ValueKey, np.ndarray]:
        names: dict[ValueKey, str] = {}

        def name_of(key: ValueKey | None) -> str:
            assert key is not None
            return names.setdefault(key, f"v{len(names)}")

        proto = ModelProto(ir_version=self.model.proto.ir_version)
        proto.opset_import.extend(self.model.proto.opset_import)
        proto.graph.name = "constants"
        order = {id(node): i for i, node in enumerate(self.index.nodes)}
        nodes = {id(site): site for e in batch for site in e.nodes}
        for site in sorted(nodes.values(), key=lambda site: order[id(site)]):
            node = proto.graph.node.add()
            node.CopyFrom(site.proto)
            node.name = f"n{len(proto.graph.node)}"
            for i, name in enumerate(node.input):
                node.input[i] = name and name_of(self.index.resolve(name, site.scope))
            for i, name in enumerate(node.output):
                node.output[i] = name and name_of(ValueKey(site.scope, name))
        for key in dict.fromkeys(key for e in batch for key in e.sources):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(self.index.initializers[key])
            tensor.name = name_of(key)
        results = [key for e in batch for key in e.results]
        for key in results:
            proto.graph.output.add(name=name_of(key))
        found = Session(self.model.variant(proto), optimize=False, threads=1).run({})
        return {key: found[name_of(key)] for key in results}

    def commit(self) -> None:
        """The results become initializers, and the nodes that made them go."""
        if not self._new:
            return
        graphs = {scope.path: scope.graph for scope in self.model.scopes()}
        for key, tensor in self._new:
            graphs[key.scope].initializer.append(tensor)  # type: ignore[union-attr]
        remove_nodes(self.model, self._gone)
        self.model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


def _is_pure(node: NodeProto, opset: int) -> bool:
    """An ONNX operator without bodies that gives the same for the same, and no Q/DQ."""
    if not is_onnx(node) or is_onnx(node, *_QUANTIZERS) or any(True for _ in bodies(node)):
        return False
    try:
        schema = onnx.defs.get_schema(op(node), opset, "")
    except onnx.defs.SchemaError:
        return False
    random = onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
    return schema.node_determinism != random  # type: ignore[attr-defined]
