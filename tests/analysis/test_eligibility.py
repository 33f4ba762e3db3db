"""One verdict a weight, with its code; a near miss for each."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from analysis_support import array, build, verdict_of

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.eligibility import Eligibility, judge, on_target, stored_violations
from onnx24.sparsity.masks import prune_24

DENSE = "g (float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }"
TARGET = targets.load("sm86")


def test_an_eligible_weight_has_its_numbers():
    verdict = verdict_of(build(DENSE, w=array((8, 6))))
    assert (verdict.eligible, verdict.code) == (True, "O24-101")
    assert (verdict.k_axis, verdict.k_stride, verdict.op) == (0, 6, "MatMul")
    assert verdict.facts == {
        "shape": [8, 6],
        "dtype": "float32",
        "elements": 48,
        "k_axis": 0,
        "K": 8,
        "N": 6,
    }
    assert "K = 8 along axis 0" in verdict.reason


@pytest.mark.parametrize("k", [6, 7, 9])
def test_k_must_be_a_multiple_of_four(k: int):
    text = DENSE.replace("[N, 8]", f"[N, {k}]")
    verdict = verdict_of(build(text, w=array((k, 6))))
    assert (verdict.eligible, verdict.code, verdict.k_axis) == (False, "O24-113", 0)
    assert f"K = {k}" in verdict.reason


def test_shared_along_the_same_axis_is_one_verdict():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      v = Transpose(w)
      a = MatMul(x, v)
      y = Gemm<transB=1>(a, w)
    }"""
    verdict = verdict_of(build(text, w=array((8, 8))))
    assert verdict.eligible and verdict.k_axis == 1 and len(verdict.products) == 2


def test_shared_along_different_axes_is_refused():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      v = Transpose(w)
      [first] a = MatMul(x, w)
      [second] y = MatMul(a, v)
    }"""
    verdict = verdict_of(build(text, w=array((8, 8))))
    assert (verdict.code, verdict.eligible, verdict.tied) == ("O24-115", False, False)
    assert verdict.facts["axes"] == {"first": 0, "second": 1}


@pytest.mark.parametrize(
    ("reader", "output"),
    [
        ("z = Gather(w, i)", "float[M, 6] z"),
        ("z = Mul(w, w)", "float[8, 6] z"),
        ("z = Transpose(w)  q = ReduceSum(z)", "float[1, 1] q"),
    ],
)
def test_read_by_something_else(reader: str, output: str):
    text = f"""g (float[N, 8] x, int64[M] i) => (float[N, 6] y, {output.replace("z", "o")}) {{
      {reader}
      o = Identity({output.split()[-1]})
      [m] y = MatMul(x, w)
    }}"""
    text = text.replace("float[1, 1] q", "float[1, 1] o")
    verdict = verdict_of(build(text, w=array((8, 6))))
    assert (verdict.code, verdict.tied, verdict.eligible) == ("O24-116", True, False)
    assert verdict.k_axis == 0 and "also read by" in verdict.reason


def test_a_grouped_reader_counts_as_something_else():
    text = """g (float[1, 4, 5, 5] x, float[1, 8, 5, 5] z) => (float[1, 8, 5, 5] y,
                                                            float[1, 8, 5, 5] v) {
      y = Conv(x, w)
      v = Conv<group=2>(z, w)
    }"""
    assert verdict_of(build(text, w=array((8, 4, 1, 1)))).code == "O24-116"


def test_biases_and_plumbing():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      a = QuantizeLinear(x, s, z)
      d = DequantizeLinear(a, s, z)
      r = Reshape(d, shape)
      y = Gemm(r, w, b)
    }"""
    model = build(
        text,
        w=array((8, 6)),
        b=array((6,)),
        s=np.float32(0.1),
        z=np.int8(0),
        shape=np.array([-1, 8]),
    )
    verdicts = AnalysisCache().get(model, Eligibility).verdicts
    assert {key.name: v.code for key, v in verdicts.items()} == {"w": "O24-101", "b": "O24-110"}


