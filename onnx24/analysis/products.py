"""Matrix products with a constant operand: which of them a 1x1 convolution could compute as well,
and why the others not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx24.analysis.dataflow import Shapes
from onnx24.ir import ops
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.scopes import function_path, is_in_function
from onnx24.ir.surgeon import label, walk
from onnx24.ir.weights import numpy_dtype

_PRODUCTS = ("MatMul", "Gemm")


def has_products(model: Model) -> bool:
    """Whether the view of the model, which local functions are no part of, has any product."""
    return any(
        ops.op(node) in _PRODUCTS
        for scope in model.scopes()
        if not is_in_function(scope.path)
        for node in scope.graph.node
    )


def products_in_functions(model: Model) -> dict[str, int]:
    """Name of a local function that is called, without its domain → products in it. Not those of
    onnx24's own functions, which say what packed weights are."""
    calls = {ops.called(node) for scope in model.scopes() for node in scope.graph.node}
    names = {
        function_path(function): key.name
        for key, function in ops.functions(model.proto).items()
        if key in calls and key.domain != "onnx24"
    }
    found = {
        name: sum(
            ops.op(node) in (*_PRODUCTS, "Conv", "ConvTranspose")
            for scope in model.scopes()
            if scope.path == path or scope.path.startswith(f"{path}/")
            for node in scope.graph.node
        )
        for path, name in names.items()
    }
    return {name: count for name, count in found.items() if count}


@dataclass(eq=False)
class Refusal:
    """A product that stays as it is. `graph`: the graph of the view that holds it; `weight`: the
    name of its constant operand, where it has one."""

    graph: Any
    node: gs.Node
    code: str
    reason: str
    weight: str = ""


@dataclass(eq=False, kw_only=True)
class Product:
    """A product that a 1x1 convolution can compute.

    k, n: sizes [elements] of the reduction and of the weight's other axis. x, x_shape: the
    activation; x_axis: where K lies in it, -1 or -2. out_axis: where N lies in the result, -1 or
    -2; None where the weight is a vector, so that N = 1 is no axis at all. weight: the constant
    behind `path`, the QuantizeLinear, DequantizeLinear and Transpose nodes to the product, the
    product's operand last; n_axes: where N lies behind each of them, of the last two axes.
    """

    graph: Any
    node: gs.Node
    x: gs.Tensor
    x_shape: tuple[int | str | None, ...]
    x_axis: int
    out_axis: int | None
    weight: gs.Constant
    path: tuple[gs.Node, ...]
    n_axes: tuple[int, ...]
    k: int
    n: int
    n_axis: int
    """Where N lies in the stored weight: 0 [N, K] or 1 [K, N]."""
    scale: float = 1.0
    """Goes into the weight's values …"""
    post_scale: float = 1.0
    """… or, where they are quantized, into a Mul behind the product."""
    bias: gs.Constant | None = None
    """One value an output channel, or one for all."""
    bias_scale: float = 1.0
    rest: gs.Tensor | None = None
    """What a Gemm adds that is no bias; `bias_scale` applies."""
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
    def chain(self) -> tuple[gs.Node, ...]:
        """The quantizing nodes of the path, nearest to the weight first."""
        return tuple(node for node in self.path if not ops.is_onnx(node, "Transpose"))

    @property
    def transposes(self) -> tuple[gs.Node, ...]:
        return tuple(node for node in self.path if ops.is_onnx(node, "Transpose"))

    @property
    def leading_ones(self) -> int:
        """Dimensions of size 1 that the weight's rank puts before the result's."""
        return max(0, len(self.weight.shape) - max(len(self.x_shape), 2))

    @property
    def form(self) -> tuple[int, float]:
        return self.n_axis, self.scale

    def refused(self, code: str, reason: str) -> Refusal:
        return Refusal(self.graph, self.node, code, reason, self.name)


