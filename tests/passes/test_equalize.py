"""equalize: which pairs of products, and that not a bit of the model changes."""

from __future__ import annotations

import numpy as np
import pytest
from scaling_support import applied, build, codes, normal, with_outliers

from onnx24.ir.model import Model
from onnx24.sparsity.masks import prune_24

C = 32
TAKEN = {
    "conv-relu-conv": (
        "(float[N, 4, 6, 6] x) => (float[N, 8, 2, 2] y) "
        "{ [a] p = Conv(x, u, b) r = Relu(p) [q] y = Conv(r, w) }",
        {"u": (0, (C, 4, 3, 3)), "b": (0, (C,)), "w": (1, (8, C, 3, 3))},
    ),
    "conv-add-prelu-pool-grouped": (
        "(float[N, 4, 6, 6] x) => (float[N, 8, 2, 2] y) { [a] p = Conv(x, u) s = Add(p, b) "
        "r = PRelu(s, slope) m = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) "
        "[q] y = Conv<group = 2>(m, w) }",
        {"u": (0, (C, 4, 1, 1)), "b": (0, (C, 1, 1)), "slope": (0, (C, 1, 1)),
         "w": (None, (8, C // 2, 2, 2))},
    ),
    "depthwise": (
        "(float[N, 4, 6, 6] x) => (float[N, 32, 4, 4] y) "
        "{ [a] p = Conv(x, u) r = Relu(p) [q] y = Conv<group = 32>(r, w) }",
        {"u": (0, (C, 4, 1, 1)), "w": (0, (C, 1, 3, 3))},
    ),
    "deconv": (
        "(float[N, 4, 4, 4] x) => (float[N, 8, 8, 8] y) "
        "{ [a] p = ConvTranspose(x, u, b) [q] y = ConvTranspose<strides = [2, 2]>(p, w) }",
        {"u": (1, (4, C, 1, 1)), "b": (0, (C,)), "w": (0, (C, 8, 2, 2))},
    ),
    "matmul": (
        "(float[N, 3, 16] x) => (float[N, 3, 24] y) "
        "{ [a] p = MatMul(x, u) s = Add(b, p) [q] y = MatMul(s, w) }",
        {"u": (1, (16, C)), "b": (0, (C,)), "w": (0, (C, 24))},
    ),
    "gemm": (
        "(float[N, 16] x) => (float[N, 24] y) { [a] p = Gemm<transB = 1>(x, u, b) r = Relu(p) "
        "[q] y = Gemm<transB = 1, alpha = 0.5>(r, w) }",
        {"u": (0, (C, 16)), "b": (0, (C,)), "w": (1, (24, C))},
    ),
    "left": (
        "(float[N, 16, 3] x) => (float[N, 24, 3] y) "
        "{ [a] p = MatMul(u, x) s = Add(p, b) [q] y = MatMul(w, s) }",
        {"u": (0, (C, 16)), "b": (0, (C, 1)), "w": (1, (24, C))},
    ),
    "over to the other side": (
        "(float[N, 3, 16] x) => (float[N, 24, 3] y) { [a] p = MatMul(x, u) "
        "t = Transpose<perm = [0, 2, 1]>(p) [q] y = MatMul(w, t) }",
        {"u": (1, (16, C)), "w": (1, (24, C))},
    ),
    "pooled and flattened": (
        "(float[N, 4, 6, 6] x) => (float[N, 8] y) { [a] p = Conv(x, u, b) "
        "m = GlobalAveragePool(p) f = Flatten(m) [q] y = Gemm(f, w) }",
        {"u": (0, (C, 4, 3, 3)), "b": (0, (C,)), "w": (0, (C, 8))},
    ),
    "grouped deconv": (
        "(float[N, 4, 4, 4] x) => (float[N, 8, 8, 8] y) "
        "{ [a] p = Conv(x, u) [q] y = ConvTranspose<strides = [2, 2], group = 2>(p, w) }",
        {"u": (0, (C, 4, 1, 1)), "w": (0, (C, 4, 2, 2))},
    ),
}  # fmt: skip


def net(form: str) -> Model:
    text, shapes = TAKEN[form]
    weights = {}
    for name, (axis, shape) in shapes.items():
        weights[name] = normal(*shape)
        if axis is not None and name != "slope":
            weights[name] = with_outliers(weights[name], axis, 1 / 40 if name == "w" else 40)
    return build(text, **weights)


@pytest.mark.parametrize("form", TAKEN)
def test_taken(form, tmp_path):
    model = net(form)
    before = {key: model.weights[key].copy() for key in model.weights}
    result = applied(model, "equalize", tmp_path)
    assert codes(result)["q"] == "O24-343", [r.reason for r in result.records]
    assert codes(result)["a"] == "O24-344"  # it reads the model's input
    changed = {
        key.name for key in model.weights if not np.array_equal(model.weights[key], before[key])
    }
    assert changed == TAKEN[form][1].keys() - {"slope"}
    result = applied(model, "equalize", tmp_path)
    assert codes(result)["q"] == "O24-345" and not result.passes[0].changed


def test_channels_reach_equally_far_afterwards(tmp_path):
    model = net("matmul")
    applied(model, "equalize", tmp_path)
    first, second = np.abs(model.weights["u"]).max(0), np.abs(model.weights["w"]).max(1)
    even = first / second
    assert even.max() / even.min() <= 4  # a factor of sqrt(2) on either side, squared


@pytest.mark.parametrize(
    ("form", "old", "new"),
    [
        ("matmul", "s = Add(b, p)", "t = Sigmoid(p) s = Add(b, t)"),
        ("matmul", "[q]", "e = Exp(p) [q]"),
        ("conv-relu-conv", "r = Relu(p)", "r = Clip(p, zero, six)"),
    ],
)
def test_near_misses(form, old, new, tmp_path):
    text, shapes = TAKEN[form]
    text = text.replace(old, new)
    if "Exp" in new:
        text = text.replace("[N, 3, 24] y)", "[N, 3, 24] y, float[N, 3, 32] e)")
    weights = {name: normal(*shape) for name, (_, shape) in shapes.items()}
    if "Clip" in new:
        weights |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    model = build(text, **weights)
    before = model.to_bytes()
    assert codes(applied(model, "equalize", tmp_path))["q"] == "O24-344"
    assert model.to_bytes() == before


def test_a_normalization_is_left_to_smooth_quant(tmp_path):
    model = build(
        "(float[N, 32] x) => (float[N, 24] y) "
        "{ h = LayerNormalization(x, s) [q] y = MatMul(h, w) }",
        s=normal(C),
        w=normal(C, 24),
    )
    assert codes(applied(model, "equalize", tmp_path)) == {"q": "O24-344"}


def test_24_stays_24_and_a_limit_of_sites(tmp_path):
    model = net("conv-relu-conv")
    model.weights.replace("w", prune_24(model.weights["w"], 1))
    model.claims.add("w")
    before = model.to_bytes()
    applied(model, "equalize", tmp_path, site_limit=0)
    assert model.to_bytes() == before
    zeros = model.weights["w"] == 0
    applied(model, "equalize,check24", tmp_path)
    assert np.array_equal(model.weights["w"] == 0, zeros) and model.to_bytes() != before
