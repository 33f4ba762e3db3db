"""Products written as onnx24::SpMM24, and the local function that says what the operator means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper

from onnx24.analysis.packable import Packable
from onnx24.analysis.packed24 import DOMAIN, OP, words_of
from onnx24.analysis.weight_uses import WeightUses
from onnx24.effects import Effects
from onnx24.ir import ops
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, insert_before, walk
from onnx24.ir.weights import numpy_dtype
from onnx24.sparsity.pack import Packed24, pack24

__all__ = [
    "MIN_OPSET",
    "declare_spmm24",
    "drop_function",
    "function_conflict",
    "rewrite_as_spmm24",
    "spmm24",
]

MIN_OPSET = 13
_MIN_IR_VERSION = 8
"""Local functions came with IR version 8. Source: onnx/docs/IR.md."""


def spmm24(opset: int) -> FunctionProto:
    """The function onnx24::SpMM24 in operators of ai.onnx from opset 13 on; analysis.packed24 says
    what it computes. A runtime without the plugin inlines it and, since the weight is constant,
    computes the dense matrix once.

    Integers are taken apart by Div and Mod in int64, which every opset has for every runtime:
    BitwiseAnd came with opset 18, and BitShift knows unsigned integers only. The two values of four
    are put to their places by comparison, so that each keeps its bits.
    """
    nodes: list[NodeProto] = []

    def constant(name: str, values: Any, dtype: Any = np.int64) -> str:
        tensor = onnx.numpy_helper.from_array(np.asarray(values, dtype))
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    zero, one, two = (constant(n, [i]) for i, n in enumerate(("zero", "one", "two")))
    # Places: [N, words] → [N, words, 16] fields of two bits → [N, K/4, 2].
    add("Cast", ["metadata"], "signed", to=TensorProto.INT64)
    add("Mod", ["signed", constant("word", 1 << 32)], "words")
    add("Reshape", ["words", constant("columns", [0, -1, 1])], "word_columns")
    fields = constant("fields", [4**i for i in range(16)])
    add("Div", ["word_columns", fields], "shifted")
    add("Mod", ["shifted", constant("four", 4)], "all_places")
    add("Reshape", ["all_places", constant("flat", [0, -1])], "flat_places")
    add("Shape", ["values"], "values_shape")
    add("Gather", ["values_shape", one], "used")  # [1]: K/2
    add("Slice", ["flat_places", zero, "used", one], "used_places")
    pairs = constant("pairs", [0, -1, 2])
    add("Reshape", ["used_places", pairs], "places")
    # In float32, since few runtimes have Where for int8 and 16-bit floats; no bit is lost.
    add("Cast", ["values"], "wide", to=TensorProto.FLOAT)
    add("Reshape", ["wide", pairs], "value_pairs")
    place = constant("place", [0, 1, 2, 3])
    halves = (("first", zero, one), ("second", one, two))
    for name, start, end in halves:
        add("Slice", ["places", start, end, two], f"{name}_place")
        add("Slice", ["value_pairs", start, end, two], f"{name}_value")
        add("Equal", [f"{name}_place", place], f"is_{name}")
    nothing = constant("nothing", 0, np.float32)
    add("Where", ["is_second", "second_value", nothing], "with_second")
    add("Where", ["is_first", "first_value", "with_second"], "fours")
    add("Reshape", ["fours", "flat"], "rows")
    add("Transpose", ["rows"], "weight", perm=[1, 0])
    add("Cast", ["x"], "x_wide", to=TensorProto.FLOAT)
    add("MatMul", ["x_wide", "weight"], "product")
    add("Mul", ["product", "scale"], "scaled")
    cast = helper.make_node("Cast", ["scaled"], ["y"])
    cast.attribute.append(AttributeProto(name="to", ref_attr_name="out", type=AttributeProto.INT))
    nodes.append(cast)
    return helper.make_function(
        DOMAIN,
        OP,
        ["x", "values", "metadata", "scale"],
        ["y"],
        nodes,
        [helper.make_opsetid("", opset)],
        ["K", "N", "dtype", "out"],
    )


def function_conflict(model: Model) -> bool:
    """Whether the model has another function of the operator's name."""
    mine = spmm24(model.opset).SerializeToString(deterministic=True)
    return any(
        (f.domain, f.name) == (DOMAIN, OP) and f.SerializeToString(deterministic=True) != mine
        for f in model.proto.functions
    )


