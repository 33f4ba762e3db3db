"""cast16: what is computed in 16 bit, what stays float32, where the Casts are."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx24.passes.cast16 import Cast16, Dtype

from onnx24 import targets
from onnx24.analysis.precision import Range16, rounding_loss, slots
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.shapes import infer
from onnx24.passmgr.base import Context
from onnx24.testing.generate import mlp
from onnx24.testing.passes import apply, assert_same, feeds, ops, outputs, session, text_model

RNG = np.random.default_rng(3)
W = RNG.standard_normal((8, 6)).astype(np.float32)
# Rounding of inputs, weights and results to 11 bits each, of the largest output.
RTOL = 4e-3


def cast(
    model: Model, *, rtol: float = RTOL, limit: int | None = None, instance: Cast16 | None = None
) -> Context:
    """Run the pass; outputs stay close and a second run changes nothing."""
    before = outputs(model)
    ctx = apply(model, instance or Cast16(), limit=limit)
    assert_same(before, outputs(model), rtol=rtol)
    _no_cast_pairs(model)
    if limit is None:
        once = model.to_bytes()
        apply(model, instance or Cast16())
        assert model.to_bytes() == once
    return ctx


def _no_cast_pairs(model: Model) -> None:
    nodes = model.proto.graph.node
    casts = {node.output[0] for node in nodes if node.op_type == "Cast"}
    assert not [n.name for n in nodes if n.op_type == "Cast" and n.input[0] in casts]


def dtypes(model: Model) -> dict[str, str]:
    """The type of every value of the main graph, by ONNX's own inference."""
    table = infer(model)
    return {
        key.name: TensorProto.DataType.Name(value.dtype)  # type: ignore[arg-type]
        for key, value in table.types.items()
        if not key.scope
    }


def computed_in(model: Model, op: str) -> set[str]:
    found = dtypes(model)
    return {found[n.output[0]] for n in model.proto.graph.node if n.op_type == op}


def kept(ctx: Context) -> dict[str, str]:
    return {r.node: r.reason for r in ctx.records if r.code == "O24-241"}


# --- casts and interface -----------------------------------------------------------------------
def test_a_layer() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) a = Add(h, b) y = Relu(a) }",
        weights={"w": W, "b": W[0]},
    )
    ctx = cast(model)
    assert ops(model) == ["Cast", "MatMul", "Add", "Relu", "Cast"]
    assert model.weights["w"].dtype == model.weights["b"].dtype == np.float16
    np.testing.assert_array_equal(model.weights["w"], W.astype(np.float16))
    assert [(r.code, r.weight) for r in ctx.records] == [("O24-240", "w")]
    assert ctx.statistics == {"casts": 2, "weights": 2}
    graph = model.proto.graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert graph.output[0].name == "y"


def test_one_cast_a_value() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y, float[3,6] z) { y = MatMul(x, w) z = MatMul(x, u) }",
        weights={"w": W, "u": W},
    )
    cast(model)
    assert ops(model).count("Cast") == 3


def test_an_output_that_is_read_on() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] h, float[3,6] y) { h = MatMul(x, w) y = Relu(h) }",
        weights={"w": W},
    )
    cast(model)
    assert ops(model).count("Cast") == 3 and computed_in(model, "Relu") == {"FLOAT16"}


def test_value_infos_follow() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) y = Relu(h) }", weights={"w": W}
    )
    info = onnx.helper.make_tensor_value_info("h", TensorProto.FLOAT, [3, 6])
    model.proto.graph.value_info.append(info)
    cast(model)
    assert model.proto.graph.value_info[0].type.tensor_type.elem_type == TensorProto.FLOAT16


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_opset(opset: int) -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) "
        "{ h = MatMul(x, w) s = Softmax<axis=1>(h) t = Transpose<perm=[1,0]>(s) "
        "y = Gemm<transA=1>(t, v, b) }",
        opset=opset,
        weights={"w": W, "v": W[:6, :6].copy(), "b": W[0]},
    )
    ctx = cast(model)
    assert kept(ctx).keys() == {"s"}
    assert computed_in(model, "MatMul") == {"FLOAT16"}


