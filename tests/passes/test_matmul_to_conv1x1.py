"""matmul-to-conv1x1: equal outputs, weights that keep names and 2:4, refusals with codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When

from onnx24.ir.derived import Derived
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context
from onnx24.rewrite.conv1x1 import Layout
from onnx24.testing.passes import apply, assert_same, feeds, ops, outputs, session, text_model

RNG = np.random.default_rng(5)
K, N = 8, 6
W = RNG.standard_normal((K, N)).astype(np.float32)
B = RNG.standard_normal(N).astype(np.float32)
SCALES = "<float sx = {0.05}, int8 z = {0}>"
# MatMul and Conv sum in different orders.
RTOL = 2e-6


def rewritten(
    model: Model,
    *,
    dynamic: int = 2,
    rtol: float = RTOL,
    limit: int | None = None,
    form: Layout = Layout.TOKENS,
) -> Context:
    before = outputs(model, dynamic=dynamic)
    ctx = apply(model, MatmulToConv1x1(when=When.ALWAYS, form=form), limit=limit)
    assert_same(before, outputs(model, dynamic=dynamic), rtol=rtol)
    once = model.to_bytes()
    if limit is None:
        apply(model, MatmulToConv1x1(when=When.ALWAYS, form=form))
        assert model.to_bytes() == once
    return ctx


def codes(ctx: Context) -> list[str]:
    return [record.code for record in ctx.records]


# --- forms -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ("3,8", ["Reshape", "Conv", "Reshape"]),
        ("M,8", ["Reshape", "Conv", "Reshape"]),
        ("4,3,8", ["Reshape", "Conv", "Reshape"]),
        ("M,3,8", ["Reshape", "Conv", "Reshape"]),
        ("M,L,8", ["Reshape", "Conv", "Shape", "Gather", "Concat", "Reshape"]),
        ("M,2,L,8", ["Reshape", "Conv", "Shape", "Gather", "Concat", "Reshape"]),
    ],
)
def test_matmul(dims: str, expected: list[str]) -> None:
    out = dims.replace("8", "6")
    model = text_model(
        f"g (float[{dims}] x) => (float[{out}] y) {{ y = MatMul(x, w) }}", weights={"w": W}
    )
    model.proto.graph.node[0].name = "layer"
    ctx = rewritten(model, dynamic=5)
    assert ops(model) == expected
    assert codes(ctx) == ["O24-300"] and ctx.records[0].facts["k"] == K
    np.testing.assert_array_equal(model.weights["w"], W.T.reshape(N, K, 1, 1))
    assert [n.op_type for n in model.proto.graph.node if n.name == "layer"] == ["Conv"]
    assert "w" in {t.name for t in model.proto.graph.initializer}


@pytest.mark.parametrize("sizes", [(2, 0), (0, 3), (0, 0)])
def test_what_is_empty_at_run_time_stays_so(sizes: tuple[int, int]) -> None:
    """Found by random models: a Reshape without allowzero took the size that was 0 from the
    tokens."""
    model = text_model(
        "g (float[M,L,8] x) => (float[M,L,6] y) { y = MatMul(x, w) }", weights={"w": W}
    )
    apply(model, MatmulToConv1x1(when=When.ALWAYS))
    (result,) = outputs(model, {"x": np.zeros((*sizes, K), np.float32)}).values()
    assert result.shape == (*sizes, N)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [(N,), (1, N), (1, 1, N)])
def test_bias_is_taken_in(shape: tuple[int, ...], swap: bool) -> None:
    pair = "b, h" if swap else "h, b"
    model = text_model(
        f"g (float[M,3,8] x) => (float[M,3,6] y) {{ h = MatMul(x, w) a = Add({pair}) "
        "y = Relu(a) }",
        weights={"w": W, "b": B.reshape(shape)},
    )
    rewritten(model)
    assert ops(model) == ["Reshape", "Conv", "Reshape", "Relu"]
    np.testing.assert_array_equal(model.weights["b"], B)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("h = MatMul(x, w) y = Add(h, c)", {"c": W[:3, :].copy()}),  # one bias a row
        ("h = MatMul(x, w) y = Add(h, h)", {}),
        ("h = MatMul(x, w) a = Add(h, b) r = Relu(h) y = Add(a, r)", {"b": B}),
        ("h = MatMul(x, w) y = Add(h, s)", {"s": B[:1]}),
    ],
)
def test_other_adds_stay(body: str, weights: dict) -> None:
    model = text_model(
        f"g (float[3,8] x) => (float[3,6] y) {{ {body} }}", weights={"w": W, **weights}
    )
    adds = ops(model).count("Add")
    rewritten(model)
    assert ops(model).count("Add") == adds and ops(model).count("Conv") == 1


def test_a_product_that_is_an_output_keeps_its_value() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] h, float[3,6] y) { h = MatMul(x, w) y = Add(h, b) }",
        weights={"w": W, "b": B},
    )
    rewritten(model)
    assert ops(model) == ["Reshape", "Conv", "Reshape", "Add"]


def test_a_broadcast_that_adds_a_dimension_stays() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[1,3,6] y) { h = MatMul(x, w) y = Add(h, b) }",
        weights={"w": W, "b": B.reshape(1, 1, N)},
    )
    rewritten(model)
    assert ops(model)[-1] == "Add"


GEMMS = {
    "plain": ("Gemm(x, w, b)", W, B),
    "no-bias": ("Gemm(x, w)", W, None),
    "transB": ("Gemm<transB=1>(x, w, b)", W.T.copy(), B),
    "alpha-beta": ("Gemm<alpha=0.3,beta=2.5>(x, w, b)", W, B),
    "alpha-transB": ("Gemm<alpha=0.3,transB=1>(x, w, b)", W.T.copy(), B),
    "scalar": ("Gemm(x, w, b)", W, np.array(0.5, np.float32)),
    "one": ("Gemm<beta=3.0>(x, w, b)", W, B[:1]),
    "row": ("Gemm(x, w, b)", W, B.reshape(1, N)),
}


@pytest.mark.parametrize("name", GEMMS)
def test_gemm(name: str) -> None:
    expression, weight, bias = GEMMS[name]
    weights = {"w": weight} | ({} if bias is None else {"b": bias})
    model = text_model(
        f"g (float[M,8] x) => (float[M,6] y) {{ y = {expression} }}", weights=weights
    )
    ctx = rewritten(model, dynamic=7)
    assert ops(model) == ["Reshape", "Conv", "Reshape"] and codes(ctx) == ["O24-300"]
    assert {key.name for key in model.weights} >= set(weights)
    assert model.weights["w"].shape == (N, K, 1, 1)


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_opset(opset: int) -> None:
    model = text_model(
        "g (float[M,L,8] x, float[M,8] z) => (float[M,L,6] y, float[M,6] v) "
        "{ h = MatMul(x, w) y = Add(h, b) v = Gemm<transB=1>(z, u, b) }",
        opset=opset,
        weights={"w": W, "b": B, "u": W.T.copy()},
    )
    ctx = rewritten(model, dynamic=3)
    assert codes(ctx) == ["O24-300"] * 2


def test_large_weights_and_biases() -> None:
    w = RNG.standard_normal((320, 512)).astype(np.float32)
    b = RNG.standard_normal(512).astype(np.float32)
    model = text_model(
        "g (float[2,3,320] x) => (float[2,3,512] y) { h = MatMul(x, w) y = Add(h, b) }",
        weights={"w": w, "b": b},
    )
    rewritten(model)
    np.testing.assert_array_equal(model.weights["w"], w.T[:, :, None, None])


def test_neighbours_share_reshape_and_shapes() -> None:
    model = text_model(
        "g (float[M,3,8] x) => (float[M,3,6] q, float[M,3,6] k) "
        "{ q = MatMul(x, wq) k = MatMul(x, wk) }",
        weights={"wq": W, "wk": W * 2},
    )
    rewritten(model)
    assert ops(model) == ["Reshape", "Conv", "Reshape", "Conv", "Reshape"]
    assert len(model.proto.graph.initializer) == 4  # two weights, two shapes


# --- every form of product, in every form of convolution ---------------------------------------
WT = W.T.copy()
C36 = RNG.standard_normal((3, N)).astype(np.float32)
FORMS = {
    # name: (inputs, result, body, weights)
    "rank-1": ("float[8] x", "float[6] y", "y = MatMul(x, w)", {"w": W}),
    "vector": ("float[M,3,8] x", "float[M,3] y", "y = MatMul(x, w)", {"w": W[:, 0].copy()}),
    "dot": ("float[8] x", "float y", "y = MatMul(x, w)", {"w": W[:, 0].copy()}),
    "ones": ("float[3,8] x", "float[1,1,3,6] y", "y = MatMul(x, w)", {"w": W[None, None]}),
    "ones-rank-1": ("float[8] x", "float[1,6] y", "y = MatMul(x, w)", {"w": W[None]}),
    "ones-dynamic": ("float[M,8] x", "float[1,M,6] y", "y = MatMul(x, w)", {"w": W[None]}),
    "ones-bias": ("float[3,8] x", "float[1,3,6] y", "h = MatMul(x, w) y = Add(h, b)",
                  {"w": W[None], "b": B[None, None]}),
    "transpose": ("float[3,8] x", "float[3,6] y", "t = Transpose(w) y = MatMul(x, t)", {"w": WT}),
    "transpose-3": ("float[M,3,8] x", "float[M,3,6] y",
                    "t = Transpose<perm=[0,2,1]>(w) y = MatMul(x, t)", {"w": WT[None]}),
    "left": ("float[8,3] x", "float[6,3] y", "y = MatMul(w, x)", {"w": WT}),
    "left-dynamic": ("float[8,M] x", "float[6,M] y", "y = MatMul(w, x)", {"w": WT}),
    "left-batch": ("float[M,8,L] x", "float[M,6,L] y", "y = MatMul(w, x)", {"w": WT}),
    "left-rank-4": ("float[M,2,8,L] x", "float[M,2,6,L] y", "y = MatMul(w, x)", {"w": WT}),
    "left-bias": ("float[2,8,3] x", "float[2,6,3] y", "h = MatMul(w, x) y = Add(b, h)",
                  {"w": WT, "b": B[:, None]}),
    "left-other-bias": ("float[2,8,6] x", "float[2,6,6] y", "h = MatMul(w, x) y = Add(b, h)",
                        {"w": WT, "b": B}),
    "left-vector": ("float[M,8,5] x", "float[M,5] y", "y = MatMul(w, x)", {"w": WT[0].copy()}),
    "left-rank-1": ("float[8] x", "float[6] y", "y = MatMul(w, x)", {"w": WT}),
    "left-transpose": ("float[8,3] x", "float[6,3] y", "t = Transpose(w) y = MatMul(t, x)",
                       {"w": W}),
    "gemm-transA": ("float[8,M] x", "float[M,6] y", "y = Gemm<transA=1>(x, w, b)",
                    {"w": W, "b": B}),
    "gemm-transA-transB": ("float[8,M] x", "float[M,6] y", "y = Gemm<transA=1,transB=1>(x, w, b)",
                           {"w": WT, "b": B}),
    "gemm-left": ("float[8,M] x", "float[6,M] y", "y = Gemm<alpha=0.5>(w, x, b)",
                  {"w": WT, "b": B[:, None]}),
    "gemm-left-transA": ("float[8,M] x", "float[6,M] y", "y = Gemm<transA=1>(w, x)", {"w": W}),
    "gemm-left-transB": ("float[M,8] x", "float[6,M] y", "y = Gemm<transB=1>(w, x, b)",
                         {"w": WT, "b": B[:, None]}),
    "gemm-rows": ("float[3,8] x", "float[3,6] y", "y = Gemm<beta=0.5>(x, w, c)",
                  {"w": W, "c": C36}),
    "gemm-computed-bias": ("float[M,8] x, float[6] d", "float[M,6] y",
                           "y = Gemm<beta=2.0>(x, w, d)", {"w": W}),
    "gemm-itself": ("float[8,8] x", "float[8,8] y", "y = Gemm(x, w, x)",
                    {"w": (W @ WT).astype(np.float32)}),
    "gemm-beta-0": ("float[3,8] x", "float[3,6] y", "y = Gemm<beta=0.0>(x, w, c)",
                    {"w": W, "c": C36}),
}  # fmt: skip


@pytest.mark.parametrize("form", list(Layout))
@pytest.mark.parametrize("name", FORMS)
def test_every_form(name: str, form: Layout) -> None:
    inputs, result, body, weights = FORMS[name]
    model = text_model(f"g ({inputs}) => ({result}) {{ {body} }}", weights=dict(weights))
    model.claims.add("w")  # moves with the axis; the values need not be 2:4 here
    ctx = rewritten(model, dynamic=5, form=form)
    assert codes(ctx) == ["O24-300"]
    assert not {"MatMul", "Gemm"} & set(ops(model)) and ops(model).count("Conv") == 1
    k = int(np.prod(weights["w"].shape)) // model.weights["w"].shape[0]
    ones = 1 if form is Layout.CONV1D else 2
    assert model.weights["w"].shape[1:] == (k, *(1,) * ones)


@pytest.mark.parametrize(
    ("form", "name", "transposes"),
    [
        (Layout.TOKENS, "left-batch", 0),  # K is where a convolution wants it
        (Layout.NCHW, "left-batch", 0),
        (Layout.TOKENS, "gemm-transA", 1),
        (Layout.NCHW, "gemm-transA", 1),
        (Layout.NCHW, "transpose-3", 2),
        (Layout.CONV1D, "transpose-3", 2),
        (Layout.TOKENS, "transpose-3", 0),
    ],
)
def test_no_more_transposes_than_needed(form: Layout, name: str, transposes: int) -> None:
    inputs, result, body, weights = FORMS[name]
    model = text_model(f"g ({inputs}) => ({result}) {{ {body} }}", weights=dict(weights))
    rewritten(model, dynamic=5, form=form)
    assert ops(model).count("Transpose") == transposes


def test_conv1d_of_three_dimensions_needs_no_reshape() -> None:
    model = text_model(
        "g (float[M,8,L] x) => (float[M,6,L] y) { h = MatMul(w, x) y = Relu(h) }",
        weights={"w": WT},
    )
    rewritten(model, form=Layout.CONV1D)
    assert "Reshape" not in ops(model) and model.weights["w"].shape == (N, K, 1)


# --- neighbours ----------------------------------------------------------------------------------
U = RNG.standard_normal((N, K)).astype(np.float32)
GELU = "e0 = Div(h, two) e1 = Erf(e0) e2 = Add(e1, one) e3 = Mul(h, e2) a = Mul(e3, half)"
NUMBERS = "<float two = {1.4142}, float one = {1.0}, float[1] half = {0.5}>"
BETWEEN = {
    # name: (what turns h [M,L,6] into a, further weights, nodes that stay, reshapes)
    "nothing": ("a = Identity(h)", {}, 1, 2),
    "relu": ("a = Relu(h)", {}, 1, 2),
    "clip": ("a = Clip(h, one)", {}, 1, 2),
    "gelu": (GELU, {}, 5, 2),
    "scale": ("s = Mul(h, g) a = Add(s, b)", {"g": B[None, None], "b": B}, 2, 2),
    "prelu": ("a = PRelu(h, g)", {"g": B}, 1, 2),
    "swish": ("s = Sigmoid(h) a = Mul(h, s)", {}, 2, 2),
    "rows": ("a = Add(h, p)", {"p": RNG.standard_normal((5, N)).astype(np.float32)}, 0, 4),
    "norm": ("m = ReduceMean<axes=[2]>(h) a = Sub(h, m)", {}, 0, 4),
    "softmax": ("a = Softmax(h)", {}, 0, 4),
}


def _pair(body: str, weights: dict, *, tail: str = "y = MatMul(a, u)") -> Model:
    return text_model(
        f"g (float[M,L,8] x) => (float[M,L,8] y) {NUMBERS} {{ h = MatMul(x, w) {body} {tail} }}",
        weights={"w": W, "u": U, **weights},
    )


@pytest.mark.parametrize("form", list(Layout))
@pytest.mark.parametrize("name", BETWEEN)
def test_neighbours_share_one_pair(name: str, form: Layout) -> None:
    body, weights, kept, reshapes = BETWEEN[name]
    model = _pair(body, dict(weights))
    ctx = rewritten(model, dynamic=5, form=form)
    assert ctx.statistics["kept_between"] == kept
    changes = "Transpose" if form is Layout.CONV1D else "Reshape"
    assert ops(model).count(changes) == reshapes
    if form is Layout.NCHW:
        assert ops(model).count("Transpose") == reshapes


def test_a_residual_add_of_two_tokens() -> None:
    """h + f(h), as in a feed-forward without a norm; the last product sees the sum."""
    body = "r = Relu(h) f = MatMul(r, v) a = Add(f, h)"
    model = _pair(body, {"v": RNG.standard_normal((N, N)).astype(np.float32)})
    ctx = rewritten(model, dynamic=4)
    assert ctx.statistics["kept_between"] == 2
    assert ops(model)[:5] == ["Reshape", "Conv", "Relu", "Conv", "Add"]
    assert ops(model).count("Reshape") == 2


def test_the_residual_of_the_input_itself() -> None:
    body = "r = Relu(h) f = MatMul(r, u) a = Add(f, x)"
    model = text_model(
        f"g (float[M,L,8] x) => (float[M,L,8] y) {{ h = MatMul(x, w) {body} y = MatMul(a, v) }}",
        weights={"w": W, "u": U, "v": (W @ U).astype(np.float32)},
    )
    ctx = rewritten(model, dynamic=4)
    assert ctx.statistics["kept_between"] == 2 and ops(model).count("Reshape") == 2


def test_sums_of_other_sizes_stay_outside() -> None:
    """[M,L,6] + [L,6] are tokens both, yet not the same ones."""
    model = text_model(
        "g (float[M,L,8] x, float[L,8] z) => (float[M,L,8] y) "
        "{ h = MatMul(x, w) k = MatMul(z, v) a = Add(h, k) y = MatMul(a, u) }",
        weights={"w": W, "v": W * 2, "u": U},
    )
    ctx = rewritten(model, dynamic=3)
    assert ctx.statistics["kept_between"] == 0


def test_what_is_read_outside_too_gets_its_own_reshape() -> None:
    tail = "o = MatMul(a, u) s = ReduceMax<axes=[2]>(a) y = Add(o, s)"
    model = _pair("a = Relu(h)", {}, tail=tail)
    ctx = rewritten(model, dynamic=3)
    assert ctx.statistics["kept_between"] == 1 and ops(model).count("Reshape") == 3


def test_a_value_that_is_an_output_gets_its_own_reshape() -> None:
    model = text_model(
        "g (float[M,3,8] x) => (float[M,3,6] a, float[M,3,8] y) "
        "{ h = MatMul(x, w) a = Relu(h) y = MatMul(a, u) }",
        weights={"w": W, "u": U},
    )
    ctx = rewritten(model)
    assert ctx.statistics["kept_between"] == 1 and ops(model).count("Reshape") == 3


def test_quantizers_between_go_along() -> None:
    model = text_model(
        f"g (float[M,3,8] x) => (float[M,3,8] y) {SCALES} "
        "{ h = MatMul(x, w) r = Relu(h) q = QuantizeLinear(r, sx, z) "
        "a = DequantizeLinear(q, sx, z) y = MatMul(a, u) }",
        weights={"w": W, "u": U},
    )
    ctx = rewritten(model)
    assert ctx.statistics["kept_between"] == 3 and ops(model).count("Reshape") == 2


def test_quantizers_that_something_else_reads_stay() -> None:
    model = text_model(
        f"g (float[M,3,8] x) => (float[M,3,8] y) {SCALES} "
        "{ h = MatMul(x, w) r = Relu(h) q = QuantizeLinear(r, sx, z) "
        "a = DequantizeLinear(q, sx, z) o = MatMul(a, u) s = ReduceMax<axes=[2]>(a) "
        "y = Add(o, s) }",
        weights={"w": W, "u": U},
    )
    ctx = rewritten(model)
    assert ctx.statistics["kept_between"] == 0 and ops(model).count("Reshape") == 4


def test_a_body_that_reads_a_value_between_sees_it_as_it_was() -> None:
    model = text_model(
        "g (bool p, float[3,8] x) => (float[3,8] y, float[3,6] o) { h = MatMul(x, w) a = Relu(h) "
        "y = MatMul(a, u) o = If(p)<then_branch = t () => (float[3,6] c) { c = Neg(a) }, "
        "else_branch = e () => (float[3,6] d) { d = Abs(a) }> }",
        weights={"w": W, "u": U},
    )
    ctx = rewritten(model)
    assert ctx.statistics["kept_between"] == 1


# --- sharing, scopes, 2:4 ----------------------------------------------------------------------
def test_a_tied_weight_is_stored_once() -> None:
    model = text_model(
        "g (float[3,8] x, float[2,8] z) => (float[3,6] y, float[2,6] v) "
        "{ y = MatMul(x, w) v = MatMul(z, w) }",
        weights={"w": W},
    )
    ctx = rewritten(model)
    assert codes(ctx) == ["O24-300"] * 2 and len(ctx.sites) == 1
    assert [k.name for k in model.weights if model.weights[k].ndim == 4] == ["w"]


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("y = MatMul(x, w) v = Gather(w, i)", 1),  # an embedding
        ("y = MatMul(x, w) v = Gemm<alpha=2.0>(x, w)", 2),
    ],
)
def test_a_weight_with_other_readers_is_refused(body: str, refused: int) -> None:
    model = text_model(
        f"g (float[3,8] x, int64[2] i) => (float[3,6] y, float[A,C] v) {{ {body} }}",
        weights={"w": W},
    )
    before = model.to_bytes()
    ctx = rewritten(model)
    assert codes(ctx) == ["O24-311"] * refused and model.to_bytes() == before


@pytest.mark.parametrize("body", ["y = Gemm(x, w, w)", "a = MatMul(w, w) y = MatMul(x, a)"])
def test_a_weight_that_one_node_reads_twice_is_refused(body: str) -> None:
    """A new form under the old name would stand beside the old one (O24-903)."""
    square = np.ascontiguousarray(np.resize(W, (8, 8)))
    model = text_model(f"g (float[8,8] x) => (float[8,8] y) {{ {body} }}", weights={"w": square})
    before = model.to_bytes()
    ctx = rewritten(model)
    assert "O24-300" not in codes(ctx) and model.to_bytes() == before


@pytest.mark.parametrize("declared", ["float[4] a", "float[3,2,8] a"])
def test_what_a_model_says_wrongly_of_inner_values_is_not_believed(declared: str) -> None:
    """Models that were edited keep the value infos of before; runtimes overlook them."""
    model = text_model(
        f"g (float[3,8] x) => (float[3,6] y) <{declared}> "
        "{ a = Relu(x) b = MatMul(a, v) y = MatMul(b, w) }",
        weights={"w": W, "v": np.ascontiguousarray(np.resize(W, (8, 8)))},
    )
    assert codes(rewritten(model)) == ["O24-300"] * 2


def test_bodies() -> None:
    model = text_model(
        "g (bool p, float[3,8] x) => (float[3,6] y) { y = If(p)<"
        "then_branch = t () => (float[3,6] a) { a = MatMul(x, w) }, "
        "else_branch = e () => (float[3,6] b) { m = MatMul(x, w) b = Neg(m) }> }",
        weights={"w": W},
    )
    ctx = rewritten(model)
    assert codes(ctx) == ["O24-300"] * 2
    assert {record.scope for record in ctx.records} == {"y.then_branch", "y.else_branch"}
    bodies = [attr.g for attr in model.proto.graph.node[0].attribute]
    assert [[node.op_type for node in body.node] for body in bodies] == [
        ["Reshape", "Conv", "Reshape"],
        ["Reshape", "Conv", "Reshape", "Neg"],
    ]


def _sparse(w: np.ndarray) -> np.ndarray:
    groups = w.reshape(K // 4, 4, N).copy()
    groups[:, 1:3] = 0
    return groups.reshape(K, N)


@pytest.mark.parametrize("inside", [False, True])
def test_a_claim_stays_with_its_weight(inside: bool) -> None:
    branch = "{0} = {0}g () => (float[3,6] {0}a) {{ {0}a = MatMul(x, w) }}"
    body = branch.format("then_branch") + ", else_branch = eg () => (float[3,6] b) { b = Neg(r) }"
    text = (
        f"g (bool p, float[3,8] x, float[3,6] r) => (float[3,6] y) {{ y = If(p)<{body}> }}"
        if inside
        else "g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }"
    )
    model = text_model(text, weights={"w": _sparse(W)})
    model.claims.add("w")
    rewritten(model)
    scope = "y.then_branch" if inside else ""
    assert model.claims.keys() == [ValueKey(scope, "w")]
    conv = model.weights[ValueKey(scope, "w")].reshape(N, K // 4, 4)
    assert (np.count_nonzero(conv, axis=2) <= 2).all()


# --- Q/DQ --------------------------------------------------------------------------------------


def _quantized(weight: str, axis: str, extra: dict, body: str = "") -> Model:
    text = (
        f"g (float[M,3,8] x) => (float[M,3,6] y) {SCALES} "
        "{ xq = QuantizeLinear(x, sx, z) xd = DequantizeLinear(xq, sx, z) "
        f"{weight} wd = DequantizeLinear{axis}(wq, sw, zw) h = MatMul(xd, wd) "
        f"{body or 'y = Add(h, b)'} }}"
    )
    return text_model(text, weights={"b": B, **extra})


PER_CHANNEL = {"sw": np.linspace(0.01, 0.03, N).astype(np.float32), "zw": np.zeros(N, np.int8)}
PER_TENSOR = {"sw": np.array(0.02, np.float32), "zw": np.array(0, np.int8)}
INT8 = np.clip(np.round(W / 0.02), -127, 127).astype(np.int8)


def test_int8_weight_behind_dq() -> None:
    model = _quantized("", "<axis=1>", {"wq": INT8, **PER_CHANNEL})
    rewritten(model)
    assert ops(model) == [
        "Reshape", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Conv", "Reshape",
    ]  # fmt: skip
    dq = model.proto.graph.node[3]
    assert onnx.helper.get_node_attr_value(dq, "axis") == 0
    np.testing.assert_array_equal(model.weights["wq"], INT8.T.reshape(N, K, 1, 1))


def test_float_weight_behind_q_dq() -> None:
    model = _quantized(
        "wq = QuantizeLinear<axis=1>(w, sw, zw)", "<axis=1>", {"w": W, **PER_CHANNEL}
    )
    rewritten(model)
    axes = [
        onnx.helper.get_node_attr_value(node, "axis")
        for node in model.proto.graph.node
        if any(attr.name == "axis" for attr in node.attribute)
    ]
    assert axes == [0, 0] and model.weights["w"].shape == (N, K, 1, 1)


def test_scales_along_k_keep_their_meaning() -> None:
    extra = {"sw": np.linspace(0.01, 0.03, K).astype(np.float32), "zw": np.zeros(K, np.int8)}
    model = _quantized("", "<axis=0>", {"wq": INT8, **extra})
    rewritten(model)


def test_per_tensor_scales_get_no_axis() -> None:
    model = _quantized("", "", {"wq": INT8, **PER_TENSOR})
    rewritten(model)
    assert not any(a.name == "axis" for n in model.proto.graph.node for a in n.attribute)


def test_a_shared_pair_is_hoisted_once() -> None:
    model = _quantized(
        "",
        "<axis=1>",
        {"wq": INT8, "w2": W, **PER_CHANNEL},
        body="v = MatMul(xd, w2) a = Add(h, b) y = Add(a, v)",
    )
    rewritten(model)
    assert ops(model)[:3] == ["Reshape", "QuantizeLinear", "DequantizeLinear"]
    assert ops(model).count("Reshape") == 3


def test_a_pair_with_other_readers_stays_before_the_reshape() -> None:
    model = _quantized(
        "",
        "<axis=1>",
        {"wq": INT8, **PER_CHANNEL},
        body="a = Add(h, b) s = ReduceSum<keepdims=1>(xd) y = Add(a, s)",
    )
    rewritten(model)
    assert ops(model)[:2] == ["QuantizeLinear", "DequantizeLinear"]


def test_dynamic_shapes_behind_a_hoisted_pair() -> None:
    text = (
        f"g (float[M,L,8] x) => (float[M,L,6] y) {SCALES} "
        "{ xq = QuantizeLinear(x, sx, z) xd = DequantizeLinear(xq, sx, z) y = MatMul(xd, w) }"
    )
    model = text_model(text, weights={"w": W})
    rewritten(model, dynamic=3)
    assert ops(model)[0] == "Reshape" and ops(model)[-1] == "Reshape"


# --- refusals ----------------------------------------------------------------------------------
NEAR_MISSES = {
    "computed": ("float[3,8] x, float[8,6] z", "y = MatMul(x, z)", None, "O24-312"),
    "batched": ("float[3,2,8] x", "y = MatMul(x, w)", W[None].repeat(3, 0), "O24-311"),
    "reversed": ("float[1,3,8] x", "t = Transpose(w) y = MatMul(x, t)", W.T[:, :, None].copy(),
                 "O24-311"),
    "int": ("int32[3,8] x", "y = MatMul(x, w)", W.astype(np.int32), "O24-311"),
    "double": ("double[3,8] x", "y = MatMul(x, w)", W.astype(np.float64), "O24-311"),
    "empty": ("float[3,0] x", "y = MatMul(x, w)", W[:0], "O24-311"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    inputs, body, weight, code = NEAR_MISSES[name]
    kind = inputs.split("[")[0]
    weights = {} if weight is None else {"w": weight}
    rank = "[A,C,D]" if name in ("batched", "reversed") else "[A,C]"
    model = text_model(f"g ({inputs}) => ({kind}{rank} y) {{ {body} }}", weights=weights)
    before = model.to_bytes()
    ctx = apply(model, MatmulToConv1x1(when=When.ALWAYS))
    assert codes(ctx) == [code] and ctx.records[0].reason
    assert model.to_bytes() == before and not model.changed


def test_a_blocked_weight_is_refused() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) "
        "{ wd = DequantizeLinear<axis=0,block_size=4>(wq, sw) y = MatMul(x, wd) }",
        opset=21,
        ir=10,
        weights={"wq": INT8, "sw": np.full((2, N), 0.02, np.float32)},
    )
    ctx = apply(model, MatmulToConv1x1(when=When.ALWAYS))
    assert codes(ctx) == ["O24-311"] and not model.changed


def test_the_target_decides() -> None:
    text = "g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }"
    model = text_model(text, weights={"w": W})
    ctx = apply(model, MatmulToConv1x1(), target="sm86-trt10")
    assert codes(ctx) == ["O24-310"] and not model.changed and not ctx.sites
    ctx = apply(model, MatmulToConv1x1(), target="sm86-trt8")
    assert codes(ctx) == ["O24-300"] and "Conv" in ops(model)
    model = text_model(text, weights={"w": W})
    ctx = apply(model, MatmulToConv1x1(when=When.NEVER), target="sm86-trt8")
    assert not ctx.records and not model.changed


def test_what_an_exporter_says_of_the_weight_goes_with_its_old_form() -> None:
    """torch writes a value_info for initializers; a stale one makes shape inference fail."""
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) y = Relu(h) }", weights={"w": W}
    )
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [K, N])
    model.proto.graph.value_info.append(info)
    rewritten(model)
    onnx.shape_inference.infer_shapes(model.proto, strict_mode=True)


def test_an_unnamed_layer_keeps_what_it_is_called_by() -> None:
    """Its first output, by which reports and TensorRT's layer list know it."""
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) k = Relu(h) [h2] y = Neg(k) }",
        weights={"w": W},
    )
    ctx = rewritten(model)
    assert ctx.records[0].node == "h"
    assert [n.name for n in model.proto.graph.node if n.op_type == "Conv"] == ["h"]
    taken = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) [h] y = Relu(h) }", weights={"w": W}
    )
    rewritten(taken)
    assert [n.name for n in taken.proto.graph.node if n.op_type == "Conv"] == [""]


