"""Random weights behind random chains before every kind of product: what ONNX Runtime itself hands
to the product is 2:4 wherever prune24 says so, and nothing is refused that could be.

ONNX24_CHAINS: how many models to try; 100 unless given.
"""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
import operand_oracle as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.passmgr.manager import RunResult
from onnx24.rewrite.split_weights import split_weight

MODELS = int(os.environ.get("ONNX24_CHAINS", "100"))
SIZES = (1, 1, 2, 3, 4, 4, 6, 8, 8, 12, 16)
TYPES = {"float32": 1, "float16": 10, "int8": 3}


@dataclass
class Chain:
    """A model in the making. indices: which stored element stands where in `value`."""

    draw: random.Random
    nodes: list[NodeProto] = field(default_factory=list)
    tensors: list[TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    value: str = "w"
    indices: np.ndarray = field(default_factory=lambda: np.zeros(()))
    dtype: str = "float32"
    mixed: bool = False
    """Quantization may mix the groups."""

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"{op}{output}", **attributes)
        )
        return output

    def step(self) -> None:
        moves = [self.transpose, self.reshape, self.flatten, self.squeeze, self.unsqueeze]
        moves += [self.identity, self.transpose, self.reshape]
        if self.dtype != "int8":
            moves += [self.cast, self.quantize]
        self.draw.choice(moves)()

    def transpose(self) -> None:
        rank = self.indices.ndim
        perm = self.draw.sample(range(rank), rank)
        given = {"perm": perm} if self.draw.random() < 0.8 and rank else {}
        self.value = self.node("Transpose", [self.value], **given)
        self.indices = self.indices.transpose(perm if given else None)

    def reshape(self) -> None:
        shape = factors(self.draw, self.indices.size)
        wanted = list(shape)
        if wanted and self.draw.random() < 0.4:
            wanted[self.draw.randrange(len(wanted))] = -1
        for i, size in enumerate(wanted[: self.indices.ndim]):
            if size == self.indices.shape[i] and self.draw.random() < 0.5:
                wanted[i] = 0
        self.value = self.node("Reshape", [self.value, self.constant(np.array(wanted, np.int64))])
        self.indices = self.indices.reshape(shape)

    def flatten(self) -> None:
        axis = self.draw.randint(-self.indices.ndim, self.indices.ndim)
        self.value = self.node("Flatten", [self.value], axis=axis)
        rows = math.prod(self.indices.shape[:axis] if axis else ())
        self.indices = self.indices.reshape(rows, -1)

    def squeeze(self) -> None:
        ones = [i for i, n in enumerate(self.indices.shape) if n == 1]
        inputs = [self.value]
        if ones and self.draw.random() < 0.7:
            ones = self.draw.sample(ones, self.draw.randint(1, len(ones)))
            signed = [i - self.draw.choice((0, self.indices.ndim)) for i in ones]
            inputs.append(self.constant(np.array(signed, np.int64)))
        self.value = self.node("Squeeze", inputs)
        self.indices = self.indices.squeeze(tuple(ones))

    def unsqueeze(self) -> None:
        rank = self.indices.ndim + self.draw.randint(1, 2)
        axes = self.draw.sample(range(rank), rank - self.indices.ndim)
        signed = [i - self.draw.choice((0, rank)) for i in axes]
        axes_name = self.constant(np.array(signed, np.int64))
        self.value = self.node("Unsqueeze", [self.value, axes_name])
        self.indices = np.expand_dims(self.indices, tuple(axes))

    def identity(self) -> None:
        self.value = self.node("Identity", [self.value])

    def cast(self) -> None:
        self.dtype = self.draw.choice(("float32", "float16"))
        self.value = self.node("Cast", [self.value], to=TYPES[self.dtype])

    def parameters(self) -> tuple[list[str], dict[str, int], bool]:
        """Scale and zero point, per tensor, per channel or per block; whether zero is 0."""
        shape, zero = self.indices.shape, self.draw.choice((0, 0, 0, 5))
        scales: tuple[int, ...] = ()
        attributes = {}
        if shape and (kind := self.draw.choice(("tensor", "channel", "block"))) != "tensor":
            axis = self.draw.randrange(len(shape))
            attributes["axis"] = axis - self.draw.choice((0, len(shape)))
            scales = (shape[axis],)
            if kind == "block" and len(shape) > 1:
                sizes = [n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]
                block = self.draw.choice(sizes)
                attributes["block_size"] = block
                scales = (*shape[:axis], shape[axis] // block, *shape[axis + 1 :])
        count = math.prod(scales)
        if count == 1:  # ONNX Runtime takes no blocks of a whole tensor
            attributes.pop("block_size", None)
            scales = ()
        scale = np.linspace(0.01, 0.04, count, dtype=self.dtype).reshape(scales)
        zeros = np.full(scales, zero, np.int8)
        return [self.constant(scale), self.constant(zeros)], attributes, zero == 0

    def quantize(self) -> None:
        names, attributes, _ = self.parameters()
        self.value = self.node("QuantizeLinear", [self.value, *names], **attributes)
        if self.draw.random() < 0.2:
            names, attributes, _ = self.parameters()
            self.mixed = True
        self.value = self.node("DequantizeLinear", [self.value, *names], **attributes)

    def dequantize(self) -> None:
        self.dtype = "float32"
        names, attributes, symmetric = self.parameters()
        self.value = self.node("DequantizeLinear", [self.value, *names], **attributes)
        self.mixed = not symmetric or bool(attributes)

    # --- the product ---------------------------------------------------------------------
    def feed(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        values = np.random.default_rng(len(self.inputs)).standard_normal(shape).astype(self.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, TYPES[self.dtype], shape))
        self.feeds[name] = values
        return name

    def product(self) -> int | None:
        """Add one. Returns: the axis of the operand that it sums over."""
        rank = self.indices.ndim
        makers = {0: [self.unsqueeze_and_multiply], 1: [self.matmul], 2: [self.gemm]}.get(rank, [])
        makers = makers + ([self.conv] if 3 <= rank <= 5 else [])
        makers = makers + ([self.matmul, self.einsum] if rank >= 2 else [])
        return self.draw.choice(makers)()

    def unsqueeze_and_multiply(self) -> int:
        self.unsqueeze()
        return self.matmul()

    def matmul(self) -> int:
        shape = self.indices.shape
        left = self.draw.random() < 0.4
        k_axis = len(shape) - (1 if left or len(shape) == 1 else 2)
        k = shape[k_axis]
        batch = [self.draw.choice((1, n)) for n in shape[:-2]][self.draw.choice((0, 0, 1)) :]
        if left:
            other = self.feed(*self.draw.choice(([k], [*batch, k, 3])))
            self.node("MatMul", [self.value, other])
        else:
            other = self.feed(*self.draw.choice(([k], [*batch, 3, k])))
            self.node("MatMul", [other, self.value])
        return k_axis

    def gemm(self) -> int:
        left, own, others = (self.draw.random() < 0.5 for _ in range(3))
        k_axis = int(left) ^ int(own)
        k = self.indices.shape[k_axis]
        other = self.feed(*((k, 3) if left ^ others else (3, k)))
        inputs = [self.value, other] if left else [other, self.value]
        flags = (own, others) if left else (others, own)
        self.node("Gemm", inputs, transA=int(flags[0]), transB=int(flags[1]), alpha=0.5)
        return k_axis

    def conv(self) -> int:
        channels, spatial = self.indices.shape[1], self.indices.shape[2:]
        other = self.feed(1, channels, *(n + 1 for n in spatial))
        given = self.draw.choice(({}, {"auto_pad": "SAME_UPPER"}, {"pads": [1] * 2 * len(spatial)}))
        self.node("Conv", [other, self.value], **given)
        return 1

    def einsum(self) -> int:
        letters = "".join(self.draw.sample("abcdefghijkl", self.indices.ndim))
        k_axis = self.draw.randrange(len(letters))
        batch = [c for i, c in enumerate(letters) if i != k_axis and self.draw.random() < 0.3]
        sizes = dict(zip(letters, self.indices.shape, strict=True)) | {"q": 3}
        theirs = self.draw.sample([*batch, letters[k_axis], "q"], len(batch) + 2)
        kept = [c for c in (*letters, "q") if c != letters[k_axis]]
        result = "".join(self.draw.sample(kept, len(kept)))
        other = self.feed(*(sizes[c] for c in theirs))
        terms, inputs = [letters, "".join(theirs)], [self.value, other]
        if self.draw.random() < 0.5:
            terms.reverse()
            inputs.reverse()
        text = ",".join(terms)
        if batch or self.draw.random() < 0.7:
            text += f"->{result}"
        self.node("Einsum", inputs, equation=text)
        return k_axis


def factors(draw: random.Random, size: int) -> tuple[int, ...]:
    """A random shape of that many elements."""
    shape: list[int] = []
    while size > 1:
        part = draw.choice([n for n in range(1, size + 1) if size % n == 0])
        shape.append(part)
        size //= part
    return tuple(shape[:6]) if math.prod(shape[:6]) == math.prod(shape) else tuple(shape)


def make(draw: random.Random) -> tuple[Chain, np.ndarray, int]:
    """A chain, the stored weight, and the reduction axis of its product."""
    chain = Chain(draw)
    shape = tuple(draw.choice(SIZES) for _ in range(draw.randint(1, 4)))
    chain.indices = np.arange(math.prod(shape)).reshape(shape)
    stored = draw.choice(("float32", "float32", "float16", "int8"))
    chain.dtype = stored
    rng = np.random.default_rng(draw.randrange(1 << 30))
    weight = (rng.standard_normal(shape) * (40 if stored == "int8" else 1)).astype(stored)
    for _ in range(draw.randint(0, 3)):
        chain.step()
    if stored == "int8":
        chain.dequantize()
    for _ in range(draw.randint(0, 3)):
        chain.step()
    if chain.indices.ndim > 6:
        chain.value = chain.node("Flatten", [chain.value], axis=2)
        chain.indices = chain.indices.reshape(math.prod(chain.indices.shape[:2]), -1)
    return chain, weight, chain.product()


def model_of(chain: Chain, weight: np.ndarray) -> onnx.ModelProto:
    outputs = [helper.make_tensor_value_info(chain.nodes[-1].output[0], TYPES[chain.dtype], None)]
    tensors = [numpy_helper.from_array(weight, "w"), *chain.tensors]
    graph = helper.make_graph(chain.nodes, "g", chain.inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def operand(proto: onnx.ModelProto, chain: Chain) -> np.ndarray:
    """What ONNX Runtime hands to the product; it also runs the product itself."""
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    name = chain.nodes[-1].input[list(chain.nodes[-1].input).index(chain.value)]
    alias = shown.graph.node.add(op_type="Identity", input=[name], output=["operand"])
    assert alias.op_type == "Identity"
    info = helper.make_tensor_value_info("operand", TYPES[chain.dtype], None)
    shown.graph.output.append(info)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["operand", shown.graph.output[0].name], chain.feeds)[0]


def prune(proto: onnx.ModelProto) -> tuple[Model, RunResult]:
    model = Model.from_proto(proto)
    text = pipeline.parse("prune24")
    target = targets.load(targets.DEFAULT)
    return model, manager.run(model, text, target=target, reproducer_dir=None)


def could_be_pruned(indices: np.ndarray, k_axis: int) -> bool:
    """Whether groups along the axis are regular in the stored tensor: the members of each lie the
    same distance apart, and each fills its place in a block of four such steps."""
    lanes = np.moveaxis(indices, k_axis, -1)
    if lanes.shape[-1] % 4:
        return False
    groups = lanes.reshape(-1, 4)
    (stride, *more) = np.unique(np.diff(groups, axis=1))
    return not more and stride > 0 and bool((groups[:, 0] // stride % 4 == 0).all())


@settings(max_examples=MODELS)
@given(draw=st.randoms(use_true_random=False))
def test_the_product_sees_2_of_4(draw: random.Random) -> None:
    chain, weight, k_axis = make(draw)
    proto = model_of(chain, weight)
    dense = operand(proto, chain)
    assert dense.shape == chain.indices.shape
    model, result = prune(proto)
    (record,) = (r for r in result.records if r.weight == "w")
    pruned = onnx.ModelProto.FromString(model.to_bytes())
    if record.action == "refused":
        assert not could_be_pruned(chain.indices, k_axis) or (
            record.code == "O24-124" and chain.mixed
        ), record
        assert pruned.SerializeToString() == proto.SerializeToString()
        return
    assert could_be_pruned(chain.indices, k_axis)
    sparse = operand(pruned, chain)
    assert oracle.is_pruned(sparse, k_axis), record
    quantized = any(node.op_type == "QuantizeLinear" for node in chain.nodes)
    if not quantized and record.action == "pruned":
        assert oracle.survivors_are_largest(dense, sparse, k_axis), record


@settings(max_examples=max(MODELS // 3, 1))
@given(draw=st.randoms(use_true_random=False))
def test_two_readers_agree_or_the_weight_stays(draw: random.Random) -> None:
    """A second product of the stored weight, over any of its axes."""
    chain, weight, k_axis = make(draw)
    second = draw.randrange(weight.ndim)
    letters = "abcdefgh"[: weight.ndim]
    other = Chain(draw, chain.nodes, chain.tensors, chain.inputs, chain.feeds, dtype=chain.dtype)
    x = other.feed(weight.shape[second], 3)
    value = other.value
    if weight.dtype != chain.dtype:
        value = other.node("Cast", ["w"], to=TYPES[chain.dtype])
    text = f"{letters[second]}q,{letters}->" + letters.replace(letters[second], "q")
    last = chain.nodes[-1] if value == "w" else chain.nodes[-2]
    chain.nodes.append(
        helper.make_node("Einsum", [x, value], ["second"], name="second", equation=text)
    )
    proto = model_of(chain, weight)
    proto.graph.output.append(helper.make_tensor_value_info(last.output[0], 0, None))
    proto.graph.output[-1].type.tensor_type.elem_type = TYPES[chain.dtype]
    model, result = prune(proto)
    (record,) = (r for r in result.records if r.weight == "w")
    pruned = model.weights.read(model.weights.tensor(ValueKey("", "w")))
    indices = np.arange(weight.size).reshape(weight.shape)
    if record.action == "refused":
        np.testing.assert_array_equal(pruned, weight)
        return
    assert could_be_pruned(chain.indices, k_axis) and could_be_pruned(indices, second)
    assert oracle.is_pruned(pruned, second)
    assert oracle.is_pruned(pruned.reshape(-1)[chain.indices], k_axis)


@dataclass
class Leaf:
    """A reader: a product with the axis that it sums over, or None for one that is none."""

    value: str
    indices: np.ndarray
    k_axis: int | None
    output: str


def grow(draw: random.Random) -> tuple[Chain, np.ndarray, list[Leaf]]:
    """A float weight and a tree of chains, with readers of all kinds at its values."""
    chain = Chain(draw)
    shape = tuple(draw.choice((4, 4, 8, 8, 12, 6)) for _ in range(draw.randint(1, 3)))
    chain.indices = np.arange(math.prod(shape)).reshape(shape)
    rng = np.random.default_rng(draw.randrange(1 << 30))
    weight = rng.standard_normal(shape).astype(np.float32)
    values = [("w", chain.indices)]
    for _ in range(draw.randint(0, 5)):
        chain.value, chain.indices = draw.choice(values)
        draw.choice((chain.transpose, chain.reshape, chain.identity, chain.unsqueeze))()
        if chain.indices.ndim < 6:
            values.append((chain.value, chain.indices))
    leaves = []
    for _ in range(draw.randint(2, 5)):
        value, indices = draw.choice(values)
        chain.value, chain.indices, k_axis = value, indices, None
        if indices.ndim and draw.random() < 0.75:
            k_axis = chain.product()
            if chain.value != value:
                raise AssertionError("a product of a value of rank 0")
        else:
            chain.node("Abs", [value])
        leaves.append(Leaf(value, indices, k_axis, chain.nodes[-1].output[0]))
    return chain, weight, leaves


def operands_of(proto: onnx.ModelProto, leaves: list[Leaf]) -> list[str]:
    """What each reader reads now: a split renames it."""
    nodes = {node.output[0]: node for node in proto.graph.node}
    feeds = {value.name for value in proto.graph.input}
    return [next(n for n in nodes[leaf.output].input if n not in feeds) for leaf in leaves]


def results(proto: onnx.ModelProto, feeds: dict, names: list[str]) -> list[np.ndarray]:
    """Each value as ONNX Runtime computes it."""
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    del shown.graph.output[:]
    for i, name in enumerate(names):
        shown.graph.node.add(op_type="Identity", input=[name], output=[f"shown{i}"])
        shown.graph.output.append(helper.make_tensor_value_info(f"shown{i}", 1, None))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


@settings(max_examples=max(MODELS // 2, 1))
@given(draw=st.randoms(use_true_random=False))
def test_copies_serve_every_reader(draw: random.Random) -> None:
    """Split: the same function bit for bit. Pruned after that: every product that could be sees
    2:4 along its axis, every other reader the dense values."""
    chain, weight, leaves = grow(draw)
    proto = model_of(chain, weight)
    del proto.graph.output[:]
    for leaf in leaves:
        proto.graph.output.append(helper.make_tensor_value_info(leaf.output, 1, None))
    outputs = [leaf.output for leaf in leaves]
    before = results(proto, chain.feeds, outputs + [leaf.value for leaf in leaves])

    model = Model.from_proto(proto)
    cache = AnalysisCache()
    found, verdicts = cache.get(model, WeightUses), cache.get(model, Eligibility).verdicts
    if verdict := verdicts.get(ValueKey("", "w")):
        split_weight(model, found, verdict)
    split = onnx.ModelProto.FromString(model.to_bytes())
    names = operands_of(split, leaves)
    for was, now in zip(before, results(split, chain.feeds, outputs + names), strict=True):
        np.testing.assert_array_equal(was, now)

    _, pruned = prune_with(proto, "prune24{conflicting=split tied=split}")
    seen = results(pruned, chain.feeds, operands_of(pruned, leaves))
    for leaf, was, now in zip(leaves, before[len(leaves) :], seen, strict=True):
        if leaf.k_axis is not None and could_be_pruned(leaf.indices, leaf.k_axis):
            assert oracle.is_pruned(now, leaf.k_axis), leaf
            assert oracle.survivors_are_largest(was, now, leaf.k_axis), leaf
        else:
            np.testing.assert_array_equal(was, now)


def prune_with(proto: onnx.ModelProto, text: str) -> tuple[Model, onnx.ModelProto]:
    model = Model.from_proto(proto)
    target = targets.load(targets.DEFAULT)
    manager.run(model, pipeline.parse(text), target=target, reproducer_dir=None)
    return model, onnx.ModelProto.FromString(model.to_bytes())
