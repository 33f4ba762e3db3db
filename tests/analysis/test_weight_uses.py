"""Every consumer of a weight, and its reduction axis in the stored tensor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from analysis_support import array, build, use_of, uses_of, verdict_of

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUses, consumer_view, stored_values
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.sparsity.masks import prune_24_by_stride

GEMM = "g (float[{m}] x) => (float[{n}] y) {{ y = Gemm<{attr}>({inputs}) }}"


def place(use) -> tuple:
    return use.op, use.code, use.k_axis, use.k_stride, use.K, use.N


# --- products ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        # MatMul, right operand of every rank, and left.
        ("float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }", (8, 6), (0, 6, 8, 6)),
        ("float[N, 8] x) => (float[N] y) { y = MatMul(x, w) }", (8,), (0, 1, 8, 1)),
        ("float[3, N, 8] x) => (float[3, N, 6] y) { y = MatMul(x, w) }", (3, 8, 6), (1, 6, 8, 6)),
        (
            "float[N, 8] x) => (float[2, 3, N, 6] y) { y = MatMul(x, w) }",
            (2, 3, 8, 6),
            (2, 6, 8, 6),
        ),
        ("float[8, N] x) => (float[6, N] y) { y = MatMul(w, x) }", (6, 8), (1, 1, 8, 6)),
        ("float[3, 8, N] x) => (float[3, 6, N] y) { y = MatMul(w, x) }", (3, 6, 8), (2, 1, 8, 6)),
        ("float[8, N] x) => (float[N] y) { y = MatMul(w, x) }", (8,), (0, 1, 8, 1)),
        # Gemm, all eight.
        ("float[5, 8] x) => (float[5, 6] y) { y = Gemm(x, w) }", (8, 6), (0, 6, 8, 6)),
        (
            "float[5, 8] x) => (float[5, 6] y) { y = Gemm<transB=1>(x, w) }",
            (6, 8),
            (1, 1, 8, 6),
        ),
        (
            "float[8, 5] x) => (float[5, 6] y) { y = Gemm<transA=1>(x, w) }",
            (8, 6),
            (0, 6, 8, 6),
        ),
        (
            "float[8, 5] x) => (float[5, 6] y) { y = Gemm<transA=1, transB=1>(x, w) }",
            (6, 8),
            (1, 1, 8, 6),
        ),
        ("float[8, 5] x) => (float[6, 5] y) { y = Gemm(w, x) }", (6, 8), (1, 1, 8, 6)),
        (
            "float[8, 5] x) => (float[6, 5] y) { y = Gemm<transA=1>(w, x) }",
            (8, 6),
            (0, 6, 8, 6),
        ),
        (
            "float[5, 8] x) => (float[6, 5] y) { y = Gemm<transB=1>(w, x) }",
            (6, 8),
            (1, 1, 8, 6),
        ),
        (
            "float[5, 8] x) => (float[6, 5] y) { y = Gemm<transA=1, transB=1>(w, x) }",
            (8, 6),
            (0, 6, 8, 6),
        ),
        # Convolutions in one, two and three dimensions.
        ("float[N, 8, 9] x) => (float[N, 6, 7] y) { y = Conv(x, w) }", (6, 8, 3), (1, 3, 8, 6)),
        (
            "float[N, 8, 9, 9] x) => (float[N, 6, 7, 7] y) { y = Conv(x, w) }",
            (6, 8, 3, 3),
            (1, 9, 8, 6),
        ),
        (
            "float[N, 8, 5, 5, 5] x) => (float[N, 6, 3, 3, 3] y) { y = Conv(x, w) }",
            (6, 8, 3, 3, 3),
            (1, 27, 8, 6),
        ),
        (
            "float[N, 8, 5, 5] x) => (float[N, 6, 5, 5] y) { y = Conv(x, w) }",
            (6, 8, 1, 1),
            (1, 1, 8, 6),
        ),
        # Einsum as a plain product.
        (
            'float[N, 8] x) => (float[N, 6] y) { y = Einsum<equation="nk,ko->no">(x, w) }',
            (8, 6),
            (0, 6, 8, 6),
        ),
        (
            'float[N, 8] x) => (float[N, 6] y) { y = Einsum<equation="ok,nk->no">(w, x) }',
            (6, 8),
            (1, 1, 8, 6),
        ),
        (
            "float[2, N, 8] x) => (float[2, N, 6] y) "
            '{ y = Einsum<equation="...k,ko->...o">(x, w) }',
            (8, 6),
            (0, 6, 8, 6),
        ),
        (
            'float[N, 8] x) => (float[N, 6] y) { y = Einsum<equation="nk,kz">(x, w) }',
            (8, 6),
            (0, 6, 8, 6),
        ),
    ],
)
def test_the_reduction_axis_of_every_product(body: str, shape: tuple[int, ...], expected: tuple):
    use = use_of(build(f"g ({body}", w=array(shape)))
    assert use.kind == "product" and use.eligible, use.reason
    assert (use.k_axis, use.k_stride, use.K, use.N) == expected
    assert use.data == "x"


@pytest.mark.parametrize(
    ("body", "shape", "code"),
    [
        (
            "float[N, 8, 9, 9] x) => (float[N, 8, 7, 7] y) { y = Conv<group=2>(x, w) }",
            (8, 4, 3, 3),
            "O24-111",
        ),
        (
            "float[N, 8, 9, 9] x) => (float[N, 8, 7, 7] y) { y = Conv<group=8>(x, w) }",
            (8, 1, 3, 3),
            "O24-112",
        ),
        (
            "float[N, 3, 9, 9] x) => (float[N, 8, 7, 7] y) { y = Conv(x, w) }",
            (8, 3, 3, 3),
            "O24-113",
        ),
        ("float[N, 6] x) => (float[N, 8] y) { y = MatMul(x, w) }", (6, 8), "O24-113"),
        (
            "float[N, 8, 9] x) => (float[N, 4, 11] y) { y = ConvTranspose(x, w) }",
            (8, 4, 3),
            "O24-122",
        ),
        (
            'float[N, 2, 4] x) => (float[N, 6] y) { y = Einsum<equation="nhd,hdo->no">(x, w) }',
            (2, 4, 6),
            "O24-121",
        ),
        (
            'float[N, 8] x) => (float[N, 8] y) { y = Einsum<equation="nk,kk->nk">(x, w) }',
            (8, 8),
            "O24-121",
        ),
        (
            'float[N, 8] x) => (float[N] y) { y = Einsum<equation="nk,ko->n">(x, w) }',
            (8, 6),
            "O24-121",
        ),
    ],
)
def test_products_that_cannot_be_sparse(body: str, shape: tuple[int, ...], code: str):
    use = use_of(build(f"g ({body}", w=array(shape)))
    assert (use.kind, use.code) == ("product", code)
    assert use.reason


def test_a_grouped_convolution_says_its_numbers():
    text = "g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) { y = Conv<group=2>(x, w) }"
    use = use_of(build(text, w=array((8, 4, 1, 1))))
    assert (use.groups, use.K, use.k_axis) == (2, 4, 1)
    assert "2 groups of 4" in use.reason


def test_recurrent_weights():
    text = """g (float[3, 2, 8] x) => (float[3, 1, 2, 4] y) {
      y = LSTM<hidden_size=4>(x, w, r, b)
    }"""
    model = build(text, w=array((1, 16, 8)), r=array((1, 16, 4)), b=array((1, 32)))
    assert [use_of(model, name).kind for name in "wrb"] == ["recurrent", "recurrent", "other"]
    assert use_of(model).code == "O24-119"


# --- chains --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("chain", "shape", "expected"),
    [
        ("v = Transpose(w)", (6, 8), (1, 1)),  # no perm: reversed
        ("v = Transpose<perm=[1, 0]>(w)", (6, 8), (1, 1)),
        ("a = Identity(w) b = Transpose(a) v = Identity(b)", (6, 8), (1, 1)),
        ("a = Cast<to=10>(w) v = Cast<to=1>(a)", (8, 6), (0, 6)),
        ("v = Reshape(w, shape)", (2, 4, 6), (1, 6)),
        ("a = Transpose<perm=[2, 0, 1]>(w) v = Reshape(a, shape)", (4, 6, 2), (0, 12)),
        ("v = Flatten<axis=1>(w)", (8, 2, 3), (0, 6)),
        ("v = Squeeze(w, zero)", (1, 8, 6), (1, 6)),
        ("v = Squeeze(w)", (1, 8, 6, 1), (1, 6)),
        ("a = Unsqueeze(w, zero) v = Squeeze(a, zero)", (8, 6), (0, 6)),
        ("a = QuantizeLinear(w, s, z) v = DequantizeLinear(a, s, z)", (8, 6), (0, 6)),
        ("v = Transpose<perm=[1, 0]>(w)", (6, 8), (1, 1)),
    ],
)
def test_chains_lead_back_to_the_stored_axis(
    chain: str, shape: tuple[int, ...], expected: tuple[int, int]
):
    text = f"g (float[N, 8] x) => (float[N, 6] y) {{ {chain} y = MatMul(x, v) }}"
    model = build(
        text,
        w=array(shape),
        shape=np.array([8, -1]),
        zero=np.array([0]),
        s=np.float32(0.1).reshape(()),
        z=np.int8(0).reshape(()),
    )
    use = use_of(model)
    assert use.eligible, use.reason
    assert (use.k_axis, use.k_stride) == expected
    assert (use.K, use.N) == (8, 6)


def test_a_flattened_kernel_has_groups_without_an_axis():
    text = """g (float[N, 8, 5, 5] x) => (float[N, 16, 3, 3] y) {
      v = Reshape(w, shape)
      y = Conv(x, v)
    }"""
    use = use_of(build(text, w=array((16, 72)), shape=np.array([16, 8, 3, 3])))
    assert use.eligible and use.k_axis is None and use.k_stride == 9


@pytest.mark.parametrize(
    ("chain", "shape"),
    [
        # a 3-cycle cannot be undone by its own perm; nor can a chain of both
        ("a = Transpose<perm=[1, 2, 0]>(w) v = Reshape(a, shape)", (3, 4, 4)),
        (
            "a = Transpose<perm=[2, 1, 0]>(w) b = Cast<to=11>(a) c = Cast<to=1>(b) "
            "v = Reshape(c, shape)",
            (6, 4, 2),
        ),
        (
            "a = QuantizeLinear<axis=1>(w, sn, zn) b = DequantizeLinear<axis=1>(a, sn, zn) "
            "v = Reshape(b, shape)",
            (8, 6),
        ),
        ("a = Transpose(w) b = Reshape(a, keep) v = Reshape(b, shape)", (3, 16)),
    ],
)
def test_the_view_is_what_onnxruntime_computes(chain: str, shape: tuple[int, ...]):
    text = f"g (float[N, 8] x) => (float[N, 6] y, float[8, 6] v) {{ {chain} y = MatMul(x, v) }}"
    weights = {
        "w": array(shape),
        "shape": np.array([8, 6]),
        "keep": np.array([0, -1]),
        "sn": np.linspace(0.01, 0.05, 6).astype(np.float32),
        "zn": np.zeros(6, np.int8),
    }
    shown = build(text, **weights)
    hidden = build(text.replace(", float[8, 6] v)", ")"), **weights)
    use = use_of(hidden)
    session = onnxruntime.InferenceSession(shown.to_bytes(), providers=["CPUExecutionProvider"])
    (seen,) = session.run(["v"], {"x": np.zeros((1, 8), np.float32)})
    view = consumer_view(weights["w"], use)
    np.testing.assert_allclose(view, seen, rtol=1e-6, atol=0)
    if use.k_stride is None:
        return
    pruned = consumer_view(prune_24_by_stride(weights["w"], use.k_stride), use)
    groups = np.moveaxis(pruned, use.k_axis_consumer, -1).reshape(-1, 4)
    assert ((groups != 0).sum(axis=1) <= 2).all()
    restored = stored_values(view, use, weights["w"])
    np.testing.assert_allclose(consumer_view(restored, use), view, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.float8_e4m3fn], ids=["int8", "fp8"])
def test_stored_integers_behind_dequantize(dtype: type):
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      v = DequantizeLinear<axis=1>(w, s, z)
      y = MatMul(x, v)
    }"""
    model = build(
        text,
        opset=19,
        ir=9,
        w=array((8, 6), np.int8).astype(dtype),
        s=np.linspace(0.1, 0.2, 6).astype(np.float32),
        z=np.zeros(6, dtype),
    )
    use = use_of(model)
    assert use.eligible, use.reason
    assert (use.k_axis, use.chain[0].axis) == (0, 1)
    view = consumer_view(model.weights["w"], use)
    np.testing.assert_array_equal(stored_values(view, use, model.weights["w"]), model.weights["w"])


