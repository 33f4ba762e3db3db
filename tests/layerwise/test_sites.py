"""Rows times matrices is the product, for every operator, side, rank and form."""

from __future__ import annotations

import numpy as np
import pytest
from layerwise_support import RNG, model_of, outputs, weight
from onnx import helper

from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUses
from onnx24.ir.keys import ValueKey
from onnx24.layerwise.sites import site_of


def product(op, x_shape, w_shape, *, weight_first=False, opset=17, chain=(), **attributes):
    """(model, site, x, w) of one product; `chain`: nodes from w to the operand `v`."""
    operand = "v" if chain else "w"
    inputs = [operand, "x"] if weight_first else ["x", operand]
    node = helper.make_node(op, inputs, ["y"], "product", **attributes)
    w = weight(*w_shape)
    model = model_of([*chain, node], {"w": w}, {"x": [None] * len(x_shape)}, ["y"], opset)
    found = AnalysisCache().get(model, WeightUses)
    (use,) = found.products(ValueKey("", "w"))
    site = site_of(use)
    assert site is not None
    return model, site, RNG(1).standard_normal(x_shape).astype(np.float32), w


MATMUL = [
    ((5, 8), (8, 6), False),
    ((2, 5, 8), (8, 6), False),
    ((2, 3, 5, 8), (8, 6), False),
    ((8,), (8, 6), False),
    ((5, 8), (8,), False),
    ((2, 5, 8), (8,), False),
    ((8, 5), (6, 8), True),
    ((2, 8, 5), (6, 8), True),
    ((8,), (6, 8), True),
    ((8, 5), (8,), True),
    ((3, 5, 8), (3, 8, 6), False),
    ((2, 3, 5, 8), (3, 8, 6), False),
    ((2, 3, 5, 8), (2, 1, 8, 6), False),
    ((1, 3, 5, 8), (2, 3, 8, 6), False),
    ((5, 8), (3, 8, 6), False),
    ((3, 8, 5), (3, 6, 8), True),
    ((2, 5, 8), (1, 8, 6), False),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "first"), MATMUL, ids=str)
def test_matmul(x_shape, w_shape, first):
    model, site, x, w = product("MatMul", x_shape, w_shape, weight_first=first)
    y = outputs(model, {"x": x})
    rows, matrices = site.rows(x, 10**6), site.matrices(w)
    assert rows.shape[2] == matrices.shape[2] == site.use.K
    found = np.einsum("bnk,brk->bnr", rows, matrices)
    assert np.sort(found, None) == pytest.approx(np.sort(y, None), abs=1e-5)
    np.testing.assert_array_equal(site.stored(matrices, w), w)


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("first", [False, True])
def test_gemm(trans_a, trans_b, first):
    a, b = ((8, 5) if trans_a else (5, 8)), ((6, 8) if trans_b else (8, 6))
    x_shape, w_shape = (b, a) if first else (a, b)
    model, site, x, w = product(
        "Gemm", x_shape, w_shape, weight_first=first, transA=trans_a, transB=trans_b, alpha=2.0
    )
    y = outputs(model, {"x": x})
    rows, matrices = site.rows(x, 10**6)[0], site.matrices(w)[0]
    found = rows @ matrices.T * site.scale
    np.testing.assert_allclose(found.T if first else found, y, atol=1e-5)
    np.testing.assert_array_equal(site.stored(matrices[None], w), w)


CONV = [
    ((2, 4, 9), (6, 4, 3), {}),
    ((2, 4, 9, 7), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((2, 4, 9, 7), (6, 4, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ((2, 4, 9, 9), (6, 4, 3, 3), {"dilations": [2, 2]}),
    ((2, 4, 9, 8), (6, 4, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 4, 9, 8), (6, 4, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((2, 4, 9, 8), (6, 4, 3, 2), {"auto_pad": "VALID"}),
    ((1, 4, 5, 6, 4), (3, 4, 2, 3, 1), {"pads": [1, 0, 0, 1, 0, 0]}),
    ((2, 4, 1, 1), (6, 4, 1, 1), {}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONV, ids=str)
def test_conv(x_shape, w_shape, attributes):
    model, site, x, w = product("Conv", x_shape, w_shape, **attributes)
    y = outputs(model, {"x": x})
    rows, matrices = site.rows(x, 10**6)[0], site.matrices(w)[0]
    wanted = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    np.testing.assert_allclose(rows @ matrices.T, wanted, atol=1e-5)
    np.testing.assert_array_equal(site.stored(matrices[None], w), w)
    some = site.rows(x, 7, 3)[0]
    assert len(some) == min(7, len(rows))
    np.testing.assert_allclose(some @ matrices.T, site.output_rows(y, x.shape, 7, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "x_shape", "w_shape", "first"),
    [
        ("nk,kr->nr", (5, 8), (8, 6), False),
        ("nk,rk->nr", (5, 8), (6, 8), False),
        ("abk,kr->abr", (2, 5, 8), (8, 6), False),
        ("ij,jk", (5, 8), (8, 6), False),
        ("rk,nk->nr", (5, 8), (6, 8), True),
        ("bnk,bkr->bnr", (3, 5, 8), (3, 8, 6), False),
        ("bnk,krs->bnrs", (2, 5, 8), (8, 3, 2), False),
        ("...k,kr->...r", (2, 5, 8), (8, 6), False),
        ("nbk,rbk->bnr", (5, 3, 8), (6, 3, 8), False),
    ],
)
def test_einsum(equation, x_shape, w_shape, first):
    model, site, x, w = product("Einsum", x_shape, w_shape, weight_first=first, equation=equation)
    y = outputs(model, {"x": x})
    rows, matrices = site.rows(x, 10**6), site.matrices(w)
    found = np.einsum("bnk,brk->bnr", rows, matrices)
    assert np.sort(found, None) == pytest.approx(np.sort(y, None), abs=1e-5)
    np.testing.assert_array_equal(site.stored(matrices, w), w)


def test_a_weight_behind_transpose_and_reshape():
    chain = [helper.make_node("Transpose", ["w"], ["v"], "turn", perm=[2, 0, 1])]
    model, site, x, w = product("MatMul", (5, 3), (3, 6, 2), chain=chain)
    rows, matrices = site.rows(x, 10**6), site.matrices(w)
    found = np.einsum("bnk,brk->bnr", rows, matrices)
    np.testing.assert_allclose(found, outputs(model, {"x": x}), atol=1e-5)
    np.testing.assert_array_equal(site.stored(matrices, w), w)


def test_rows_are_spread_and_the_same_for_both_models():
    _, site, x, _ = product("MatMul", (40, 8), (8, 6))
    few = site.rows(x, 10, 5)
    assert few.shape == (1, 10, 8)
    np.testing.assert_array_equal(few * 2, site.rows(x * 2, 10, 5))
    assert len({tuple(row) for row in few[0]}) == 10
    assert not np.array_equal(few, site.rows(x, 10, 6))


def test_output_rows_of_another_shape_are_not_guessed():
    _, site, x, _ = product("MatMul", (2, 5, 8), (8, 6))
    assert site.output_rows(np.zeros((5, 6), np.float32), x.shape, 4) is None
