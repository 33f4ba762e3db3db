"""The range of the least error in what the layers compute."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx24.quant.choice import Reader, choose, decibel, fake_quantized, output_noise
from onnx24.quant.scales import dequantize, quantize, symmetric_scale


def reader(x: np.ndarray, w: np.ndarray) -> Reader:
    return Reader(x[:, None, :], np.ones(len(x)), w[None], w[None])


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).standard_normal(shape).astype(np.float32)


def test_fake_quantization_is_that_of_the_graph():
    x = normal(1000) * 3
    scale = symmetric_scale(2.5)
    np.testing.assert_array_equal(fake_quantized(x, 2.5), dequantize(quantize(x, scale), scale))


def test_noise_is_the_weighted_energy_of_the_difference():
    x, w = normal(300, 16), normal(8, 16)
    rows = Reader(x[:, None, :], np.arange(300.0), w[None], w[None] * 1.01)
    signal, (noise,) = output_noise(rows, [3.0])
    wanted = x @ w.T
    got = fake_quantized(x, 3.0) @ (w * 1.01).T
    weights = np.arange(300.0)
    assert signal == pytest.approx(np.dot(weights, np.square(wanted).sum(1)), rel=1e-4)
    assert noise == pytest.approx(np.dot(weights, np.square(got - wanted).sum(1)), rel=1e-3)


def test_the_layer_decides_and_not_the_tensor():
    """One outlier channel: clipping it is best for the tensor's other values, and fatal for a layer
    that lives by it."""
    x = normal(400, 16)
    x[:, 0] *= 50
    tight, wide = 4.0, float(np.abs(x).max())
    blind, keen = normal(8, 16), normal(8, 16)
    blind[:, 0] = 0
    assert choose({"clip": tight, "keep": wide}, [reader(x, blind)])[0] == "clip"
    assert choose({"clip": tight, "keep": wide}, [reader(x, keen)])[0] == "keep"
    best, errors = choose({"clip": tight, "keep": wide}, [reader(x, blind), reader(x, keen)])
    assert best == "keep" and errors["keep"] < errors["clip"]


def test_equal_ranges_take_the_first_and_bad_ones_are_refused():
    x, w = normal(50, 16), normal(4, 16)
    best, errors = choose({"a": 3.0, "b": 3.0}, [reader(x, w)])
    assert best == "a" and errors["a"] == errors["b"]
    for bad in ({}, {"a": 0.0}):
        with pytest.raises(ValueError, match="ranges above 0"):
            choose(bad, [])


def test_decibel():
    assert decibel(100.0, 1.0) == 20 and decibel(1.0, 0.0) == math.inf
    assert decibel(0.0, 1.0) == -math.inf