@pytest.mark.parametrize(
    ("attr", "scale", "zero", "reason"),
    [
        ("<axis=0>", np.linspace(0.1, 0.2, 8), np.zeros(8), "scale"),
        ("<axis=1>", np.linspace(0.1, 0.2, 6), np.ones(6), "zero point"),
        ("", np.float32(0.1), np.int8(3), "zero point"),
    ],
)
def test_quantization_that_mixes_groups(attr: str, scale, zero, reason: str):
    text = f"""g (float[N, 8] x) => (float[N, 6] y) {{
      v = DequantizeLinear{attr}(w, s, z)
      y = MatMul(x, v)
    }}"""
    model = build(
        text,
        w=array((8, 6), np.int8),
        s=np.asarray(scale, np.float32),
        z=np.asarray(zero, np.int8),
    )
    use = use_of(model)
    assert use.code == "O24-124" and reason in use.reason


def test_blocks_of_a_scale_along_k():
    text = """g (float[N, 16] x) => (float[N, 6] y) {{
      v = DequantizeLinear<axis=0, block_size={block}>(w, s)
      y = MatMul(x, v)
    }}"""
    for block, code in ((8, None), (2, "O24-124")):
        scale = array((16 // block, 6)) ** 2 + np.float32(0.1)
        model = build(text.format(block=block), opset=21, ir=10, w=array((16, 6), np.int8), s=scale)
        use = use_of(model)
        assert use.code == code, (block, use.reason)
        expected = model.weights["w"].astype(np.float32) * np.repeat(scale, block, axis=0)
        np.testing.assert_allclose(consumer_view(model.weights["w"], use), expected, rtol=1e-6)


def test_a_float_weight_behind_q_and_dq_may_have_any_scale():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      a = QuantizeLinear<axis=0>(w, s, z)
      v = DequantizeLinear<axis=0>(a, s, z)
      y = MatMul(x, v)
    }"""
    scales = {"s": np.linspace(0.1, 0.2, 8).astype(np.float32), "z": np.full(8, 3, np.int8)}
    assert use_of(build(text, w=array((8, 6)), **scales)).eligible


@pytest.mark.parametrize(
    "chain",
    [
        "v = Slice(w, zero, six, one)",
        "v = Concat<axis=1>(w, w)",
        "v = Reshape(w, t)",  # a shape that is computed
        "v = Expand(w, shape)",
        "a = Cast<to=7>(w) v = Cast<to=1>(a)",  # to int64 and back: truncates
        "a = QuantizeLinear(w, r) v = DequantizeLinear(a, r)",  # a scale that is computed
    ],
)
def test_chains_that_are_not_followed(chain: str):
    text = f"""g (float[N, 8] x, float r0) => (float[N, 6] y) {{
      t = Shape(x)
      r = Abs(r0)
      {chain}
      y = MatMul(x, v)
    }}"""
    model = build(
        text,
        w=array((8, 6)),
        zero=np.array([0]),
        one=np.array([1]),
        six=np.array([6]),
        shape=np.array([8, 6]),
    )
    found = uses_of(model)
    assert {use.kind for use in found} == {"untraced"} and found[0].code == "O24-121"


@pytest.mark.parametrize("right", ["v", "b", "s"])
def test_a_product_of_two_constants_is_no_product(right: str):
    # Nothing sparse is left of it: it is folded into one dense matrix.
    text = f"""g (float[N, 8] x) => (float[N, 8] y) {{
      b = Constant<value = float[8, 1] {{1, 2, 3, 4, 5, 6, 7, 8}}>()
      s = Tanh(v)
      both = MatMul(w, {right})
      y = MatMul(x, both)
    }}"""
    model = build(text, w=array((8, 8)), v=array((8, 8), seed=1))
    use = use_of(model)
    assert (use.kind, use.code, use.node) == ("product", "O24-121", "both")
    assert "constant" in use.reason
    assert not verdict_of(model).eligible
    assert not AnalysisCache().get(model, WeightUses).dynamic


def test_a_product_with_a_value_of_an_input_is_not_folded():
    text = """g (float[N, 8] x, float[8, 8] v) => (float[N, 8] y) {
      r = RandomNormalLike(v)
      a = MatMul(w, v)
      b = MatMul(w, r)
      c = MatMul(a, b)
      y = MatMul(x, c)
    }"""
    model = build(text, w=array((8, 8)), v=array((8, 8)))  # v may be overridden
    assert [use.code for use in uses_of(model)] == [None, None]
    dynamic = AnalysisCache().get(model, WeightUses).dynamic
    assert [site.name for site in dynamic] == ["c", "y"]


def test_integer_weights_have_a_verdict():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      v = Cast<to=1>(w)
      y = MatMul(x, v)
    }"""
    verdict = verdict_of(build(text, w=array((8, 8), np.int64)))
    assert verdict.code == "O24-118" and "int64" in verdict.reason


def test_groups_cut_by_a_reshape():
    # K of 12 from a [2, 6] transposed: neighbours lie 6 and 1 apart.
    text = """g (float[N, 12] x) => (float[N, 4] y) {
      a = Transpose<perm=[1, 0, 2]>(w)
      v = Reshape(a, shape)
      y = MatMul(x, v)
    }"""
    use = use_of(build(text, w=array((2, 6, 4)), shape=np.array([12, 4])))
    assert use.code == "O24-121" and use.k_stride is None


# --- scopes --------------------------------------------------------------------------------
IF = """g (float[N, 8] x, bool c) => (float[N, 6] y) {
  y = If(c)<
    then_branch = t () => (float[N, 6] a) { [inner] a = MatMul(x, w) },
    else_branch = e () => (float[N, 6] b) { u = Transpose(v) b = MatMul(x, u) }
  >
}"""


def test_bodies_capture_weights_of_the_graph():
    model = build(IF, w=array((8, 6)), v=array((6, 8)))
    use = use_of(model)
    assert (use.eligible, use.node, use.scope) == (True, "inner", "y.then_branch")
    assert use_of(model, "v").k_axis == 1


def test_a_body_has_initializers_of_its_own():
    proto = build(IF, w=array((8, 6)), v=array((6, 8))).full_proto()
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(array((8, 6)), "own"))
    body.node[0].input[1] = "own"
    key = ValueKey("y.then_branch", "own")
    model = Model.from_proto(proto)
    assert use_of(model, key).eligible
    assert uses_of(model, "w") == []


