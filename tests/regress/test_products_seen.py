"""Weights behind every kind of product and chain: what is recorded as 2:4 is so in the operand that
ONNX Runtime gives the product, and what is not pruned is refused with the expected code.

The operand is made an output of the graph and the axis read off the operator, so nothing of the
analysis is used to judge it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse

TARGET = targets.load("sm86")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """text: of a graph `(float[x] x) => (float y)`, where `x` and weights `w`, `v` have these
    shapes. code: of the verdict of `w`; O24-100 where it is pruned."""

    text: str
    x: Shape
    w: Shape
    code: str = "O24-100"
    v: Shape | None = None
    constants: dict[str, list[int]] = field(default_factory=dict)
    dtype: str = "float32"
    opset: int = 17


CHAINS = {
    "perm-reshape-cast": Case(
        "t = Transpose<perm=[2,0,1]>(w) r = Reshape(t, s) c = Cast<to=1>(r) y = MatMul(x, c)",
        *((24, 16), (4, 2, 16)),
        constants={"s": [16, 8]},
        dtype="float16",
    ),
    "k-of-two-axes": Case(
        "r = Reshape(w, s) y = MatMul(x, r)", (24, 16), (8, 2, 8), constants={"s": [16, 8]}
    ),
    "k-of-two-axes-swapped": Case(
        "t = Transpose<perm=[1,0,2]>(w) r = Reshape(t, s) y = MatMul(x, r)",
        *((24, 16), (8, 2, 8)),
        constants={"s": [16, 8]},
    ),
    "k-cut-in-twos": Case(
        "t = Transpose<perm=[0,2,1]>(w) r = Reshape(t, s) y = MatMul(x, r)",
        *((24, 16), (8, 8, 2), "O24-121"),
        constants={"s": [16, 8]},
    ),
    "flatten": Case("r = Flatten<axis=2>(w) y = MatMul(x, r)", (24, 16), (4, 4, 2, 4)),
    "flatten-from-the-end": Case("r = Flatten<axis=-1>(w) y = MatMul(x, r)", (24, 16), (4, 4, 8)),
    "squeezed": Case(
        "a = Squeeze(w) b = Unsqueeze(a, s) c = Squeeze(b, s) y = MatMul(x, c)",
        *((24, 16), (1, 16, 1, 8)),
        constants={"s": [-1]},
    ),
    "identities": Case("a = Identity(w) b = Identity(a) y = MatMul(x, b)", (24, 16), (16, 8)),
    "sliced": Case(
        "r = Slice(w, s, e) y = MatMul(x, r)",
        *((24, 16), (20, 8), "O24-121"),
        constants={"s": [1], "e": [17]},
    ),
    "joined": Case(
        "r = Concat<axis=0>(w, v) y = MatMul(x, r)", (24, 16), (6, 8), "O24-121", v=(10, 8)
    ),
    "low-rank-update": Case("r = Add(w, v) y = MatMul(x, r)", (24, 16), (16, 8), "O24-121", v=(8,)),
    "rounded": Case(
        "r = Cast<to=7>(w) q = Cast<to=1>(r) y = MatMul(x, q)", (24, 16), (16, 8), "O24-121"
    ),
}
RANKS = {
    "vector-left": Case("y = MatMul(w, x)", (16, 8), (16,)),
    "vector-right": Case("y = MatMul(x, w)", (24, 16), (16,)),
    "vectors": Case("y = MatMul(x, w)", (16,), (16,)),
    "broadcast": Case("y = MatMul(x, w)", (2, 1, 3, 4, 16), (5, 1, 16, 8)),
    "left-of-batches": Case("y = MatMul(w, x)", (2, 16, 5), (2, 8, 16)),
    "left-of-a-batch": Case("y = MatMul(w, x)", (2, 16, 5), (8, 16)),
    "batch-of-weights": Case("y = MatMul(x, w)", (16,), (2, 16, 8)),
    "k-4": Case("y = MatMul(x, w)", (8, 4), (4, 1)),
    "k-6": Case("y = MatMul(x, w)", (8, 6), (6, 4), "O24-113"),
    "k-2": Case("y = MatMul(x, w)", (8, 2), (2, 4), "O24-113"),
}
GEMMS = {
    f"gemm-{a}{b}{'-left' if left else ''}": Case(
        f"y = Gemm<transA={a},transB={b},alpha=-0.5>({'w, x' if left else 'x, w'})",
        (*((24, 16) if b else (16, 24)),) if left else (*((16, 24) if a else (24, 16)),),
        (*((16, 8) if a else (8, 16)),) if left else (*((8, 16) if b else (16, 8)),),
    )
    for a in (0, 1)
    for b in (0, 1)
    for left in (False, True)
}
EINSUMS = {
    equation: Case(f'y = Einsum<equation="{equation}">(x, w)', x, w, code)
    for equation, x, w, code in (
        ("nk,ko->no", (24, 16), (16, 8), "O24-100"),
        ("kn,ko->no", (16, 24), (16, 8), "O24-100"),
        ("nk,ok->on", (24, 16), (8, 16), "O24-100"),
        ("bij,jk->bik", (2, 3, 8), (8, 6), "O24-100"),
        ("bij,kj->bki", (2, 3, 8), (6, 8), "O24-100"),
        ("bnk,bko->bno", (2, 3, 8), (2, 8, 6), "O24-100"),
        ("nk,ko", (3, 8), (8, 6), "O24-100"),
        ("bhqd,hdo->bqo", (2, 4, 3, 8), (4, 8, 6), "O24-121"),  # K is two axes
        ("nk,ko->n", (3, 8), (8, 6), "O24-121"),
        ("ij,ij->ij", (8, 8), (8, 8), "O24-121"),
    )
}
CONVS = {
    "same": Case('y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w)', (2, 8, 9, 9), (4, 8, 3, 3)),
    "dilated": Case('y = Conv<auto_pad="VALID",dilations=[2,2]>(x, w)', (2, 8, 9, 9), (4, 8, 3, 3)),
    "uneven-pads": Case("y = Conv<pads=[0,2,2,0]>(x, w)", (2, 8, 9, 9), (4, 8, 3, 4)),
    "3-d": Case("y = Conv<strides=[1,2,1]>(x, w)", (2, 8, 5, 5, 5), (4, 8, 3, 2, 2)),
    "1-d": Case("y = Conv<pads=[1,1]>(x, w)", (2, 8, 9), (4, 8, 3)),
    "grouped": Case("y = Conv<group=2>(x, w)", (2, 8, 9, 9), (4, 4, 3, 3), "O24-111"),
    "depthwise": Case("y = Conv<group=8>(x, w)", (2, 8, 9, 9), (16, 1, 3, 3), "O24-112"),
    "six-channels": Case("y = Conv(x, w)", (2, 6, 9, 9), (4, 6, 3, 3), "O24-113"),
    "transposed": Case("y = ConvTranspose<group=2>(x, w)", (2, 8, 5, 5), (8, 4, 3, 3), "O24-122"),
    "both-ways": Case(
        "a = Conv(x, w) y = ConvTranspose(a, w)", (2, 8, 5, 5), (4, 8, 3, 3), "O24-116"
    ),
}
READERS = {
    "two-axes": Case(
        "a = MatMul(x, w) t = Transpose<perm=[1,0]>(w) y = MatMul(a, t)",
        *((24, 16), (16, 16), "O24-115"),
    ),
    "both-operands": Case("a = MatMul(x, w) y = MatMul(w, a)", (16, 16), (16, 16), "O24-115"),
    "product-of-itself": Case("a = MatMul(w, w) y = MatMul(x, a)", (16, 16), (16, 16), "O24-121"),
    "bias-of-itself": Case("y = Gemm(x, w, w)", (16, 16), (16, 8), "O24-116"),
    "softmax-too": Case(
        "s = Softmax(w) m = ReduceSum<keepdims=0>(s) a = MatMul(x, w) y = Add(a, m)",
        *((24, 16), (16, 8), "O24-116"),
    ),
    "shape-too": Case(
        "s = Shape(w) f = Cast<to=1>(s) m = ReduceSum<keepdims=0>(f) a = MatMul(x, w) "
        "y = Add(a, m)",
        *((24, 16), (16, 8)),
    ),
}
CASES = {**CHAINS, **RANKS, **GEMMS, **EINSUMS, **CONVS, **READERS}


def values(shape: Shape, name: str, dtype: str = "float32") -> np.ndarray:
    seed = zlib.crc32(f"{name}{shape}".encode())
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def built(case: Case) -> onnx.ModelProto:
    dims = ",".join(map(str, case.x))
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {case.opset}]> '
        f"g (float[{dims}] x) => (float y) {{ {case.text} }}"
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    arrays = {"w": values(case.w, "w", case.dtype)}
    arrays |= {"v": values(case.v, "v")} if case.v else {}
    arrays |= {name: np.array(ints, np.int64) for name, ints in case.constants.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    shape = computed(proto, values(case.x, "x"), ["y"])["y"].shape
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, shape))
    return proto


def computed(proto: onnx.ModelProto, x: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Values of the graph, as ONNX Runtime computes them without optimizations."""
    if not names:
        return {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in have)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def summed_axis(node: NodeProto, position: int, rank: int) -> int | None:
    """Over which axis of an operand the product sums. None where that is no single one."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "MatMul":
        return rank - 1 if position == 0 or rank == 1 else rank - 2
    if node.op_type == "Gemm":
        turned = attributes.get("transA" if position == 0 else "transB", 0)
        return (0 if turned else 1) if position == 0 else (1 if turned else 0)
    if node.op_type == "Conv":
        return 1 if attributes.get("group", 1) == 1 else None
    left, _, out = attributes["equation"].decode().partition("->")
    terms = left.split(",")
    out = out or "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    both = [c for c in terms[position] if c in terms[1 - position] and c not in out]
    return terms[position].index(both[0]) if len(both) == 1 else None


def operands(proto: onnx.ModelProto) -> list[tuple[NodeProto, int]]:
    """Operands of products that no input of the graph reaches."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)
        elif node.op_type in ("MatMul", "Gemm", "Conv", "Einsum"):
            found += [(node, i) for i in (0, 1) if node.input[i] in constant]
    return found