def test_bf16() -> None:
    """ONNX Runtime's CPU provider has no bfloat16 products: onnx's own evaluator runs it."""
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) y = Relu(h) }", weights={"w": W}
    )
    inputs = feeds(session(model.to_bytes()))
    before = outputs(model, inputs)["y"]
    apply(model, Cast16(dtype=Dtype.BF16))
    assert model.weights["w"].dtype == ml_dtypes.bfloat16
    assert computed_in(model, "MatMul") == {"BFLOAT16"}
    after = ReferenceEvaluator(model.full_proto()).run(None, inputs)[0]
    np.testing.assert_allclose(after, before, atol=3e-2 * np.abs(before).max())
    once = model.to_bytes()
    apply(model, Cast16(dtype=Dtype.BF16))
    assert model.to_bytes() == once


def test_bf16_needs_an_opset_that_has_it() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }", opset=12, weights={"w": W}
    )
    before = model.to_bytes()
    ctx = apply(model, Cast16(dtype=Dtype.BF16))
    assert model.to_bytes() == before and "no 16-bit form" in kept(ctx)["y"]
    (said,) = (d for d in ctx.diagnostics if d.code == "O24-248")
    assert "1 products, such as 'y'" in said.message and "opset 12" in said.message


@pytest.mark.parametrize(("opset", "stay"), [(17, 1), (22, 0)])
def test_bf16_convolutions_are_of_opset_22(opset: int, stay: int) -> None:
    w = RNG.standard_normal((8, 8, 1, 1)).astype(np.float32)
    text = "g (float[1,8,3,3] x) => (float[1,8,3,3] y) { [c] h = Conv(x, w) y = Relu(h) }"
    model = text_model(text, opset=opset, ir=10, weights={"w": w})
    ctx = apply(model, Cast16(dtype=Dtype.BF16))
    assert [d.code for d in ctx.diagnostics].count("O24-248") == stay
    assert computed_in(model, "Conv") == {"FLOAT" if stay else "BFLOAT16"}


def test_a_model_without_float32_is_not_touched() -> None:
    model = text_model(
        "g (float16[3,8] x) => (float16[3,6] y) { y = MatMul(x, w) }",
        weights={"w": W.astype(np.float16)},
    )
    before = model.to_bytes()
    ctx = apply(model, Cast16())
    assert not model.changed and model.to_bytes() == before and not ctx.records


def test_a_patch_without_a_product_is_not_worth_its_casts() -> None:
    model = text_model("g (float[3,8] x) => (float[3,8] y) { a = Relu(x) y = Neg(a) }")
    before = model.to_bytes()
    cast(model)
    assert model.to_bytes() == before


# --- what stays float32 ------------------------------------------------------------------------
def test_sensitive_operators_stay() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) s = Softmax(h) y = MatMul(s, v) }",
        weights={"w": W, "v": W[:6, :6].copy()},
    )
    ctx = cast(model)
    assert ops(model) == ["Cast", "MatMul", "Cast", "Softmax", "Cast", "MatMul", "Cast"]
    assert "loses precision" in kept(ctx)["s"]


def test_the_list_of_sensitive_operators_is_an_option() -> None:
    text = "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) y = Softmax(h) }"
    model = text_model(text, weights={"w": W})
    cast(model, instance=Cast16(fp32_ops=()))
    assert computed_in(model, "MatMul") == {"FLOAT16"}
    assert ops(model) == ["Cast", "MatMul", "Softmax", "Cast"]


def test_a_written_out_layer_normalization_has_no_casts_inside() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) <float eps = {1e-12}, float two = {2.0}> "
        "{ h = MatMul(x, w) m = ReduceMean<axes=[1]>(h) d = Sub(h, m) p = Pow(d, two) "
        "v = ReduceMean<axes=[1]>(p) e = Add(v, eps) s = Sqrt(e) n = Div(d, s) "
        "y = MatMul(n, u) }",
        weights={"w": W, "u": W[:6, :6].copy()},
    )
    ctx = cast(model)
    assert kept(ctx).keys() == {"m", "p", "v", "e", "s"}
    assert "vanishes" in kept(ctx)["e"]
    found = dtypes(model)
    assert {found[name] for name in "pves"} == {"FLOAT"} and found["y.fp16"] == "FLOAT16"