def test_site_limit_names_weights() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y, float[3,6] z) { y = MatMul(x, w) z = MatMul(x, u) }",
        weights={"w": W, "u": W},
    )
    ctx = rewritten(model, limit=1)
    assert ctx.sites == ["matmul-to-conv1x1: w"] and ops(model).count("MatMul") == 1


def test_derived_constants_keep_their_promise() -> None:
    with pytest.raises(ValueError, match="promised"):
        Derived("c", (2,), np.float32, lambda: np.zeros(3, np.float32)).values  # noqa: B018


# --- real models -------------------------------------------------------------------------------
MODELS = {
    "zoo/mjp_go2_apg_policy": 3,
    "zoo/mjp_apollo_policy": 4,
    "zoo/mnistfc_256x4": 5,
    "zoo/magika_std_v1": 3,
    "zoo/magika_std_v3_3": 2,
    "zoo/dtln_model_2": 5,
    "structural/deeploy_cct_2_opset20": 14,
}


@pytest.mark.parametrize("name", MODELS)
def test_real_models(shared_models: Path, name: str) -> None:
    """1e-4 of the largest output: deep models amplify the other order of summation."""
    from onnx24.passes.canonicalize import Canonicalize

    model = Model.load(shared_models / f"{name}.onnx")
    apply(model, Canonicalize())
    inputs = feeds(session(model.to_bytes()))
    before = outputs(model, inputs)
    ctx = apply(model, MatmulToConv1x1(when=When.ALWAYS))
    assert codes(ctx).count("O24-300") == MODELS[name]
    assert_same(before, outputs(model, inputs), rtol=1e-4)
