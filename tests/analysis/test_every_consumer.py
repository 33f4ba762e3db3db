"""A fitting verdict for every kind of consumer and of way to it: nothing is ignored or guessed."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from analysis_support import array, build, uses_of, verdict_of
from onnx import TensorProto, helper, numpy_helper

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility
from onnx24.analysis.weight_uses import WeightUses, consumer_view
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.sparsity.masks import is_24, prune_24_by_stride

F32 = np.float32
BOOL = TensorProto.BOOL
MS = "com.microsoft"


def info(name: str, dtype: int = TensorProto.FLOAT, dims=None):
    return helper.make_tensor_value_info(name, dtype, dims)


def graph_of(nodes, weights: dict[str, np.ndarray], *, inputs=("x",), outputs=("y",), **more):
    """A model of nodes whose shapes nobody checks."""
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    proto = helper.make_graph(
        nodes, "g", [info(n) for n in inputs], [info(n) for n in outputs], tensors
    )
    opsets = [helper.make_opsetid("", more.pop("opset", 17)), helper.make_opsetid(MS, 1)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=more.pop("ir", 8), **more)
    return Model.from_proto(model, check=False)


def said(model: Model, key: str | ValueKey = "w") -> tuple[str, str]:
    verdict = verdict_of(model, key)
    return verdict.code, verdict.reason


# --- operators whose products are not judged -------------------------------------------------
FOREIGN = [
    ("QLinearMatMul", "", ["x", "s", "z", "w", "s", "z", "s", "z"], {}),
    ("QLinearConv", "", ["x", "s", "z", "w", "s", "z", "s", "z"], {}),
    ("MatMulInteger", "", ["x", "w"], {}),
    ("ConvInteger", "", ["x", "w"], {}),
    ("DeformConv", "", ["x", "w", "o"], {}),
    ("Attention", "", ["x", "w", "x"], {}),
    ("FusedMatMul", MS, ["x", "w"], {"transB": 1}),
    ("FusedMatMul", MS, ["w", "x"], {}),
    ("FusedGemm", MS, ["x", "w", "b"], {}),
    ("FusedConv", MS, ["x", "w"], {}),
    ("QAttention", MS, ["x", "w", "b", "s", "s"], {"num_heads": 1}),
    ("Attention", MS, ["x", "w", "b"], {"num_heads": 1}),
    ("MatMulNBits", MS, ["x", "w", "s"], {"K": 8, "N": 8, "bits": 4, "block_size": 16}),
    ("GroupQueryAttention", MS, ["x", "w", "x"], {"num_heads": 1, "kv_num_heads": 1}),
    ("DynamicQuantizeMatMul", MS, ["x", "w", "s"], {}),
    ("NobodyKnows", MS, ["x", "w"], {}),
]


@pytest.mark.parametrize(
    ("op", "domain", "inputs", "attributes"), FOREIGN, ids=[f"{f[1]}.{f[0]}" for f in FOREIGN]
)
@pytest.mark.parametrize("dtype", [F32, np.int8, np.uint8])
def test_operators_that_are_not_judged_are_reported(op, domain, inputs, attributes, dtype):
    weights = {
        "w": array((8, 8), dtype),
        "s": F32(0.1),
        "z": np.int8(0),
        "b": array((8,)),
        "o": array((8, 8)),
    }
    node = helper.make_node(op, inputs, ["y"], name="n", domain=domain, **attributes)
    model = graph_of([node], weights, opset=23)
    code, reason = said(model)
    assert code == "O24-129" and op in reason and "[n " in reason
    rest = AnalysisCache().get(model, Eligibility).verdicts
    assert {v.code for k, v in rest.items() if k.name in ("s", "z", "b")} <= {"O24-110"}


def test_a_bias_of_an_unknown_operator_is_no_weight():
    node = helper.make_node("NobodyKnows", ["x", "w"], ["y"], domain=MS)
    assert said(graph_of([node], {"w": array((8,))}))[0] == "O24-110"


@pytest.mark.parametrize(("domain", "code"), [("far", "O24-121"), ("", "O24-101")])
def test_a_function_named_like_an_operator(domain, code):
    """A function of ONNX's own domain is never called: ONNX Runtime takes the operator."""
    body = helper.make_function(
        domain,
        "MatMul",
        ["a", "b"],
        ["c"],
        [helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)],
        [helper.make_opsetid("", 17)],
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain=domain)
    found, reason = said(graph_of([node], {"w": array((8, 8))}, functions=[body]))
    assert found == code and ("not inlined" in reason) is bool(domain)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("position", [1, 2])