def test_operators_without_a_16_bit_form_stay() -> None:
    model = text_model(
        "g (float[1,8] x) => (float[1,6] y) <int64 axis = {1}> "
        "{ h = MatMul(x, w) c = CumSum(h, axis) y = Relu(c) }",
        opset=13,
        weights={"w": W},
    )
    ctx = cast(model, instance=Cast16(fp32_ops=()))
    assert "no 16-bit form" in kept(ctx)["c"]


def test_operators_without_a_definition_stay() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) y = com.microsoft.Gelu(h) }",
        extra=', "com.microsoft" : 1',
        weights={"w": W},
    )
    ctx = cast(model)
    assert "no definition" in kept(ctx)["y"] and computed_in(model, "MatMul") == {"FLOAT16"}


def test_mixed_operands_of_one_node() -> None:
    """Resize takes its scales as float32 whatever the image is."""
    model = text_model(
        "g (float[1,8,2,2] x) => (float[1,6,4,4] y) <float[4] s = {1.0,1.0,2.0,2.0}> "
        '{ c = Conv(x, w) y = Resize<mode="nearest">(c, , s) }',
        weights={"w": W.T.reshape(6, 8, 1, 1).copy()},
    )
    cast(model)
    assert computed_in(model, "Resize") == {"FLOAT16"}
    assert model.weights["s"].dtype == np.float32


def test_arithmetic_on_integers_stays() -> None:
    model = text_model(
        "g (float[3,8] x, int64[1] n) => (float[3,6] y, int64[1] m) "
        "<float[1] f = {1.5}> { c = Cast<to=1>(n) d = Mul(c, f) e = Floor(d) m = Cast<to=7>(e) "
        "h = MatMul(x, w) y = Add(h, d) }",
        weights={"w": W},
    )
    ctx = cast(model)
    assert kept(ctx).keys() == {"d", "e"} and "integers" in kept(ctx)["d"]


def test_an_image_of_integers_meets_its_convolution_in_16_bit() -> None:
    model = text_model(
        "g (uint8[1,8,2,2] x) => (float[1,6,2,2] y) { c = Cast<to=1>(x) y = Conv(c, w) }",
        weights={"w": W.T.reshape(6, 8, 1, 1).copy()},
    )
    cast(model)
    assert ops(model) == ["Cast", "Conv", "Cast"]  # the model's own Cast goes to float16 now


def test_casts_of_the_model_are_merged() -> None:
    model = text_model(
        "g (float16[3,8] x) => (float[3,6] y, float16[3,6] z) "
        "{ c = Cast<to=1>(x) h = MatMul(c, w) a = Relu(h) z = Cast<to=10>(a) y = Neg(h) }",
        weights={"w": W},
    )
    cast(model)
    assert ops(model).count("Cast") == 2  # for y, and for z, which is an output
    assert computed_in(model, "MatMul") == {"FLOAT16"}


def test_constants_beyond_the_range_stay_up_to_the_softmax() -> None:
    """As a fully masked row shows: -3e38 as float16 is -inf, and the row NaN."""
    model = text_model(
        "g (float[3,8] x, bool[3,6] m) => (float[3,6] y) <float big = {-3e38}> "
        "{ h = MatMul(x, w) a = Where(m, big, h) s = Softmax(a) y = MatMul(s, v) }",
        weights={"w": W, "v": W[:6, :6].copy()},
    )
    inputs = feeds(session(model.to_bytes()))
    inputs["m"][0] = True
    before = outputs(model, inputs)
    ctx = apply(model, Cast16())
    assert_same(before, outputs(model, inputs), rtol=RTOL)
    (warning,) = [d for d in ctx.diagnostics if d.code == "O24-242"]
    assert warning.where.tensor == "big" and warning.facts["largest"] > 1e38
    assert computed_in(model, "Where") == {"FLOAT"} and "range" in kept(ctx)["a"]
    assert model.weights["big"].dtype == np.float32


