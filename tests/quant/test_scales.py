"""Symmetric INT8, against ONNX Runtime's own QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnx24.quant import scales


def runtime_quantize(x, scale, zero_point, axis):
    """x → (q, x') by ONNX Runtime, opset 19, optimizations off."""
    attrs = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attrs),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attrs),
    ]
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    kind = helper.np_dtype_to_tensor_dtype(zero_point.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, x.shape)],
        [
            helper.make_tensor_value_info("q", kind, x.shape),
            helper.make_tensor_value_info("y", element, x.shape),
        ],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero_point, "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_bit_identical_to_onnx_runtime(dtype, axis, monkeypatch):
    monkeypatch.setattr(scales, "CHUNK_ELEMENTS", 50)  # several chunks
    x = np.random.default_rng(1).standard_normal((17, 5, 3)).astype(dtype)
    x[0, 0] *= 3  # saturates below
    amax = scales.channel_amax(x, axis) * np.float32(0.7)
    scale = scales.symmetric_scale(amax, dtype)
    zero_point = np.zeros(scale.shape, np.int8)
    q = scales.quantize(x, scale, axis)
    want_q, want_x = runtime_quantize(x, scale, zero_point, axis)
    assert q.dtype == np.int8 and q.min() == -128 and q.max() == 127
    np.testing.assert_array_equal(q, want_q)
    got = scales.dequantize(q, scale, axis)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want_x)


def test_zero_point_as_onnx_runtime():
    x = np.linspace(-3, 5, 101, dtype=np.float32)
    scale, zero_point = np.float32(0.03), np.uint8(77)
    q = scales.quantize(x, np.asarray(scale), None, np.asarray(zero_point), np.uint8)
    want_q, want_x = runtime_quantize(x, np.asarray(scale), np.asarray(zero_point), None)
    np.testing.assert_array_equal(q, want_q)
    np.testing.assert_array_equal(
        scales.dequantize(q, np.asarray(scale), None, np.asarray(zero_point)), want_x
    )


def test_ties_go_to_even_and_zeros_stay_zeros():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.0, -0.0], np.float32)
    q = scales.quantize(x, np.asarray(np.float32(1)))
    assert q.tolist() == [0, 2, 2, 0, -2, 0, 0]


def test_amax_by_channel_and_of_the_whole():
    w = np.array([[1, -7, 0], [2, 3, 0]], np.float32)
    assert scales.channel_amax(w, 0).tolist() == [7, 3]
    assert scales.channel_amax(w, 1).tolist() == [2, 7, 0]
    assert scales.channel_amax(w, -1).tolist() == [2, 7, 0]
    whole = scales.channel_amax(w, None)
    assert whole.shape == () and whole == 7
    assert np.isnan(scales.channel_amax(np.array([[np.nan, 1]], np.float32), 0)[0])
    assert scales.channel_amax(np.zeros((0, 3), np.float32), None) == 0
    assert scales.channel_amax(w.astype(ml_dtypes.bfloat16), 0).tolist() == [7, 3]


def test_scales_keep_rank_and_dtype():
    scale = scales.symmetric_scale(np.float32(12.7))
    assert scale.shape == () and scale.dtype == np.float32 and scale == np.float32(0.1)
    scale = scales.symmetric_scale(np.array([12.7, 0]), ml_dtypes.bfloat16)
    assert scale.shape == (2,) and scale.dtype == ml_dtypes.bfloat16
    assert float(scale[1]) == 1  # nothing but zeros: any scale is right, 0 is refused by builders


def test_a_tiny_range_does_not_become_scale_zero():
    scale = scales.symmetric_scale(1e-6, np.float16)
    assert scale == np.finfo(np.float16).tiny
    assert scales.symmetric_scale(1e-44, np.float32) > 0
    q = scales.quantize(np.array([1e-44], np.float32), scales.symmetric_scale(1e-44))
    assert q.tolist() == [0]


def test_ranges_that_no_scale_can_hold():
    for amax in (np.inf, np.nan, -1.0):
        with pytest.raises(ValueError, match="range"):
            scales.symmetric_scale(amax)
    with pytest.raises(ValueError, match="float16"):
        scales.symmetric_scale(1e8, np.float16)


def test_refuses_nan_and_scales_that_do_not_fit():
    x = np.array([[1.0, np.nan]], np.float32)
    with pytest.raises(ValueError, match="NaN"):
        scales.quantize(x, np.asarray(np.float32(1)))
    with pytest.raises(ValueError, match="axis 1"):
        scales.quantize(x, np.ones(3, np.float32), 1)
    with pytest.raises(ValueError, match="one scale"):
        scales.quantize(x, np.ones(2, np.float32))


def test_rank_0_and_empty_arrays():
    assert scales.quantize(np.asarray(np.float32(3)), np.asarray(np.float32(1))) == 3
    assert scales.quantize(np.zeros((0, 4), np.float32), np.ones(4, np.float32), 1).shape == (0, 4)


def test_the_error_is_at_most_half_a_step():
    rng = np.random.default_rng(2)
    w = rng.standard_normal((64, 33)).astype(np.float32)
    scale = scales.symmetric_scale(scales.channel_amax(w, 1))
    error = np.abs(scales.dequantize(scales.quantize(w, scale, 1), scale, 1) - w)
    assert (error <= scale / 2 * (1 + 1e-5)).all()