def test_a_weight_that_leaves_a_body_is_reported():
    text = """g (float[N, 8] x, bool c) => (float[N, 6] y) {
      v = If(c)<
        then_branch = t () => (float[8, 6] a) { a = Identity(w) },
        else_branch = e () => (float[8, 6] b) { b = Neg(w) }
      >
      y = MatMul(x, v)
    }"""
    kinds = [(u.kind, u.code) for u in uses_of(build(text, w=array((8, 6))))]
    assert kinds == [("untraced", "O24-121"), ("untraced", "O24-121")]


def test_constant_nodes_are_weights_too():
    text = "g (float[N, 8] x) => (float[N, 6] y) { v = Transpose(w) y = MatMul(x, v) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    proto.graph.node.insert(
        0,
        onnx.helper.make_node(
            "Constant", [], ["w"], value=onnx.numpy_helper.from_array(array((6, 80)), "w")
        ),
    )
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 80
    model = Model.from_proto(proto)  # 1,920 bytes: elided in the lean document
    use = use_of(model)
    assert use.eligible and (use.k_axis, use.K) == (1, 80)


def test_functions_are_named_where_they_are_not_inlined():
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[N, 8] x) => (float[N, 6] y) { y = f.dense(x, w) }
    <domain: "f", opset_import: ["" : 17]>
    dense (a, b) => (c) { c = MatMul(a, b) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array((8, 6)), "w"))
    use = use_of(Model.from_proto(proto))
    assert use.code == "O24-121" and "not inlined" in use.reason


