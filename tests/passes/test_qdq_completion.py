"""qdq on models that another tool quantized: it places what lint misses in them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.ir.ops import is_onnx
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import load_data

TARGET = next(
    target
    for target in map(targets.load, targets.names())
    if target.output_qdq_for_sparse and target.int8
)
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,16,8,8] x) => (float[N,16,8,8] y) <float s = {0.03}, int8 z = {0}> {
  xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
  w0 = DequantizeLinear<axis = 0>(W, S, Z) [c0] v0 = Conv(xd, w0, B) a0 = Relu(v0)
  aq = QuantizeLinear(a0, s, z) ad = DequantizeLinear(aq, s, z)
  w1 = DequantizeLinear<axis = 0>(W, S, Z) [c1] v1 = Conv(ad, w1, B)
  cq = QuantizeLinear(v1, s, z) cd = DequantizeLinear(cq, s, z) [add] t = Add(cd, a0) t1 = Relu(t)
  tq = QuantizeLinear(t1, s, z) td = DequantizeLinear(tq, s, z)
  w2 = DequantizeLinear<axis = 0>(W, S, Z) [c2] v2 = Conv(td, w2, B) [p] y = Softplus(v2)
}"""


@pytest.fixture
def model() -> Model:
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (16, 4, 4, 1, 1))
    weight[:, :, 2:] = 0
    values = {
        "W": weight.reshape(16, 16, 1, 1).astype(np.int8),
        "S": np.full(16, 1e-3, np.float32),
        "Z": np.zeros(16, np.int8),
        "B": np.zeros(16, np.float32),
    }
    for name, value in values.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return Model.from_proto(proto)


def _codes(model: Model, text: str, **more) -> list[str]:
    result = run(model, parse(text), target=TARGET, reproducer_dir=None, **more)
    return sorted(record.code for record in result.records)


def test_what_lint_misses_is_placed_in_a_model_of_another_tool(model):
    samples = load_data("random:4", model, seed=1)
    assert _codes(model, "lint") == ["O24-638", "O24-639", "O24-639"]
    assert "O24-264" in _codes(model, "qdq", calibration=samples)
    assert _codes(model, "lint") == []
    nodes = {node.name: node for node in model.proto.graph.node}
    made = {name: node for node in model.proto.graph.node for name in node.output}
    assert nodes["add"].input[0] == "v1"  # the sum is fused to the convolution
    assert list(nodes["add"].input)[1] == "ad"  # through the pair that the skip branch has
    assert is_onnx(made[nodes["p"].input[0]], "DequantizeLinear")
    once = model.to_bytes()
    _codes(model, "qdq", calibration=samples)
    assert model.to_bytes() == once


def test_without_samples_it_stays_as_it_is(model):
    before = model.to_bytes()
    assert "O24-264" not in _codes(model, "qdq")
    assert model.to_bytes() == before
