"""Rows and matrices against ONNX Runtime's own products."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.layer_rows import form_of
from onnx24.analysis.placement import find_layers
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.model import Model
from onnx24.quant.rows import MAX_ROWS, PEAK_ROWS, Form, Moments, RowSample
from onnx24.runtime.session import Session

RNG = np.random.default_rng(0)


def run_layer(text: str, x: np.ndarray, w: np.ndarray) -> tuple[Form | None, np.ndarray]:
    """The form of the one layer, and what ONNX Runtime computes."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    model = Model.from_proto(proto)
    (layer,) = find_layers(AnalysisCache().get(model, WeightUses))
    return form_of(layer, w.shape), Session(model).run({"x": x})["y"]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


MATRICES = {
    "matmul": ("(float[2,5,8] x) => (float[2,5,6] y) { y = MatMul(x, w) }", (2, 5, 8), (8, 6)),
    "left": ("(float[2,8,5] x) => (float[2,6,5] y) { y = MatMul(w, x) }", (2, 8, 5), (6, 8)),
    "gemm": ("(float[5,8] x) => (float[5,6] y) { y = Gemm(x, w) }", (5, 8), (8, 6)),
    "transB": ("(float[5,8] x) => (float[5,6] y) { y = Gemm<transB=1>(x, w) }", (5, 8), (6, 8)),
    "transA": ("(float[8,5] x) => (float[5,6] y) { y = Gemm<transA=1>(x, w) }", (8, 5), (8, 6)),
    "gemm-left": ("(float[8,5] x) => (float[6,5] y) { y = Gemm(w, x) }", (8, 5), (6, 8)),
    "vector": ("(float[8] x) => (float[6] y) { y = MatMul(x, w) }", (8,), (8, 6)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_products(name):
    text, shape, weight = MATRICES[name]
    x, w = normal(*shape), normal(*weight)
    form, y = run_layer(text, x, w)
    rows = form.take(x, np.arange(form.count(x.shape)))
    (got,) = rows.transpose(1, 0, 2) @ form.matrix(w).transpose(0, 2, 1)
    if "left" in name:  # the weight's output axis lies before the rows there
        y = np.moveaxis(y, -2, -1)
    np.testing.assert_allclose(got.reshape(y.shape), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(form.restored(form.matrix(w), w.shape), w)


CONVS = {
    "plain": ("", (4, 3, 3, 3), (2, 3, 7, 6)),
    "padded": ("pads = [1, 0, 2, 1], strides = [2, 1]", (4, 3, 3, 2), (2, 3, 7, 6)),
    "dilated": ("dilations = [2, 1], pads = [1, 1, 1, 1]", (4, 3, 3, 3), (1, 3, 9, 6)),
    "grouped": ("group = 2, pads = [1, 1, 1, 1]", (4, 3, 3, 3), (2, 6, 5, 5)),
    "depthwise": ("group = 6", (6, 1, 3, 3), (2, 6, 5, 5)),
    "same-upper": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (4, 3, 3, 2), (2, 3, 7, 6)),
    "same-lower": ('auto_pad = "SAME_LOWER", strides = [2, 2]', (4, 3, 3, 2), (2, 3, 7, 6)),
    "valid": ('auto_pad = "VALID"', (4, 3, 3, 3), (1, 3, 5, 5)),
    "1d": ("pads = [1, 1]", (4, 3, 3), (2, 3, 8)),
    "3d": ("", (2, 3, 2, 2, 2), (1, 3, 4, 4, 4)),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name):
    attributes, weight, shape = CONVS[name]
    x, w = normal(*shape), normal(*weight)
    dims = ",".join(map(str, shape))
    outs = ",".join("ABCDE"[: len(shape)])
    form, y = run_layer(
        f"(float[{dims}] x) => (float[{outs}] y) {{ y = Conv<{attributes}>(x, w) }}".replace(
            "<>", ""
        ),
        x,
        w,
    )
    count = form.count(shape)
    got = form.take(x, np.arange(count)).transpose(1, 0, 2) @ form.matrix(w).transpose(0, 2, 1)
    want = np.moveaxis(y, 1, -1).reshape(count, form.groups, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(form.restored(form.matrix(w), w.shape), w)
    if name not in ("same-upper", "padded"):  # there a pixel may lie in no patch
        for flat in RNG.integers(0, x.size, 20):
            row = form.take(x, np.array([form.row_at(shape, int(flat))]))
            assert x.reshape(-1)[flat] in row


def test_transposed_convolution():
    x, w = normal(2, 6, 4, 4), normal(6, 2, 2, 2)
    form, y = run_layer(
        "(float[2,6,4,4] x) => (float[2,4,8,8] y) "
        "{ y = ConvTranspose<group = 2, strides = [2, 2]>(x, w) }",
        x,
        w,
    )
    rows = form.take(x, np.arange(form.count(x.shape)))
    got = rows.transpose(1, 0, 2) @ form.matrix(w).transpose(0, 2, 1)
    # Without overlap every product is one output: [G, B·H·W, R·kh·kw] → [B, G·R, 2H, 2W].
    got = got.reshape(2, 2, 4, 4, 2, 2, 2).transpose(1, 0, 4, 2, 5, 3, 6).reshape(y.shape)
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(form.restored(form.matrix(w), w.shape), w)


def test_a_batched_weight_has_no_rows():
    form, _ = run_layer(
        "(float[3,5,8] x) => (float[3,5,6] y) { y = MatMul(x, w) }",
        normal(3, 5, 8),
        normal(3, 8, 6),
    )
    assert form is None


def test_a_sample_is_bounded_holds_the_peaks_and_estimates_sums():
    form = Form("matrix", 16)
    sample = RowSample(form, runs=50)
    batches = [normal(40, 100, 16) for _ in range(50)]
    batches[7][3, 5, 2] = 1000.0
    for x in batches:
        sample.observe(x)
    rows, weights = sample.rows()
    assert rows.shape == (MAX_ROWS + PEAK_ROWS, 1, 16)
    assert weights.sum() == sample.total == 50 * 40 * 100
    assert weights[rows.max(axis=(1, 2)) == 1000.0].tolist() == [1.0]
    everything = np.concatenate(batches).reshape(-1, 16)
    want = np.square(everything, dtype=np.float64).sum()
    got = np.dot(weights, np.square(rows).sum(axis=(1, 2)))
    assert abs(got / want - 1) < 0.1


def test_a_sample_of_little_data():
    form = Form("matrix", 4)
    sample = RowSample(form, runs=2)
    assert len(sample.rows()[0]) == 0
    sample.observe(np.zeros((0, 4), np.float32))
    sample.observe(np.array([[1, 2, 3, 4]], np.float32))
    rows, weights = sample.rows()
    assert len(rows) == 2 and weights.sum() == 1


@pytest.mark.parametrize("whole", [False, True])
def test_second_moments(whole):
    form = Form("conv", 18, groups=2, kernel=(3, 3), strides=(1, 1), dilations=(1, 1),
                begins=(1, 1), ends=(1, 1))  # fmt: skip
    moments = Moments(form, whole=whole)
    batches = [normal(2, 4, 5, 5) for _ in range(3)]
    for x in batches:
        moments.observe(x)
    rows = np.concatenate([form.take(x, np.arange(form.count(x.shape))) for x in batches])
    want = np.einsum("ngk,ngl->gkl", rows, rows) / len(rows)
    if not whole:
        want = np.einsum("gkk->gk", want)
    np.testing.assert_allclose(moments.second, want, rtol=1e-4, atol=1e-5)