# --- other readers -------------------------------------------------------------------------
def test_shape_reads_no_values():
    text = """g (float[N, 8] x) => (float[N, 6] y, int64[2] n) {
      n = Shape(w)
      y = MatMul(x, w)
    }"""
    assert use_of(build(text, w=array((8, 6)))).eligible


def test_outputs_and_overridable_inputs_are_visible():
    text = """g (float[N, 8] x) => (float[N, 6] y, float[6, 8] v) {
      v = Transpose(w)
      y = MatMul(x, w)
    }"""
    assert [u.kind for u in uses_of(build(text, w=array((8, 6))))] == ["visible", "product"]
    text = "g (float[N, 8] x, float[8, 6] w) => (float[N, 6] y) { y = MatMul(x, w) }"
    assert [u.kind for u in uses_of(build(text, w=array((8, 6))))] == ["visible", "product"]
    # Before IR 4 there was no other way to write a constant.
    old = build(text, opset=8, ir=3, w=array((8, 6)))
    assert [u.kind for u in uses_of(old)] == ["product"]


def test_every_reader_is_listed():
    text = """g (float[N, 8] x, int64[M] i) => (float[N, 8] y, float[M, 8] e) {
      e = Gather(w, i)
      v = Transpose(w)
      y = MatMul(x, v)
    }"""
    found = uses_of(build(text, w=array((8, 8))))
    assert [(u.kind, u.op) for u in found] == [("other", "Gather"), ("product", "MatMul")]


def test_an_empty_weight_is_no_weight():
    text = "g (float[N, 0] x) => (float[N, 6] y) { y = MatMul(x, w) }"
    assert use_of(build(text, w=np.zeros((0, 6), np.float32))).code == "O24-110"