def drop_function(model: Model) -> bool:
    """Take the function out of the model; False where it has none, or another of that name."""
    left = [f for f in model.proto.functions if (f.domain, f.name) != (DOMAIN, OP)]
    if len(left) == len(model.proto.functions) or function_conflict(model):
        return False
    kept = [FunctionProto.FromString(f.SerializeToString()) for f in left]
    del model.proto.functions[:]
    model.proto.functions.extend(kept)
    model.touch(Effects.STRUCTURE)
    return True


def declare_spmm24(model: Model, *, with_function: bool = True) -> None:
    """Give the model the function and the opset import, where it has them not."""
    if DOMAIN not in model.opsets:
        model.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    if with_function and not any(
        f.name == OP and f.domain == DOMAIN for f in model.proto.functions
    ):
        model.proto.functions.append(spmm24(model.opset))
    model.proto.ir_version = max(model.proto.ir_version, _MIN_IR_VERSION)
    model.touch(Effects.STRUCTURE)


def rewrite_as_spmm24(
    model: Model, found: WeightUses, sites: Sequence[Packable]
) -> list[tuple[Packable, ValueKey, int]]:
    """Replace each of the products by an SpMM24 and what a Gemm does beside: a Transpose of its
    activation, and an Add of its last operand. The model has to declare the operator already.

    Returns: for each site, in order, the key of its packed values, and the packed bytes.
    """
    with model.surgeon() as root:
        graphs = {graph.scope: graph for graph in walk(root)}
        writer = _Writer(model, found, root)
        made = [writer.replace(graphs[site.use.scope], site) for site in sites]
    index = found.index.of(model.proto)
    placed = []
    for site, packed in zip(sites, made, strict=True):
        key = index.resolve(packed.values.name, site.use.scope)
        assert key is not None
        placed.append((site, key, packed.nbytes))
    return placed