def test_recurrent_weights_behind_any_chain(op, position):
    inputs = ["x", "other", "other"]
    inputs[position] = "v"
    nodes = [
        helper.make_node("Unsqueeze", ["w", "axes"], ["v"]),
        helper.make_node(op, inputs, ["y"], hidden_size=8),
    ]
    weights = {"w": array((32, 8)), "other": array((1, 32, 8)), "axes": np.array([0])}
    assert said(graph_of(nodes, weights))[0] == "O24-119"
    nodes[0] = helper.make_node("Concat", ["w", "other"], ["v"], axis=0)
    code, reason = said(graph_of(nodes, weights))
    assert code == "O24-121" and op in reason


# --- constants that have to be folded first --------------------------------------------------
FOLDS = [
    ("v = Concat<axis=1>(w, u)", "fold constants"),
    ("v = Slice(w, zero, four)", "fold constants"),
    ("v = Gather(w, index)", "fold constants"),
    ("a, b = Split<axis=1>(w) v = Concat<axis=1>(b, a)", "fold constants"),
    ("v = Expand(w, shape)", "fold constants"),
    ("v = Mul(w, u)", "fold constants"),
    ("v = Tile(w, repeats)", "fold constants"),
    ("v = Where(cond, w, u)", "fold constants"),
    ('v = Einsum<equation="ij->ji">(w)', "fold constants"),
    ("a = Relu(w) b = Neg(a) v = Identity(b)", "fold constants"),
    ("a = Transpose(w) v = Reshape(a, odd)", "cuts through the groups"),
    ("a = Transpose(w) v = Reshape(a, odd)", "canonicalize folds it"),
    ("a = Cast<to=6>(w) v = Cast<to=1>(a)", "canonicalize folds it"),
    ("v = Expand(w, dynamic)", "at run time"),
    ("v = Reshape(w, dynamic)", "at run time"),
    ("a = SequenceConstruct(w) v = SequenceAt(a, zero)", "fold constants"),
]


@pytest.mark.parametrize(("body", "why"), FOLDS, ids=str)
def test_what_would_make_a_computed_weight_eligible(body: str, why: str):
    inner = 16 if "odd" in body else 8
    shape = (8, 6) if "odd" in body else (8, 8)
    text = f"g (float[N, {inner}] x, int64[2] dynamic) => (float[N, M] y) "
    model = build(
        text + f"{{ {body} [p] y = MatMul(x, v) }}",
        w=array(shape),
        u=array(shape, seed=1),
        zero=np.array([0]) if "Slice" in body else np.int64(0),
        four=np.array([4]),
        index=np.arange(8)[::-1].copy(),
        shape=np.array([2, 8, 8]),
        repeats=np.array([1, 2]),
        cond=np.ones((8, 8), bool),
        odd=np.array([16, 3]),
    )
    code, reason = said(model)
    assert code == "O24-121" and why in reason and "p (MatMul)" in reason


def test_what_leads_to_no_product_is_no_weight():
    text = """g (float[N, 8] x, int64[2] n) => (float[N, 8] y, float[M, K] z) {
      a = Expand(w, n)
      z = Identity(a)
      y = Add(x, u)
    }"""
    model = build(text, w=array((8, 8)), u=array((8,)))
    assert said(model) == ("O24-110", "read by Expand [a (Expand)]")
    text = "g (float[N, 8] x, int64[M] i) => (float[M, 8] y) { a = Gather(w, i) y = MatMul(a, v) }"
    model = build(text, w=array((8, 8)), v=array((8, 8)))
    assert said(model) == ("O24-110", "rows are looked up [a (Gather)]")


def test_scalars_on_the_way_to_a_product_are_no_weights():
    text = "g (float[8, 8] x, int64[2] n) => (float[8, M] y) { a = Expand(w, n) y = MatMul(x, a) }"
    assert said(build(text, w=F32(0)))[0] == "O24-110"


