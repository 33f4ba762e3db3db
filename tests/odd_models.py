"""Models that no exporter writes and the format allows, for tests of passes.

Each is small, seeded and comes with feeds. `odd_models()` gives all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

F32 = TensorProto.FLOAT
I64 = TensorProto.INT64
Dims = Sequence[int | str | None] | None
Feeds = dict[str, np.ndarray]


class OddModel(NamedTuple):
    name: str
    proto: ModelProto
    feeds: Feeds


_GENERATORS: list[Callable[[], Iterator[OddModel]]] = []


def odd_models() -> Iterator[OddModel]:
    """Every model, in a fixed order; the same bytes in each run."""
    for generate in _GENERATORS:
        yield from generate()


def _odd(make: Callable[[], Iterator[OddModel]]) -> Callable[[], Iterator[OddModel]]:
    _GENERATORS.append(make)
    return make


class _Builder:
    """A graph in the making. Weights are normal, scaled by 1/sqrt(elements of the last axis)."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[ValueInfoProto] = []
        self.outputs: list[ValueInfoProto] = []
        self.feeds: Feeds = {}

    def values(self, *shape: int, dtype: Any = np.float32) -> np.ndarray:
        scale = np.sqrt(max(shape[-1], 1)) if shape else 1.0
        return np.asarray(self.rng.standard_normal(shape) / scale).astype(dtype)

    def weight(self, name: str, *shape: int, dtype: Any = np.float32) -> str:
        return self.constant(name, self.values(*shape, dtype=dtype))

    def constant(self, name: str, array: Any) -> str:
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def ints(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def input(self, name: str, *shape: int, dims: Dims = None, dtype: Any = np.float32) -> str:
        array = self.values(*shape, dtype=dtype)
        return self.feed(name, array, dims)

    def feed(self, name: str, array: np.ndarray, dims: Dims = None) -> str:
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = list(array.shape) if dims is None else dims
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        self.feeds[name] = array
        return name

    def node(self, op: str, inputs: str | Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node with one output; its name is `<output>_node`."""
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        name = attributes.pop("name", f"{output}_node")
        self.nodes.append(helper.make_node(op, names, [output], name=name, **attributes))
        return output

    def output(self, name: str, rank: int | None = None, element: int = F32) -> None:
        dims: Dims = None if rank is None else [None] * rank
        self.outputs.append(helper.make_tensor_value_info(name, element, dims))

    def graph(self, name: str = "odd") -> GraphProto:
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)

    def model(
        self, name: str, *, opset: int = 17, ir: int = 8, domains: Sequence[str] = (), **more: Any
    ) -> OddModel:
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
        proto = helper.make_model(self.graph(), opset_imports=imports, ir_version=ir, **more)
        return OddModel(name, proto, self.feeds)


def _value(name: str, dims: Dims = None, element: int = F32) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element, dims)


def _constant_node(output: str, array: np.ndarray) -> NodeProto:
    tensor = onnx.numpy_helper.from_array(array, "")
    return helper.make_node("Constant", [], [output], name=f"{output}_node", value=tensor)


# --- where weights live ----------------------------------------------------------------------
@_odd
def constants() -> Iterator[OddModel]:
    b = _Builder()
    b.input("x", 3, 8)
    b.nodes.append(_constant_node("w", b.values(8, 16)))
    b.nodes.append(_constant_node("wide", b.values(16, 64)))
    flat = [float(v) for v in b.values(64 * 4)]
    b.nodes.append(helper.make_node("Constant", [], ["flat"], value_floats=flat))
    b.nodes.append(helper.make_node("Constant", [], ["shape"], value_ints=[64, 4]))
    b.nodes.append(helper.make_node("Constant", [], ["vector"], value_floats=[1.0, -2.0, 3.0, 4.0]))
    b.nodes.append(helper.make_node("Constant", [], ["two"], value_float=2.0))
    b.nodes.append(helper.make_node("Constant", [], ["text"], value_string="weights?"))
    b.node("MatMul", ["x", "w"], "a")
    b.node("MatMul", ["a", "wide"], "b")
    b.node("Reshape", ["flat", "shape"], "matrix")
    b.node("MatMul", ["b", "matrix"], "c")
    b.node("Mul", ["c", "two"], "d")
    b.node("MatMul", ["d", "vector"], "y")
    b.node("Identity", "text", "t")
    b.output("y", 1)
    b.output("t", 0, TensorProto.STRING)
    yield b.model("constant-nodes")

    b = _Builder()
    b.input("x", 2, 8)
    sparse = helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "s"),
        onnx.numpy_helper.from_array(np.array([0, 9, 20], np.int64), "s_indices"),
        [8, 4],
    )
    b.node("MatMul", ["x", "s"], "y")
    b.output("y", 2)
    made = b.model("sparse-initializer")
    made.proto.graph.sparse_initializer.append(sparse)
    yield made

    b = _Builder()
    b.input("x", 2, 8)
    b.nodes.append(helper.make_node("Constant", [], ["s"], sparse_value=sparse))
    b.node("MatMul", ["x", "s"], "y")
    b.output("y", 2)
    yield b.model("sparse-constant")

    b = _Builder()
    b.input("x", 2, 8)
    for name, dtype in (("w", F32), ("v", TensorProto.DOUBLE), ("h", TensorProto.FLOAT16)):
        values = b.values(8, 8).reshape(-1)
        b.initializers.append(helper.make_tensor(name, dtype, [8, 8], values))
    bf16 = helper.make_tensor("b16", TensorProto.BFLOAT16, [8, 8], b.values(8, 8).reshape(-1))
    b.initializers.append(bf16)
    b.node("Cast", "v", "v32", to=F32)
    b.node("Cast", "h", "h32", to=F32)
    b.node("Cast", "b16", "b32", to=F32)
    previous = "x"
    for i, name in enumerate(("w", "v32", "h32", "b32")):
        previous = b.node("MatMul", [previous, name], f"y{i}")
    b.output("y3", 2)
    yield b.model("typed-data-fields")

    for ir in (3, 8):
        b = _Builder()
        b.input("x", 2, 8)
        b.weight("w", 8, 8)
        b.weight("v", 8, 8)
        b.inputs.append(_value("w", [8, 8]))
        if ir == 3:
            b.inputs.append(_value("v", [8, 8]))
        b.node("MatMul", ["x", "w"], "a")
        b.node("MatMul", ["a", "v"], "y")
        b.output("y", 2)
        yield b.model(f"initializer-is-input-ir{ir}", opset=8 if ir == 3 else 17, ir=ir)

    b = _Builder()
    b.input("x", 2, 8)
    b.weight("w", 8, 8)
    b.weight("unused", 8, 8)
    copied = b.values(8, 8)
    b.constant("same 1", copied)
    b.constant("same 2", copied)
    b.constant("unused empty", np.zeros((0, 4), np.float32))
    b.constant("unused scalar", np.float32(3))
    b.node("MatMul", ["x", "w"], "a")
    b.node("MatMul", ["a", "same 1"], "b")
    b.node("MatMul", ["b", "same 2"], "y")
    b.node("MatMul", ["b", "same 1"], "nobody reads this")
    b.output("y", 2)
    yield b.model("unused-and-duplicated")

    b = _Builder()
    b.input("x", 2, 8)
    b.weight("w", 8, 8)
    b.weight("seen", 8, 8)
    b.node("MatMul", ["x", "w"], "y")
    b.node("MatMul", ["y", "seen"], "z")
    for name, rank in (("y", 2), ("seen", 2), ("x", 2), ("z", 2)):
        b.output(name, rank)
    yield b.model("outputs-are-initializers-and-inputs")

    b = _Builder()
    b.input("x", 0, 8, dims=["N", 8])
    b.weight("w", 8, 4)
    b.constant("none", np.zeros((0, 4), np.float32))
    b.constant("one", np.float32(1.5))
    b.constant("nothing", np.zeros((4, 0), np.float32))
    b.node("MatMul", ["x", "w"], "a")
    b.node("Concat", ["a", "none"], "b", axis=0)
    b.node("Mul", ["b", "one"], "y")
    b.node("MatMul", ["y", "nothing"], "z")
    b.output("y", 2)
    b.output("z", 2)
    yield b.model("scalar-and-empty")

    b = _Builder()
    b.input("x", 2, 8)
    b.constant("zero", np.zeros((8, 8), np.float32))
    b.constant("equal", np.full((8, 8), 0.25, np.float32))
    b.constant("negative zero", np.full((8, 4), -0.0, np.float32))
    b.constant("denormal", np.full((8, 8), 1e-42, np.float32))
    already = b.values(8, 8)
    already[[0, 1, 4, 5]] = 0
    b.constant("already", already)
    previous = "x"
    for i, name in enumerate(("already", "equal", "denormal", "zero", "negative zero")):
        previous = b.node("MatMul", [previous, name], f"y{i}")
    b.output(previous, 2)
    yield b.model("special-values")

    b = _Builder()
    b.input("x", 2, 8)
    b.weight("w", 8, 8)
    b.constant("limits", np.array([-np.inf, np.inf], np.float32))
    b.constant("nan", np.full((8,), np.nan, np.float32))
    b.node("MatMul", ["x", "w"], "a")
    b.ints("low", 0)
    b.ints("high", 1)
    b.ints("end", 2)
    b.node("Slice", ["limits", "low", "high"], "min1")
    b.node("Slice", ["limits", "high", "end"], "max1")
    b.ints("no axes", 0)
    b.node("Squeeze", ["min1", "no axes"], "min")
    b.node("Squeeze", ["max1", "no axes"], "max")
    b.node("Clip", ["a", "min", "max"], "b")
    b.node("IsNaN", "nan", "where")
    b.node("Where", ["where", "b", "nan"], "y")
    b.output("y", 2)
    yield b.model("inf-and-nan-elsewhere")


# --- bodies ----------------------------------------------------------------------------------
def _body(
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    nodes: list[NodeProto],
    tensors: Sequence[TensorProto] = (),
) -> GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs, list(tensors))


def _tensor(array: np.ndarray, name: str) -> TensorProto:
    return onnx.numpy_helper.from_array(array, name)


@_odd
def bodies() -> Iterator[OddModel]:
    node = helper.make_node
    b = _Builder()
    b.input("x", 2, 16)
    b.weight("outer", 16, 16)
    b.constant("trips", np.int64(3))
    b.constant("go", np.bool_(True))
    body = _body(
        [_value("i", [], I64), _value("c", [], TensorProto.BOOL), _value("h", [2, 16])],
        [_value("c2", [], TensorProto.BOOL), _value("h4", [2, 16]), _value("seen", [2, 16])],
        [
            node("Identity", ["c"], ["c2"]),
            node("MatMul", ["h", "outer"], ["h1"], name="captured"),
            node("MatMul", ["h1", "inner"], ["h2"], name="own"),
            node("Tanh", ["h2"], ["h3"]),
            _constant_node("k", b.values(16, 16)),
            node("MatMul", ["h3", "k"], ["h4"], name="from_constant"),
            node("Identity", ["h2"], ["seen"]),
        ],
        [_tensor(b.values(16, 16), "inner")],
    )
    b.nodes.append(node("Loop", ["trips", "go", "x"], ["y", "ys"], name="loop", body=body))
    b.node("MatMul", ["y", "outer"], "z")
    b.output("z", 2)
    b.output("ys", 3)
    yield b.model("loop")

    b = _Builder()
    b.input("xs", 5, 2, 16)
    b.input("h0", 2, 16)
    b.weight("outer", 16, 16)
    body = _body(
        [_value("h", [2, 16]), _value("x", [2, 16])],
        [_value("h2", [2, 16]), _value("y", [2, 8])],
        [
            node("MatMul", ["h", "outer"], ["a"]),
            node("Add", ["a", "x"], ["s"]),
            node("Tanh", ["s"], ["h2"]),
            node("Gemm", ["h2", "w", "bias"], ["y"], transB=1),
        ],
        [_tensor(b.values(8, 16), "w"), _tensor(b.values(8), "bias")],
    )
    b.nodes.append(node("Scan", ["h0", "xs"], ["h", "ys"], body=body, num_scan_inputs=1))
    b.output("h", 2)
    b.output("ys", 3)
    yield b.model("scan")

    for opset in (10, 17):
        b = _Builder()
        b.input("x", 4, 16)
        b.feed("first", np.array(True))
        b.feed("second", np.array(False))
        b.weight("outer", 16, 16)
        b.weight("late", 16, 16)

        def leaf(output: str, extra: str, b: _Builder = b) -> GraphProto:
            return _body(
                [],
                [_value(output, [4, 16])],
                [
                    node("Transpose", ["outer"], [f"{output}_t"], perm=[1, 0]),
                    node("MatMul", ["x", f"{output}_t"], [f"{output}_a"]),
                    node("MatMul", [f"{output}_a", extra], [output]),
                ],
                [_tensor(b.values(16, 16), f"{output}_w")],
            )

        inner = node(
            "If",
            ["second"],
            ["in"],
            name="inner",
            then_branch=leaf("in_then", "in_then_w"),
            else_branch=leaf("in_else", "late"),
        )
        then = _body([], [_value("in", [4, 16])], [inner])
        outer = node(
            "If",
            ["first"],
            ["y"],
            name="choose",
            then_branch=then,
            else_branch=leaf("other", "other_w"),
        )
        b.nodes.append(outer)
        b.output("y", 2)
        yield b.model(f"nested-if-opset{opset}", opset=opset)

    b = _Builder()
    b.input("x", 4, 16)
    b.constant("condition", np.array(True))
    branches = []
    for _ in range(2):  # the same names in both branches, other values
        w = _tensor(b.values(16, 16), "w")
        branches.append(
            _body([], [_value("out", [4, 16])], [node("MatMul", ["x", "w"], ["out"])], [w])
        )
    b.nodes.append(
        node("If", ["condition"], ["y"], then_branch=branches[0], else_branch=branches[1])
    )
    b.node("Relu", "y", "z")
    b.output("z", 2)
    yield b.model("constant-if-sibling-names")

    b = _Builder()
    b.input("x", 4, 16)
    b.feed("flag", np.array(True))
    b.weight("w", 16, 16)
    choose = _body([], [_value("chosen", [16, 16])], [node("Identity", ["w"], ["chosen"])])
    flipped = _body(
        [], [_value("flip", [16, 16])], [node("Transpose", ["w"], ["flip"], perm=[1, 0])]
    )
    b.nodes.append(node("If", ["flag"], ["v"], then_branch=choose, else_branch=flipped))
    b.node("MatMul", ["x", "v"], "y")
    b.output("y", 2)
    yield b.model("if-chooses-the-weight")

    b = _Builder()
    b.input("x", 4, 8)
    b.feed("flag", np.array(True))
    w = _tensor(b.values(8, 8), "w")
    own = _body([], [_value("w", [8, 8])], [], [w])
    own2 = _body([], [_value("w2", [8, 8])], [], [_tensor(b.values(8, 8), "w2")])
    b.nodes.append(node("If", ["flag"], ["v"], then_branch=own, else_branch=own2))
    b.node("MatMul", ["x", "v"], "y")
    b.output("y", 2)
    yield b.model("body-without-nodes")


# --- sharing ---------------------------------------------------------------------------------
@_odd
def sharing() -> Iterator[OddModel]:
    b = _Builder()
    b.feed("ids", np.array([[1, 5, 9], [0, 2, 31]], np.int64), dims=["batch", "tokens"])
    b.weight("embedding", 32, 16)
    b.weight("w", 16, 16)
    b.node("Gather", ["embedding", "ids"], "e")
    b.node("MatMul", ["e", "w"], "h")
    b.node("Transpose", "embedding", "t", perm=[1, 0])
    b.node("MatMul", ["h", "t"], "logits")
    b.output("logits", 3)
    yield b.model("tied-embedding")

    b = _Builder()
    b.input("x", 4, 16)
    b.weight("same", 16, 16)
    b.weight("different", 16, 16)
    b.weight("left and right", 16, 16)
    b.node("MatMul", ["x", "same"], "a")
    b.node("MatMul", ["a", "same"], "b")
    b.node("MatMul", ["b", "different"], "c")
    b.node("Gemm", ["c", "different"], "d", transB=1)
    b.node("MatMul", ["d", "left and right"], "e")
    b.node("Transpose", "e", "f")
    b.node("MatMul", ["left and right", "f"], "g")
    b.node("MatMul", ["left and right", "left and right"], "h")
    b.node("MatMul", ["h", "g"], "y")
    b.output("y", 2)
    yield b.model("shared-axes")

    b = _Builder()
    b.input("x", 4, 16)
    b.input("image", 1, 16, 4, 4)
    b.weight("w", 16, 16)
    b.ints("kernel", 16, 16, 1, 1)
    b.node("Reshape", ["w", "kernel"], "k")
    b.node("Conv", ["image", "k"], "z")
    b.node("Gemm", ["x", "w"], "y", transB=1)
    b.output("y", 2)
    b.output("z", 4)
    yield b.model("matrix-is-a-kernel")

    b = _Builder()
    b.input("x", 4, 16)
    b.weight("w", 16, 16)
    b.node("Relu", "w", "positive")
    b.node("MatMul", ["x", "positive"], "a")
    b.node("MatMul", ["x", "w"], "b")
    b.node("Add", ["a", "b"], "y")
    b.weight("scaled", 16, 16)
    b.constant("factor", np.float32(0.5))
    b.node("Mul", ["scaled", "factor"], "s")
    b.node("MatMul", ["y", "s"], "z")
    b.weight("left", 16, 8)
    b.weight("right", 8, 16)
    b.node("MatMul", ["left", "right"], "both")
    b.node("MatMul", ["z", "both"], "last")
    b.weight("halves", 16, 32)
    b.nodes.append(helper.make_node("Split", ["halves"], ["h1", "h2"], axis=1))
    b.node("MatMul", ["last", "h1"], "m1")
    b.node("MatMul", ["m1", "h2"], "m2")
    b.node("Shape", "halves", "size")
    b.node("Concat", ["h1", "h2"], "joined", axis=0)
    b.node("Gemm", ["m2", "joined"], "out", transB=1)
    b.output("out", 2)
    b.output("size", 1, I64)
    yield b.model("computed-weights")

    b = _Builder()
    b.input("x", 4, 16)
    b.weight("w", 16, 16)
    b.node("MatMul", ["x", "w"], "y")
    b.node("Identity", "y", "z")
    b.node("Identity", "y", "also z")
    b.node("Identity", "x", "copy of x")
    for name in ("z", "also z", "y", "copy of x"):
        b.output(name, 2)
    yield b.model("aliased-outputs")

    b = _Builder()
    b.input("x", 4, 16)
    b.node("Identity", "x", "a")
    b.node("Identity", "a", "b")
    b.node("Identity", "b", "y")
    b.output("y", 2)
    yield b.model("only-identity")

    b = _Builder()
    b.input("x", 4, 16)
    b.output("x", 2)
    yield b.model("no-nodes")


# --- products --------------------------------------------------------------------------------
@_odd
def matmuls() -> Iterator[OddModel]:
    b = _Builder()
    b.input("x3", 2, 3, 16)
    b.input("x4", 2, 3, 5, 16)
    b.input("x1", 16)
    b.input("columns", 2, 16, 5)
    b.weight("w", 16, 16)
    b.weight("batched", 2, 16, 8)
    b.weight("broadcast", 1, 16, 8)
    b.weight("batched4", 2, 3, 16, 8)
    b.weight("left", 8, 16)
    b.weight("left batched", 2, 8, 16)
    b.weight("vector", 16)
    b.weight("odd", 16, 7)
    b.weight("thin", 6, 16)
    for i, (a, c, rank) in enumerate(
        [
            ("x3", "w", 3),
            ("x4", "w", 4),
            ("x1", "w", 1),
            ("x3", "batched", 3),
            ("x3", "broadcast", 3),
            ("x4", "batched4", 4),
            ("left", "columns", 3),
            ("left batched", "columns", 3),
            ("x3", "vector", 2),
            ("x1", "vector", 0),
            ("vector", "columns", 2),
            ("x1", "batched", 2),
            ("x3", "odd", 3),
            ("thin", "columns", 3),
        ]
    ):
        b.node("MatMul", [a, c], f"y{i}")
        b.output(f"y{i}", rank)
    yield b.model("matmul-ranks")

    b = _Builder()
    b.input("a", 2, 3, 8, dims=["N", "T", 8])
    b.input("b", 2, 8, 3, dims=["N", 8, "T"])
    b.weight("w", 8, 8)
    b.node("MatMul", ["a", "b"], "c")
    b.node("MatMul", ["c", "a"], "d")
    b.node("MatMul", ["d", "w"], "y")
    b.output("y", 3)
    yield b.model("dynamic-products")

    b = _Builder()
    b.input("x", 3, 10, dims=["N", "K"])
    b.weight("w", 10, 16)
    b.weight("v", 16, 12)
    b.node("MatMul", ["x", "w"], "a")
    b.node("Relu", "a", "r")
    b.node("MatMul", ["r", "v"], "y")
    b.output("y", 2)
    yield b.model("k-10-dynamic-inner")

    b = _Builder()
    b.input("x", 5, 16, dims=None)
    b.inputs[0].CopyFrom(_value("x", None))
    b.weight("w", 16, 16)
    b.weight("bias", 16)
    b.node("MatMul", ["x", "w"], "a")
    b.node("Add", ["bias", "a"], "y")
    b.output("y")
    yield b.model("unknown-rank")


@_odd
def gemms() -> Iterator[OddModel]:
    for weight_first in (False, True):
        b = _Builder()
        b.input("x", 5, 16)
        b.input("xt", 16, 5)
        forms = itertools.product(
            (0, 1),
            (0, 1),
            ((1.0, 1.0), (0.5, 2.0), (-1.0, 0.0)),
            (None, "", (), 1, 8, "1N", "MN", "M1"),
        )
        for count, (trans_a, trans_b, (alpha, beta), bias) in enumerate(forms):
            m, n = (8, 5) if weight_first else (5, 8)
            shapes: dict[Any, tuple[int, ...]] = {
                (): (), 1: (1,), 8: (n,), "1N": (1, n), "MN": (m, n), "M1": (m, 1),
            }  # fmt: skip
            if weight_first:
                weight = b.weight(f"w{count}", *((16, 8) if trans_a else (8, 16)))
                inputs = [weight, "x" if trans_b else "xt"]
            else:
                weight = b.weight(f"w{count}", *((8, 16) if trans_b else (16, 8)))
                inputs = ["xt" if trans_a else "x", weight]
            if bias == "":
                inputs.append("")
            elif bias is not None:
                inputs.append(b.weight(f"c{count}", *shapes[bias]))
            more = {"alpha": alpha, "beta": beta, "transA": trans_a, "transB": trans_b}
            b.node("Gemm", inputs, f"y{count}", **more)
            b.output(f"y{count}", 2)
        yield b.model("gemm-weight-first" if weight_first else "gemm")

    b = _Builder()
    b.input("x", 5, 16)
    b.weight("w", 16, 16)
    b.input("bias", 5, 16)
    b.node("Gemm", ["x", "w", "bias"], "a")
    b.node("Gemm", ["w", "w", "w"], "b")
    b.node("Gemm", ["a", "b", "x"], "c")
    b.node("Gemm", ["x", "x", "w"], "d", transA=1)
    b.node("MatMul", ["c", "d"], "y")
    b.output("y", 2)
    yield b.model("gemm-everywhere")


@_odd
def convolutions() -> Iterator[OddModel]:
    cases: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ((2, 8, 9), (16, 8, 3), {}),
        ((2, 16, 9), (16, 16, 3), {"dilations": [2], "pads": [1, 3], "strides": [2]}),
        ((2, 8, 7, 7), (16, 8, 3, 3), {"pads": [1, 0, 2, 1]}),
        ((2, 8, 7, 7), (16, 8, 1, 1), {}),
        ((2, 8, 7, 7), (16, 8, 3, 5), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
        ((2, 8, 7, 7), (16, 8, 2, 2), {"auto_pad": "SAME_LOWER"}),
        ((2, 8, 7, 7), (16, 8, 2, 2), {"auto_pad": "VALID", "dilations": [1, 2]}),
        ((2, 3, 7, 7), (16, 3, 3, 3), {}),
        ((2, 16, 7, 7), (16, 4, 3, 3), {"group": 4}),
        ((2, 8, 7, 7), (8, 1, 3, 3), {"group": 8}),
        ((2, 8, 7, 7), (16, 1, 3, 3), {"group": 8}),
        ((1, 8, 4, 5, 6), (16, 8, 2, 3, 1), {}),
        ((1, 8, 4, 5, 6), (8, 8, 3, 3, 3), {"auto_pad": "SAME_UPPER"}),
        ((2, 6, 5, 5), (8, 6, 1, 1), {"kernel_shape": [1, 1]}),
    ]
    b = _Builder()
    for i, (data, kernel, attributes) in enumerate(cases):
        inputs = [b.input(f"x{i}", *data), b.weight(f"w{i}", *kernel)]
        if i % 2:
            inputs.append(b.weight(f"b{i}", kernel[0]))
        elif i % 4 == 0:
            inputs.append("")
        b.node("Conv", inputs, f"y{i}", **attributes)
        b.output(f"y{i}", len(data))
    yield b.model("conv")

    b = _Builder()
    transposed: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ((2, 8, 9), (8, 16, 3), {}),
        ((2, 8, 5, 5), (8, 16, 3, 3), {"strides": [2, 2], "output_padding": [1, 1]}),
        ((2, 8, 5, 5), (8, 4, 3, 3), {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((2, 8, 5, 5), (8, 4, 2, 2), {"output_shape": [10, 10], "strides": [2, 2]}),
    ]
    for i, (data, kernel, attributes) in enumerate(transposed):
        inputs = [b.input(f"x{i}", *data), b.weight(f"w{i}", *kernel)]
        b.node("ConvTranspose", inputs, f"y{i}", **attributes)
        b.output(f"y{i}", len(data))
    yield b.model("conv-transpose")

    b = _Builder()
    b.input("x", 1, 16, 8, 8, dims=["N", 16, "H", "W"])
    b.weight("kernel", 16, 16, 3, 3)
    b.node("Conv", ["x", "kernel"], "a", pads=[1, 1, 1, 1])
    b.node("Conv", ["a", "kernel"], "b", pads=[1, 1, 1, 1])
    b.node("Conv", ["kernel", "kernel"], "c")  # as data too
    b.node("GlobalAveragePool", "b", "p")
    b.node("Flatten", "p", "f")
    b.weight("w", 16, 10)
    b.node("MatMul", ["f", "w"], "y")
    b.output("y", 2)
    b.output("c", 4)
    yield b.model("conv-shared-and-data")

    b = _Builder()
    b.input("x", 2, 8, 7, 7)
    b.input("k", 16, 8, 3, 3)
    b.weight("bias", 16)
    b.node("Conv", ["x", "k", "bias"], "y")
    b.output("y", 4)
    yield b.model("conv-dynamic-weight")


@_odd
def recurrent() -> Iterator[OddModel]:
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        b = _Builder()
        b.input("x", 5, 2, 8)
        b.weight("W", 2, gates * 16, 8)
        b.weight("R", 2, gates * 16, 16)
        b.weight("B", 2, 2 * gates * 16)
        b.input("h0", 2, 2, 16)
        b.nodes.append(
            helper.make_node(
                op,
                ["x", "W", "R", "B", "", "h0"],
                ["", "h"],
                hidden_size=16,
                direction="bidirectional",
            )
        )
        b.weight("w", 16, 16)
        b.node("MatMul", ["h", "w"], "y")
        b.output("y", 3)
        yield b.model(op.lower())


@_odd
def einsums() -> Iterator[OddModel]:
    cases: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = [
        ("bij,jk->bik", (2, 3, 16), (16, 8), 3),
        ("ij,kj->ik", (3, 16), (8, 16), 2),
        ("ij,jk", (3, 16), (16, 8), 2),
        (" b i j , j k -> b k i ", (2, 3, 16), (16, 8), 3),
        ("...i,ij->...j", (2, 3, 16), (16, 8), 3),
        ("bhid,hde->bhie", (2, 2, 3, 16), (2, 16, 8), 4),
        ("ij,jk->", (3, 16), (16, 8), 0),
        ("ii,ij->ij", (16, 16), (16, 8), 2),
        ("ij,ij->i", (3, 16), (3, 16), 1),
        ("ij,j->i", (3, 16), (16,), 1),
        ("ij,jkl->ikl", (3, 16), (16, 2, 8), 3),
        ("ijk,jkl->il", (3, 4, 4), (4, 4, 8), 2),
        ("ij,jk->k", (3, 16), (16, 8), 1),
        ("ij,jkl->il", (3, 16), (16, 2, 8), 2),
        ("zj,jk->zk", (3, 16), (16, 8), 2),
        ("ij,aj", (3, 16), (8, 16), 2),
    ]
    b = _Builder()
    for i, (equation, data, weight, rank) in enumerate(cases):
        b.input(f"x{i}", *data)
        b.weight(f"w{i}", *weight)
        b.node("Einsum", [f"x{i}", f"w{i}"], f"y{i}", equation=equation)
        b.output(f"y{i}", rank)
    b.node("Einsum", ["w1", "x1"], "left", equation="kj,ij->ki")
    b.output("left", 2)
    b.node("Einsum", "w0", "alone", equation="ij->ji")
    b.output("alone", 2)
    b.weight("third", 8, 8)
    b.node("Einsum", ["x0", "w0", "third"], "three", equation="bij,jk,kl->bil")
    b.output("three", 3)
    yield b.model("einsum")


# --- chains between weight and consumer ------------------------------------------------------
@_odd
def chains() -> Iterator[OddModel]:
    b = _Builder()
    b.input("x", 2, 3, 8)
    for i, perm in enumerate(itertools.permutations(range(3))):
        shape = [0, 0, 0]
        for axis, source in enumerate(perm):
            shape[source] = (2, 8, 12)[axis]
        b.weight(f"w{i}", *shape)
        b.node("Transpose", f"w{i}", f"t{i}", perm=list(perm))
        b.node("MatMul", ["x", f"t{i}"], f"y{i}")
        b.output(f"y{i}", 3)
    b.weight("plain", 12, 8, 2)
    b.node("Transpose", "plain", "reversed")
    b.node("MatMul", ["x", "reversed"], "z")
    b.output("z", 3)
    yield b.model("transpose-cycles")

    for opset in (11, 13, 17):
        b = _Builder()
        b.input("x", 3, 16)
        b.weight("a", 2, 8, 16)
        b.ints("to16", -1, 16)
        b.node("Reshape", ["a", "to16"], "a1")
        b.node("Identity", "a1", "a2")
        b.node("Transpose", "a2", "a3")
        b.node("MatMul", ["x", "a3"], "ya")
        b.weight("b", 1, 16, 1, 8)
        if opset < 13:
            b.node("Squeeze", "b", "b1", axes=[0, -2])
            b.node("Unsqueeze", "b1", "b2", axes=[0])
        else:
            b.node("Squeeze", ["b", b.ints("sq", 0, -2)], "b1")
            b.node("Unsqueeze", ["b1", b.ints("un", 0)], "b2")
        b.ints("keep", 0, 0, 0)
        b.node("Reshape", ["b2", "keep"], "b3")
        b.node("MatMul", ["x", "b3"], "yb")
        b.weight("c", 16, 8, dtype=np.float16)
        b.node("Cast", "c", "c1", to=F32)
        b.node("MatMul", ["x", "c1"], "yc")
        b.weight("d", 4, 4, 8)
        b.ints("merge", 16, 8)
        b.node("Reshape", ["d", "merge"], "d1")
        b.node("MatMul", ["x", "d1"], "yd")
        b.weight("e", 8, 4, 4)
        b.node("Flatten", "e", "e1", axis=1)
        b.node("Gemm", ["x", "e1"], "ye", transB=1)
        b.weight("f", 4, 8, 4)  # K is cut into two axes that are not neighbours
        b.node("Transpose", "f", "f1", perm=[0, 2, 1])
        b.node("Reshape", ["f1", "merge"], "f2")
        b.node("MatMul", ["x", "f2"], "yf")
        b.weight("g", 8, 2, 8)  # groups of four straddle two stored rows
        b.node("Transpose", "g", "g1", perm=[2, 1, 0])
        b.node("Reshape", ["g1", "merge"], "g2")
        b.node("MatMul", ["x", "g2"], "yg")
        b.weight("h", 8, 16)  # reshaped, not transposed: rows are cut
        b.node("Reshape", ["h", "merge"], "h1")
        b.node("MatMul", ["x", "h1"], "yh")
        b.weight("odd", 32, 4)
        b.node("Reshape", ["odd", "merge"], "odd1")
        b.node("MatMul", ["x", "odd1"], "yo")
        b.weight("dead", 16, 8)
        b.node("Transpose", "dead", "dead1")
        b.node("Transpose", "dead1", "dead2")
        b.node("MatMul", ["x", "dead2"], "yx")
        for name in "abcdefgh":
            b.output(f"y{name}", 3 if name == "b" else 2)
        b.output("yo", 2)
        b.output("yx", 2)
        yield b.model(f"reshape-chains-opset{opset}", opset=opset)

    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16, dtype=np.float64)
    b.node("Cast", "w", "w1", to=TensorProto.FLOAT16)
    b.node("Cast", "w1", "w2", to=F32)
    b.node("MatMul", ["x", "w2"], "y")
    b.weight("like", 16, 16, dtype=np.float16)
    b.node("CastLike", ["like", "x"], "like32")
    b.node("MatMul", ["y", "like32"], "z")
    b.constant("integers", b.rng.integers(-8, 8, (16, 16)).astype(np.int64))
    b.node("Cast", "integers", "i32", to=F32)
    b.node("MatMul", ["z", "i32"], "out")
    b.output("out", 2)
    yield b.model("cast-chains")


@_odd
def dtypes() -> Iterator[OddModel]:
    for dtype in (np.float16, np.float64):
        b = _Builder()
        b.input("x", 3, 16, dtype=dtype)
        b.weight("w", 16, 16, dtype=dtype)
        b.weight("bias", 16, dtype=dtype)
        b.weight("v", 8, 16, dtype=dtype)
        b.node("MatMul", ["x", "w"], "a")
        b.node("Add", ["a", "bias"], "h")
        b.node("Gemm", ["h", "v"], "y", transB=1)
        b.output("y", 2, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
        yield b.model(f"dtype-{np.dtype(dtype).name}")

    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16, dtype=ml_dtypes.bfloat16)
    b.weight("big", 16, 64, dtype=ml_dtypes.bfloat16)
    b.weight("f8", 64, 16, dtype=ml_dtypes.float8_e4m3fn)
    b.node("Cast", "w", "w1", to=F32)
    b.node("Cast", "big", "big1", to=F32)
    b.node("Cast", "f8", "f81", to=F32)
    b.node("MatMul", ["x", "w1"], "a")
    b.node("MatMul", ["a", "big1"], "c")
    b.node("MatMul", ["c", "f81"], "y")
    b.output("y", 2)
    yield b.model("dtype-bf16-fp8-cast", opset=19, ir=9)

    b = _Builder()
    b.input("x", 3, 16, dtype=ml_dtypes.bfloat16)
    b.weight("w", 16, 16, dtype=ml_dtypes.bfloat16)
    b.node("MatMul", ["x", "w"], "y")
    b.output("y", 2, TensorProto.BFLOAT16)
    yield b.model("dtype-bf16")

    b = _Builder()
    b.input("x", 3, 16)
    b.node("Cast", "x", "half", to=TensorProto.FLOAT16)
    b.weight("w", 16, 16, dtype=np.float16)
    b.node("MatMul", ["half", "w"], "a")
    b.node("Cast", "a", "full", to=F32)
    b.weight("v", 16, 16)
    b.node("MatMul", ["full", "v"], "c")
    b.node("Cast", "c", "y", to=TensorProto.DOUBLE)
    b.output("y", 2, TensorProto.DOUBLE)
    yield b.model("mixed-precision")

    b = _Builder()
    b.feed("x", np.arange(32, dtype=np.int32).reshape(2, 16))
    b.constant("w", np.arange(128, dtype=np.int32).reshape(16, 8))
    b.node("MatMul", ["x", "w"], "y")
    b.output("y", 2, TensorProto.INT32)
    yield b.model("integer-matmul")


# --- already quantized -----------------------------------------------------------------------
def _quantized(b: _Builder, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    info = np.iinfo(dtype)
    values = b.rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    b.constant(name, values)
    return values


@_odd
def quantized() -> Iterator[OddModel]:
    def activation(b: _Builder, value: str, dtype: Any = np.int8, zero: int = 0) -> str:
        scale, point = f"{value}_scale", f"{value}_zero"
        b.constant(scale, np.float32(0.05))
        b.constant(point, np.array(zero, dtype))
        b.node("QuantizeLinear", [value, scale, point], f"{value}_q")
        return b.node("DequantizeLinear", [f"{value}_q", scale, point], f"{value}_dq")

    b = _Builder()
    b.input("x", 3, 16)
    previous = "x"
    for i, (dtype, zero, axis) in enumerate(
        [
            (np.int8, 0, None),
            (np.int8, 0, 1),
            (np.int8, 0, 0),
            (np.int8, 3, None),
            (np.uint8, 128, None),
            (np.uint8, 128, 1),
            (np.uint8, 0, None),
        ]
    ):
        data = activation(b, previous, np.uint8 if dtype is np.uint8 else np.int8, 0)
        _quantized(b, f"w{i}", (16, 16), dtype)
        size = () if axis is None else (16,)
        b.constant(f"s{i}", b.rng.uniform(0.001, 0.002, size).astype(np.float32))
        b.constant(f"z{i}", np.full(size, zero, dtype))
        more = {} if axis is None else {"axis": axis}
        b.node("DequantizeLinear", [f"w{i}", f"s{i}", f"z{i}"], f"d{i}", **more)
        previous = b.node("MatMul", [data, f"d{i}"], f"y{i}")
    b.output(previous, 2)
    yield b.model("qdq-by-hand")

    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16)
    b.constant("s", b.rng.uniform(0.01, 0.02, 16).astype(np.float32))
    b.constant("z", np.zeros(16, np.int8))
    b.node("QuantizeLinear", ["w", "s", "z"], "q", axis=1)
    b.node("DequantizeLinear", ["q", "s", "z"], "d", axis=1)
    data = activation(b, "x")
    b.node("MatMul", [data, "d"], "y")
    b.weight("v", 8, 16)
    b.constant("sv", np.float32(0.01))
    b.node("QuantizeLinear", ["v", "sv"], "vq")  # no zero point: uint8
    b.node("DequantizeLinear", ["vq", "sv"], "vd")
    b.node("Transpose", "vd", "vt", perm=[1, 0])
    b.node("MatMul", ["y", "vt"], "out")
    b.weight("dense", 8, 8)
    b.node("MatMul", ["out", "dense"], "last")
    b.output("last", 2)
    yield b.model("qdq-float-weights")

    b = _Builder()
    b.input("x", 1, 8, 6, 6)
    data = activation(b, "x")
    _quantized(b, "w", (16, 8, 3, 3), np.int8)
    b.constant("s", b.rng.uniform(0.001, 0.002, 16).astype(np.float32))
    b.constant("z", np.zeros(16, np.int8))
    b.node("DequantizeLinear", ["w", "s", "z"], "d", axis=0)
    b.constant("bias", b.rng.integers(-500, 500, 16).astype(np.int32))
    b.constant("sb", b.rng.uniform(0.0001, 0.0002, 16).astype(np.float32))
    b.node("DequantizeLinear", ["bias", "sb"], "bd", axis=0)
    b.node("Conv", [data, "d", "bd"], "c")
    b.node("Relu", "c", "r")
    last = activation(b, "r", np.uint8)
    b.node("GlobalAveragePool", last, "y")
    b.output("y", 4)
    yield b.model("qdq-conv")

    b = _Builder()
    b.input("x", 3, 16)
    _quantized(b, "w", (16, 32), np.int8)
    b.constant("s", b.rng.uniform(0.001, 0.002, (4, 32)).astype(np.float32))
    b.constant("z", np.zeros((4, 32), np.int8))
    b.node("DequantizeLinear", ["w", "s", "z"], "d", axis=0, block_size=4)
    b.node("MatMul", ["x", "d"], "y")
    _quantized(b, "w2", (32, 16), np.int8)
    b.constant("s2", b.rng.uniform(0.001, 0.002, (16, 16)).astype(np.float32))
    b.node("DequantizeLinear", ["w2", "s2"], "d2", axis=0, block_size=2)
    b.node("MatMul", ["y", "d2"], "out")
    b.output("out", 2)
    yield b.model("qdq-blocked", opset=21, ir=10)

    b = _Builder()
    b.feed("x", b.rng.integers(-9, 9, (3, 16)).astype(np.int8))
    _quantized(b, "w", (16, 16), np.int8)
    b.constant("zero", np.int8(0))
    b.node("MatMulInteger", ["x", "w", "zero", "zero"], "y")
    b.output("y", 2, TensorProto.INT32)
    b.feed("u", b.rng.integers(0, 99, (3, 16)).astype(np.uint8))
    _quantized(b, "v", (16, 8), np.int8)
    for name in ("a", "b", "c"):
        b.constant(f"s{name}", np.float32(0.02))
    b.constant("za", np.uint8(0))
    b.constant("zb", np.int8(0))
    b.constant("zc", np.uint8(128))
    b.node("QLinearMatMul", ["u", "sa", "za", "v", "sb", "zb", "sc", "zc"], "z")
    b.output("z", 2, TensorProto.UINT8)
    b.input("f", 3, 16)
    b.nodes.append(helper.make_node("DynamicQuantizeLinear", ["f"], ["fq", "fs", "fz"]))
    b.node("MatMulInteger", ["fq", "w", "fz"], "g")
    b.output("g", 2, TensorProto.INT32)
    yield b.model("integer-operators")


# --- names and order -------------------------------------------------------------------------
@_odd
def names() -> Iterator[OddModel]:
    b = _Builder()
    odd = ["a b", "a/b/c", "x::y", "größe", "权重", "a,b;c{d}", "😀", "'q\"", "%s{0}", "a\\b", "-1"]
    b.input(odd[0], 3, 16)
    previous = odd[0]
    for i, name in enumerate(odd[1:-1]):
        b.weight(f"{name} weight", 16, 16)
        previous = b.node("MatMul", [previous, f"{name} weight"], name, name=f"{name}//{i}")
    b.node("Relu", previous, odd[-1])
    b.output(odd[-1], 2)
    yield b.model("names")

    b = _Builder()
    b.input("x", 3, 16)
    branch = []
    for i in range(3):
        b.nodes.append(helper.make_node("MatMul", ["x", b.weight(f"w{i}", 16, 16)], [f"y{i}"]))
        b.output(f"y{i}", 2)
    for i in range(2):
        b.feed(f"flag{i}", np.array(bool(i)))
        for _ in range(2):
            w = _tensor(b.values(16, 16), "w")
            product = helper.make_node("MatMul", ["x", "w"], ["out"])
            branch.append(_body([], [_value("out", [3, 16])], [product], [w]))
        b.nodes.append(
            helper.make_node(
                "If", [f"flag{i}"], [f"z{i}"], then_branch=branch[-2], else_branch=branch[-1]
            )
        )
        b.output(f"z{i}", 2)
    yield b.model("nameless-nodes")

    b = _Builder()
    b.input("x", 3, 16)
    previous = "x"
    for i in range(3):
        b.weight(f"w{i}", 16, 16)
        previous = b.node("MatMul", [previous, f"w{i}"], f"y{i}", name="same")
    b.feed("flag", np.array(True))
    for i in range(2):
        bodies = []
        for _ in range(2):
            w = _tensor(b.values(16, 16), "inner")
            product = helper.make_node("MatMul", ["x", "inner"], ["out"], name="same")
            bodies.append(_body([], [_value("out", [3, 16])], [product], [w]))
        b.nodes.append(
            helper.make_node(
                "If", ["flag"], [f"z{i}"], name="same", then_branch=bodies[0], else_branch=bodies[1]
            )
        )
        b.output(f"z{i}", 2)
    b.output("y2", 2)
    yield b.model("same-node-names")

    b = _Builder()
    b.input("x", 3, 16)
    for i in range(4):
        b.weight(f"w{i}", 16, 16)
        b.node("MatMul", ["x" if i == 0 else f"y{i - 1}", f"w{i}"], f"y{i}")
    b.nodes.reverse()
    b.output("y3", 2)
    yield b.model("unsorted")

    # Names that a compiler is likely to invent.
    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16)
    b.weight("w_transposed", 16, 16)
    b.weight("w_quantized", 16, 16)
    b.weight("w_scale", 16)
    b.node("Transpose", "w", "w_t")
    b.node("MatMul", ["x", "w_t"], "x_DequantizeLinear")
    b.node("MatMul", ["x_DequantizeLinear", "w_transposed"], "x_QuantizeLinear")
    b.node("MatMul", ["x_QuantizeLinear", "w_quantized"], "x_scale")
    b.node("Mul", ["x_scale", "w_scale"], "x_zero_point")
    b.node("Identity", "x_zero_point", "x_1")
    b.node("Identity", "x_1", "y")
    b.output("y", 2)
    yield b.model("invented-names")


@_odd
def values_of_other_types() -> Iterator[OddModel]:
    node = helper.make_node
    b = _Builder()
    b.input("x", 4, 16)
    b.weight("w", 16, 16)
    b.node("MatMul", ["x", "w"], "a")
    b.nodes.append(node("SplitToSequence", ["a"], ["parts"], axis=0))
    b.constant("at", np.int64(1))
    b.node("SequenceAt", ["parts", "at"], "second")
    b.node("ConcatFromSequence", "parts", "joined", axis=1)
    b.node("SequenceConstruct", ["w", "a"], "pair")
    b.node("SequenceAt", ["pair", "at"], "again")
    b.node("MatMul", ["second", "w"], "y")
    b.node("Add", ["again", "y"], "z")
    b.output("z", 2)
    b.output("joined", 2)
    b.outputs.append(helper.make_tensor_sequence_value_info("parts", F32, None))
    yield b.model("sequences")

    b = _Builder()
    b.feed("text", np.array([["a", "b", "zz"]], dtype=object))
    b.input("x", 1, 16)
    b.weight("w", 16, 16)
    b.node("MatMul", ["x", "w"], "y")
    b.constant("words", np.array(["a", "b"], dtype=object))
    b.node("Concat", ["words", "words"], "four", axis=0)
    b.node("Identity", "text", "t")
    b.output("y", 2)
    b.output("t", 2, TensorProto.STRING)
    b.output("four", 1, TensorProto.STRING)
    b.inputs[0].type.tensor_type.elem_type = TensorProto.STRING
    yield b.model("strings")

    b = _Builder()
    b.input("x", 2, 8, 6, 6)
    b.weight("w", 16, 8, 3, 3)
    b.node("Conv", ["x", "w", ""], "a")
    b.constant("max", np.float32(1))
    b.node("Clip", ["a", "", "max"], "c")
    b.constant("scales", np.array([1, 1, 2, 2], np.float32))
    b.node("Resize", ["c", "", "scales"], "r", mode="nearest")
    b.nodes.append(node("MaxPool", ["r"], ["p", ""], kernel_shape=[2, 2]))
    b.nodes.append(node("Dropout", ["p", "", ""], ["d", ""]))
    b.nodes.append(node("TopK", ["d", b.ints("k", 2)], ["largest", "top"]))
    b.output("d", 4)
    b.output("top", 4, I64)
    yield b.model("optional-inputs-and-outputs")


@_odd
def functions() -> Iterator[OddModel]:
    node = helper.make_node
    linear = helper.make_function(
        "local",
        "Linear",
        ["x", "w"],
        ["y"],
        [node("MatMul", ["x", "w"], ["m"], name="product"), node("Relu", ["m"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    values = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)
    own = helper.make_function(
        "local",
        "Own",
        ["x"],
        ["y"],
        [
            _constant_node("w", values),
            node("Linear", ["x", "w"], ["h"], domain="local"),
            node("MatMul", ["h", "w"], ["y"]),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
    )
    scaled = helper.make_function(
        "local",
        "Scaled",
        ["x"],
        ["y"],
        [node("LeakyRelu", ["x"], ["y"])],
        [helper.make_opsetid("", 17)],
        attributes=["alpha"],
    )
    reference = scaled.node[0].attribute.add()
    reference.name, reference.ref_attr_name = "alpha", "alpha"
    reference.type = onnx.AttributeProto.FLOAT
    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16)
    b.weight("v", 16, 16)
    b.node("Linear", ["x", "w"], "a", domain="local")
    b.node("Own", "a", "b", domain="local")
    b.node("Own", "b", "c", domain="local")
    b.node("Scaled", "c", "d", domain="local", alpha=0.25)
    b.node("MatMul", ["d", "v"], "e")
    b.node("MatMul", ["e", "w"], "y")
    b.output("y", 2)
    yield b.model("local-functions", domains=["local"], functions=[linear, own, scaled])


@_odd
def weights_that_are_not_quite() -> Iterator[OddModel]:
    """What a product multiplies with looks like a weight, and is one only in part."""
    node = helper.make_node
    b = _Builder()
    b.input("x", 2, 16)
    b.weight("start", 16, 16)
    b.constant("half", np.float32(0.5))
    b.constant("trips", np.int64(3))
    b.constant("go", np.bool_(True))
    body = _body(
        [
            _value("i", [], I64),
            _value("c", [], TensorProto.BOOL),
            _value("h", [2, 16]),
            _value("state", [16, 16]),
        ],
        [_value("c2", [], TensorProto.BOOL), _value("h2", [2, 16]), _value("state2", [16, 16])],
        [
            node("Identity", ["c"], ["c2"]),
            node("MatMul", ["h", "state"], ["h2"], name="product"),
            node("Mul", ["state", "half"], ["state2"]),
        ],
    )
    carried = ["trips", "go", "x", "start"]
    b.nodes.append(node("Loop", carried, ["y", "last"], name="loop", body=body))
    b.output("y", 2)
    yield b.model("loop-carried-weight")

    b = _Builder()
    b.input("x", 2, 16)
    b.weight("stack", 3, 16, 16)
    body = _body(
        [_value("h", [2, 16]), _value("slice", [16, 16])],
        [_value("h2", [2, 16])],
        [node("MatMul", ["h", "slice"], ["h2"], name="product")],
    )
    b.nodes.append(node("Scan", ["x", "stack"], ["y"], name="scan", body=body, num_scan_inputs=1))
    b.output("y", 2)
    yield b.model("scan-slices-the-weight")

    b = _Builder()
    b.input("x", 16, 16)
    b.feed("c", np.array(True))
    b.weight("w", 16, 16)
    then = _body([], [_value("a", [16, 16])], [node("MatMul", ["x", "w"], ["a"], name="product")])
    other = _body([], [_value("b", [16, 16])], [node("Add", ["x", "w"], ["b"], name="sum")])
    b.nodes.append(node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other))
    b.output("y", 2)
    yield b.model("branches-use-it-differently")

    b = _Builder()
    b.input("x", 4, 16)
    b.feed("ids", np.array([0, 7], np.int64))
    b.feed("c", np.array(False))
    b.weight("w", 16, 16)
    b.node("Identity", "w", "i")
    b.node("Transpose", "i", "t")
    b.node("Gather", ["t", "ids"], "rows")
    then = _body([], [_value("a", [4, 16])], [node("MatMul", ["x", "t"], ["a"], name="turned")])
    other = _body(
        [],
        [_value("b", [4, 16])],
        [
            node("Transpose", ["t"], ["u"], name="back"),
            node("MatMul", ["x", "u"], ["b"], name="plain"),
        ],
    )
    b.nodes.append(node("If", ["c"], ["h"], name="if", then_branch=then, else_branch=other))
    b.node("Gemm", ["h", "t"], "y", transB=1)
    b.output("y", 2)
    b.output("rows", 2)
    yield b.model("three-kinds-of-readers")

    dense = helper.make_function(
        "local",
        "Dense",
        ["x"],
        ["y"],
        [
            _constant_node("w", np.random.default_rng(2).standard_normal((16, 16)).astype("f4")),
            node("Gemm", ["x", "w"], ["y"], name="product"),
        ],
        [helper.make_opsetid("", 17)],
        attributes=["turned"],
    )
    reference = dense.node[1].attribute.add(name="transB", ref_attr_name="turned")
    reference.type = onnx.AttributeProto.INT
    b = _Builder()
    b.input("x", 3, 16)
    b.node("Dense", "x", "h", domain="local", turned=1)
    b.node("Dense", "h", "y", domain="local", turned=0)
    b.output("y", 2)
    yield b.model("function-attribute", domains=["local"], functions=[dense])


@_odd
def microsoft() -> Iterator[OddModel]:
    b = _Builder()
    b.input("x", 3, 16)
    b.weight("w", 16, 16)
    b.weight("v", 16, 16)
    b.weight("bias", 16)
    ms = "com.microsoft"
    b.node("FusedMatMul", ["x", "w"], "a", domain=ms, transB=1, alpha=0.5)
    b.node("Gelu", "a", "b", domain=ms)
    b.node("BiasGelu", ["b", "bias"], "c", domain=ms)
    b.node("MatMul", ["c", "v"], "d")
    b.node("MatMul", ["d", "w"], "y")
    b.output("y", 2)
    yield b.model("com-microsoft", domains=[ms])


@_odd
def leftovers() -> Iterator[OddModel]:
    node = helper.make_node
    for training in (0, 1):
        b = _Builder()
        b.input("x", 2, 8, 6, 6, dims=["N", 8, 6, 6])
        b.weight("w", 16, 8, 3, 3)
        b.node("Conv", ["x", "w"], "c")
        for name in ("scale", "bias", "mean"):
            b.weight(name, 16)
        b.constant("var", b.rng.uniform(0.5, 2, 16).astype(np.float32))
        outputs = ["n", "mean2", "var2"] if training else ["n"]
        b.nodes.append(
            node(
                "BatchNormalization",
                ["c", "scale", "bias", "mean", "var"],
                outputs,
                training_mode=training,
            )
        )
        b.constant("ratio", np.float32(0.0 if training else 0.5))
        b.constant("mode", np.bool_(training))
        b.nodes.append(node("Dropout", ["n", "ratio", "mode"], ["d", "mask"]))
        b.node("Not", "mask", "dropped")
        b.node("Flatten", "d", "f")
        b.weight("fc", 10, 256)
        b.node("Gemm", ["f", "fc"], "y", transB=1)
        b.output("y", 2)
        b.output("dropped", 4, TensorProto.BOOL)
        yield b.model(f"batchnorm-dropout-training{training}")


# --- versions --------------------------------------------------------------------------------
@_odd
def opset_sweep() -> Iterator[OddModel]:
    node = helper.make_node
    for opset in range(7, 27):
        ir = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7}.get(opset, 8 if opset < 19 else 10)
        b = _Builder(opset)
        b.input("x", 4, 32, dims=["N", 32])
        listed = []
        for i, (k, n) in enumerate(((32, 64), (64, 64), (64, 12))):
            listed += [(b.weight(f"w{i}", k, n), [k, n]), (b.weight(f"b{i}", n), [n])]
            b.node("MatMul", ["x" if i == 0 else f"r{i - 1}", f"w{i}"], f"m{i}")
            b.node("Add", [f"m{i}", f"b{i}"], f"a{i}")
            b.node("Relu", f"a{i}", f"r{i}")
        if ir < 4:
            b.inputs += [_value(name, dims) for name, dims in listed]
        b.node("Dropout", "r2", "d", **({"ratio": 0.5} if opset < 12 else {}))
        b.node("Softmax", "d", "y", axis=1)
        b.output("y", 2)
        yield b.model(f"mlp-opset{opset}", opset=opset, ir=ir)

        b = _Builder(opset)
        b.input("x", 2, 3, 12, 12, dims=["N", 3, 12, 12])
        kernels = {"k0": (16, 3, 3, 3), "k1": (16, 16, 3, 3), "fc": (10, 64)}
        vectors = ("scale", "shift", "mean")
        for name, shape in kernels.items():
            b.weight(name, *shape)
        for name in vectors:
            b.weight(name, 16)
        b.constant("variance", b.rng.uniform(0.5, 2, 16).astype(np.float32))
        b.weight("fc_bias", 10)
        if ir < 4:
            b.inputs += [_value(t.name, list(t.dims)) for t in b.initializers]
        pads = [0, 0, 1, 1, 0, 0, 1, 1]
        if opset < 11:
            b.node("Pad", "x", "p", pads=pads)
        else:
            b.node("Pad", ["x", b.ints("pads", *pads)], "p")
        b.node("Conv", ["p", "k0"], "c0")
        b.node("BatchNormalization", ["c0", "scale", "shift", "mean", "variance"], "n0")
        if opset < 11:
            b.node("Clip", "n0", "r0", min=0.0, max=6.0)
        else:
            b.constant("low", np.float32(0))
            b.constant("high", np.float32(6))
            b.node("Clip", ["n0", "low", "high"], "r0")
        b.node("MaxPool", "r0", "q0", kernel_shape=[2, 2], strides=[2, 2])
        b.node("Conv", ["q0", "k1"], "c1", auto_pad="SAME_UPPER")
        b.node("Add", ["c1", "q0"], "s1")
        if opset < 10:
            b.node("Slice", "s1", "cut", axes=[2, 3], starts=[0, 0], ends=[4, 4])
        else:
            ends = [b.ints("starts", 0, 0), b.ints("ends", 4, 4), b.ints("axes", 2, 3)]
            b.node("Slice", ["s1", *ends], "cut")
        b.node("AveragePool", "cut", "q1", kernel_shape=[2, 2], strides=[2, 2])
        b.node("Flatten", "q1", "f")
        b.node("Gemm", ["f", "fc", "fc_bias"], "g", transB=1)
        reduce = {"axes": [1], "keepdims": 1}
        if opset < 13:
            b.node("ReduceSum", "g", "total", **reduce)
            b.node("Squeeze", "total", "y", axes=[1])
        else:
            b.node("ReduceSum", ["g", b.ints("over", 1)], "total", keepdims=1)
            b.node("Squeeze", ["total", "over"], "y")
        b.node("LogSoftmax", "s1", "z")
        b.output("y", 1)
        b.output("z", 4)
        b.output("g", 2)
        yield b.model(f"cnn-opset{opset}", opset=opset, ir=ir)

    b = _Builder()
    b.input("xs", 2, 5, 16)
    b.input("h0", 2, 16)
    body = _body(
        [_value("h", [16]), _value("x", [16])],
        [_value("h2", [16]), _value("y", [16])],
        [
            node("MatMul", ["h", "w"], ["a"]),
            node("Add", ["a", "x"], ["s"]),
            node("Tanh", ["s"], ["h2"]),
            node("Identity", ["h2"], ["y"]),
        ],
        [_tensor(b.values(16, 16), "w")],
    )
    scan = node("Scan", ["", "h0", "xs"], ["h", "ys"], body=body, num_scan_inputs=1)
    b.nodes.append(scan)
    b.output("h", 2)
    b.output("ys", 3)
    yield b.model("scan-opset8", opset=8, ir=4)

    b = _Builder()
    b.input("x", 2, 4, 6, 6)
    b.weight("w", 4, 4, 3, 3)
    b.node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1])
    b.node("Upsample", ["c", b.constant("scales", np.array([1, 1, 2, 2], np.float32))], "u")
    b.nodes.append(node("Split", ["u"], ["s1", "s2"], axis=1, split=[1, 3]))
    b.node("Concat", ["s2", "s1"], "j", axis=1)
    b.nodes.append(node("TopK", ["j"], ["top", "where"], k=3, axis=3))
    b.node("ReduceMean", "j", "m", axes=[2, 3], keepdims=0)
    b.node("Softmax", "j", "soft", axis=1)
    b.node("Hardmax", "m", "hard")
    b.node("ArgMax", "m", "best", axis=1, keepdims=0)
    for name, rank in (("soft", 4), ("hard", 2), ("top", 4)):
        b.output(name, rank)
    b.output("best", 1, I64)
    b.output("where", 4, I64)
    yield b.model("old-operators-opset9", opset=9, ir=4)

    b = _Builder()
    b.input("x", 2, 6, 16)
    b.weight("q", 16, 16)
    b.weight("k", 16, 16)
    b.weight("norm", 16)
    b.node("RMSNormalization", ["x", "norm"], "n", axis=-1)
    b.node("MatMul", ["n", "q"], "Q")
    b.node("MatMul", ["n", "k"], "K")
    b.node("Attention", ["Q", "K", "K"], "a", q_num_heads=4, kv_num_heads=4)
    b.node("Gelu", "a", "g", approximate="tanh")
    b.node("Swish", "g", "y")
    b.output("y", 3)
    yield b.model("new-operators-opset24", opset=24, ir=10)


@_odd
def large() -> Iterator[OddModel]:
    b = _Builder()
    b.input("x", 1, 8)
    previous = "x"
    for i in range(10000):
        if i % 50 == 0:
            b.weight(f"w{i}", 8, 8)
            previous = b.node("MatMul", [previous, f"w{i}"], f"m{i}")
        previous = b.node("Relu" if i % 7 else "Identity", previous, f"r{i}")
        if i % 2:
            previous = b.node("Add", [previous, "x"], f"s{i}")
        else:
            previous = b.node("Sigmoid", previous, f"s{i}")
    b.output(previous, 2)
    yield b.model("20000-nodes")