def test_a_weight_beyond_the_range_keeps_its_layer() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }", weights={"w": W * 1e6}
    )
    before = model.to_bytes()
    ctx = apply(model, Cast16())
    assert model.to_bytes() == before
    assert "O24-242" in [d.code for d in ctx.diagnostics]


# --- activations ---------------------------------------------------------------------------------
class _Data:
    """Stands for runtime.data.Calibration."""

    def __init__(self, *batches: dict[str, np.ndarray]) -> None:
        self._batches = batches

    def batches(self, _: Model):
        return iter(self._batches)


def test_activations_beyond_the_range_stay() -> None:
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) r = Relu(h) s = Sigmoid(r) "
        "y = MatMul(s, v) }",
        weights={"w": np.abs(W) * 5e3, "v": W[:6, :6].copy()},
    )
    x = np.full((3, 8), 4.0, np.float32)
    before = outputs(model, {"x": x})
    data = _Data({"x": x / 4}, {"x": x})
    ctx = Context(target=targets.load(targets.DEFAULT), calibration=data)  # type: ignore[arg-type]
    Cast16().run(model, ctx)
    assert kept(ctx).keys() == {"h", "r", "s"}
    assert {d.where.tensor for d in ctx.diagnostics if d.code == "O24-243"} == {"h", "r"}
    assert_same(before, outputs(model, {"x": x}), rtol=RTOL)


@pytest.mark.parametrize(("size", "stays"), [(1e-7, True), (1e-4, False), (0.0, False)])
def test_activations_that_would_vanish_stay(size: float, stays: bool) -> None:
    """Below 6.1e-5 FP16 has fewer than 11 bits; what is 0 has nothing to lose."""
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        weights={"w": np.abs(W), "v": W[:6, :6].copy()},
    )
    x = np.full((3, 8), size, np.float32)
    before = outputs(model, {"x": x})
    ctx = Context(target=targets.load(targets.DEFAULT), calibration=_Data({"x": x}))  # type: ignore[arg-type]
    Cast16().run(model, ctx)
    assert ("vanishes" in " ".join(kept(ctx).values())) == stays
    assert not [d for d in ctx.diagnostics if d.code == "O24-243"]
    assert_same(before, outputs(model, {"x": x}), rtol=RTOL)


def test_an_input_with_a_default_is_not_in_the_data() -> None:
    model = text_model(
        "g (float[3,8] x, float[8,6] u) => (float[3,6] y) { y = MatMul(x, u) }",
        weights={"u": W},
    )
    data = _Data({"x": np.ones((3, 8), np.float32)})
    ctx = Context(target=targets.load(targets.DEFAULT), calibration=data)  # type: ignore[arg-type]
    Cast16().run(model, ctx)
    assert computed_in(model, "MatMul") == {"FLOAT16"} and "u" in model.weights


def test_without_data_a_note_says_so() -> None:
    model = text_model("g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }", weights={"w": W})
    ctx = apply(model, Cast16())
    assert "O24-244" in [d.code for d in ctx.diagnostics]


@pytest.mark.parametrize("op", ["EyeLike", "RandomNormalLike", "RandomUniformLike"])
@pytest.mark.parametrize("dtype", ["", "<dtype=1>"], ids=["default", "float"])
def test_results_that_take_the_type_of_an_input(op: str, dtype: str) -> None:
    """They became 16-bit with their input, and were declared as float32."""
    model = text_model(
        "g (float[8,8] x) => (float[8,6] y, float[8,8] z) <float[8,8] e, float[8,8] a> "
        f"{{ a = MatMul(x, v) e = {op}{dtype}(a) z = Mul(e, zero) "
        "c = Add(a, z) y = MatMul(c, w) }",
        weights={"w": W, "v": np.resize(W, (8, 8)), "zero": np.float32(0)},
    )
    cast(model)
    onnx.checker.check_model(model.to_bytes(), full_check=True)


