"""qdq, fold-qdq with odd products: what comes out is valid, runs, and is near what went in.

The refinements that are on by default (adaptive rounding, corrected biases) touch weights and
biases, so that a wrong axis, factor or group would show here.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from test_qdq import array, build, codes, quantized, samples

from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.targets import load


def quantized_and_folded(model: Model, tmp_path, x: np.ndarray) -> dict[str, str]:
    """Returns: node → code."""
    data = samples(model, tmp_path, x=x)
    found = codes(quantized(model, tmp_path, "rounding=adaptive", data=data))
    run(model, parse("fold-qdq"), target=load("sm86"), reproducer_dir=None)
    onnx.checker.check_model(onnx.ModelProto.FromString(model.to_bytes()), full_check=True)
    return found


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b", "alpha", "beta"), list(itertools.product((0, 1), (0, 1), (1.0, 0.5), (0.25, 0.0)))
)
def test_gemm_in_every_form(a, b, alpha, beta, tmp_path):
    shape = "32, 50" if a else "50, 32"
    model = build(
        f"g (float[{shape}] x) => (float[50, 24] y) {{ [fc] y = Gemm<transA = {a}, transB = {b}, "
        f"alpha = {alpha}, beta = {beta}>(x, w, c) }}",
        w=array((24, 32) if b else (32, 24)),
        c=array((24,)),
    )
    x = normal(20, *((32, 50) if a else (50, 32)))
    assert quantized_and_folded(model, tmp_path, x) == {"fc": "O24-200"}


CONVS = {
    "1-D": ("Conv<pads = [1, 1], strides = [2]>", (16, 40), (32, 16, 3)),
    "3-D": ("Conv<pads = [1, 1, 1, 1, 1, 1]>", (16, 5, 5, 5), (32, 16, 3, 3, 3)),
    "groups": ('Conv<group = 4, auto_pad = "SAME_UPPER">', (32, 6, 6), (64, 8, 3, 3)),
    "transposed groups": (
        "ConvTranspose<group = 2, strides = [2, 2]>", (32, 6, 6), (32, 16, 3, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name, tmp_path):
    op, shape, weight = CONVS[name]
    dims = ", ".join(map(str, shape))
    outs = ", ".join(f"d{i}" for i in range(len(shape)))
    channels = 32 if "transposed" in name else weight[0]
    # `array` has a ramp along each of five axes, which is more than eight bits hold.
    ramp = np.geomspace(1, 8, weight[0], dtype=np.float32)
    scales = ramp.reshape(-1, *[1] * (len(weight) - 1))
    model = build(
        f"g (float[N, {dims}] x) => (float[N, {outs}] y) {{ [c] y = {op}(x, w, b) }}",
        w=normal(*weight) * scales,
        b=array((channels,)),
    )
    assert quantized_and_folded(model, tmp_path, normal(32, *shape)) == {"c": "O24-200"}


def test_weights_and_channels_of_zeros(tmp_path):
    w = array((32, 24))
    w[:, 3], w[5] = 0, 0
    text = "g (float[N, 32] x) => (float[N, 24] y) { [a] h = MatMul(x, w) [b] g = MatMul(x, z) "
    model = build(text + "y = Add(h, g) }", w=w, z=np.zeros((32, 24), np.float32))
    assert set(quantized_and_folded(model, tmp_path, normal(64, 32)).values()) == {"O24-200"}


def test_an_activation_without_elements(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y, float[M, 24] z) "
        "{ [a] y = MatMul(x, w) i = Slice(x, o, o) [b] z = MatMul(i, w) }",
        w=array((32, 24)),
        o=np.array([0], np.int64),
    )
    found = quantized_and_folded(model, tmp_path, normal(64, 32))
    assert found == {"a": "O24-200", "b": "O24-215"}
