"""1x1 convolutions of a view written as products: the inverse of rewrite.conv1x1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.pointwise import Pointwise, PointwiseConvs, Sizes
from onnx24.analysis.products import count_of, producer_of
from onnx24.ir import ops
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, redirect, walk
from onnx24.rewrite.forms import Form, Lead, Plan, Twin
from onnx24.rewrite.nodes import Dim, FormWriter, LayerNames, ShapeConstants, spread

ROWS, COLUMNS = "rows", "columns"
"""A value with its channels last, as the left operand, or before its last axis, as the right."""


def between_reshapes(convs: PointwiseConvs, sites: Sequence[Pointwise]) -> list[Pointwise]:
    """Of the sites, those whose input a Reshape made of a value with its channels last, or before
    its last axis, as matmul-to-conv1x1 leaves them."""
    found: set[int] = set()
    for graph in list(walk(convs.root)):
        inside = [_Site(site) for site in sites if site.graph is graph]
        if inside:
            plan = _plan(convs, graph, inside)
            seeded = {id(twin.lead) for twin in plan.seeds.values()}
            found |= {id(s.node) for s in inside if id(plan.leads[id(s.node)]) in seeded}
    return [site for site in sites if id(site.node) in found]


def rewrite_as_matmul(convs: PointwiseConvs, sites: Sequence[Pointwise]) -> None:
    """Replace each of the `sites` by a MatMul and the Add of its bias.

    All readers of a kernel have to be among the sites. Where the images are of one position the
    weight becomes [K, N] on the right, else [N, K] on the left, which needs no Transpose; Q/DQ of
    the weight stays before it, with the axis where N is now. Reshapes that matmul-to-conv1x1 put
    around go, with elementwise nodes between the convolutions working on what it found.
    """
    rewriter = _Rewriter(convs)
    for graph in list(walk(convs.root)):
        inside = [_Site(site) for site in sites if site.graph is graph]
        if inside:
            rewriter.run(graph, inside)


@dataclass(frozen=True)
class _Site:
    """A convolution and the forms of its input and result."""

    conv: Pointwise

    @property
    def node(self) -> gs.Node:
        return self.conv.node

    @property
    def x(self) -> gs.Tensor:
        return self.conv.x

    @property
    def x_shape(self) -> Sizes:
        return self.conv.x_shape

    @property
    def result(self) -> gs.Tensor:
        return self.conv.result

    @property
    def enter(self) -> Form:
        return _form(self.x_shape, self.conv.k)

    @property
    def leave(self) -> Form:
        return _form(self.x_shape, self.conv.n)


def _form(shape: Sizes, channels: int) -> Form:
    layout = ROWS if all(size == 1 for size in shape[2:]) else COLUMNS
    return Form(layout, 1 - len(shape), channels, len(shape))


def _plan(convs: PointwiseConvs, graph: Any, sites: Sequence[_Site]) -> Plan:
    seeds = {}
    for node in graph.nodes:
        twin = _seed(convs, graph, node)
        if twin is not None:
            seeds[id(node.outputs[0])] = twin

    def is_exit(reader: gs.Node, twin: Twin) -> bool:
        if not ops.is_onnx(reader, "Reshape"):
            return False
        shape = convs.shapes.shape(reader.outputs[0].name, graph.scope)
        return shape is not None and _same(shape, _inner_shape(twin))

    return Plan(graph, sites, convs.outputs, convs.model.opset, convs.has_values, seeds, is_exit)


def _seed(convs: PointwiseConvs, graph: Any, node: gs.Node) -> Twin | None:
    """The value that a Reshape made an image of, where it is a matrix operand itself."""
    if not ops.is_onnx(node, "Reshape"):
        return None
    source = node.inputs[0]
    was = convs.shapes.shape(source.name, graph.scope)
    now = convs.shapes.shape(node.outputs[0].name, graph.scope)
    if was is None or now is None or not was or len(now) < 3 or not isinstance(now[1], int):
        return None
    form = _form(now, now[1])
    if form.layout == ROWS:
        return Twin(form, Lead.of(source, -1, was, seeded=True)) if was[-1] == now[1] else None
    same = len(was) > 1 and was[-2:] == now[1:3] and None not in was[-2:]
    flat = same and all(size == 1 for size in now[3:])
    return Twin(form, Lead.of(source, -2, was, seeded=True)) if flat else None


def _inner_shape(twin: Twin) -> Sizes:
    """Of the value in the twin's form, as far as it is known."""
    lead, channels = twin.lead, twin.form.channels
    if not lead.seeded:
        sizes = lead.sizes
        return (sizes[0], channels) if twin.form.layout == ROWS else (sizes[0], channels, None)
    at = len(lead.sizes) + 1 + lead.axis
    return (*lead.sizes[:at], channels, *lead.sizes[at:])