# --- weights -------------------------------------------------------------------------------------
@pytest.mark.parametrize("other", ["float[8,6] z", "int64[2] z"], ids=["values", "shape"])
def test_a_weight_read_in_both_precisions_is_stored_twice(other: str) -> None:
    reader = "Softmax" if other.startswith("float") else "Shape"
    model = text_model(
        f"g (float[3,8] x) => (float[3,6] y, {other}) {{ y = MatMul(x, w) z = {reader}(w) }}",
        weights={"w": W},
    )
    model.claims.add("w")
    ctx = cast(model)
    assert {key.name: str(model.weights[key].dtype) for key in model.weights} == {
        "w": "float32",
        "w.fp16": "float16",
    }
    assert model.claims.keys() == [ValueKey("", "w.fp16")], "no product reads the other"
    assert "twice" in ctx.records[0].reason or "twice" in ctx.records[1].reason


def test_a_tied_weight_is_stored_once() -> None:
    model = text_model(
        "g (int64[3] i) => (float[3,8] y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }",
        weights={"w": np.concatenate([W, W])[:8]},
    )
    cast(model)
    assert [key.name for key in model.weights] == ["w"]


def test_24_survives() -> None:
    w = W.reshape(2, 4, 6).copy()
    w[:, 1:3] = 0
    model = text_model(
        "g (float[3,8] x) => (float[3,6] y) { y = MatMul(x, w) }",
        weights={"w": w.reshape(8, 6)},
    )
    model.claims.add("w")
    cast(model)
    assert model.claims.keys() == [ValueKey("", "w")]
    groups = model.weights["w"].reshape(2, 4, 6)
    assert (np.count_nonzero(groups, axis=1) <= 2).all()


# --- bodies --------------------------------------------------------------------------------------
def test_bodies_stay_float32() -> None:
    model = text_model(
        "g (bool p, float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) r = If(p)<"
        "then_branch = t () => (float[3,6] a) { a = Relu(h) }, "
        "else_branch = e () => (float[3,6] b) { m = MatMul(x, w) b = Neg(m) }> "
        "y = MatMul(r, v) }",
        weights={"w": W, "v": W[:6, :6].copy()},
    )
    ctx = cast(model)
    assert kept(ctx) == {"r": "it has bodies"}
    (said,) = [d.message for d in ctx.diagnostics if d.code == "O24-248"]
    assert said.startswith("1 of 3 products and recurrent layers lie in bodies (r.else_branch)")
    assert computed_in(model, "MatMul") == {"FLOAT16"}
    assert {key.name for key in model.weights} == {"w", "w.fp16", "v"}


def test_a_loop_over_a_16_bit_value() -> None:
    model = text_model(
        "g (int64 n, bool c, float[3,8] x) => (float[3,6] y) { h = MatMul(x, w) "
        "y = Loop(n, c, h)<body = l (int64 i, bool ci, float[3,6] v) => (bool co, float[3,6] vo) "
        "{ co = Identity(ci) vo = Add(v, h) }> }",
        weights={"w": W},
    )
    cast(model)
    assert ops(model) == ["Cast", "MatMul", "Cast", "Loop"]


# --- Q/DQ ----------------------------------------------------------------------------------------
QDQ = (
    "g (float[3,8] x) => (float[3,6] y) <float sx = {{0.05}}, int8 z = {{0}}> "
    "{{ q = QuantizeLinear(x, sx, z) d = DequantizeLinear(q, sx, z) "
    "wd = DequantizeLinear<axis=1>(w, sw, zw) h = MatMul(d, wd) {0} }}"
)


def _quantized(opset: int, scale: float = 0.02, tail: str = "y = Relu(h)") -> Model:
    return text_model(
        QDQ.format(tail),
        opset=opset,
        ir=9,
        weights={
            "w": np.clip(np.round(W / 0.02), -127, 127).astype(np.int8),
            "sw": np.full(6, scale, np.float32),
            "zw": np.zeros(6, np.int8),
            "v": W[:6, :6].copy(),
        },
    )


