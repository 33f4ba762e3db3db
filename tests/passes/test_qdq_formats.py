"""qdq: FP8 and INT4, mixed by layer, and what of it TensorRT-RTX builds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from test_qdq import array, build, codes, ops, quantized, record, samples, source, sparse

from onnx24 import targets
from onnx24.analysis.placement import PLACEMENT
from onnx24.backends import Profile, get
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.quant.scales import block_amax, dequantize, quantize, quantize_blocks, symmetric_scale
from onnx24.runtime.compare import compare
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session
from onnx24.sparsity.masks import is_24

SM89 = targets.load("sm89")
CHAIN = """g (float[N, 128] x) => (float[N, 64] y) {
  [a] h = MatMul(x, wa)
  r = Relu(h)
  [b] k = MatMul(r, wb)
  s = Relu(k)
  [c] y = MatMul(s, wc)
}"""
FP8_DB, INT4_DB = 25.0, 15.0
"""Measured: 28.4 to 29.3 dB for E4M3's 3 bits of mantissa, 18.5 to 18.9 dB for INT4 by blocks of
128 of normal weights."""


def even(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chain(opset: int = 21, ir: int = 10) -> Model:
    weights = {"wa": even((128, 256)), "wb": even((256, 256), 1), "wc": even((256, 64), 2)}
    return build(CHAIN, opset=opset, ir=ir, **weights)


def kinds(model: Model) -> dict[str, set[str]]:
    """Node → the quantized types behind its operands; "float" where there is no pair."""
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    dtypes = {key.name: model.weights[key].dtype.name for key in model.weights}
    found: dict[str, list[str]] = {}
    for node in model.proto.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            continue
        for name in node.input[:2]:
            dq = makers.get(name)
            if dq is None or dq.op_type != "DequantizeLinear":
                found.setdefault(node.name, []).append("float")
                continue
            stored = dtypes.get(dq.input[0]) or dtypes[dq.input[2]]
            found.setdefault(node.name, []).append(stored)
    return {name: " ".join(each) for name, each in found.items()}


# --- the numbers -------------------------------------------------------------------------------
def test_fp8_rounds_and_saturates_as_onnxruntime_does():
    model = build(
        "g (float[N, 4096] x) => (float[N, 4096] y) { q = QuantizeLinear(x, s, z) "
        "y = DequantizeLinear(q, s, z) }",
        opset=19,
        ir=9,
        s=np.array(0.013, np.float32),
        z=np.array(0, ml_dtypes.float8_e4m3fn),
    )
    x = np.concatenate([np.linspace(-8, 8, 4000), np.geomspace(1e-6, 1, 96)]).astype(np.float32)
    ours = dequantize(
        quantize(x, np.float32(0.013), dtype=ml_dtypes.float8_e4m3fn), np.array(0.013, np.float32)
    )
    np.testing.assert_array_equal(Session(model, optimize=False).run({"x": x[None]})["y"][0], ours)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_have_scales_of_their_own(axis):
    w = array((256, 128))
    scale = symmetric_scale(block_amax(w, axis, 64), np.float32, 7)
    assert scale.shape == ((4, 128) if axis == 0 else (256, 2))
    stored = quantize_blocks(w, scale, axis, 64).astype(np.int8)
    assert np.abs(stored).max() == 7 and np.abs(stored).min() == 0
    real = stored * np.repeat(scale, 64, axis=axis)
    assert (np.abs(real - w) <= 0.5001 * np.repeat(scale, 64, axis=axis)).all()


# --- formats ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "w", "x", "y"),
    [
        ("[l] y = MatMul(x, w)", (32, 24), "N, 32", "N, 24"),
        ("[l] y = Gemm<transB = 1>(x, w)", (24, 32), "N, 32", "N, 24"),
        ("[l] y = Conv(x, w)", (24, 32, 3, 3), "N, 32, 6, 6", "N, 24, 4, 4"),
        ("[l] y = ConvTranspose(x, w)", (32, 24, 3, 3), "N, 32, 4, 4", "N, 24, 6, 6"),
    ],
)
def test_fp8_for_every_operator(body, w, x, y, tmp_path):
    model = build(f"g (float[{x}] x) => (float[{y}] y) {{ {body} }}", opset=19, ir=9, w=array(w))
    result = quantized(model, tmp_path, "format=fp8", target=SM89, min_sqnr=FP8_DB)
    assert codes(result) == {"l": "O24-233"}
    assert kinds(model) == {"l": "float8_e4m3fn float8_e4m3fn"}
    assert record(result, "l").facts["amax"] > 0
    once = model.to_bytes()
    quantized(model, tmp_path, "format=fp8", target=SM89, min_sqnr=None)
    assert model.to_bytes() == once
    fold_is_exact(model)
    assert model.weights["w_float8_e4m3fn"].dtype == ml_dtypes.float8_e4m3fn


def fold_is_exact(model: Model) -> None:
    data = load_data("random:4", model, seed=3)
    before = [Session(model, optimize=False).run(feeds) for feeds in data.batches(model)]
    run(model, parse("fold-qdq"), target=SM89, reproducer_dir=None)
    for feeds, want in zip(data.batches(model), before, strict=True):
        got = Session(model, optimize=False).run(feeds)
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], values)


def test_the_range_of_fp8_is_the_largest_magnitude(tmp_path):
    x = even((64, 128), 4)
    x[0, 0] = 90
    model = chain()
    data = samples(model, tmp_path, x=x)
    result = quantized(model, tmp_path, "fp8=a", target=SM89, data=data, min_sqnr=None)
    assert record(result, "a").facts["amax"] == 90


@pytest.mark.parametrize(
    ("body", "w", "axis"),
    [("[l] y = MatMul(x, w)", (256, 96), 0), ("[l] y = Gemm<transB = 1>(x, w)", (96, 256), 1)],
)
def test_int4_weights(body, w, axis, tmp_path):
    text = f"g (float[N, 256] x) => (float[N, 96] y) {{ {body} }}"
    model = build(text, opset=21, ir=10, w=even(w))
    result = run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)  # no data
    assert codes(result) == {"l": "O24-234"} and kinds(model) == {"l": "float int4"}
    assert ops(model).count("QuantizeLinear") == 0
    assert model.weights["w_scale"].shape[axis] == 2
    before = build(text, opset=21, ir=10, w=even(w))
    assert compare(before, model, samples(model, tmp_path)).worst.sqnr_db > INT4_DB
    once = model.to_bytes()
    again = run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)
    assert model.to_bytes() == once and codes(again) == {"l": "O24-214"}


def test_int4_files_are_an_eighth(tmp_path):
    model = build(
        "g (float[N, 512] x) => (float[N, 512] y) { y = MatMul(x, w) }",
        opset=21,
        ir=10,
        w=even((512, 512)),
    )
    run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)
    model.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 512 * 512 * 4 / 7


def test_int4_is_for_matrix_vector_products_too():
    model = build(
        "g (float[1, 128] x) => (float[1, 24] y) { [l] y = MatMul(x, w) }",
        opset=21,
        ir=10,
        w=even((128, 24)),
    )
    result = run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)
    assert codes(result) == {"l": "O24-234"}


def test_int4_keeps_the_record_of_sparsity():
    model = build(
        "g (float[N, 128] x) => (float[N, 24] y) { [l] y = MatMul(x, w) }",
        opset=21,
        ir=10,
        w=even((128, 24)),
    )
    sparse(model, "w", 0)
    run(model, parse("qdq{format=int4},check24"), target=SM89, reproducer_dir=None)
    assert model.claims.keys() == [ValueKey("", "w_int4")]
    assert is_24(model.weights["w_int4"], 0)


def test_a_tied_weight_is_int4_once():
    model = build(
        "g (float[N, 128] x) => (float[N, 128] y) { [p] h = MatMul(x, w) [q] y = MatMul(h, w) }",
        opset=21,
        ir=10,
        w=even((128, 128)),
    )
    run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)
    assert ops(model).count("DequantizeLinear") == 1


# --- mixed -------------------------------------------------------------------------------------
def test_mixed_by_layer(tmp_path):
    model = chain()
    result = quantized(model, tmp_path, "fp8=b int4=c", target=SM89, min_sqnr=INT4_DB)
    assert codes(result) == {"a": "O24-200", "b": "O24-233", "c": "O24-234"}
    assert kinds(model) == {
        "a": "int8 int8",
        "b": "float8_e4m3fn float8_e4m3fn",
        "c": "float int4",
    }
    fold_is_exact(model)


def test_none_and_the_default(tmp_path):
    model = chain()
    result = quantized(model, tmp_path, "format=fp8 int8=c none=a", target=SM89, min_sqnr=20)
    assert codes(result) == {"a": "O24-218", "b": "O24-233", "c": "O24-200"}


def test_one_activation_for_two_formats(tmp_path):
    text = """g (float[N, 128] x) => (float[N, 64] y, float[N, 64] z) {
      r = Relu(x) [a] y = MatMul(r, wa) [b] z = MatMul(r, wb) }"""
    model = build(text, opset=19, ir=9, wa=even((128, 64)), wb=even((128, 64), 1))
    quantized(model, tmp_path, "fp8=b", target=SM89, min_sqnr=20)
    assert kinds(model) == {"a": "int8 int8", "b": "float8_e4m3fn float8_e4m3fn"}
    assert ops(model).count("QuantizeLinear") == 4


def test_a_sparse_result_gives_way_to_fp8(tmp_path):
    """The INT8 pair that the sparse rule wants for the result would stand where FP8's goes."""
    model = sparse(chain(), "wa", 0)
    assert SM89.output_qdq_for_sparse
    result = quantized(model, tmp_path, "fp8=b", target=SM89, min_sqnr=20)
    assert kinds(model)["b"] == "float8_e4m3fn float8_e4m3fn"
    assert "output" not in record(result, "a").facts


