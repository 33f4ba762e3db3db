"""Random graphs of many operator kinds, to hold passes to what they promise.

A mistaken axis hides where dimensions are equal: nothing breaks, the numbers are others. So each
graph can be had with *all* its dimensions equal, and of the same kinds with dimensions that differ.
A graph is grown node by node from its inputs; what a maker returns has the shape that it says, and
every value that nothing reads is an output.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["KINDS", "RandomGraph", "random_graph"]

EQUAL = (8, 16)
DIFFERENT = (8, 12, 16, 20, 24)


@dataclass(frozen=True)
class RandomGraph:
    """`kinds`: the makers that took part, in order."""

    proto: ModelProto
    feeds: dict[str, np.ndarray]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


def random_graph(seed: int, *, equal: bool, steps: int = 9) -> RandomGraph:
    """equal: all dimensions of all values are one number, but for those that a reduction or a
    product of dimensions makes. The same arguments give the same bytes."""
    return _Grower(seed, equal).grow(steps)


@dataclass
class _Grower:
    seed: int
    equal: bool
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(f"{self.seed} {self.equal}")
        self.rng = np.random.default_rng([self.seed, self.equal])
        self.size = self.draw.choice(EQUAL)
        self.opset = self.draw.choice((17, 21))
        self.weights: dict[tuple[int, ...], list[str]] = {}

    # --- what makers use ---------------------------------------------------------------------
    def fresh(self) -> int:
        """A size for a new dimension."""
        return self.size if self.equal else self.draw.choice(DIFFERENT)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors) + len(self.nodes)}"
        tensor = numpy_helper.from_array(array, name)
        if self.draw.random() < 0.2:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.tensors.append(tensor)
        return name

    def weight(self, *shape: int, k: int) -> str:
        """k: elements that a result is summed from. Half of them have channels of very different
        size, some are shared, some stand behind a chain."""
        tied = self.weights.setdefault(shape, [])
        if tied and self.draw.random() < 0.15:
            return self.draw.choice(tied)
        array = self.rng.standard_normal(shape) / math.sqrt(k)
        if self.draw.random() < 0.5:
            axis = self.draw.randrange(len(shape))
            factors = np.exp2(self.rng.uniform(-3, 3, shape[axis]))
            array *= factors.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        array = array.astype(np.float32)
        chance = self.draw.random()
        if chance < 0.15 and len(shape) == 2:
            name = self.node("Transpose", [self.constant(array.T.copy())], shape, perm=[1, 0]).name
        elif chance < 0.25:
            flat = self.constant(array.reshape(-1))
            name = self.node("Reshape", [flat, self.integers(shape)], shape).name
        elif chance < 0.3:
            name = self.node("Identity", [self.constant(array)], shape).name
        else:
            name = self.constant(array)
        tied.append(name)
        return name

    def integers(self, numbers: Sequence[int] | np.ndarray) -> str:
        return self.constant(np.array(numbers, np.int64))

    def vector(self, *shape: int, low: float = -1.5, high: float = 1.5) -> str:
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32))

    def broadcastable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts into another, of lower or of the same rank."""
        kept = shape[self.draw.randint(0, len(shape)) :] if self.draw.random() < 0.5 else shape
        if self.draw.random() < 0.15:
            return (1,) * len(kept)
        if self.draw.random() < 0.5 and kept:
            alone = self.draw.randrange(len(kept))
            return tuple(n if i == alone else 1 for i, n in enumerate(kept))
        return tuple(1 if self.draw.random() < 0.25 else n for n in kept)

    def node(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attributes) -> Value:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"n_{output}", **attributes))
        return Value(output, tuple(shape))

    def nodes_of(self, op: str, inputs: Sequence[str], shapes: Sequence[Sequence[int]], **attrs):
        names = [f"v{len(self.nodes)}_{i}" for i in range(len(shapes))]
        name = f"n_{names[0]}"
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attrs))
        return [Value(n, tuple(shape)) for n, shape in zip(names, shapes, strict=True)]

    def like(self, shape: Sequence[int]) -> Value | None:
        """Another value of that shape."""
        fitting = [v for v in self.values if v.shape == tuple(shape)]
        return self.draw.choice(fitting) if fitting else None

    def axis(self, x: Value) -> int:
        """Of any axis, counted from either end."""
        return self.draw.randrange(x.rank) - self.draw.choice((0, x.rank))

    # --- growing -----------------------------------------------------------------------------
    def grow(self, steps: int) -> RandomGraph:
        for number in range(self.draw.choice((1, 1, 2))):
            rank = self.draw.choice((2, 3, 3, 4, 4))
            sizes = [self.fresh() for _ in range(rank)]
            self.inputs.append(Value(f"x{number}", tuple(sizes)))
        self.values = list(self.inputs)
        while len(self.kinds) < steps:
            x = self.draw.choice(self.values[-2:] if self.draw.random() < 0.8 else self.values)
            kind = self.draw.choice(PRODUCTS if self.draw.random() < 0.35 else list(KINDS))
            made = KINDS[kind](self, x)
            if made is not None and math.prod(made.shape) <= 1 << 15:
                self.values.append(made)
                self.kinds.append(kind)
        return RandomGraph(self.model(), self.feeds(), tuple(self.kinds))

    def model(self) -> ModelProto:
        read = {name for node in self.nodes for name in node.input}
        made = [v for v in self.values if v not in self.inputs]
        outputs = [v for v in made if v.name not in read]
        if self.draw.random() < 0.2:
            outputs = list(dict.fromkeys([*outputs, self.draw.choice(made)]))
        infos = [
            helper.make_tensor_value_info(v.name, TensorProto.FLOAT, self.declared(v))
            for v in self.inputs
        ]
        results = [
            helper.make_tensor_value_info(v.name, TensorProto.FLOAT, [None] * v.rank)
            for v in outputs
        ]
        graph = helper.make_graph(self.nodes, "random", infos, results, self.tensors)
        version = 10 if self.opset > 17 else 8
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        onnx.checker.check_model(model)
        return model

    def declared(self, value: Value) -> list[int | str]:
        """The first dimension is that of the samples, of the others one may be left open."""
        dims: list[int | str] = list(value.shape)
        if self.draw.random() < 0.2:
            dims[self.draw.randrange(1, value.rank)] = f"{value.name}_any"
        return dims

    def feeds(self) -> dict[str, np.ndarray]:
        """One position of one axis is much larger than the others, as tokens and channels are."""
        found = {}
        for value in self.inputs:
            array = self.rng.standard_normal(value.shape).astype(np.float32)
            axis = self.draw.randrange(value.rank)
            np.moveaxis(array, axis, 0)[self.draw.randrange(value.shape[axis])] *= 20
            found[value.name] = array
        return found


