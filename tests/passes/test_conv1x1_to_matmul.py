"""conv1x1-to-matmul: equal outputs, matmul-to-conv1x1 undone, refusals with codes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx24.passes.conv1x1_to_matmul import Conv1x1ToMatmul
from onnx24.passes.matmul_to_conv1x1 import MatmulToConv1x1, When

from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context
from onnx24.rewrite.conv1x1 import Layout
from onnx24.testing.passes import apply, assert_same, ops, outputs, text_model

RNG = np.random.default_rng(6)
K, N = 8, 6
W = RNG.standard_normal((N, K)).astype(np.float32)
U = RNG.standard_normal((K, N)).astype(np.float32)
KERNEL = W[:, :, None, None]
B = RNG.standard_normal(N).astype(np.float32)
# MatMul and Conv sum in different orders.
RTOL = 2e-6


def undone(model: Model, *, dynamic: int = 3, every: bool = False) -> Context:
    before = outputs(model, dynamic=dynamic)
    ctx = apply(model, Conv1x1ToMatmul(all=every))
    assert_same(before, outputs(model, dynamic=dynamic), rtol=RTOL)
    once = model.to_bytes()
    apply(model, Conv1x1ToMatmul(all=every))
    assert model.to_bytes() == once
    return ctx


def codes(ctx: Context) -> list[str]:
    return [record.code for record in ctx.records]


NUMBERS = "<float two = {1.4142}, float one = {1.0}, float half = {0.5}>"
ROUND_TRIPS = {
    "one": "y = MatMul(x, w)",
    "bias": "h = MatMul(x, w) y = Add(h, b)",
    "siblings": "p = MatMul(x, w) q = MatMul(x, w2) y = Mul(p, q)",
    "relu": "h = MatMul(x, w) t = Add(h, b) r = Relu(t) f = MatMul(r, u) y = MatMul(f, w)",
    "gelu": "h = MatMul(x, w) c = Div(h, two) e = Erf(c) f = Add(e, one) m = Mul(h, f) "
    "a = Mul(m, half) z = MatMul(a, u) y = MatMul(z, w)",
    "residual": "h = MatMul(x, w) r = Relu(h) z = MatMul(r, u) s = Add(z, x) y = MatMul(s, w)",
    "scale": "h = MatMul(x, w) c = Mul(h, g) z = MatMul(c, u) y = MatMul(z, w)",
    "outside": "h = MatMul(x, w) r = Relu(h) z = MatMul(r, u) m = ReduceMax<axes=[2]>(r) "
    "s = Mul(z, m) y = MatMul(s, w)",
}


@pytest.mark.parametrize("dims", ["5,4", "M,4", "M,L"])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_tokens_come_back_as_they_were(name: str, dims: str) -> None:
    body = ROUND_TRIPS[name]
    weights = {"w": W.T.copy(), "w2": W.T * 2, "b": B, "u": W.copy(), "g": B[None, None]}
    model = text_model(
        f"g (float[{dims},8] x) => (float[{dims},6] y) {NUMBERS} {{ {body} }}",
        weights={k: v for k, v in weights.items() if k in body},
    )
    was, values = ops(model), outputs(model, dynamic=3)
    apply(model, MatmulToConv1x1(when=When.ALWAYS))
    assert "Conv" in ops(model) and "MatMul" not in ops(model)
    ctx = undone(model)
    assert set(codes(ctx)) == {"O24-301"}
    assert_same(values, outputs(model, dynamic=3), rtol=0.0)
    if dims != "M,L" or name in ("one", "bias", "siblings"):
        assert ops(model) == was
    else:  # nothing says that the reshape back, of a computed shape, gives the same
        assert [op for op in ops(model) if op in was] == was
    for key, value in weights.items():
        if key in body and key != "g":
            np.testing.assert_array_equal(model.weights[key], value)


@pytest.mark.parametrize("form", [Layout.NCHW, Layout.CONV1D])
@pytest.mark.parametrize(
    ("inputs", "result", "body"),
    [
        ("float[8,3] x", "float[6,3] y", "y = MatMul(w, x)"),
        ("float[M,8,L] x", "float[M,6,L] y", "h = MatMul(w, x) y = Add(h, c)"),
        ("float[M,2,8,L] x", "float[M,2,6,L] y",
         "h = MatMul(w, x) r = Relu(h) k = MatMul(u, r) y = MatMul(w, k)"),
    ],
)  # fmt: skip
def test_products_of_a_left_weight(form: Layout, inputs: str, result: str, body: str) -> None:
    weights = {"w": W.copy(), "u": U.copy(), "c": B[:, None].copy()}
    model = text_model(
        f"g ({inputs}) => ({result}) {{ {body} }}",
        weights={k: v for k, v in weights.items() if k in body},
    )
    values = outputs(model, dynamic=3)
    apply(model, MatmulToConv1x1(when=When.ALWAYS, form=form))
    undone(model, every=True)
    assert "Conv" not in ops(model) and "Transpose" not in ops(model)
    assert_same(values, outputs(model, dynamic=3), rtol=0.0)
    np.testing.assert_array_equal(model.weights["w"], W)


def test_the_claim_and_the_scales_move_along() -> None:
    scales = np.linspace(0.01, 0.03, N).astype(np.float32)
    codes_ = np.clip(np.round(W.T / 0.02), -127, 127).astype(np.int8)
    codes_.reshape(K // 4, 4, N)[:, 1:3] = 0
    model = text_model(
        "g (float[M,3,8] x) => (float[M,3,6] y) <float sx = {0.05}, int8 z = {0}> "
        "{ xq = QuantizeLinear(x, sx, z) xd = DequantizeLinear(xq, sx, z) "
        "wd = DequantizeLinear<axis=1>(wq, sw, zw) y = MatMul(xd, wd) }",
        weights={"wq": codes_, "sw": scales, "zw": np.zeros(N, np.int8)},
    )
    model.claims.add("wq")
    was = model.to_bytes()
    apply(model, MatmulToConv1x1(when=When.ALWAYS))
    undone(model)
    dq = next(
        n for n in model.proto.graph.node if n.op_type == "DequantizeLinear" and "wq" in n.input
    )
    assert onnx.helper.get_node_attr_value(dq, "axis") == 1
    np.testing.assert_array_equal(model.weights["wq"], codes_)
    assert model.claims.keys() == [ValueKey("", "wq")]
    assert ops(model) == [n.op_type for n in onnx.load_from_string(was).graph.node]


# --- convolutions that were never products -------------------------------------------------------
IMAGES = {
    "image": ("float[M,8,5,7] x", "float[M,6,5,7] y", "y = Conv(x, w, b)"),
    "dynamic": ("float[M,8,H,V] x", "float[M,6,H,V] y", "y = Conv(x, w, b)"),
    "one-position": ("float[M,8,1,1] x", "float[M,6,1,1] y", "y = Conv(x, w, b)"),
    "chain": ("float[M,8,5,7] x", "float[M,6,5,7] y",
              "h = Conv(x, w, b) r = Relu(h) k = Conv(r, v) y = Conv(k, w, b)"),
    "pool": ("float[M,8,4,4] x", "float[M,6,2,2] y",
             "h = Conv(x, w) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    inputs, result, body = IMAGES[name]
    weights = {"w": KERNEL, "b": B, "v": U[:, :, None, None]}
    used = {k: v for k, v in weights.items() if f" {k}" in body}
    model = text_model(f"g ({inputs}) => ({result}) {{ {body} }}", weights=used)
    ctx = apply(model, Conv1x1ToMatmul())
    assert not model.changed and not ctx.records, "no Reshape says that it was a product"
    ctx = undone(model, every=True)
    assert "Conv" not in ops(model) and set(codes(ctx)) == {"O24-301"}
    assert "Transpose" not in ops(model)


NEAR_MISSES = {
    "stride": "y = Conv<strides=[2,2]>(x, w)",
    "pads": "y = Conv<pads=[1,1,1,1]>(x, w)",
    "group": "y = Conv<group=2>(x, w)",
    "reader": "h = Conv(x, w) s = ReduceSum<keepdims=0>(w) y = Add(h, s)",
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    kernel = KERNEL[:, : K // 2] if name == "group" else KERNEL
    model = text_model(
        f"g (float[2,8,4,4] x) => (float[A,C,D,E] y) {{ {NEAR_MISSES[name]} }}",
        weights={"w": np.ascontiguousarray(kernel)},
    )
    before = model.to_bytes()
    ctx = apply(model, Conv1x1ToMatmul(all=True))
    assert codes(ctx) == ["O24-313"] and ctx.records[0].reason
    assert model.to_bytes() == before


@pytest.mark.parametrize("body", ["y = Conv(x, v)", "y = Conv(x, z)"])
def test_larger_and_computed_kernels_are_not_asked(body: str) -> None:
    inputs = "float[2,8,4,4] x, float[6,8,1,1] z" if "z" in body else "float[2,8,4,4] x"
    model = text_model(
        f"g ({inputs}) => (float[A,C,D,E] y) {{ {body} }}",
        weights={} if "z" in body else {"v": np.zeros((6, 8, 3, 3), np.float32)},
    )
    ctx = apply(model, Conv1x1ToMatmul(all=True))
    assert not ctx.records and not model.changed


def test_a_kernel_of_a_product_and_of_an_image_stays() -> None:
    """Rewriting one of the two would store it twice."""
    model = text_model(
        "g (float[3,8] x, float[1,8,2,2] z) => (float[3,6] y, float[1,6,2,2] v) "
        "<int64[4] to = {-1,8,1,1}, int64[2] back = {-1,6}> "
        "{ t = Reshape(x, to) h = Conv(t, w) y = Reshape(h, back) v = Conv(z, w) }",
        weights={"w": KERNEL},
    )
    ctx = apply(model, Conv1x1ToMatmul())
    assert not model.changed and codes(ctx) == ["O24-313"] * 2
