"""Passes that say that they keep the function and don't, in the ways in which real passes fail, and
models that hide it well: equal dimensions everywhere, residual sums, normalization behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from onnx24.effects import Effects
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context, Pass

D = 16

CNN = f"""
g (float[N, {D}, H, W] x) => (float[N, {D}] y) {{
  c1 = Conv<pads = [1, 1, 1, 1]>(x, k1, b1)
  n1 = BatchNormalization<epsilon = 0.00001>(c1, scale, shift, mean, var)
  r1 = Relu(n1)
  s1 = Slice(r1, starts, ends, axes)
  c2 = Conv(s1, k2, b2)
  r2 = Relu(c2)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  m = MatMul(f, w1)
  a = Add(m, b1)
  y = Sub(a, f)
}}
"""
TRANSFORMER = f"""
g (float[N, T, {D}] x) => (float[N, T, {D}] y) {{
  n = LayerNormalization<epsilon = 0.00001>(x, scale, shift)
  q = MatMul(n, w1)
  qb = Add(q, b1)
  k = MatMul(n, w2)
  kt = Transpose<perm = [0, 2, 1]>(k)
  s = MatMul(qb, kt)
  e = Mul(s, quarter)
  t = Softmax<axis = -1>(e)
  v = MatMul(n, w3)
  o = MatMul(t, v)
  r = Add(x, o)
  u = MatMul(r, w4)
  ub = Add(u, b2)
  g = Relu(ub)
  h = MatMul(g, w5)
  y = Sub(r, h)
}}
"""
RNN = f"""
g (float[T, N, {D}] x) => (float[T, N, {D}] y) {{
  h, last = GRU<hidden_size = {D}>(x, wz, rz, bz)
  s = Squeeze(h, one)
  m = MatMul(s, w1)
  a = Add(m, b1)
  t = Tanh(a)
  l = MatMul(t, w2)
  n = LayerNormalization<epsilon = 0.00001>(l, scale, shift)
  y = Sub(n, s)
}}
"""
TOKENS = f"""
g (int64[N, T] ids) => (float[N, {D}] y, int64[N] best) {{
  e = Gather(table, ids)
  s = Slice(e, starts, ends, one)
  n = LayerNormalization<epsilon = 0.00001>(s, scale, shift)
  m = MatMul(n, w1)
  a = Add(m, b1)
  r = Relu(a)
  p = ReduceMean<axes = [1], keepdims = 0>(r)
  q = MatMul(p, w2)
  y = Sub(q, p)
  best = ArgMax<axis = 1, keepdims = 0>(y)
}}
"""


def models() -> dict[str, Model]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    vectors = {name: normal(D) for name in ("b1", "b2", "shift", "mean")}
    positive = {n: rng.uniform(0.5, 2, D).astype(np.float32) for n in ("scale", "var")}
    square = {f"w{i}": normal(D, D) for i in range(1, 6)}
    window = {
        name: np.array([value], np.int64)
        for name, value in (("starts", 0), ("ends", -1), ("axes", 2), ("one", 1))
    }
    other = {
        "k1": normal(D, D, 3, 3) / 3, "k2": normal(D, D, 1, 1) * 4, "table": normal(50, D) * 4,
        "wz": normal(1, 3 * D, D), "rz": normal(1, 3 * D, D), "bz": normal(1, 6 * D),
        "quarter": np.array(0.25, np.float32),
    }  # fmt: skip
    weights = {**vectors, **positive, **square, **window, **other}
    texts = {"cnn": CNN, "transformer": TRANSFORMER, "rnn": RNN, "tokens": TOKENS}
    return {name: _model(text, weights) for name, text in texts.items()}


def _model(text: str, weights: dict[str, np.ndarray]) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used & set(weights)):
        proto.graph.initializer.append(numpy_helper.from_array(weights[name], name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"node{i}"
    return Model.from_proto(proto)


# --- what goes wrong: each changes the first place it finds, and says which node, or None --------


def scales_wrong_axis(model: Model) -> str | None:
    """The output channels of one weight and, to make up for it, those of another, whose inputs it
    should have been."""
    names = [n.input[1] for n in _nodes(model, "MatMul") if n.input[1] in _weights(model)]
    if len(names) < 2:
        return None
    factors = np.exp2(np.arange(D) % 3).astype(np.float32)
    _set(model, names[0], _get(model, names[0]) * factors)
    _set(model, names[1], _get(model, names[1]) / factors)
    return next(n.name for n in _nodes(model, "MatMul") if n.input[1] == names[0])


def drops_bias(model: Model) -> str | None:
    for node in model.proto.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            del node.input[2]
            return node.name
        if node.op_type == "GRU":
            node.input[3] = ""
            return node.name
        if node.op_type == "Add" and node.input[1] in _weights(model):
            _pass_on(node)
            return node.name
    return None


def swaps_inputs(model: Model) -> str | None:
    for node in _nodes(model, "Sub"):
        node.input[0], node.input[1] = node.input[1], node.input[0]
        return node.name
    return None


def transposes_square_weight(model: Model) -> str | None:
    for node in _nodes(model, "MatMul"):
        if node.input[1] in _weights(model):
            _set(model, node.input[1], _get(model, node.input[1]).T)
            return node.name
    return None


def drops_activation(model: Model) -> str | None:
    for node in model.proto.graph.node:
        if node.op_type in ("Relu", "Tanh"):
            _pass_on(node)
            return node.name
    return None


def slices_off_by_one(model: Model) -> str | None:
    for node in _nodes(model, "Slice"):
        start, end = _get(model, node.input[1]), _get(model, node.input[2])
        _set(model, node.input[1], start + 1)
        _set(model, node.input[2], np.full_like(end, np.iinfo(np.int64).max))
        return node.name
    return None


def epsilon_tenfold(model: Model) -> str | None:
    for node in model.proto.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 10
                return node.name
    return None


MUTATIONS: dict[str, Callable[[Model], str | None]] = {
    f.__name__: f
    for f in (
        scales_wrong_axis, drops_bias, swaps_inputs, transposes_square_weight, drops_activation,
        slices_off_by_one, epsilon_tenfold,
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mutant(Pass):
    """Says that it keeps the function."""

    name: ClassVar = "mutant"
    effects: ClassVar = Effects.WEIGHTS | Effects.STRUCTURE
    codes: ClassVar = ("O24-100",)

    how: Annotated[str, "a key of MUTATIONS"]

    def run(self, model: Model, ctx: Context) -> None:
        if node := MUTATIONS[self.how](model):
            model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
            ctx.record("mutated", "O24-100", node=node)


@dataclass(frozen=True, kw_only=True)
class Reorder(Pass):
    """Keeps the function: each product's sum runs backwards, which rounds otherwise."""

    name: ClassVar = "reorder"
    effects: ClassVar = Effects.WEIGHTS | Effects.STRUCTURE

    def run(self, model: Model, ctx: Context) -> None:
        graph = model.proto.graph
        order = np.arange(D)[::-1].copy()
        graph.initializer.append(numpy_helper.from_array(order.astype(np.int64), "backwards"))
        for node in list(graph.node):
            if node.op_type == "MatMul" and node.input[1] in _weights(model):
                _set(model, node.input[1], _get(model, node.input[1])[order])
                at = list(graph.node).index(node)
                turned = f"{node.output[0]}.turned"
                graph.node.insert(
                    at,
                    onnx.helper.make_node(
                        "Gather", [node.input[0], "backwards"], [turned], turned, axis=-1
                    ),
                )
                graph.node[at + 1].input[0] = turned
        model.touch(Effects.STRUCTURE | Effects.WEIGHTS)


def _nodes(model: Model, op: str) -> list[NodeProto]:
    return [node for node in model.proto.graph.node if node.op_type == op]


def _weights(model: Model) -> set[str]:
    return {tensor.name for tensor in model.proto.graph.initializer}


def _get(model: Model, name: str) -> np.ndarray:
    return model.weights.read(next(t for t in model.proto.graph.initializer if t.name == name))


def _set(model: Model, name: str, values: np.ndarray) -> None:
    tensor = next(t for t in model.proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def _pass_on(node: NodeProto) -> None:
    node.op_type = "Identity"
    del node.input[1:]
    del node.attribute[:]