# --- near misses ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "target", "opset", "code"),
    [
        ("format=fp8", "sm86", 21, "O24-235"),
        ("format=fp8", "sm89", 18, "O24-235"),
        ("format=int4", "sm86-trt8", 21, "O24-235"),
        ("format=int4", "sm89", 20, "O24-235"),
    ],
)
def test_where_the_format_is_not_there(options, target, opset, code, tmp_path):
    model = chain(opset=opset)
    before = model.to_bytes()
    result = quantized(model, tmp_path, options, target=targets.load(target), min_sqnr=None)
    assert set(codes(result).values()) == {code} and model.to_bytes() == before


def test_what_has_no_int4_form():
    model = build(
        """g (float[N, 128, 1, 1] x, float[N, 96] u) => (float[N, 24, 1, 1] y, float[N, 24] z) {
          [conv] y = Conv(x, v) [k96] z = MatMul(u, w) }""",
        opset=21,
        ir=10,
        v=even((24, 128, 1, 1)),
        w=even((96, 24)),
    )
    before = model.to_bytes()
    result = run(model, parse("qdq{format=int4}"), target=SM89, reproducer_dir=None)
    assert codes(result) == {"conv": "O24-236", "k96": "O24-236"} and model.to_bytes() == before


@pytest.mark.parametrize("options", ["fp8=nothing", "fp8=a none=a", "int8=a int4=wa"])
def test_patterns_that_mean_nothing_or_two_things(options, tmp_path):
    with pytest.raises(InputError, match="O24-023"):
        quantized(chain(), tmp_path, options, target=SM89, min_sqnr=None)