@pytest.mark.parametrize("opset", [13, 18])
def test_quantized_layers_stay_float32_in_old_opsets(opset: int) -> None:
    model = _quantized(opset, tail="r = Relu(h) y = MatMul(r, v)")
    ctx = cast(model)
    found = dtypes(model)
    assert {found[name] for name in ("d", "wd", "h")} == {"FLOAT"}
    assert "DequantizeLinear" in kept(ctx)["h"]
    assert model.weights["sw"].dtype == np.float32 and model.weights["v"].dtype == np.float16


@pytest.mark.parametrize("opset", [19, 21, 23, 25])
def test_quantized_layers_follow_their_scales(opset: int) -> None:
    model = _quantized(opset)
    cast(model, rtol=2e-2)  # an input at the edge of a step may land on the other side
    assert ops(model) == [
        "Cast", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul", "Relu", "Cast",
    ]  # fmt: skip
    assert model.weights["sw"].dtype == model.weights["sx"].dtype == np.float16
    assert model.weights["w"].dtype == np.int8
    assert computed_in(model, "MatMul") == {"FLOAT16"}


def test_scales_that_vanish_keep_the_whole_quantized_layer() -> None:
    model = _quantized(21, scale=1e-7)
    ctx = cast(model)
    found = dtypes(model)
    assert {found[name] for name in ("d", "wd", "h")} == {"FLOAT"}
    assert "vanishes" in kept(ctx)["wd"]


# --- order, sites, definitions -------------------------------------------------------------------
def test_site_limit() -> None:
    text = "g (float[3,8] x) => (float[3,6] y, float[3,6] z) { y = MatMul(x, w) z = MatMul(x, u) }"
    model = text_model(text, weights={"w": W, "u": W})
    ctx = cast(model, limit=1)
    assert ctx.sites == ["cast16: y"]
    assert model.weights["w"].dtype == np.float16 and model.weights["u"].dtype == np.float32


def test_what_definitions_say() -> None:
    fp16, bf16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
    add = slots("Add", "", 13, (True, True), (True,), fp16)
    assert add is not None and add.inputs == (True, True) and add.outputs == (True,)
    assert slots("Add", "", 12, (True, True), (True,), bf16).outputs == (False,)  # type: ignore[union-attr]
    of_shape = slots("ConstantOfShape", "", 13, (False,), (True,), fp16)
    assert of_shape is not None and of_shape.outputs == (False,)  # typed by an attribute
    dq = slots("DequantizeLinear", "", 23, (False, True), (True,), fp16)
    assert dq is not None and dq.outputs == (True,)
    assert slots("NoSuchOp", "", 13, (True,), (True,), fp16) is None


def test_ranges() -> None:
    fp16, bf16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
    assert Range16.of(np.array([0, 65519.0], np.float32)).overflows(fp16) is False
    assert Range16.of(np.array([65520.0], np.float32)).overflows(fp16) is True
    assert Range16.of(np.array([1e38], np.float32)).overflows(bf16) is False
    assert Range16.of(np.array([1e-6, 1], np.float32)).vanishes(fp16) is True
    assert Range16.of(np.array([np.inf, np.nan, 0], np.float32)) == Range16(0.0, 0.0)
    assert Range16.of(np.zeros(0, np.float32)) == Range16(0.0, 0.0)


def test_a_weight_that_would_vanish_stays() -> None:
    """Found by the odd models: weights around 1e-8 all became zero, without a word."""
    weight = np.random.default_rng(0).standard_normal((64, 32), np.float32)
    assert 1e-5 < rounding_loss(weight, TensorProto.FLOAT16) < 5e-4
    assert rounding_loss(weight * np.float32(1e-9), TensorProto.FLOAT16) == 1.0
    assert rounding_loss(weight * np.float32(1e-9), TensorProto.BFLOAT16) < 4e-3
    assert rounding_loss(np.array([np.inf, np.nan], np.float32), TensorProto.FLOAT16) == 0.0
    for scale, stays in ((1.0, False), (1e-6, True)):
        proto = mlp([64, 32])
        tensor = numpy_helper.from_array(weight * np.float32(scale), "fc0.weight")
        proto.graph.initializer[0].CopyFrom(tensor)
        model = Model.from_proto(proto)
        context = apply(model, Cast16())
        assert ("fc0" in kept(context)) is stays, kept(context)
        assert (dtypes(model)["fc0.weight"] == "FLOAT") is stays


