"""16-bit results are rounded where they are written, whatever ONNX Runtime would rather do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from onnx24.ir.model import Model
from onnx24.runtime.rounding import rounded
from onnx24.runtime.session import Session

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def model(body: str, dtype: str, opset: int = 21, functions: str = "", **weights) -> Model:
    """Of float [N, 4] x to float [N, 4] y, with a bias; `H` in the text stands for the dtype."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]>\n'
    text += f"g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}\n{functions}"
    code = helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[dtype]))
    proto = onnx.parser.parse_model(text.replace("Half", str(code)).replace("half", dtype))
    for name, value in weights.items():
        array = np.asarray(value, np.float32).astype(TYPES[dtype])
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return Model.from_proto(proto)


BODIES = {
    "chain": "h = Cast<to = Half>(x) a = MatMul(h, w) b = Relu(a) c = MatMul(b, v) "
    "y = Cast<to = 1>(c)",
    "moved": "h = Cast<to = Half>(x) a = MatMul(h, w) t = Transpose<perm = [1, 0]>(a) "
    "i = Identity(t) b = Transpose<perm = [1, 0]>(i) c = MatMul(b, v) y = Cast<to = 1>(c)",
    "branch": "h = Cast<to = Half>(x) a = MatMul(h, w) yes = Constant<value = bool {1}>() "
    "c = If(yes) <then_branch = t () => (half[N, 4] c1) { r = Relu(a) c1 = MatMul(r, v) }, "
    "else_branch = e () => (half[N, 4] c2) { c2 = MatMul(a, w) }> y = Cast<to = 1>(c)",
    "function": "h = Cast<to = Half>(x) c = own.two(h, w, v) y = Cast<to = 1>(c)",
}
FUNCTION = """<domain: "own", opset_import: ["" : 21]>
two (h, w, v) => (c) { a = MatMul(h, w) b = Relu(a) c = MatMul(b, v) }"""


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("body", BODIES)
def test_every_result_is_rounded(body: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (4, 4), (4, 4)))
    functions = FUNCTION if body == "function" else ""
    of = model(BODIES[body], dtype, functions=functions, w=w, v=v)

    def r(a: np.ndarray) -> np.ndarray:
        return a.astype(TYPES[dtype]).astype(np.float32)

    hidden = r(r(x) @ r(w))
    expected = r((hidden if body == "moved" else np.maximum(hidden, 0)) @ r(v))
    for kind in ({"optimize": True}, {"optimize": False}, {"fast": True}):
        np.testing.assert_array_equal(Session(of, **kind).run({"x": x})["y"], expected)


def test_a_hidden_overflow_is_seen_at_every_opset() -> None:
    for opset in (9, 13, 21):
        of = model(BODIES["chain"], "float16", opset, w=np.eye(4) * 6e4, v=np.eye(4) * 1e-4)
        y = Session(of).run({"x": np.full((1, 4), 2, np.float32)})["y"]
        assert not np.isfinite(y).any()


def test_scales_and_what_names_a_type() -> None:
    body = (
        "h = Cast<to = Half>(x) q = QuantizeLinear(h, s) d = DequantizeLinear(q, s) "
        "n = LayerNormalization(d, w) z = Shape(n) m = ConstantOfShape<value = float[1] {0}>(z) "
        "k = CastLike(m, n) c = Add(n, k) y = Cast<to = 1>(c)"
    )
    of = model(body, "bfloat16", s=0.1, w=np.ones(4))
    assert np.isfinite(Session(of).run({"x": np.ones((2, 4), np.float32)})["y"]).all()


def test_a_float32_model_stays_what_it_is() -> None:
    of = Model.from_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    assert rounded(of) is of


def test_defaults_of_a_functions_attributes_count() -> None:
    """onnx 1.23's inliner drops them: LeakyRelu would take its own 0.01 instead of 0.5."""
    text = """<domain: "own", opset_import: ["" : 21]>
    leak <slope: float = 0.5> (h) => (c) { c = LeakyRelu<alpha: float = @slope>(h) }"""
    of = model("h = Cast<to = Half>(x) c = own.leak(h) y = Cast<to = 1>(c)", "float16", 21, text)
    x = -np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(Session(rounded(of)).run({"x": x})["y"], 0.5 * x)