def _same(a: Sizes, b: Sizes) -> bool:
    """Whether two shapes of as many elements are the same: all sizes but one surely are."""
    if len(a) != len(b):
        return False
    open_pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is None or x != y]
    return not open_pairs or (
        len(open_pairs) == 1 and not all(isinstance(size, int) for size in open_pairs[0])
    )


class _Rewriter:
    def __init__(self, convs: PointwiseConvs) -> None:
        self.convs = convs
        self.shapes = ShapeConstants(convs.root)
        self.names = LayerNames(convs.root)
        self.weights: dict[int, gs.Tensor] = {}

    def run(self, graph: Any, sites: Sequence[_Site]) -> None:
        plan = _plan(self.convs, graph, sites)
        edit = _GraphEdit(self, graph, plan)
        twinned = [t for node in graph.nodes for t in node.outputs if id(t) in plan.twins]
        needed = {id(t): plan.is_needed_outside(t) for t in twinned}
        exits = {
            id(t): [n for n in _unique(t.outputs) if plan.is_exit(n, plan.twins[id(t)])]
            for t in twinned
        }
        by_node = {id(site.node): site for site in sites}
        for node in list(graph.nodes):
            if id(node) in edit.gone:
                continue
            site = by_node.get(id(node))
            result = node.outputs[0] if node.outputs else None
            if site is not None:
                edit.multiply(site, needed[id(result)], exits[id(result)])
            elif id(node) in plan.kept:
                edit.keep_until(node, needed[id(result)], exits[id(result)])
            else:
                edit.nodes.append(node)
        graph.nodes[:] = edit.without_idle_reshapes()

    def weight(self, conv: Pointwise) -> gs.Tensor:
        """The kernel as a matrix under its old name, behind its Q/DQ."""
        old = conv.weight
        if id(old) not in self.weights:
            key = self.convs.keys[id(old)]
            shape = (conv.k, conv.n) if conv.is_tokens else (conv.n, conv.k)
            compute = _Matrix(self.convs.model, key, shape, conv.is_tokens)
            tensor: gs.Tensor = Derived(old.name, shape, old.dtype, compute)
            for step in conv.path:
                step.inputs[0] = tensor
                step.outputs[0].shape = list(shape)
                if count_of(step.inputs[1]) > 1:
                    of_n = ops.attribute(step, "axis", 1) % len(old.shape) == 0
                    step.attrs["axis"] = int(of_n == conv.is_tokens)
                tensor = step.outputs[0]
            self.weights[id(old)] = tensor
        return self.weights[id(old)]


