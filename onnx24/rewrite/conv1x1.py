"""Products of a view written as 1x1 convolutions over their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx24.analysis.products import Product, Products, count_of, producer_of
from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import fresh, insert_before


def rewrite_as_conv1x1(products: Products, sites: Sequence[Product]) -> None:
    """Replace each of the `sites`, which are of the view that `products` looked at, by
    `Reshape[-1,K,1,1] → Conv(W[N,K,1,1], bias) → Reshape` back.

    All readers of a weight have to be among the sites. The Conv has the product's name and the
    kernel that of the matrix; Q/DQ of the weight stays before it, with the axis where N is now. A
    per-tensor Q/DQ pair of the activation that only sites read gets the Reshape before it. The
    product itself, and the Add of a bias, go.
    """
    _Rewriter(products, sites).run()


class _Rewriter:
    """What the sites of one view share: tokens, kernels, shapes."""

    def __init__(self, products: Products, sites: Sequence[Product]) -> None:
        self.products = products
        self.sites = sites
        self.weights: dict[int, Derived] = {}
        self.tokens: dict[tuple[int, int, int], gs.Tensor] = {}
        self.shapes: dict[tuple[int, ...], gs.Constant] = {}

    def run(self) -> None:
        hoisted = self._hoistable()
        for site in self.sites:
            self._rewrite(site, hoisted.get((id(site.graph), id(site.node.inputs[0]), site.k)))

    def _hoistable(self) -> dict[tuple[int, int, int], gs.Node]:
        """(graph, activation, K) → the QuantizeLinear before which its Reshape can stand: that of a
        per-tensor Q/DQ pair which nothing but products to be rewritten reads."""
        readers: dict[tuple[int, int, int], set[int]] = {}
        tensors: dict[int, gs.Tensor] = {}
        for site in self.sites:
            x = site.node.inputs[0]
            tensors[id(x)] = x
            readers.setdefault((id(site.graph), id(x), site.k), set()).add(id(site.node))
        found = {}
        for key, nodes in readers.items():
            graph_id, x_id, _ = key
            dq = producer_of(tensors[x_id])
            if dq is None or dq.op != "DequantizeLinear":
                continue
            q = producer_of(dq.inputs[0])
            if q is None or q.op != "QuantizeLinear":
                continue
            pair = (q, dq)
            alone = {id(node) for node in tensors[x_id].outputs} == nodes
            alone = alone and [id(node) for node in q.outputs[0].outputs] == [id(dq)]
            outputs = any(id(node.outputs[0]) in self.products.outputs for node in pair)
            per_tensor = all(count_of(node.inputs[1]) == 1 for node in pair)
            graph = next(site.graph for site in self.sites if id(site.graph) == graph_id)
            local = all(any(node is other for other in graph.nodes) for node in pair)
            if alone and per_tensor and local and not outputs:
                found[key] = q
        return found

    def _rewrite(self, site: Product, quantize: gs.Node | None) -> None:
        graph, node = site.graph, site.node
        result = site.result
        x = node.inputs[0]
        key = (id(graph), id(x), site.k)
        if key not in self.tokens:
            self.tokens[key] = self._to_tokens(site, quantize)
        inputs = [self.tokens[key], self._weight(site)]
        if site.bias is not None:
            inputs.append(self._bias(site))
        new: list[gs.Node] = []
        back = self._back_shape(site, new)

        rows = gs.Variable(fresh(graph, f"{site.label}.rows"), result.dtype)
        conv = gs.Node("Conv", node.name, {"kernel_shape": [1, 1]}, inputs, [rows])
        position = next(i for i, other in enumerate(graph.nodes) if other is (site.add or node))
        for old in (node, site.add):
            if old is not None:
                old.inputs.clear()
                old.outputs.clear()
        reshape = gs.Node(
            "Reshape", fresh(graph, f"{site.label}.from_tokens"), {}, [rows, back], [result]
        )
        graph.nodes[position : position + 1] = [*new, conv, reshape]
        if site.add is not None:
            graph.nodes.pop(next(i for i, other in enumerate(graph.nodes) if other is node))

    def _to_tokens(self, site: Product, quantize: gs.Node | None) -> gs.Tensor:
        """The activation as [tokens, K, 1, 1]."""
        graph, node = site.graph, site.node
        shape = self._shape((-1, site.k, 1, 1), f"{site.label}.tokens_shape")
        name = fresh(graph, f"{site.label}.to_tokens")
        before = node if quantize is None else quantize
        source = before.inputs[0]
        tokens = gs.Variable(fresh(graph, f"{site.label}.tokens"), source.dtype)
        insert_before(graph, before, [gs.Node("Reshape", name, {}, [source, shape], [tokens])])
        if quantize is None:
            return tokens
        quantize.inputs[0] = tokens
        x = node.inputs[0]
        for tensor in (quantize.outputs[0], x):
            tensor.shape = None  # was that of the activation
        return x

    def _shape(self, sizes: tuple[int, ...], base: str) -> gs.Constant:
        """A shape constant; equal ones are one."""
        if sizes not in self.shapes:
            name = fresh(self.products.root, base)
            self.shapes[sizes] = gs.Constant(name, np.array(sizes, np.int64))
        return self.shapes[sizes]

    def _back_shape(self, site: Product, new: list[gs.Node]) -> gs.Tensor:
        """The shape of the product: a constant where at most one leading size is unknown."""
        leading = site.x_shape[:-1]
        unknown = [i for i, size in enumerate(leading) if not isinstance(size, int)]
        if len(unknown) <= 1:
            sizes = tuple(size if isinstance(size, int) else -1 for size in leading)
            return self._shape((*sizes, site.n), f"{site.label}.shape")
        graph, x = site.graph, self._original_activation(site)
        label = site.label
        axes = self._shape(tuple(range(len(leading))), f"{label}.leading_axes")
        columns = self._shape((site.n,), f"{label}.columns")
        target: gs.Tensor = x
        for step, op, attrs, others in (
            ("whole_shape", "Shape", {}, []),
            ("leading_shape", "Gather", {"axis": 0}, [axes]),
            ("shape", "Concat", {"axis": 0}, [columns]),
        ):
            out = gs.Variable(fresh(graph, f"{label}.{step}"), np.int64)
            name = fresh(graph, f"{label}.{step}.{op.lower()}")
            new.append(gs.Node(op, name, attrs, [target, *others], [out]))
            target = out
        return target

    def _original_activation(self, site: Product) -> gs.Tensor:
        """The activation before it became tokens."""
        tokens = self.tokens[(id(site.graph), id(site.node.inputs[0]), site.k)]
        x = site.node.inputs[0]
        if tokens is not x:
            return x
        quantize = x.inputs[0].inputs[0].inputs[0]
        return quantize.inputs[0].inputs[0].inputs[0]

    def _weight(self, site: Product) -> gs.Tensor:
        """The weight as [N, K, 1, 1] under its old name, behind its Q/DQ."""
        old = site.weight
        if id(old) not in self.weights:
            key = self.products.keys[id(old)]
            shape = (site.n, site.k, 1, 1)
            compute = _Kernel(self.products.model, key, shape, site.transposed, site.scale)
            new = Derived(old.name, shape, old.dtype, compute)
            self.weights[id(old)] = new
            first = site.chain[0] if site.chain else None
            if first is not None:
                first.inputs[0] = new
            for step in site.chain:
                step.outputs[0].shape = list(shape)
                if count_of(step.inputs[1]) > 1:
                    of_columns = step.attrs.get("axis", 1) % 2 == (0 if site.transposed else 1)
                    step.attrs["axis"] = 0 if of_columns else 1
        return site.chain[-1].outputs[0] if site.chain else self.weights[id(old)]

    def _bias(self, site: Product) -> gs.Tensor:
        """The bias as [N]: itself where it is that already."""
        old = site.bias
        assert old is not None
        if tuple(old.shape) == (site.n,) and site.bias_scale == 1.0:
            return old
        alone = len(old.outputs) == 1 and id(old) not in self.products.outputs
        name = old.name if alone else fresh(site.graph, f"{site.label}.bias")
        key = self.products.keys[id(old)]
        compute = _Bias(self.products.model, key, site.n, site.bias_scale)
        return Derived(name, (site.n,), old.dtype, compute)


@dataclass(frozen=True)
class _Kernel:
    """A matrix as the kernel of a 1x1 convolution."""

    model: Model
    key: ValueKey
    shape: tuple[int, ...]
    transposed: bool
    scale: float

    def __call__(self) -> np.ndarray:
        w = self.model.weights[self.key]
        w = w if self.transposed else w.T
        return np.ascontiguousarray(_scaled(w, self.scale)).reshape(self.shape)


@dataclass(frozen=True)
class _Bias:
    """A per-channel constant of any rank as [N]."""

    model: Model
    key: ValueKey
    n: int
    scale: float

    def __call__(self) -> np.ndarray:
        values = self.model.weights[self.key].reshape(-1)
        return np.ascontiguousarray(np.broadcast_to(_scaled(values, self.scale), (self.n,)))


def _scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Rounded once, also for 16-bit types."""
    if factor == 1.0:
        return values
    return (values.astype(np.float32) * np.float32(factor)).astype(values.dtype)