def test_one_weight_through_one_transpose_has_one_format(tmp_path):
    text = """g (float[N, 32] x) => (float[N, 32] y) { t = Transpose<perm = [1, 0]>(w)
      [a] h = MatMul(x, t) r = Relu(h) [b] y = MatMul(r, t) }"""
    model = build(text, opset=19, ir=9, w=even((32, 32)))
    one_sided = ("only input 1 of MatMul is quantized",)  # b reads a's weight
    result = quantized(model, tmp_path, "fp8=b", target=SM89, min_sqnr=30, accepted=one_sided)
    assert codes(result) == {"a": "O24-200", "b": "O24-235"}


def test_a_limit_of_sites(tmp_path):
    model = chain()
    result = quantized(model, tmp_path, "format=fp8", target=SM89, min_sqnr=None, site_limit=1)
    assert list(codes(result).values()) == ["O24-233", "O24-218", "O24-218"]


# --- TensorRT-RTX ---------------------------------------------------------------------------------
@pytest.mark.parametrize("options", ["format=fp8", "format=int4", "fp8=b int4=c"])
def test_rtx_builds_it(options, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    model = chain()
    quantized(model, tmp_path, options, target=SM89, min_sqnr=None)
    run(model, parse("fold-qdq"), target=SM89, reproducer_dir=None)
    model.save(tmp_path / "m.onnx")
    built = get("tensorrt-rtx").build(
        tmp_path / "m.onnx",
        targets.load("sm89-rtx1"),
        engine=tmp_path / "e",
        shapes={"x": Profile((1, 128), (8, 128), (8, 128))},
        timeout_s=120,
    )
    assert built.engine_bytes


# --- where FP8's pairs go ------------------------------------------------------------------------
RESIDUAL = """g (float[N, 32, 8, 8] x) => (float[N, 32, 8, 8] y) {
  [c1] a = Conv<pads = [1, 1, 1, 1]>(x, w)
  r = Relu(a)
  [c2] b = Conv<pads = [1, 1, 1, 1]>(r, v)
  [add] s = Add(b, x)
  y = Relu(s)
}"""


def test_fp8_on_the_skip_branch(tmp_path):
    weights = {"w": even((32, 32, 3, 3)), "v": even((32, 32, 3, 3), 1)}
    model = build(RESIDUAL, opset=19, ir=9, **weights)
    quantized(model, tmp_path, "format=fp8", target=SM89, min_sqnr=20)
    assert source(model, "add", 1) == "x" and source(model, "add", 0) == ""


def test_fp8_shares_a_scale_over_concat_and_moves_over_shuffles_alone(tmp_path):
    text = """g (float[N, 16, 8, 8] x)
      => (float[N, 32, 8, 8] y, float[N, 24] z, float[N, 32, 4, 4] p) {
      a = Relu(x) b = Neg(x) c = Concat<axis = 1>(a, b)
      [conv] y = Conv<pads = [1, 1, 1, 1]>(c, w)
      f = Flatten(x) [fc] z = MatMul(f, v)
      m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(y) [pooled] p = Conv(m, u) }"""
    weights = {"w": even((32, 32, 3, 3)), "v": even((1024, 24)), "u": even((32, 32, 1, 1))}
    model = build(text, opset=19, ir=9, **weights)
    quantized(model, tmp_path, "format=fp8", target=SM89, min_sqnr=20)
    quantizers = {n.input[0]: n for n in model.proto.graph.node if n.op_type == "QuantizeLinear"}
    assert len({quantizers[name].input[1] for name in "abc"}) == 1
    assert "x" in quantizers and "f" not in quantizers  # over Flatten
    assert "m" in quantizers and "y" not in quantizers  # not over MaxPool


def test_every_rule_says_whether_fp8_follows_it():
    because = {rule.name: rule.int8_because for rule in PLACEMENT}
    assert {name for name, why in because.items() if why} == {
        "products of activations",
        "sparse result",
        "normalized result",
    }
