"""matmul-to-conv1x1 and its inverse on random single products: either side, any rank, dynamic and
empty dimensions, every attribute of Gemm, Q/DQ and Transposes of the weight, bodies of If and Loop.

Each model is run before, after the rewrite, and after the way back; both passes run twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx24.passes.conv1x1_to_matmul import Conv1x1ToMatmul
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When

from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.rewrite.conv1x1 import Layout
from onnx24.sparsity.masks import prune_24
from onnx24.testing.passes import apply, assert_same, session

RTOL = {np.float32: 3e-5, np.float16: 3e-2}
"""Of the largest output: another order of summation."""


@dataclass
class Case:
    """A product h = x·w or w·x. lead: the sizes of x but K, with M last. dynamic: which sizes of x
    its type leaves open. scales: of a weight behind Q/DQ."""

    op: str
    opset: int
    is_right: bool
    k: int
    n: int
    lead: list[int]
    dynamic: list[bool]
    dtype: Any
    attrs: dict[str, Any]
    addend: str
    scales: str
    is_transposed: bool
    is_24: bool
    body: str
    form: Layout
    all: bool
    seed: int
    nodes: list = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    feeds: dict[str, np.ndarray] = field(default_factory=dict)


@st.composite
def cases(draw) -> Case:
    op = draw(st.sampled_from(["MatMul", "Gemm"]))
    is_right, form = draw(st.booleans()), draw(st.sampled_from(list(Layout)))
    attrs = {"alpha": st.sampled_from([0.5, 0.0, -2.0]), "beta": st.sampled_from([0.0, 0.5]),
             "transA": st.just(1), "transB": st.just(1)}  # fmt: skip
    chosen = draw(st.sets(st.sampled_from(sorted(attrs)))) if op == "Gemm" else ()
    rank = 2 if op == "Gemm" else draw(st.integers(1, 4))
    opset = draw(st.sampled_from([9, 11, 13, 14, 17, 19, 21, 24]))
    # Empty at run time: no convolution takes an empty image, and before opset 14 no Reshape can be
    # told that 0 means 0.
    may_be_empty = form is Layout.TOKENS and is_right and opset >= 14 and op == "MatMul"
    sizes = st.sampled_from([1, 2, 3, 5] + [0] * may_be_empty)
    return Case(
        op=op,
        opset=opset,
        is_right=is_right,
        k=draw(st.sampled_from([1, 3, 4, 8, 16])),
        n=draw(st.sampled_from([1, 3, 8])),
        lead=draw(st.lists(sizes, min_size=rank - 1, max_size=rank - 1)),
        dynamic=draw(st.lists(st.booleans(), min_size=rank, max_size=rank)),
        dtype=draw(st.sampled_from([np.float32, np.float32, np.float16])),
        attrs={name: draw(attrs[name]) for name in sorted(chosen)},
        addend=draw(st.sampled_from(["", "1", "n", "1n", "m1", "mn", "computed"])),
        scales=draw(st.sampled_from(["", "", "tensor", "axis0", "axis1"])),
        is_transposed=draw(st.booleans()),
        is_24=draw(st.booleans()),
        body=draw(st.sampled_from(["", "", "", "If", *["Loop"] * (opset >= 11)])),
        form=form,
        all=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def _weight(case: Case, rng: np.random.Generator) -> str:
    """The name of the operand."""
    w = rng.standard_normal((case.k, case.n) if case.is_right else (case.n, case.k))
    if case.is_24 and case.k % 4 == 0:
        w = prune_24(w, 0 if case.is_right else 1)
    flipped = case.attrs.get("transB" if case.is_right else "transA", 0)
    stored = (w.T if bool(flipped) != case.is_transposed else w).astype(case.dtype)
    name = "w"
    if case.scales and case.opset >= (13 if case.dtype is np.float32 else 19):
        axis = {"tensor": None, "axis0": 0, "axis1": 1}[case.scales]
        count = () if axis is None else (stored.shape[axis],)
        case.constants["sw"] = (0.01 + 0.02 * rng.random(count)).astype(case.dtype)
        case.constants["zw"] = np.zeros(count, np.int8)
        stored = np.clip(np.rint(stored * 40), -128, 127).astype(np.int8)
        attrs = {} if axis is None else {"axis": axis}
        inputs = ["w", "sw", "zw"]
        case.nodes.append(helper.make_node("DequantizeLinear", inputs, ["wd"], **attrs))
        name = "wd"
    case.constants["w"] = np.ascontiguousarray(stored)
    if case.is_transposed:
        case.nodes.append(helper.make_node("Transpose", [name], ["wt"], perm=[1, 0]))
        name = "wt"
    return name


def _addend(case: Case, rng: np.random.Generator, inputs: list[str]) -> None:
    """Gemm's third operand, or the constant of an Add behind MatMul, from "h" to "y"."""
    m = case.lead[0] if case.lead else 1
    rows, columns = (m, case.n) if case.is_right else (case.n, m)
    shape = {"": (), "1": (1,), "n": (columns,), "1n": (1, columns), "m1": (rows, 1),
             "mn": (rows, columns), "computed": (1, columns)}[case.addend]  # fmt: skip
    values = rng.standard_normal(shape).astype(case.dtype)
    if case.op == "Gemm":
        if case.addend == "computed":
            case.feeds["c"] = values
        else:
            case.constants["c"] = values
        inputs.append("c")
        case.nodes.append(helper.make_node("Gemm", inputs, ["y"], name="layer", **case.attrs))
        return
    case.nodes.append(helper.make_node("MatMul", inputs, ["h"], name="layer"))
    if len(case.lead) != 1:
        values = rng.standard_normal(1).astype(case.dtype)
    case.constants["c"] = values
    case.nodes.append(helper.make_node("Add", ["h", "c"], ["y"]))