Maker = Callable[[_Grower, Value], Value | None]


# --- products --------------------------------------------------------------------------------
def _matmul_right(g: _Grower, x: Value) -> Value | None:
    k, chance = x.shape[-1], g.draw.random()
    if chance < 0.2 and x.rank > 1:
        return g.node("MatMul", [x.name, g.weight(k, k=k)], x.shape[:-1])
    n = g.fresh()
    if chance < 0.35 and x.rank > 1:
        batch = x.shape[-3] if x.rank > 2 and g.draw.random() < 0.7 else 1
        lead = x.shape[:-2] if x.rank > 2 else (batch,)
        w = g.weight(batch, k, n, k=k)
        return g.node("MatMul", [x.name, w], (*lead, x.shape[-2], n))
    return g.node("MatMul", [x.name, g.weight(k, n, k=k)], (*x.shape[:-1], n))


def _matmul_left(g: _Grower, x: Value) -> Value | None:
    n, chance = g.fresh(), g.draw.random()
    if x.rank == 1:
        (k,) = x.shape
        return g.node("MatMul", [g.weight(n, k, k=k), x.name], (n,))
    k, rest = x.shape[-2], (*x.shape[:-2], x.shape[-1])
    if chance < 0.25:
        return g.node("MatMul", [g.weight(k, k=k), x.name], rest)
    lead = x.shape[:-2]
    if chance < 0.4 and x.rank > 2:
        w = g.weight(x.shape[-3], n, k, k=k)
        return g.node("MatMul", [w, x.name], (*lead, n, x.shape[-1]))
    return g.node("MatMul", [g.weight(n, k, k=k), x.name], (*lead, n, x.shape[-1]))