class _GraphEdit(FormWriter):
    def __init__(self, rewriter: _Rewriter, graph: Any, plan: Plan) -> None:
        super().__init__(graph, rewriter.shapes, plan)
        self.rewriter = rewriter
        self.gone: set[int] = set()
        """Reshapes whose result is computed directly now"""
        self.given: dict[int, gs.Tensor] = {}
        """id of a result → the value of the graph that it is in its form"""
        self.replaced: list[gs.Node] = []
        for node in graph.nodes:
            twin = plan.seeds.get(id(node.outputs[0])) if node.outputs else None
            if twin is not None:
                self.formed[id(node.outputs[0]), twin.form] = node.inputs[0]
                self.replaced.append(node)

    def noun(self, form: Form) -> str:
        return form.layout

    def formed_value(self, base: str, form: Form, result: gs.Tensor) -> gs.Tensor:
        return self.given.get(id(result)) or super().formed_value(base, form, result)

    def multiply(self, site: _Site, needed: bool, exits: Sequence[gs.Node]) -> None:
        conv, label = site.conv, site.conv.label
        lead, result = self.plan.leads[id(site.node)], site.result
        x = self.enter(conv.x, site.enter, lead, label)
        w = self.rewriter.weight(conv)
        bias = self._bias(conv)
        self._give(result, Twin(site.leave, lead), exits)
        out = self.formed_value(label, site.leave, result)
        detach(site.node)
        operands = [x, w] if conv.is_tokens else [w, x]
        product = out
        if bias is not None:
            product = gs.Variable(fresh(self.graph, f"{label}.product"), result.dtype)
        name = self.rewriter.names.keep(conv.node, label)
        self.nodes.append(gs.Node("MatMul", name, {}, operands, [product]))
        if bias is not None:
            self.op("Add", label, "bias", [product, bias], out)
        self._finish(out, site.leave, lead, result, needed, exits, label)

    def keep_until(self, node: gs.Node, needed: bool, exits: Sequence[gs.Node]) -> None:
        result = node.outputs[0]
        twin = self.plan.twins[id(result)]
        self._give(result, twin, exits)
        label = node.name or result.name
        self.keep(node, False)
        out = self.formed[id(result), twin.form]
        self._finish(out, twin.form, twin.lead, result, needed, exits, label)

    def _give(self, result: gs.Tensor, twin: Twin, exits: Sequence[gs.Node]) -> None:
        """The first reshape back lends its output, so that the value keeps its name; a value of
        three dimensions has the form of columns already."""
        if exits:
            self.given[id(result)] = exits[0].outputs[0]
            self._remove(exits[0])
        elif twin.form.layout == COLUMNS and twin.form.rank == 3 and not twin.lead.seeded:
            self.given[id(result)] = result

    def _remove(self, reshape: gs.Node) -> None:
        """A reshape that nothing needs, and what computed its shape."""
        self.gone.add(id(reshape))
        behind = [producer_of(t) for t in reshape.inputs[1:]]
        detach(reshape)
        while behind:
            node = behind.pop()
            if node is None or id(node) not in self.plan.here:
                continue
            if any(t.outputs or id(t) in self.rewriter.convs.outputs for t in node.outputs):
                continue
            behind += [producer_of(t) for t in node.inputs]
            self.gone.add(id(node))
            detach(node)

    def _finish(
        self,
        out: gs.Tensor,
        form: Form,
        lead: Lead,
        result: gs.Tensor,
        needed: bool,
        exits: Sequence[gs.Node],
        label: str,
    ) -> None:
        self.formed[id(result), form] = out
        for other in exits[1:]:
            value = other.outputs[0]
            self._remove(other)
            if id(value) in self.rewriter.convs.outputs:
                self.op("Identity", label, "again", [out], value)
            else:
                redirect(value, out)
        if needed:
            self.leave(out, form, lead, result, label)

    def _bias(self, conv: Pointwise) -> gs.Tensor | None:
        if conv.bias is None or conv.is_tokens:
            return conv.bias
        name = f"{conv.label}.column"
        if isinstance(conv.bias, gs.Constant) and self.rewriter.convs.has_values(conv.bias):
            return spread(self.rewriter.convs, self.graph, conv.bias, (conv.n, 1), name)
        return self.op(
            "Reshape", conv.label, "column", [conv.bias, self.target([-1, 1], conv.label, "column")]
        )

    def enter(self, x: gs.Tensor, form: Form, lead: Lead, label: str) -> gs.Tensor:
        found = self.formed.get((id(x), form))
        if found is not None:
            return found
        value = x
        if form.layout == ROWS:
            parts = [-1, form.channels]
            value = self.op("Reshape", label, "to_rows", [x, self.target(parts, label, "rows")])
        elif form.rank > 3:
            parts = [0, form.channels, -1]  # 0: as it is
            shape = self.target(parts, label, "columns")
            value = self.op("Reshape", label, "to_columns", [x, shape])
        self.formed[id(x), form] = value
        return value

    def leave(
        self, value: gs.Tensor, form: Form, lead: Lead, result: gs.Tensor, label: str
    ) -> None:
        ones = [1] * (form.rank - 2)
        parts: list[int | Dim]
        if form.layout == ROWS:
            parts = [-1, form.channels, *ones]
        elif lead.seeded:
            m = Dim(lead, len(lead.sizes) - 1)
            parts = [-1, form.channels, m, *ones[1:]]
        elif value is result:
            return
        else:
            parts = [0, form.channels, *(Dim(lead, i) for i in range(1, len(lead.sizes)))]
        self.op("Reshape", label, "image", [value, self.target(parts, label, "image")], result)

    def beside(self, tensor: gs.Tensor, twin: Twin) -> gs.Tensor:
        if not isinstance(tensor, gs.Constant) or len(tensor.shape) == 0:
            return tensor
        channels = twin.form.channels
        if count_of(tensor) == 1:
            shape: tuple[int, ...] = (1,)
        else:
            shape = (channels,) if twin.form.layout == ROWS else (channels, 1)
        if tuple(tensor.shape) == shape:
            return tensor
        return spread(self.rewriter.convs, self.graph, tensor, shape, f"{tensor.name}.channels")

    def without_idle_reshapes(self) -> list[gs.Node]:
        """The nodes, less the reshapes to images that nothing reads any more."""
        for node in self.replaced:
            idle = node.outputs and not node.outputs[0].outputs
            if idle and id(node.outputs[0]) not in self.rewriter.convs.outputs:
                self._remove(node)
        return [node for node in self.nodes if id(node) not in self.gone]


def _unique(nodes: Sequence[gs.Node]) -> list[gs.Node]:
    return list({id(node): node for node in nodes}.values())


@dataclass(frozen=True)
class _Matrix:
    """The kernel [N, K, 1, …] of a convolution as [K, N], or as [N, K]."""

    model: Model
    key: ValueKey
    shape: tuple[int, ...]
    transposed: bool

    def __call__(self) -> np.ndarray:
        w = self.model.weights[self.key]
        w = w.reshape(w.shape[:2])
        return np.ascontiguousarray(w.T if self.transposed else w)