class _No(Exception):
    """Why a product is not rewritten."""

    def __init__(self, code: str, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class ViewFacts:
    """What is asked of a surgeon view; `shapes` are those of the model before any edit.

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

    def numpy_dtype_of(self, tensor: gs.Tensor, scope: str) -> np.dtype:
        """Of a value whose dtype is known."""
        return numpy_dtype(self.shapes.dtype(tensor.name, scope) or TensorProto.FLOAT)

    def has_values(self, constant: gs.Tensor) -> bool:
        """Whether it is an initializer whose values can be read. Not so for sparse ones."""
        key = self.keys.get(id(constant))
        return key is not None and key in self.model.weights


class Products(ViewFacts):
    """The products of a surgeon view."""

    def __init__(self, model: Model, shapes: Shapes, root: Any) -> None:
        super().__init__(model, shapes, root)
        self.dtypes = dtypes_of("Conv", model.opset)

    def find(self) -> tuple[list[Product], list[Refusal]]:
        """What a 1x1 convolution can compute as well, and what not (O24-311, O24-312).

        All readers of a weight are in the first list or none is."""
        judged = list(self._judge())
        products = [p for p in judged if isinstance(p, Product)]
        shared = conflicts(products, self.outputs)
        refused = [p for p in judged if isinstance(p, Refusal)]
        refused += [
            p.refused("O24-311", shared[id(p.node)]) for p in products if id(p.node) in shared
        ]
        return [p for p in products if id(p.node) not in shared], refused

    def _judge(self) -> Iterator[Product | Refusal]:
        for graph in walk(self.root):
            for node in graph.nodes:
                if ops.op(node) not in _PRODUCTS:
                    continue
                weight = ""
                try:
                    weight = self._operands(graph, node).weight.name
                    yield (
                        self._gemm(graph, node)
                        if ops.is_onnx(node, "Gemm")
                        else self._matmul(graph, node)
                    )
                except _No as no:
                    yield Refusal(graph, node, no.code, no.reason, weight)

    def _operands(self, graph: Any, node: gs.Node) -> _Operands:
        """Which operand is constant: the right one, where both are."""
        left, right = node.inputs[:2]
        for tensor, is_right in ((right, True), (left, False)):
            weight, path = _trace(graph, tensor)
            if weight is None:
                continue
            if not self.has_values(weight):
                raise _No("O24-311", "the weight is a sparse initializer")
            return _Operands(left if is_right else right, weight, path, is_right)
        for tensor in (right, left):
            source = _constant_source(tensor)
            if source is not None:
                raise _No(
                    "O24-311", f"a {source.op} stands before the weight; canonicalize folds it"
                )
        raise _No("O24-312", "both operands are computed at run time")

    def _matmul(self, graph: Any, node: gs.Node) -> Product:
        operands = self._operands(graph, node)
        shape = self._activation(graph, operands.x)
        # A vector on the left is one row, on the right one column: K is its only axis.
        x_axis = -1 if operands.is_right or len(shape) == 1 else -2
        out_axis = -1 if operands.is_right or len(shape) == 1 else -2
        is_vector = len(operands.weight.shape) == 1
        site = self._site(
            graph,
            node,
            operands,
            n_axis=1 if operands.is_right and not is_vector else 0,
            x_axis=x_axis,
            out_axis=None if is_vector else out_axis,
        )
        add = self._bias_add(site)
        if add is not None:
            site.add = add
            site.bias = next(t for t in add.inputs if isinstance(t, gs.Constant))
        return site

    def _gemm(self, graph: Any, node: gs.Node) -> Product:
        operands = self._operands(graph, node)
        self._activation(graph, operands.x)
        flip_a, flip_b = (bool(ops.attribute(node, name, 0)) for name in ("transA", "transB"))
        if operands.is_right:
            n_axis, x_axis, out_axis = 0 if flip_b else 1, -2 if flip_a else -1, -1
        else:
            n_axis, x_axis, out_axis = 1 if flip_a else 0, -1 if flip_b else -2, -2
        if len(operands.weight.shape) != 2:
            raise _No("O24-311", f"the weight is {list(operands.weight.shape)}, not a matrix")
        site = self._site(graph, node, operands, n_axis=n_axis, x_axis=x_axis, out_axis=out_axis)
        alpha = float(ops.attribute(node, "alpha", 1.0))
        if site.chain:
            site.post_scale = alpha
        else:
            site.scale = alpha
        site.bias_scale = float(ops.attribute(node, "beta", 1.0))
        if len(node.inputs) > 2 and not node.inputs[2].is_empty() and site.bias_scale != 0.0:
            addend = node.inputs[2]
            fits = (
                isinstance(addend, gs.Constant)
                and self.has_values(addend)
                and is_per_channel(addend.shape, site.n, 2, out_axis)
            )
            if fits and site.post_scale == 1.0:
                site.bias = addend
            else:
                site.rest = addend
        return site

    def _activation(self, graph: Any, x: gs.Tensor) -> tuple[int | str | None, ...]:
        """The activation's shape, where a convolution can take it."""
        shape = self.shapes.shape(x.name, graph.scope)
        if shape is None:
            raise _No("O24-311", "the rank of the activation is unknown")
        if not shape:
            raise _No("O24-311", "the activation is a scalar")
        if 0 in shape:
            raise _No("O24-311", f"the activation is {list(shape)}: it has no elements")
        dtype = self.shapes.dtype(x.name, graph.scope)
        if dtype not in self.dtypes:
            named = TensorProto.DataType.Name(dtype) if dtype else "unknown"  # type: ignore[arg-type]
            raise _No("O24-311", f"dtype {named} has no Conv in opset {self.model.opset}")
        return shape

    def _site(
        self,
        graph: Any,
        node: gs.Node,
        operands: _Operands,
        *,
        n_axis: int,
        x_axis: int,
        out_axis: int | None,
    ) -> Product:
        weight, path = operands.weight, operands.path
        shape = tuple(weight.shape)
        if 0 in shape:
            raise _No("O24-311", f"the weight is {list(shape)}: it has no elements")
        if not shape or any(size != 1 for size in shape[:-2]):
            raise _No(
                "O24-311",
                f"the weight is {list(shape)}: one matrix a batch would be a grouped convolution, "
                "which gets no sparse kernels",
            )
        n_axes = []
        flips = sum(ops.is_onnx(step, "Transpose") for step in path)
        n_axis ^= flips % 2  # as stored, before the Transposes
        here = n_axis
        for step in path:
            if ops.is_onnx(step, "Transpose"):
                here ^= 1
            elif ops.attribute(step, "block_size", 0) or len(_rank_of(step.inputs[1])) > 1:
                raise _No("O24-311", "the weight has one scale a block")
            elif not all(isinstance(t, gs.Constant) for t in step.inputs[1:]):
                raise _No("O24-311", "the scales of the weight are computed at run time")
            n_axes.append(here)
        k, n = (shape[0], 1) if len(shape) == 1 else (shape[-2:][1 - n_axis], shape[-2:][n_axis])
        return Product(
            graph=graph,
            node=node,
            x=operands.x,
            x_shape=self._activation(graph, operands.x),
            x_axis=x_axis,
            out_axis=out_axis,
            weight=weight,
            path=path,
            n_axes=tuple(n_axes),
            k=k,
            n=n,
            n_axis=n_axis,
        )

    def _bias_add(self, site: Product) -> gs.Node | None:
        """The Add of one constant a channel that alone reads the product."""
        product = site.node.outputs[0]
        if id(product) in self.outputs or len(product.outputs) != 1 or site.out_axis is None:
            return None
        add = product.outputs[0]
        if not ops.is_onnx(add, "Add"):
            return None
        if not any(add is other for other in site.graph.nodes):
            return None  # in a body of another node
        constants = [t for t in add.inputs if isinstance(t, gs.Constant)]
        if len(constants) != 1 or not self.has_values(constants[0]):
            return None
        shape = tuple(constants[0].shape)
        if len(shape) < -site.out_axis or shape[site.out_axis] != site.n:
            return None
        rank = len(site.x_shape) + site.leading_ones
        return add if is_per_channel(shape, site.n, rank, site.out_axis) else None


@dataclass(frozen=True)
class _Operands:
    """The two sides of a product: what is computed, and what is constant behind its path."""

    x: gs.Tensor
    weight: gs.Constant
    path: tuple[gs.Node, ...]
    is_right: bool


def _trace(graph: Any, tensor: gs.Tensor) -> tuple[gs.Constant | None, tuple[gs.Node, ...]]:
    """The constant behind an operand, and the nodes on the way to it: at most one
    DequantizeLinear and one QuantizeLinear, with Transposes of the last two axes anywhere."""
    path: list[gs.Node] = []
    wanted = ["DequantizeLinear", "QuantizeLinear"]
    while (producer := producer_of(tensor)) is not None:
        if ops.op(producer) in wanted:
            del wanted[: wanted.index(producer.op) + 1]
        elif not _swaps_last_axes(producer) or not any(producer is n for n in graph.nodes):
            break
        path.append(producer)
        tensor = producer.inputs[0]
    if not isinstance(tensor, gs.Constant):
        return None, ()
    if any(ops.is_onnx(step, "Transpose") for step in path) and len(_rank_of(tensor)) < 2:
        return None, ()
    return tensor, tuple(reversed(path))


def _swaps_last_axes(node: gs.Node) -> bool:
    if not ops.is_onnx(node, "Transpose"):
        return False
    perm = list(ops.attribute(node, "perm", ()))
    rank = len(perm) or len(_rank_of(node.inputs[0]))
    if not perm:
        return rank == 2
    return rank >= 2 and perm == [*range(rank - 2), rank - 1, rank - 2]


def dtypes_of(op: str, opset: int) -> set[int]:
    """What the operator takes in this opset and TensorRT computes in."""
    schema = onnx.defs.get_schema(op, opset, "")
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
    return first if node is not None and ops.is_onnx(node, "Constant") else None


def _rank_of(tensor: gs.Tensor) -> tuple:
    return tuple(tensor.shape) if tensor.shape is not None else ()


def is_per_channel(shape: Iterable[int], n: int, rank: int, axis: int | None) -> bool:
    """Whether a constant of that shape gives one value for each of the `n` channels at `axis`
    (-1 or -2), or one for all, without adding dimensions to a value of `rank` dimensions."""
    sizes = tuple(shape)
    if len(sizes) > rank:
        return False
    others = [size for i, size in enumerate(sizes) if i - len(sizes) != axis]
    own = [size for i, size in enumerate(sizes) if i - len(sizes) == axis]
    return all(size == 1 for size in others) and all(size in (1, n) for size in own)


class Weighted(Protocol):
    """What is asked of a layer whose weight is to change its form."""

    node: gs.Node
    weight: gs.Constant

    @property
    def path(self) -> tuple[gs.Node, ...]: ...
    @property
    def form(self) -> tuple: ...


L = TypeVar("L", bound=Weighted)


def conflicts(layers: Sequence[L], outputs: set[int]) -> dict[int, str]:
    """id of a layer's node → why its weight cannot change its form: a weight is rewritten for all
    of its readers or for none, since two forms would be two copies."""
    accepted = list(layers)
    found: dict[int, str] = {}
    while True:
        by_weight: dict[int, list[L]] = {}
        for layer in accepted:
            by_weight.setdefault(id(layer.weight), []).append(layer)
        drop: dict[int, str] = {}
        for group in by_weight.values():
            reason = _conflict(group, outputs)
            if reason:
                drop.update({id(layer.node): reason for layer in group})
        if not drop:
            return found
        found |= drop
        accepted = [layer for layer in accepted if id(layer.node) not in drop]


def _conflict(group: Sequence[L], outputs: set[int]) -> str:
    nodes = {id(site.node) for site in group}
    weight, path = group[0].weight, group[0].path
    if any(site.form != group[0].form for site in group):
        return "its readers want the weight in different forms"
    if any([*map(id, site.path)] != [*map(id, path)] for site in group):
        return "its readers reach the weight through different Q/DQ nodes"
    for tensor, reader in zip(
        [weight, *(step.outputs[0] for step in path)], [*path, None], strict=True
    ):
        if id(tensor) in outputs:
            return f"{tensor.name!r} is an output of the graph too"
        allowed = nodes if reader is None else {id(reader)}
        other = next((node for node in tensor.outputs if id(node) not in allowed), None)
        if other is not None:
            return f"{label(other)} ({other.op}) reads the weight too"
        twice = next((node for node in tensor.outputs if _count(node, tensor) > 1), None)
        if twice is not None:
            return f"{label(twice)} ({twice.op}) reads the weight twice"
    return ""


def _count(node: gs.Node, tensor: gs.Tensor) -> int:
    return sum(each is tensor for each in node.inputs)


def producer_of(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes `tensor`; None for constants and graph inputs."""
    if isinstance(tensor, gs.Constant) or not tensor.inputs:
        return None
    return tensor.inputs[0]


def count_of(tensor: gs.Tensor) -> int:
    """How many values a tensor of known shape has [elements]."""
    return int(np.prod(_rank_of(tensor), dtype=np.int64))
