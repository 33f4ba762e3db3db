"""1x1 convolutions with a constant kernel: which of them a MatMul could compute as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_graphsurgeon as gs

from onnx24.analysis.dataflow import Shapes
from onnx24.analysis.products import (
    Refusal,
    ViewFacts,
    conflicts,
    dtypes_of,
    producer_of,
)
from onnx24.ir import ops
from onnx24.ir.model import Model
from onnx24.ir.surgeon import label, walk

Sizes = tuple[int | str | None, ...]


@dataclass(eq=False, kw_only=True)
class Pointwise:
    """A convolution that a MatMul can compute. weight: the kernel [N, K, 1, …] behind `path`, its
    Q/DQ; x: [batch, K, …]; bias: [N], perhaps computed."""

    graph: Any
    node: gs.Node
    x: gs.Tensor
    x_shape: Sizes
    weight: gs.Constant
    path: tuple[gs.Node, ...]
    k: int
    n: int
    bias: gs.Tensor | None
    name: str = field(init=False)
    label: str = field(init=False)
    scope: str = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.label, self.scope = self.weight.name, label(self.node), self.graph.scope

    @property
    def result(self) -> gs.Tensor:
        return self.node.outputs[0]

    @property
    def form(self) -> tuple:
        """Whether the kernel is to become [K, N] or [N, K]: of one kernel's readers all alike."""
        return (self.is_tokens,)

    @property
    def is_tokens(self) -> bool:
        """All positions of an image are one."""
        return all(size == 1 for size in self.x_shape[2:])

    def refused(self, code: str, reason: str) -> Refusal:
        return Refusal(self.graph, self.node, code, reason, self.name)


class PointwiseConvs(ViewFacts):
    """The 1x1 convolutions of a surgeon view."""

    def __init__(self, model: Model, shapes: Shapes, root: Any) -> None:
        super().__init__(model, shapes, root)
        self.dtypes = dtypes_of("MatMul", model.opset)

    def find(self) -> tuple[list[Pointwise], list[Refusal]]:
        """What a MatMul can compute as well, and which 1x1 kernels not (O24-313).

        Convolutions with larger or computed kernels are in neither list."""
        found = [self._judge(graph, node) for graph, node in self._kernels_of_one()]
        sites = [site for site in found if isinstance(site, Pointwise)]
        shared = conflicts(sites, self.outputs)
        refused = [item for item in found if isinstance(item, Refusal)]
        refused += [
            site.refused("O24-313", shared[id(site.node)])
            for site in sites
            if id(site.node) in shared
        ]
        return [site for site in sites if id(site.node) not in shared], refused

    def _kernels_of_one(self) -> Iterator[tuple[Any, gs.Node]]:
        for graph in walk(self.root):
            for node in graph.nodes:
                if not ops.is_onnx(node, "Conv"):
                    continue
                weight, _ = _kernel(node)
                if weight is not None and len(weight.shape) > 2 and set(weight.shape[2:]) == {1}:
                    yield graph, node

    def _judge(self, graph: Any, node: gs.Node) -> Pointwise | Refusal:
        weight, path = _kernel(node)
        assert weight is not None
        shape = self.shapes.shape(node.inputs[0].name, graph.scope)
        reason = self._reason(graph, node, weight, path, shape)
        if reason:
            return Refusal(graph, node, "O24-313", reason, weight.name)
        assert shape is not None
        n, k = weight.shape[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None
        return Pointwise(
            graph=graph, node=node, x=node.inputs[0], x_shape=shape, weight=weight, path=path,
            k=k, n=n, bias=bias,
        )  # fmt: skip

    def _reason(
        self,
        graph: Any,
        node: gs.Node,
        weight: gs.Constant,
        path: tuple[gs.Node, ...],
        shape: Sizes | None,
    ) -> str:
        if ops.attribute(node, "group", 1) != 1:
            return f"it has {node.attrs['group']} groups"
        if any(stride != 1 for stride in ops.attribute(node, "strides", ())):
            return f"its strides are {node.attrs['strides']}"
        if any(ops.attribute(node, "pads", ())):
            return f"it pads by {node.attrs['pads']}"
        if not self.has_values(weight):
            return "the kernel is a sparse initializer"
        if shape is None or len(shape) != len(weight.shape):
            return "the rank of the activation is unknown"
        if 0 in shape or 0 in weight.shape:
            return "it has no elements"
        for step in path:
            if ops.attribute(step, "block_size", 0) or not all(
                isinstance(t, gs.Constant) for t in step.inputs[1:]
            ):
                return "the scales of the kernel are computed, or one a block"
        dtype = self.shapes.dtype(node.inputs[0].name, graph.scope)
        return "" if dtype in self.dtypes else "MatMul does not take its dtype"


def _kernel(node: gs.Node) -> tuple[gs.Constant | None, tuple[gs.Node, ...]]:
    """The constant kernel and its Q/DQ, nearest to the constant first."""
    tensor, path = node.inputs[1], []
    for op in ("DequantizeLinear", "QuantizeLinear"):
        producer = producer_of(tensor)
        if producer is not None and ops.is_onnx(producer, op):
            path.append(producer)
            tensor = producer.inputs[0]
    return (tensor, tuple(reversed(path))) if isinstance(tensor, gs.Constant) else (None, ())