def _gemm(g: _Grower, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    flip_a, flip_b = g.draw.randint(0, 1), g.draw.randint(0, 1)
    n, is_right = g.fresh(), g.draw.random() < 0.7
    k_first = bool(flip_a) if is_right else not flip_b
    k, rows = x.shape if k_first else x.shape[::-1]
    if is_right:
        w, shape = g.weight(*((n, k) if flip_b else (k, n)), k=k), (rows, n)
    else:
        w, shape = g.weight(*((k, n) if flip_a else (n, k)), k=k), (n, rows)
    inputs = [x.name, w] if is_right else [w, x.name]
    if g.draw.random() < 0.6:
        inputs.append(g.vector(*g.broadcastable(shape)))
    scale = {"alpha": 0.5, "beta": 2.0} if g.draw.random() < 0.3 else {}
    return g.node("Gemm", inputs, shape, transA=flip_a, transB=flip_b, **scale)


def _conv(g: _Grower, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    c, n, rank = x.shape[1], g.fresh(), x.rank - 2
    groups = g.draw.choice((1, 1, 1, 2, 4))
    if g.draw.random() < 0.1:
        groups, n = c, c
    if n % groups or c % groups:
        return None
    kernel, dilation = g.draw.choice((1, 1, 3)), 1
    attributes: dict = {"group": groups}
    if kernel == 3 and g.draw.random() < 0.3:
        attributes["auto_pad"] = g.draw.choice(("SAME_UPPER", "SAME_LOWER"))
    elif kernel == 3:
        dilation = g.draw.choice((1, 2))
        attributes |= {"pads": [dilation] * 2 * rank, "dilations": [dilation] * rank}
    w = g.weight(n, c // groups, *[kernel] * rank, k=c // groups * kernel**rank)
    bias = [g.vector(n)] if g.draw.random() < 0.5 else []
    return g.node("Conv", [x.name, w, *bias], (x.shape[0], n, *x.shape[2:]), **attributes)


def _conv_transpose(g: _Grower, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    c, n, rank, groups = x.shape[1], g.fresh(), x.rank - 2, g.draw.choice((1, 1, 2))
    if n % groups or c % groups:
        return None
    kernel = g.draw.choice((1, 3))
    w = g.weight(c, n // groups, *[kernel] * rank, k=c // groups * kernel**rank)
    bias = [g.vector(n)] if g.draw.random() < 0.5 else []
    pads = [kernel // 2] * 2 * rank
    shape = (x.shape[0], n, *x.shape[2:])
    return g.node("ConvTranspose", [x.name, w, *bias], shape, group=groups, pads=pads)


def _einsum(g: _Grower, x: Value) -> Value | None:
    letters = "".join(g.draw.sample("abcdefgh", x.rank + 1))
    mine, new = letters[:-1], letters[-1]
    summed = g.draw.choice(mine)
    k, n = x.shape[mine.index(summed)], g.fresh()
    sizes = dict(zip(mine, x.shape, strict=True)) | {new: n}
    term = g.draw.choice((summed + new, new + summed))
    if g.draw.random() < 0.2 and x.rank > 2:
        term = "".join(g.draw.sample(term + g.draw.choice(mine.replace(summed, "")), 3))
    out = g.draw.sample([c for c in (*mine, new) if c != summed], x.rank)
    w = g.weight(*(sizes[c] for c in term), k=k)
    terms, names = [mine, term], [x.name, w]
    if g.draw.random() < 0.3:
        terms, names = terms[::-1], names[::-1]
    equation = f"{','.join(terms)}->{''.join(out)}"
    return g.node("Einsum", names, [sizes[c] for c in out], equation=equation)


def _attention(g: _Grower, x: Value) -> Value | None:
    """Of one head, or of two."""
    if x.rank != 3 or x.shape[2] % 2:
        return None
    batch, tokens, width = x.shape
    heads = g.draw.choice((1, 2))

    def project(last: tuple[int, int, int, int]) -> Value:
        y = g.node("MatMul", [x.name, g.weight(width, width, k=width)], x.shape)
        if g.draw.random() < 0.5:
            y = g.node("Add", [y.name, g.vector(width)], x.shape)
        split = (batch, tokens, heads, width // heads)
        y = g.node("Reshape", [y.name, g.integers(split)], split)
        return g.node("Transpose", [y.name], [split[i] for i in last], perm=last)

    q, k, v = project((0, 2, 1, 3)), project((0, 2, 3, 1)), project((0, 2, 1, 3))
    scores = g.node("MatMul", [q.name, k.name], (batch, heads, tokens, tokens))
    scores = g.node("Mul", [scores.name, g.constant(np.array([0.3], np.float32))], scores.shape)
    scores = g.node("Softmax", [scores.name], scores.shape, axis=-1)
    y = g.node("MatMul", [scores.name, v.name], q.shape)
    y = g.node("Transpose", [y.name], (batch, tokens, heads, width // heads), perm=[0, 2, 1, 3])
    y = g.node("Reshape", [y.name, g.integers(x.shape)], x.shape)
    return g.node("MatMul", [y.name, g.weight(width, width, k=width)], x.shape)


def _scoring(g: _Grower, x: Value) -> Value | None:
    """Attention pooling: a product, an activation, a product with a vector, another product."""
    if x.rank != 3:
        return None
    k, n = x.shape[2], g.fresh()
    y = g.node("MatMul", [x.name, g.weight(k, n, k=k)], (*x.shape[:2], n))
    y = g.node(g.draw.choice(("Relu", "Tanh", "LeakyRelu")), [y.name], y.shape)
    y = g.node("MatMul", [y.name, g.weight(n, k=n)], x.shape[:2])
    return g.node("MatMul", [y.name, g.weight(y.shape[1], n, k=y.shape[1])], (x.shape[0], n))


# --- element by element ----------------------------------------------------------------------
def _with_constant(g: _Grower, x: Value) -> Value | None:
    op, shape = g.draw.choice(("Add", "Add", "Mul", "Mul", "Sub", "Div", "Max")), x.shape
    positive = op == "Div" or (op == "Mul" and g.draw.random() < 0.5)
    low, high = (0.3, 3.0) if positive else (-1.5, 1.5)
    extents = g.broadcastable(shape)
    if g.draw.random() < 0.1:
        extents = (1, *shape)
        shape = extents
    inputs = [x.name, g.vector(*extents, low=low, high=high)]
    if op != "Div" and g.draw.random() < 0.4:
        inputs.reverse()
    return g.node(op, inputs, shape)


def _residual(g: _Grower, x: Value) -> Value | None:
    other = g.like(x.shape)
    if other is None or other == x:
        return None
    inputs = [x.name, other.name]
    g.draw.shuffle(inputs)
    return g.node(g.draw.choice(("Add", "Add", "Sub", "Mul", "Max")), inputs, x.shape)


_PLAIN = ("Relu", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Abs", "Neg", "Erf", "HardSwish")


def _activation(g: _Grower, x: Value) -> Value | None:
    return g.node(g.draw.choice(_PLAIN), [x.name], x.shape)


def _clip(g: _Grower, x: Value) -> Value | None:
    limits = [g.constant(np.array(n, np.float32)) for n in (-0.5, 6.0)]
    return g.node("Clip", [x.name, *limits], x.shape)


def _prelu(g: _Grower, x: Value) -> Value | None:
    return g.node("PRelu", [x.name, g.vector(*g.broadcastable(x.shape))], x.shape)


def _where(g: _Grower, x: Value) -> Value | None:
    chosen = g.constant(g.rng.integers(0, 2, g.broadcastable(x.shape)).astype(bool))
    return g.node("Where", [chosen, x.name, g.vector(*g.broadcastable(x.shape))], x.shape)


# --- normalizations --------------------------------------------------------------------------
def _layer_norm(g: _Grower, x: Value) -> Value | None:
    axis = g.draw.choice((-1, x.rank - 1, g.axis(x)))
    shape = x.shape[axis:] if g.draw.random() < 0.85 else g.broadcastable(x.shape[axis:])
    inputs = [x.name, g.vector(*shape)]
    if g.draw.random() < 0.7:
        inputs.append(g.vector(*shape))
    return g.node("LayerNormalization", inputs, x.shape, axis=axis)


def _batch_norm(g: _Grower, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    c = x.shape[1]
    inputs = [g.vector(c), g.vector(c), g.vector(c), g.vector(c, low=0.5, high=2)]
    return g.node("BatchNormalization", [x.name, *inputs], x.shape)


def _instance_norm(g: _Grower, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    c = x.shape[1]
    if g.opset >= 21 and g.draw.random() < 0.5 and c % 4 == 0:
        inputs = [x.name, g.vector(c), g.vector(c)]
        return g.node("GroupNormalization", inputs, x.shape, num_groups=4)
    return g.node("InstanceNormalization", [x.name, g.vector(c), g.vector(c)], x.shape)


def _spelled_out_norm(g: _Grower, x: Value) -> Value | None:
    axis = g.axis(x)
    kept = [1 if i == axis % x.rank else n for i, n in enumerate(x.shape)]
    inputs = [x.name, g.integers([axis])] if g.opset >= 18 else [x.name]
    given = {} if g.opset >= 18 else {"axes": [axis]}
    mean = g.node("ReduceMean", inputs, kept, keepdims=1, **given)
    y = g.node("Sub", [x.name, mean.name], x.shape)
    y = g.node("Mul", [y.name, g.vector(*g.broadcastable(x.shape))], x.shape)
    return g.node("Add", [y.name, g.vector(*g.broadcastable(x.shape))], x.shape)


def _softmax(g: _Grower, x: Value) -> Value | None:
    op = g.draw.choice(("Softmax", "LogSoftmax", "LpNormalization"))
    return g.node(op, [x.name], x.shape, axis=g.axis(x))


# --- pooling and reductions ------------------------------------------------------------------
def _pool(g: _Grower, x: Value) -> Value | None:
    if x.rank not in (3, 4):
        return None
    op, rank = g.draw.choice(("MaxPool", "MaxPool", "AveragePool", "LpPool")), x.rank - 2
    if g.draw.random() < 0.15:
        op = g.draw.choice(("GlobalAveragePool", "GlobalMaxPool"))
        return g.node(op, [x.name], (*x.shape[:2], *[1] * rank))
    return g.node(op, [x.name], x.shape, kernel_shape=[3] * rank, pads=[1] * 2 * rank)


def _reduce(g: _Grower, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    axis, kept = g.axis(x), g.draw.random() < 0.3
    shape = [1 if i == axis % x.rank else n for i, n in enumerate(x.shape)]
    if not kept:
        del shape[axis]
    op = g.draw.choice(("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"))
    by_input = g.opset >= 18 or op == "ReduceSum"
    inputs = [x.name, g.integers([axis])] if by_input else [x.name]
    given = {} if by_input else {"axes": [axis]}
    return g.node(op, inputs, shape, keepdims=int(kept), **given)


def _cumsum(g: _Grower, x: Value) -> Value | None:
    axis = g.constant(np.array(g.axis(x), np.int64))
    return g.node("CumSum", [x.name, axis], x.shape)


# --- data movement ---------------------------------------------------------------------------
def _transpose(g: _Grower, x: Value) -> Value | None:
    perm = g.draw.sample(range(x.rank), x.rank)
    given = {"perm": perm} if g.draw.random() < 0.8 else {}
    order = perm if given else range(x.rank)[::-1]
    return g.node("Transpose", [x.name], [x.shape[i] for i in order], **given)


def _reshape(g: _Grower, x: Value) -> Value | None:
    """Axes merged, an axis divided, or the sizes in another order, which with equal ones is the
    identity."""
    shape, chance = list(x.shape), g.draw.random()
    if chance < 0.35:
        g.draw.shuffle(shape)
    elif chance < 0.7 and x.rank > 1:
        at = g.draw.randrange(x.rank - 1)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif x.rank < 4:
        at = g.draw.randrange(x.rank)
        if shape[at] % 4:
            return None
        shape[at : at + 1] = g.draw.choice(([4, shape[at] // 4], [shape[at] // 4, 4]))
    else:
        return None
    return g.node("Reshape", [x.name, g.integers(shape)], shape)


def _there_and_back(g: _Grower, x: Value) -> Value | None:
    """Tokens of all samples as rows, a product, and back."""
    if x.rank < 3:
        return None
    rows, k, n = math.prod(x.shape[:-1]), x.shape[-1], g.fresh()
    y = g.node("Reshape", [x.name, g.integers([-1, k])], (rows, k))
    y = g.node("MatMul", [y.name, g.weight(k, n, k=k)], (rows, n))
    shape = (*x.shape[:-1], n)
    return g.node("Reshape", [y.name, g.integers(shape)], shape)


def _flatten(g: _Grower, x: Value) -> Value | None:
    axis = g.draw.randint(0, x.rank)
    rows, columns = math.prod(x.shape[:axis]), math.prod(x.shape[axis:])
    return g.node("Flatten", [x.name], (rows, columns), axis=axis) if columns <= 64 else None


def _squeezed(g: _Grower, x: Value) -> Value | None:
    axis = g.draw.randint(0, x.rank)
    shape = (*x.shape[:axis], 1, *x.shape[axis:])
    y = g.node("Unsqueeze", [x.name, g.integers([axis])], shape)
    if g.draw.random() < 0.3 and len(shape) < 5:
        return y
    y = g.node(g.draw.choice(_PLAIN), [y.name], shape)
    return g.node("Squeeze", [y.name, g.integers([axis])], x.shape)


def _concat(g: _Grower, x: Value) -> Value | None:
    """With another value, an activation, and the half of it."""
    other, axis = g.like(x.shape) or x, g.axis(x)
    shape = [2 * n if i == axis % x.rank else n for i, n in enumerate(x.shape)]
    y = g.node("Concat", [x.name, other.name], shape, axis=axis)
    y = g.node(g.draw.choice(_PLAIN), [y.name], shape)
    if g.draw.random() < 0.3 and not g.equal:
        return y
    sizes = g.integers([x.shape[axis]] * 2)
    halves = g.nodes_of("Split", [y.name, sizes], [x.shape] * 2, axis=axis)
    return g.node("Add", [v.name for v in halves], x.shape)


def _rotate_half(g: _Grower, x: Value) -> Value | None:
    axis = g.axis(x)
    if x.shape[axis] % 2:
        return None
    half = [n // 2 if i == axis % x.rank else n for i, n in enumerate(x.shape)]
    sizes = g.integers([x.shape[axis] // 2] * 2)
    a, b = g.nodes_of("Split", [x.name, sizes], [half] * 2, axis=axis)
    b = g.node("Neg", [b.name], half)
    return g.node("Concat", [b.name, a.name], x.shape, axis=axis)


def _slice(g: _Grower, x: Value) -> Value | None:
    """All of an axis backwards, or one pad cut off again."""
    axis = g.axis(x)
    if g.draw.random() < 0.5:
        inputs = [g.integers([n]) for n in (-1, -(1 << 31), axis, -1)]
        return g.node("Slice", [x.name, *inputs], x.shape)
    pads = [0] * 2 * x.rank
    pads[axis % x.rank] = 1
    shape = [n + 1 if i == axis % x.rank else n for i, n in enumerate(x.shape)]
    value = [g.constant(np.array(1.0, np.float32))] if g.draw.random() < 0.5 else []
    y = g.node("Pad", [x.name, g.integers(pads), *value], shape)
    ends = [g.integers([n]) for n in (0, x.shape[axis], axis)]
    return g.node("Slice", [y.name, *ends], x.shape)


def _gather(g: _Grower, x: Value) -> Value | None:
    axis = g.axis(x)
    picked = g.rng.integers(0, x.shape[axis], x.shape[axis])
    return g.node("Gather", [x.name, g.integers(picked)], x.shape, axis=axis)


def _depth_to_space(g: _Grower, x: Value) -> Value | None:
    """There, an activation, and back."""
    if x.rank != 4 or x.shape[1] % 4:
        return None
    mode = g.draw.choice(("DCR", "CRD"))
    n, c, h, w = x.shape
    shape = (n, c // 4, 2 * h, 2 * w)
    y = g.node("DepthToSpace", [x.name], shape, blocksize=2, mode=mode)
    y = g.node(g.draw.choice(_PLAIN), [y.name], shape)
    return g.node("SpaceToDepth", [y.name], x.shape, blocksize=2)


PRODUCTS = ("matmul_right", "matmul_left", "gemm", "conv", "conv_transpose", "einsum", "scoring")
KINDS: dict[str, Maker] = {
    maker.__name__[1:]: maker
    for maker in (
        *(_matmul_right, _matmul_left, _gemm, _conv, _conv_transpose, _einsum, _attention),
        *(_scoring, _with_constant, _residual, _activation, _clip, _prelu, _where, _layer_norm),
        *(_batch_norm, _instance_norm, _spelled_out_norm, _softmax, _pool, _reduce, _cumsum),
        *(_transpose, _reshape, _there_and_back, _flatten, _squeezed, _concat, _rotate_half),
        *(_slice, _gather, _depth_to_space),
    )
}