def is_24(operand: np.ndarray, axis: int) -> bool:
    groups = np.moveaxis(operand, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(groups, axis=1) <= 2).all())


@pytest.mark.parametrize("name", CASES)
def test_what_a_product_sees(name: str) -> None:
    case = CASES[name]
    model = Model.from_proto(built(case))
    result = run(model, parse("prune24{permute=off}"), target=TARGET, reproducer_dir=None)
    (record,) = [r for r in result.records if r.weight == "w"]
    assert record.code == case.code
    pruned = onnx.load_model_from_string(model.to_bytes())
    onnx.checker.check_model(pruned)
    x = values(case.x, "x")
    found = operands(pruned)
    seen = computed(pruned, x, [node.input[i] for node, i in found])
    if case.code != "O24-100":
        assert not model.claims.keys()
        np.testing.assert_array_equal(
            computed(pruned, x, ["y"])["y"], computed(built(case), x, ["y"])["y"]
        )
        return
    assert [key.name for key in model.claims] == ["w"] and found
    for node, i in found:
        operand = seen[node.input[i]]
        axis = summed_axis(node, i, operand.ndim)
        assert axis is not None and is_24(operand, axis)
        # Two of each four stay as they were, and these are the largest.
        before = computed(built(case), x, [node.input[i]])[node.input[i]]
        kept, all_four = (
            np.moveaxis(np.abs(a), axis, -1).reshape(-1, 4) for a in (operand, before)
        )
        np.testing.assert_array_equal(kept.sum(1), np.sort(all_four, axis=1)[:, 2:].sum(1))


SPLIT = [name for name, case in CASES.items() if case.code in ("O24-115", "O24-116")]


@pytest.mark.parametrize("name", SPLIT)
def test_copies_for_readers_that_disagree(name: str) -> None:
    """With a copy for each, every product that could be 2:4 is, and the others see no change."""
    case = CASES[name]
    model = Model.from_proto(built(case))
    text = "prune24{permute=off conflicting=split tied=split}"
    run(model, parse(text), target=TARGET, reproducer_dir=None)
    pruned = onnx.load_model_from_string(model.to_bytes())
    claimed = {key.name for key in model.claims}
    products = [(node, i) for node, i in operands(pruned) if node.op_type != "ConvTranspose"]
    assert claimed and products
    seen = computed(pruned, values(case.x, "x"), [node.input[i] for node, i in products])
    for node, i in products:
        axis = summed_axis(node, i, seen[node.input[i]].ndim)
        assert axis is not None and is_24(seen[node.input[i]], axis)
    dense = [t for t in pruned.graph.initializer if t.name not in claimed and t.name == "w"]
    for tensor in dense:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), values(case.w, "w"))
