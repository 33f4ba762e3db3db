"""Matrix products with a constant operand: which of them a 1x1 convolution could compute as well,
and why the others not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import label, walk

_DEFAULT_DOMAINS = ("", "ai.onnx", None)
_PRODUCTS = ("MatMul", "Gemm")


def has_products(model: Model) -> bool:
    """Whether the view of the model, which local functions are no part of, has any product."""
    return any(
        node.op_type in _PRODUCTS
        for scope in model.scopes()
        if not scope.path.startswith("function:")
        for node in scope.graph.node
    )


@dataclass(eq=False)
class Refusal:
    """A product that stays as it is. `graph`: the graph of the view that holds it; `weight`: the
    name of its constant operand, where it has one."""

    graph: Any
    node: gs.Node
    code: str
    reason: str
    weight: str = ""


@dataclass(eq=False)
class Product:
    """A product that a 1x1 convolution can compute. k, n: sizes [elements]; `weight`: the constant
    behind any `chain` of QuantizeLinear and DequantizeLinear, outermost reader last."""

    graph: Any
    node: gs.Node
    x_shape: tuple[int | str | None, ...]
    weight: gs.Constant
    chain: tuple[gs.Node, ...]
    k: int
    n: int
    transposed: bool
    """The weight is stored [N, K]."""
    scale: float = 1.0
    bias: gs.Constant | None = None
    bias_scale: float = 1.0
    add: gs.Node | None = None
    """The node that adds the bias."""
    name: str = field(init=False)
    label: str = field(init=False)
    scope: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.label, self.scope = self.weight.name, label(self.node), self.graph.scope

    @property
    def result(self) -> gs.Tensor:
        return (self.add or self.node).outputs[0]

    @property
    def form(self) -> tuple[bool, float]:
        return self.transposed, self.scale

    def refused(self, code: str, reason: str) -> Refusal:
        return Refusal(self.graph, self.node, code, reason, self.name)


class _No(Exception):
    """Why a product is not rewritten."""

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class Products:
    """The products of a surgeon view; `shapes` are those of the model before any edit.

    `outputs`: the ids of the tensors that are outputs of a graph; `keys`: the id of each
    initializer's tensor → where the model keeps the values.
    """

    def __init__(self, model: Model, shapes: Shapes, root: Any) -> None:
        self.model = model
        self.shapes = shapes
        self.root = root
        graphs = list(walk(root))
        self.outputs = {id(tensor) for graph in graphs for tensor in graph.outputs}
        self.keys = {
            id(tensor): ValueKey(graph.scope, name)
            for graph in graphs
            for name, tensor in graph.initializers.items()
        }
        self.dtypes = _conv_dtypes(model.opset)

    def find(self) -> tuple[list[Product], list[Refusal]]:
        """What a 1x1 convolution can compute as well, and what not (O24-311, O24-312).

        All readers of a weight are in the first list or none is."""
        judged = list(self._judge())
        sites, shared = _without_shared_weights(
            [p for p in judged if isinstance(p, Product)], self.outputs
        )
        return sites, [p for p in judged if isinstance(p, Refusal)] + shared

    def _judge(self) -> Iterator[Product | Refusal]:
        for graph in walk(self.root):
            for node in graph.nodes:
                if node.op not in _PRODUCTS or node.domain not in _DEFAULT_DOMAINS:
                    continue
                weight = ""
                try:
                    constant, _ = self._weight(node)
                    weight = constant.name
                    yield (
                        self._gemm(graph, node) if node.op == "Gemm" else self._matmul(graph, node)
                    )
                except _No as no:
                    yield Refusal(graph, node, no.code, no.reason, weight)

    def _has_values(self, constant: gs.Constant) -> bool:
        """Not so for sparse initializers, which Weights does not hold."""
        key = self.keys.get(id(constant))
        return key is not None and key in self.model.weights

    def _weight(self, node: gs.Node) -> tuple[gs.Constant, tuple[gs.Node, ...]]:
        """The constant behind the right operand, and the Q/DQ nodes on the way to it."""
        tensor, chain = node.inputs[1], []
        for op in ("DequantizeLinear", "QuantizeLinear"):
            producer = producer_of(tensor)
            if producer is not None and producer.op == op:
                chain.append(producer)
                tensor = producer.inputs[0]
        if isinstance(tensor, gs.Constant):
            if not self._has_values(tensor):
                raise _No("O24-311", "the weight is a sparse initializer")
            return tensor, tuple(reversed(chain))
        if isinstance(node.inputs[0], gs.Constant):
            raise _No("O24-311", "the constant is the left operand")
        source = _constant_source(tensor)
        if source is not None:
            raise _No("O24-311", f"a {source.op} stands before the weight; canonicalize folds it")
        raise _No("O24-312", "both operands are computed at run time")

    def _matmul(self, graph: Any, node: gs.Node) -> Product:
        site = self._site(graph, node, transposed=False)
        add = self._bias_add(site)
        if add is not None:
            site.add = add
            site.bias = next(t for t in add.inputs if isinstance(t, gs.Constant))
        return site

    def _gemm(self, graph: Any, node: gs.Node) -> Product:
        if node.attrs.get("transA", 0):
            raise _No("O24-311", "the activation is transposed (transA)")
        site = self._site(graph, node, transposed=bool(node.attrs.get("transB", 0)))
        site.scale = float(node.attrs.get("alpha", 1.0))
        site.bias_scale = float(node.attrs.get("beta", 1.0))
        if site.chain and site.scale != 1.0:
            raise _No("O24-311", f"alpha is {site.scale} and the weight is quantized")
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            bias = node.inputs[2]
            if not isinstance(bias, gs.Constant):
                raise _No("O24-311", "the bias is computed at run time")
            if not self._has_values(bias):
                raise _No("O24-311", "the bias is a sparse initializer")
            if not _is_per_channel(bias.shape, site.n, 2):
                raise _No("O24-311", f"the bias is {list(bias.shape)}, not [{site.n}]")
            site.bias = bias
        return site

    def _site(self, graph: Any, node: gs.Node, *, transposed: bool) -> Product:
        weight, chain = self._weight(node)
        shape = tuple(weight.shape)
        if len(shape) != 2:
            raise _No("O24-311", f"the weight is {list(shape)}, not a matrix")
        if 0 in shape:
            raise _No("O24-311", f"the weight is {list(shape)}: it has no elements")
        for step in chain:
            if step.attrs.get("block_size", 0) or len(_rank_of(step.inputs[1])) > 1:
                raise _No("O24-311", "the weight has one scale a block")
            if not all(isinstance(t, gs.Constant) for t in step.inputs[1:]):
                raise _No("O24-311", "the scales of the weight are computed at run time")
        x = self.shapes.shape(node.inputs[0].name, graph.scope)
        if x is None:
            raise _No("O24-311", "the rank of the activation is unknown")
        if len(x) < 2:
            raise _No("O24-311", f"the activation has rank {len(x)}")
        if 0 in x:
            raise _No("O24-311", f"the activation is {list(x)}: it has no elements")
        dtype = self.shapes.dtype(node.inputs[0].name, graph.scope)
        if dtype not in self.dtypes:
            named = TensorProto.DataType.Name(dtype) if dtype else "unknown"  # type: ignore[arg-type]
            raise _No("O24-311", f"dtype {named} has no Conv in opset {self.model.opset}")
        n, k = shape if transposed else shape[::-1]
        return Product(graph, node, x, weight, chain, k, n, transposed)

    def _bias_add(self, site: Product) -> gs.Node | None:
        """The Add of a constant [N] that alone reads the product."""
        product = site.node.outputs[0]
        if id(product) in self.outputs or len(product.outputs) != 1:
            return None
        add = product.outputs[0]
        if add.op != "Add" or add.domain not in _DEFAULT_DOMAINS:
            return None
        if not any(add is other for other in site.graph.nodes):
            return None  # in a body of another node
        constants = [t for t in add.inputs if isinstance(t, gs.Constant)]
        if len(constants) != 1 or site.n not in constants[0].shape[-1:]:
            return None
        if not self._has_values(constants[0]):
            return None
        fits = _is_per_channel(constants[0].shape, site.n, len(site.x_shape))
        return add if fits else None


def _conv_dtypes(opset: int) -> set[int]:
    """What Conv takes in this opset and TensorRT computes in."""
    schema = onnx.defs.get_schema("Conv", opset, "")
    allowed = set(schema.type_constraints[0].allowed_type_strs)
    names = {"FLOAT": "float", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
    return {getattr(TensorProto, k) for k, v in names.items() if f"tensor({v})" in allowed}


def _constant_source(tensor: gs.Tensor) -> gs.Node | None:
    """The node next to the consumer, where nothing but constants is behind it."""
    first = node = producer_of(tensor)
    while node is not None and node.inputs:
        if all(isinstance(t, gs.Constant) for t in node.inputs):
            return first
        if any(not isinstance(t, gs.Constant) for t in node.inputs[1:]):
            return None
        node = producer_of(node.inputs[0])
    return first if node is not None and node.op == "Constant" else None


def _rank_of(tensor: gs.Tensor) -> tuple:
    return tuple(tensor.shape) if tensor.shape is not None else ()


def _is_per_channel(shape: Iterable[int], n: int, rank: int) -> bool:
    """Whether a constant of that shape gives one value for each of `n` columns (or one for all),
    whatever the rows, without adding dimensions to a product of `rank` dimensions."""
    sizes = tuple(shape)
    if len(sizes) > rank:
        return False
    return all(size == 1 for size in sizes[:-1]) and (not sizes or sizes[-1] in (1, n))


def _without_shared_weights(
    sites: list[Product], outputs: set[int]
) -> tuple[list[Product], list[Refusal]]:
    """A weight is rewritten for all of its readers or for none: two forms would be two copies."""
    accepted = list(sites)
    refused: dict[int, Refusal] = {}
    while True:
        by_weight: dict[int, list[Product]] = {}
        for site in accepted:
            by_weight.setdefault(id(site.weight), []).append(site)
        drop: dict[int, str] = {}
        for group in by_weight.values():
            reason = _conflict(group, outputs)
            if reason:
                drop.update({id(site): reason for site in group})
        if not drop:
            break
        for site in accepted:
            if id(site) in drop:
                refused[id(site)] = site.refused("O24-311", drop[id(site)])
        accepted = [site for site in accepted if id(site) not in drop]
    return accepted, [refused[id(site)] for site in sites if id(site) in refused]


def _conflict(group: list[Product], outputs: set[int]) -> str:
    nodes = {id(site.node) for site in group}
    weight, chain = group[0].weight, group[0].chain
    if any(site.form != group[0].form for site in group):
        return "its readers want the weight in different forms"
    if any([*map(id, site.chain)] != [*map(id, chain)] for site in group):
        return "its readers reach the weight through different Q/DQ nodes"
    for tensor, reader in zip(
        [weight, *(step.outputs[0] for step in chain)], [*chain, None], strict=True
    ):
        if id(tensor) in outputs:
            return f"{tensor.name!r} is an output of the graph too"
        allowed = nodes if reader is None else {id(reader)}
        other = next((node for node in tensor.outputs if id(node) not in allowed), None)
        if other is not None:
            return f"{label(other)} ({other.op}) reads the weight too"
    return ""


def producer_of(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes `tensor`; None for constants and graph inputs."""
    if isinstance(tensor, gs.Constant) or not tensor.inputs:
        return None
    return tensor.inputs[0]


def count_of(tensor: gs.Tensor) -> int:
    """How many values a tensor of known shape has [elements]."""
    return int(np.prod(_rank_of(tensor), dtype=np.int64))