# --- numbers that no tensor holds ------------------------------------------------------------
def test_sparse_initializers_are_reported():
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="p")], {})
    sparse = model.proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(array((3,)), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5, 9]), "w_indices"))
    sparse.dims.extend([8, 4])
    verdict = verdict_of(model)
    assert verdict.code == "O24-121" and "sparse initializer" in verdict.reason
    assert (verdict.facts["shape"], verdict.node) == ([8, 4], "p")
    assert AnalysisCache().get(model, WeightUses).dynamic == []


def test_lists_in_constant_nodes_are_reported():
    nodes = [
        helper.make_node("Constant", [], ["flat"], value_floats=[float(i) for i in range(32)]),
        helper.make_node("Constant", [], ["shape"], value_ints=[8, 4]),
        helper.make_node("Reshape", ["flat", "shape"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="p"),
    ]
    model = graph_of(nodes, {})
    code, reason = said(model, "flat")
    assert code == "O24-121" and "canonicalize makes it a tensor" in reason
    assert AnalysisCache().get(model, WeightUses).dynamic == []


# --- bodies ------------------------------------------------------------------------------------
def body_of(nodes, inputs, outputs, weights=()):
    tensors = [numpy_helper.from_array(values, name) for name, values in dict(weights).items()]
    return helper.make_graph(nodes, "body", inputs, outputs, tensors)


def test_a_loop_carried_weight_is_not_constant():
    body = body_of(
        [
            helper.make_node("Identity", ["c"], ["c2"]),
            helper.make_node("MatMul", ["h", "state"], ["h2"], name="p"),
            helper.make_node("Tanh", ["state"], ["state2"]),
        ],
        [
            info("i", TensorProto.INT64, []),
            info("c", TensorProto.BOOL, []),
            info("h"),
            info("state"),
        ],
        [info("c2", TensorProto.BOOL, []), info("h2"), info("state2")],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x", "w"], ["y", "z"], name="loop", body=body)]
    model = graph_of(nodes, {"w": array((8, 8)), "n": np.int64(2)})
    code, reason = said(model)
    assert code == "O24-121" and "Loop changes" in reason
    (dynamic,) = AnalysisCache().get(model, WeightUses).dynamic
    assert dynamic.name == "p"


def test_a_scan_slices_its_input():
    body = body_of(
        [helper.make_node("MatMul", ["h", "slice"], ["h2"])],
        [info("h"), info("slice")],
        [info("h2")],
    )
    nodes = [helper.make_node("Scan", ["x", "w"], ["y"], num_scan_inputs=1, body=body)]
    code, reason = said(graph_of(nodes, {"w": array((3, 8, 8))}))
    assert code == "O24-121" and "Scan" in reason


def test_captured_weights_behind_a_transpose_in_nested_bodies():
    inner = body_of(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["a"], name="deep"),
        ],
        [],
        [info("a")],
    )
    other = body_of([helper.make_node("Identity", ["x"], ["b"])], [], [info("b")])
    outer = body_of(
        [helper.make_node("If", ["c"], ["d"], name="in", then_branch=inner, else_branch=other)],
        [],
        [info("d")],
    )
    nodes = [
        helper.make_node("Equal", ["x", "x"], ["e"]),
        helper.make_node("ReduceMin", ["e"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="out", then_branch=outer, else_branch=other),
    ]
    (use,) = uses_of(graph_of(nodes, {"w": array((6, 8))}))
    assert (use.node, use.scope, use.k_axis) == ("deep", "out.then_branch/in.then_branch", 1)


def test_a_shadowed_name_is_another_weight():
    inner = body_of(
        [helper.make_node("MatMul", ["x", "w"], ["a"], name="own")],
        [],
        [info("a")],
        {"w": array((8, 8), seed=1)},
    )
    other = body_of([helper.make_node("Gemm", ["x", "w"], ["b"], transB=1)], [], [info("b")])
    nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=other)]
    model = graph_of(nodes, {"w": array((8, 8))}, inputs=("x", "c"))
    assert [use.op for use in uses_of(model)] == ["Gemm"]
    assert [use.node for use in uses_of(model, ValueKey("if.then_branch", "w"))] == ["own"]