def test_unused_weights_are_listed():
    verdict = verdict_of(build(DENSE, w=array((8, 6)), dead=array((8, 6))), "dead")
    assert (verdict.code, verdict.reason) == ("O24-110", "nothing reads it")


def test_dtypes():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      v = DequantizeLinear(w, s, z)
      y = MatMul(x, v)
    }"""
    for dtype, code in ((np.int8, "O24-101"), (np.uint8, "O24-118")):
        model = build(text, w=array((8, 6)).astype(dtype), s=np.float32(0.1), z=dtype(0))
        assert verdict_of(model).code == code
    text = DENSE.replace("float", "double")
    assert verdict_of(build(text, w=array((8, 6), np.float64))).eligible


# --- targets -------------------------------------------------------------------------------
def test_turing_has_no_sparse_tensor_cores():
    model = build(DENSE, w=array((8, 6)))
    (verdict,) = judge(model, AnalysisCache(), targets.load("sm75")).values()
    assert (verdict.code, verdict.eligible) == ("O24-127", False)
    (verdict,) = judge(model, AnalysisCache(), TARGET).values()
    assert verdict.eligible


def test_a_refusal_by_the_graph_outlasts_the_target():
    model = build(DENSE.replace("8", "6"), w=array((6, 6)))
    (verdict,) = judge(model, AnalysisCache(), targets.load("sm75")).values()
    assert verdict.code == "O24-113"


def test_fp8_needs_a_target_that_has_it():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      v = DequantizeLinear(w, s)
      y = MatMul(x, v)
    }"""
    weight = array((8, 6)).astype(ml_dtypes.float8_e4m3fn)
    model = build(text, opset=19, ir=9, w=weight, s=np.float32(0.1))
    assert verdict_of(model).eligible
    cache = AnalysisCache()
    (on86,) = judge(model, cache, TARGET).values()
    (on89,) = judge(model, cache, targets.load("sm89")).values()
    assert (on86.code, on89.code) == ("O24-118", "O24-101")
    assert on89.facts["unconfirmed"] == ["sparse kernels for float8_e4m3fn"]


def test_a_target_without_sparse_matmul():
    verdict = verdict_of(build(DENSE, w=array((8, 6))))
    without = dataclasses.replace(TARGET, matmul_eligible=False, conv1x1=False)
    assert on_target(verdict, without).code == "O24-123"
    # The rewrite to a convolution makes up for it.
    assert on_target(verdict, dataclasses.replace(without, conv1x1=True)).eligible
    conv = "g (float[1, 8, 5, 5] x) => (float[1, 6, 5, 5] y) { y = Conv(x, w) }"
    assert on_target(verdict_of(build(conv, w=array((6, 8, 1, 1)))), without).eligible


def test_a_target_with_a_coarser_multiple():
    verdict = verdict_of(build(DENSE, w=array((8, 6))))
    assert on_target(verdict, dataclasses.replace(TARGET, sparse_k_multiple=8)).eligible
    refused = on_target(verdict, dataclasses.replace(TARGET, sparse_k_multiple=16))
    assert refused.code == "O24-113"


def test_small_and_doubtful_are_said_and_not_refused():
    text = """g (float[1, 8, 5, 5, 5] x) => (float[1, 6, 5, 5, 5] y) { y = Conv(x, w) }"""
    verdict = on_target(verdict_of(build(text, w=array((6, 8, 1, 1, 1)))), TARGET)
    assert verdict.eligible
    assert verdict.facts["small"] == "6 < 256 channels"
    assert verdict.facts["unconfirmed"] == ["3-D convolution"]


def test_stored_violations():
    model = build(DENSE, w=array((8, 6)))
    verdict = verdict_of(model)
    assert stored_violations(model.weights["w"], verdict).violating == 12
    assert stored_violations(prune_24(model.weights["w"], 0), verdict).violating == 0
    refused = verdict_of(build(DENSE.replace("8", "6"), w=array((6, 6))))
    with pytest.raises(ValueError, match="O24-113"):
        stored_violations(array((6, 6)), refused)