# --- real models ---------------------------------------------------------------------------------
MODELS = [
    "zoo/mjp_go2_apg_policy",
    "zoo/mjp_apollo_policy",
    "zoo/mnistfc_256x4",
    "zoo/mnist8_cntk",
    "zoo/magika_std_v3_3",
    "zoo/dtln_model_1",
    "zoo/ultraface_rfb320",
    "structural/deeploy_cct_2_opset20",
    "structural/deeploy_mcunet",
    "structural/deeploy_tinyvit_demo",
]


@pytest.mark.parametrize("name", MODELS)
def test_real_models(shared_models: Path, name: str) -> None:
    """On random inputs, 2 % of the largest output: deep models amplify rounding."""
    from onnx24.passes.canonicalize import Canonicalize

    model = Model.load(shared_models / f"{name}.onnx")
    apply(model, Canonicalize())
    inputs = feeds(session(model.to_bytes()))
    before = outputs(model, inputs)
    ctx = apply(model, Cast16())
    assert ctx.statistics["weights"] > 0
    assert_same(before, outputs(model, inputs), rtol=2e-2)
    _no_cast_pairs(model)


def test_magika_v1_overflows_and_calibration_shows_it(shared_models: Path) -> None:
    model = Model.load(shared_models / "zoo" / "magika_std_v1.onnx")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, 1536)).astype(np.float32)
    before = outputs(model, {"bytes": x})
    blind = Model.load(shared_models / "zoo" / "magika_std_v1.onnx")
    apply(blind, Cast16())
    assert any(np.isnan(value).any() for value in outputs(blind, {"bytes": x}).values())
    ctx = Context(
        target=targets.load(targets.DEFAULT),
        calibration=_Data({"bytes": rng.integers(0, 256, (4, 1536)).astype(np.float32)}),  # type: ignore[arg-type]
    )
    Cast16().run(model, ctx)
    assert "O24-243" in [d.code for d in ctx.diagnostics]
    assert_same(before, outputs(model, {"bytes": x}), rtol=1e-2)


@pytest.mark.parametrize("said", ["weight", "activation", "both"])
def test_an_output_dtype_changes_with_the_result(said: str) -> None:
    """DequantizeLinear-23 results in it, where it would be the scale's type."""
    float_ = ", output_dtype=1"
    weight, activation = said != "activation", said != "weight"
    model = text_model(
        "g (float[2,8] x) => (float[2,6] y) <float s = {0.02}, int8 z = {0}, float[6] ws = "
        "{0.01,0.01,0.01,0.01,0.01,0.01}> { q = QuantizeLinear(x, s, z) "
        f"d = DequantizeLinear<axis=1{float_ * activation}>(q, s, z) "
        f"w = DequantizeLinear<axis=1{float_ * weight}>(v, ws) "
        "m = MatMul(d, w) y = Relu(m) }",
        opset=23,
        weights={"v": (W * 40).astype(np.int8)},
    )
    apply(model, Cast16())
    assert dtypes(model)["m"] == "FLOAT16"
    onnx.checker.check_model(model.to_bytes(), full_check=True)
    session(model.to_bytes())


def test_bits_are_those_of_float32() -> None:
    model = text_model(
        "g (float[2,8] x) => (int32[2,6] i, float[2,6] y) "
        "{ m = MatMul(x, w) i = BitCast<to=6>(m) y = Relu(m) }",
        opset=26,
        weights={"w": W},
    )
    ctx = apply(model, Cast16())
    onnx.checker.check_model(model.to_bytes(), full_check=True)
    assert computed_in(model, "MatMul") == {"FLOAT16"} and "i" in kept(ctx)