def test_a_product_in_one_branch_and_something_else_in_the_other():
    then = body_of([helper.make_node("MatMul", ["x", "w"], ["a"])], [], [info("a")])
    other = body_of([helper.make_node("Add", ["x", "w"], ["b"], name="add")], [], [info("b")])
    nodes = [helper.make_node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)]
    verdict = verdict_of(graph_of(nodes, {"w": array((8, 8))}, inputs=("x", "c")))
    assert (verdict.code, verdict.facts["readers"]) == ("O24-116", ["add"])


# --- functions -------------------------------------------------------------------------------
def test_an_attribute_that_the_caller_decides_is_not_guessed():
    for op, attribute in (("Gemm", "transB"), ("Transpose", "perm")):
        nodes = [
            helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array((8, 8))))
        ]
        inputs = ["x", "w"] if op == "Gemm" else ["w"]
        made = helper.make_node(op, inputs, ["v"])
        reference = made.attribute.add()
        reference.name = reference.ref_attr_name = attribute
        reference.type = onnx.AttributeProto.INT if op == "Gemm" else onnx.AttributeProto.INTS
        nodes += [made, helper.make_node("MatMul", ["x", "v"], ["y"])]
        function = helper.make_function(
            "f", "dense", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)], attributes=[attribute]
        )
        call = helper.make_node("dense", ["x"], ["y"], domain="f")
        model = graph_of([call], {}, functions=[function])
        verdict = verdict_of(model, ValueKey("function:f:dense", "w"))
        assert verdict.code == "O24-121", (op, verdict.reason)


# --- quantization ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("first", "second", "code"),
    [(3, 3, "O24-101"), (3, 0, "O24-124"), (0, 3, "O24-124"), (None, 0, "O24-101")],
)
def test_zero_points_that_differ_make_zeros_something_else(first, second, code):
    quantizer = "QuantizeLinear(w, s, a)" if first is not None else "QuantizeLinear(w, s)"
    text = f"""g (float[N, 8] x) => (float[N, 6] y) {{
      q = {quantizer}
      v = DequantizeLinear(q, s, b)
      y = MatMul(x, v)
    }}"""
    model = build(text, w=array((8, 6)), s=F32(0.1), a=np.uint8(first or 0), b=np.uint8(second))
    verdict = verdict_of(model)
    assert verdict.code == code, verdict.reason
    use = verdict.products[0]
    pruned = prune_24_by_stride(model.weights["w"], use.k_stride)
    assert is_24(consumer_view(pruned, use), 0) == (code == "O24-101")


def test_a_dtype_without_zero_ends_the_chain():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      a = Cast<to=24>(w)
      v = Cast<to=1>(a)
      y = MatMul(x, v)
    }"""
    proto = build(text, opset=26, ir=13, w=array((8, 6))).proto
    use = uses_of(Model.from_proto(proto, check=False))[0]
    assert not use.eligible and use.code == "O24-121"
    assert F32(ml_dtypes.float8_e8m0fnu(1e-30)) > 0


# --- size ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("op", ["Identity", "Transpose", "Cast"])
def test_chains_longer_than_the_stack(op: str):
    names = [f"v{i}" for i in range(5001)]
    attributes = {"Cast": {"to": 1}}.get(op, {})
    nodes = [
        helper.make_node(op, [a], [b], **attributes)
        for a, b in zip(["w", *names], names, strict=False)
    ]
    nodes.append(helper.make_node("MatMul", ["x", names[-1]], ["y"]))
    (use,) = uses_of(graph_of(nodes, {"w": array((8, 8))}))
    assert use.eligible and use.k_axis == (1 if op == "Transpose" else 0)


def test_a_shared_weight_of_many_layers_is_followed_once():
    nodes = [helper.make_node("Relu", ["w"], ["r0"])]
    nodes += [helper.make_node("Add", [f"r{i}", f"r{i}"], [f"r{i + 1}"]) for i in range(2000)]
    nodes += [helper.make_node("MatMul", ["x", "w"], [f"y{i}"]) for i in range(500)]
    model = graph_of(nodes, {"w": array((8, 8))}, outputs=[f"y{i}" for i in range(500)])
    verdict = verdict_of(model)
    assert verdict.code == "O24-116" and len(verdict.products) == 500
