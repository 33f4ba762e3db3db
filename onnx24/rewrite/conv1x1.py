"""Products of a view written as 1x1 convolutions."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.products import Product, Products, count_of
from onnx24.ir import ops
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import detach, fresh, walk
from onnx24.rewrite.forms import Form, Lead, Plan, Twin
from onnx24.rewrite.nodes import Dim, FormWriter, LayerNames, ShapeConstants, scaled, spread


class Layout(str, enum.Enum):
    """How the convolution sees an activation. M: the size of the axis that is neither batch nor
    K."""

    TOKENS = "tokens"
    """[tokens, K, 1, 1]: everything but K is the batch"""
    NCHW = "nchw"
    """[batch, K, M, 1]"""
    CONV1D = "conv1d"
    """[batch, K, M]"""


def rewrite_as_conv1x1(
    products: Products, sites: Sequence[Product], layout: Layout = Layout.TOKENS
) -> int:
    """Replace each of the `sites`, which are of the view that `products` looked at, by a reshape,
    a Conv with the kernel [N, K, 1, 1] ([N, K, 1] for conv1d) and a reshape back.

    All readers of a weight have to be among the sites. The Conv has the product's name and the
    kernel that of the matrix; Q/DQ of the weight stays before it, with the axis where N is now.
    Elementwise nodes between two sites, per-tensor Q/DQ among them, work on the convolution's
    form, and the reshapes between go. An activation with K before its last axis takes the layout
    nchw where tokens are asked for, which needs no Transpose. The product itself, the Add of a
    bias and Transposes of the weight go.

    Returns: how many elementwise nodes were kept between convolutions.
    """
    wrapped = [_Site.of(site, layout) for site in sites]
    rewriter = _Rewriter(products, layout)
    kept = 0
    for graph in list(walk(products.root)):
        inside = [site for site in wrapped if site.product.graph is graph]
        if inside:
            kept += rewriter.run(graph, inside)
    return kept


@dataclass(frozen=True)
class _Site:
    """A product and the forms of its input and result."""

    product: Product
    enter: Form
    leave: Form | None

    @classmethod
    def of(cls, product: Product, layout: Layout) -> _Site:
        own = layout
        if len(product.x_shape) == 1 or (layout is Layout.TOKENS and product.x_axis == -1):
            own = Layout.TOKENS
        elif layout is Layout.TOKENS:
            own = Layout.NCHW
        rank = len(product.x_shape)
        enter = Form(own.value, product.x_axis, product.k, rank)
        plain = (
            product.out_axis is not None
            and product.rest is None
            and product.post_scale == 1.0
            and not product.leading_ones
        )
        leave = Form(own.value, product.out_axis, product.n, rank) if plain else None  # type: ignore[arg-type]
        return cls(product, enter, leave)

    @property
    def node(self) -> gs.Node:
        return self.product.node

    @property
    def x(self) -> gs.Tensor:
        return self.product.x

    @property
    def x_shape(self) -> tuple[int | str | None, ...]:
        return self.product.x_shape

    @property
    def result(self) -> gs.Tensor:
        return self.product.result


class _Rewriter:
    """What the sites of one view share: kernels, shape constants."""

    def __init__(self, products: Products, layout: Layout) -> None:
        self.products = products
        self.weights: dict[int, gs.Tensor] = {}
        self.shapes = ShapeConstants(products.root)
        self.names = LayerNames(products.root)
        self.kernel_ones = 1 if layout is Layout.CONV1D else 2

    def run(self, graph: Any, sites: Sequence[_Site]) -> int:
        plan = Plan(
            graph,
            sites,
            self.products.outputs,
            self.products.model.opset,
            lambda tensor: self.products.has_values(tensor),
        )
        edit = _GraphEdit(self, graph, plan)
        dropped = {id(s.product.add) for s in sites if s.product.add is not None}
        dropped |= {id(step) for s in sites for step in s.product.transposes}
        # Readers are asked for before any edge is cut.
        needed = {
            id(t): plan.is_needed_outside(t)
            for node in graph.nodes
            for t in node.outputs
            if id(t) in plan.twins
        }
        by_node = {id(s.node): s for s in sites}
        for node in list(graph.nodes):
            if id(node) in dropped:
                continue
            site = by_node.get(id(node))
            if site is not None:
                edit.convolve(site, needed.get(id(site.result), True))
            elif id(node) in plan.kept:
                edit.keep(node, needed[id(node.outputs[0])])
            else:
                edit.nodes.append(node)
        for node in graph.nodes:
            if id(node) in dropped:
                detach(node)
        graph.nodes[:] = edit.nodes
        return len(plan.kept)

    def weight(self, site: Product) -> gs.Tensor:
        """The weight as [N, K, 1, 1] under its old name, behind its Q/DQ."""
        old = site.weight
        chain = site.chain
        if id(old) not in self.weights:
            key = self.products.keys[id(old)]
            shape = (site.n, site.k, *(1,) * self.kernel_ones)
            is_nk = site.n_axis == 0 or len(old.shape) == 1
            compute = _Kernel(self.products.model, key, shape, is_nk, site.scale)
            tensor: gs.Tensor = Derived(old.name, shape, old.dtype, compute)
            for step, n_axis in zip(site.path, site.n_axes, strict=True):
                if ops.is_onnx(step, "Transpose"):
                    continue
                step.inputs[0] = tensor
                step.outputs[0].shape = list(shape)
                if count_of(step.inputs[1]) > 1:
                    rank = len(old.shape)
                    axis = ops.attribute(step, "axis", 1) % rank - (rank - 2)
                    step.attrs["axis"] = 0 if axis == n_axis else 1
                tensor = step.outputs[0]
            self.weights[id(old)] = tensor
        return chain[-1].outputs[0] if chain else self.weights[id(old)]

    def bias(self, site: Product) -> gs.Tensor:
        """The bias as [N]: itself where it is that already."""
        old = site.bias
        assert old is not None
        if tuple(old.shape) == (site.n,) and site.bias_scale == 1.0:
            return old
        name = f"{site.label}.bias"
        return spread(self.products, site.graph, old, (site.n,), name, site.bias_scale)


class _GraphEdit(FormWriter):
    """The nodes of one graph while they are written anew."""

    def __init__(self, rewriter: _Rewriter, graph: Any, plan: Plan) -> None:
        super().__init__(graph, rewriter.shapes, plan)
        self.rewriter = rewriter

    # --- what replaces the nodes -----------------------------------------------------------
    def convolve(self, site: _Site, needed: bool) -> None:
        product, label = site.product, site.product.label
        node, result, rest = product.node, product.result, product.rest
        lead = self.plan.leads[id(node)]
        x = self.enter(product.x, site.enter, lead, label)
        inputs = [x, self.rewriter.weight(product)]
        if product.bias is not None:
            inputs.append(self.rewriter.bias(product))
        out = self.formed_value(label, site.enter, result)
        detach(node)
        if product.add is not None:
            detach(product.add)
        attrs = {"kernel_shape": [1] * self.rewriter.kernel_ones}
        name = self.rewriter.names.keep(node, label)
        self.nodes.append(gs.Node("Conv", name, attrs, inputs, [out]))
        if site.leave is not None:
            self.formed[id(result), site.leave] = out
            if needed:
                self.leave(out, site.leave, lead, result, label)
            return
        form = replace(site.enter, axis=product.out_axis or 0, channels=product.n)
        ones = (1,) * product.leading_ones
        if rest is None and product.post_scale == 1.0:
            self.leave(out, form, lead, result, label, ones=ones)
            return
        value: gs.Tensor = gs.Variable(fresh(self.graph, f"{label}.product"), result.dtype)
        self.leave(out, form, lead, value, label, ones=ones)
        self._after(product, value, rest, result)

    def _after(
        self, product: Product, value: gs.Tensor, rest: gs.Tensor | None, result: gs.Tensor
    ) -> None:
        """What a convolution does not do: alpha behind a quantized weight, an addend that is no
        bias, with its beta."""
        label = product.label
        if product.post_scale != 1.0:
            out = result if rest is None else None
            value = self.op("Mul", label, "scaled", [value, self._number(product, "alpha")], out)
        if rest is None:
            return
        if product.bias_scale != 1.0:
            rest = self.op("Mul", label, "addend", [rest, self._number(product, "beta")])
        self.op("Add", label, "sum", [value, rest], result)

    def _number(self, product: Product, which: str) -> gs.Constant:
        value = product.post_scale if which == "alpha" else product.bias_scale
        dtype = self.rewriter.products.numpy_dtype_of(product.x, self.graph.scope)
        name = fresh(self.graph, f"{product.label}.{which}")
        return gs.Constant(name, np.array(value, np.float32).astype(dtype))

    def beside(self, tensor: gs.Tensor, twin: Twin) -> gs.Tensor:
        """A constant operand, broadcast along the channels where they are now."""
        if not isinstance(tensor, gs.Constant) or len(tensor.shape) == 0:
            return tensor
        channels = twin.form.channels
        if count_of(tensor) == 1:
            if len(tensor.shape) == 1:
                return tensor
            shape: tuple[int, ...] = (1,)
        else:
            shape = (channels, *(1,) * self.rewriter.kernel_ones)
        return spread(self.rewriter.products, self.graph, tensor, shape, f"{tensor.name}.channels")

    def noun(self, form: Form) -> str:
        return _NOUN[form.layout]

    # --- in and out ------------------------------------------------------------------------
    def enter(self, x: gs.Tensor, form: Form, lead: Lead, label: str) -> gs.Tensor:
        """`x` in the convolution's form."""
        found = self.formed.get((id(x), form))
        if found is not None:
            return found
        k, layout = form.channels, form.layout
        rank = len(lead.sizes) + 1
        value = x
        if (form.axis == -1) != (layout == Layout.TOKENS.value):
            value = self.transpose(value, rank, label, "channels_first")
        parts: list[int | Dim]
        if layout == Layout.TOKENS.value:
            parts = [-1, k, *[1] * self.rewriter.kernel_ones]
        else:
            batch = lead.sizes[:-1]
            known = all(isinstance(size, int) for size in batch)
            parts = [
                int(np.prod(batch, dtype=np.int64)) if known else -1,  # type: ignore[arg-type]
                k,
                Dim(lead, rank - 2),
                *([1] if layout == Layout.NCHW.value else []),
            ]
        if not (layout == Layout.CONV1D.value and rank == 3):
            target = self.target(parts, label, "to_shape")
            value = self.op("Reshape", label, f"to_{_NOUN[layout]}", [value, target])
        self.formed[id(x), form] = value
        return value

    def leave(
        self,
        value: gs.Tensor,
        form: Form,
        lead: Lead,
        result: gs.Tensor,
        label: str,
        ones: tuple[int, ...] = (),
    ) -> None:
        """`result`, in the graph's own form, from the convolution's. form.axis 0: it has no axis
        of channels."""
        sizes: list[int | Dim] = [Dim(lead, i) for i in range(len(lead.sizes))]
        tokens = form.layout == Layout.TOKENS.value
        if form.axis:
            sizes.insert(len(sizes) if tokens else len(sizes) - 1, form.channels)
        swapped = form.axis != 0 and (form.axis == -1) != tokens
        rank = len(ones) + len(sizes)
        step = f"from_{_NOUN[form.layout]}"
        if form.layout == Layout.CONV1D.value and rank == 3 and form.axis and not ones:
            reshaped = value
        else:
            target = self.target([*ones, *sizes], label, "shape")
            out = None if swapped else result
            is_computed = not isinstance(target, gs.Constant)
            # Without it a size that is 0 at run time would be taken from the tokens.
            attrs = {"allowzero": 1} if is_computed and self.plan.opset >= 14 else None
            reshaped = self.op("Reshape", label, step, [value, target], out, attrs=attrs)
        if swapped:
            self.transpose(reshaped, rank, label, "channels_last", result)
        elif reshaped is value:
            self.op("Identity", label, step, [value], result)


_NOUN = {"tokens": "tokens", "nchw": "image", "conv1d": "sequence"}


@dataclass(frozen=True)
class _Kernel:
    """A matrix, [N, K] or [K, N] behind dimensions of size 1, as the kernel of a convolution."""

    model: Model
    key: ValueKey
    shape: tuple[int, ...]
    is_nk: bool
    scale: float

    def __call__(self) -> np.ndarray:
        n, k = self.shape[:2]
        w = self.model.weights[self.key]
        w = w.reshape(n, k) if self.is_nk else w.reshape(k, n).T
        return np.ascontiguousarray(scaled(w, self.scale)).reshape(self.shape)