class _Packed:
    """The three constants of one weight. Values are computed when they are written."""

    def __init__(self, model: Model, found: WeightUses, root: Any, site: Packable) -> None:
        self._model, self._found, self._site = model, found, site
        self._last: Packed24 | None = None
        name = site.key.name
        n, k = site.N, site.K
        words = -(-k // 32)
        self.values = Derived(
            fresh(root, f"{name}.values24"), (n, k // 2), site.dtype, self._pack_values
        )
        self.metadata = Derived(
            fresh(root, f"{name}.metadata24"), (n, words), np.int32, self._pack_metadata
        )
        self.scale = gs.Constant(fresh(root, f"{name}.scale24"), site.scale())
        self.nbytes = n * (k // 2 * site.dtype.itemsize + 4 * words)

    def _pack(self) -> Packed24:
        return pack24(np.ascontiguousarray(self._site.weight(self._model, self._found)))

    def _pack_values(self) -> np.ndarray:
        return self._pack().values

    def _pack_metadata(self) -> np.ndarray:
        return words_of(self._pack().metadata)


class _Writer:
    def __init__(self, model: Model, found: WeightUses, root: Any) -> None:
        self._model, self._found, self._root = model, found, root
        self._packed: dict[tuple[Any, ...], _Packed] = {}

    def replace(self, graph: Any, site: Packable) -> _Packed:
        output = site.site.proto.output[0]
        node = next(n for n in graph.nodes if n.outputs and n.outputs[0].name == output)
        packed = self._weight(site)
        x, result = node.inputs[0], node.outputs[0]
        dequantizer = x.inputs[0] if site.x != site.use.data else None
        if dequantizer is not None:
            x = dequantizer.inputs[0]
        addend = self._addend(site, node)
        new: list[gs.Node] = []
        if ops.attribute(site.site, "transA", 0):
            flipped = gs.Variable(fresh(graph, f"{x.name}.transposed"), x.dtype)
            new.append(gs.Node("Transpose", "", {"perm": [1, 0]}, [x], [flipped]))
            x = flipped
        detach(node)
        product = result
        if addend is not None:
            product = gs.Variable(fresh(graph, f"{result.name}.product"), result.dtype)
        new.append(self._operator(node.name, site, x, packed, product))
        if addend is not None:
            new += self._sum(graph, site, product, addend, result)
        insert_before(graph, node, new)
        gone = [node, *([dequantizer] if self._is_idle(dequantizer) else [])]
        for each in gone:
            detach(each)
        graph.nodes[:] = [n for n in graph.nodes if all(n is not each for each in gone)]
        self._drop_chain(site)
        return packed

    @staticmethod
    def _operator(
        name: str, site: Packable, x: gs.Tensor, packed: _Packed, result: gs.Tensor
    ) -> gs.Node:
        attrs = {
            "K": site.K,
            "N": site.N,
            "dtype": int(helper.np_dtype_to_tensor_dtype(site.dtype)),
            "out": site.out,
        }
        inputs = [x, packed.values, packed.metadata, packed.scale]
        return gs.Node(OP, name, attrs, inputs, [result], domain=DOMAIN)

    @staticmethod
    def _sum(
        graph: Any, site: Packable, product: gs.Tensor, addend: gs.Tensor, result: gs.Tensor
    ) -> list[gs.Node]:
        """What a Gemm adds, times its beta."""
        beta = float(ops.attribute(site.site, "beta", 1.0))
        if beta == 1.0:
            return [gs.Node("Add", "", {}, [product, addend], [result])]
        factor = gs.Constant(
            fresh(graph, f"{result.name}.beta"), np.array(beta, numpy_dtype(site.out))
        )
        scaled = gs.Variable(fresh(graph, f"{result.name}.addend"), result.dtype)
        return [
            gs.Node("Mul", "", {}, [addend, factor], [scaled]),
            gs.Node("Add", "", {}, [product, scaled], [result]),
        ]

    def _is_idle(self, node: gs.Node | None) -> bool:
        """Whether nothing reads the node, and no graph shows its value."""
        if node is None or node.outputs[0].outputs:
            return False
        return not any(t is node.outputs[0] for g in walk(self._root) for t in g.outputs)

    def _weight(self, site: Packable) -> _Packed:
        use = site.use
        same = (site.key, use.k_axis_consumer, site.x_scale, ops.attribute(site.site, "alpha", 1.0))
        key = (*same, *(step.site.scope + step.site.proto.output[0] for step in use.chain))
        if key not in self._packed:
            self._packed[key] = _Packed(self._model, self._found, self._root, site)
        return self._packed[key]

    @staticmethod
    def _addend(site: Packable, node: gs.Node) -> gs.Tensor | None:
        """What a Gemm adds, where it adds anything."""
        if not ops.is_onnx(node, "Gemm") or len(node.inputs) < 3 or node.inputs[2].is_empty():
            return None
        return node.inputs[2] if ops.attribute(site.site, "beta", 1.0) != 0.0 else None

    def _drop_chain(self, site: Packable) -> None:
        """The nodes between the stored weight and the product, where nothing else reads them, and
        the Constant node that holds it."""
        shown = {id(t) for graph in walk(self._root) for t in graph.outputs}
        chain = [ValueKey(s.site.scope, s.site.proto.output[0]) for s in site.use.chain]
        if site.key in self._found.constants:
            chain.insert(0, site.key)
        graphs = {graph.scope: graph for graph in walk(self._root)}
        for scope, name in reversed(chain):
            graph = graphs[scope]
            for node in [n for n in graph.nodes if n.outputs and n.outputs[0].name == name]:
                if any(t.outputs or id(t) in shown for t in node.outputs):
                    continue
                detach(node)
                graph.nodes[:] = [other for other in graph.nodes if other is not node]