def build(case: Case) -> Model:
    rng = np.random.default_rng(case.seed)
    sizes = [*case.lead, case.k]
    if not case.is_right and case.lead:
        sizes[-2:] = [case.k, case.lead[-1]]
    if case.attrs.get("transA" if case.is_right else "transB", 0):
        sizes.reverse()
    case.feeds["x"] = rng.standard_normal(sizes).astype(case.dtype)
    w = _weight(case, rng)
    _addend(case, rng, ["x", w] if case.is_right else [w, "x"])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    result = helper.make_tensor_value_info("y", kind, None)
    tensors = [numpy_helper.from_array(v, name) for name, v in case.constants.items()]
    inputs = [
        helper.make_tensor_value_info(name, kind, list(value.shape))
        for name, value in case.feeds.items()
    ]
    for i, dim in enumerate(inputs[0].type.tensor_type.shape.dim):
        if case.dynamic[i] or case.feeds["x"].shape[i] == 0:
            dim.dim_param = f"d{i}"
    nodes, name = case.nodes, "y"
    if case.body:
        name = "z"
        nodes, tensors = _nested(case, result, tensors, kind)
        if case.body == "If":
            inputs.append(helper.make_tensor_value_info("cond", TensorProto.BOOL, []))
            inputs.append(helper.make_tensor_value_info("other", kind, None))
            case.feeds |= {"cond": np.array(True), "other": np.zeros(1, case.dtype)}
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(name, kind, None)], tensors
    )
    opsets = [helper.make_opsetid("", case.opset)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def _nested(case: Case, result: onnx.ValueInfoProto, tensors: list, kind: int) -> tuple[list, list]:
    """The product in a body, its constants there or outside."""
    inside, outside = (tensors, []) if case.seed % 2 else ([], tensors)
    if case.body == "If":
        then = helper.make_graph(case.nodes, "then", [], [result], inside)
        other = helper.make_graph(
            [helper.make_node("Neg", ["other"], ["e"])],
            "else", [], [helper.make_tensor_value_info("e", kind, None)],
        )  # fmt: skip
        branches = {"then_branch": then, "else_branch": other}
        return [helper.make_node("If", ["cond"], ["z"], **branches)], outside
    nodes = [*case.nodes, helper.make_node("Identity", ["go_on"], ["still"])]
    flags = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go_on", "still")]
    step = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(nodes, "body", [step, flags[0]], [flags[1], result], inside)
    outside = [*outside, numpy_helper.from_array(np.array(2), "trips"),
               numpy_helper.from_array(np.array(True), "yes")]  # fmt: skip
    return [helper.make_node("Loop", ["trips", "yes"], ["z"], body=body)], outside


@settings(max_examples=120)
@given(cases())
def test_there_and_back(case: Case) -> None:
    model = build(case)
    claimed = case.is_24 and case.k % 4 == 0
    if claimed:
        model.claims.add(next(key for key in model.weights if key.name == "w"))

    def outputs() -> dict[str, np.ndarray]:
        run = session(model.to_bytes())
        return dict(zip(["y"], run.run(None, case.feeds), strict=True))

    before = outputs()
    for instance in (
        MatmulToConv1x1(when=When.ALWAYS, form=case.form), Conv1x1ToMatmul(all=case.all),
    ):  # fmt: skip
        records = apply(model, instance).records  # verifies that a claim still holds
        assert {record.code for record in records} <= {"O24-300", "O24-301", "O24-313"}
        assert_same(before, outputs(), rtol=RTOL[case.dtype])
        once = model.to_bytes()
        apply(model, instance)
        assert model.to_bytes() == once
    assert len(model.claims) == int(claimed)
    assert not claimed or isinstance(model.claims.keys()[0], ValueKey)
