"""Budgets of models whose outputs differ in shape: said, and judged by a value that is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnx24.cli.app import run

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[32, 16] x) => (float[D, 8] rows) <float z = {1}>
{
  h = MatMul(x, w)
  r = Relu(h)
  s = MatMul(r, v)
  top = ReduceMax<axes = [1], keepdims = 0>(s)
  keep = Greater(top, z)
  rows = Compress<axis = 0>(s, keep)
}"""


@pytest.mark.parametrize("name", ["qdq", "prune24"])
def test_a_budget_names_what_it_judges(tmp_path: Path, capsys, name: str) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    for key, shape in (("w", (16, 32)), ("v", (32, 8))):
        array = (rng.standard_normal(shape) / 4).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    model, data, out = (str(tmp_path / n) for n in ("m.onnx", "d.npz", "o.onnx"))
    onnx.save(proto, model)
    np.savez(data, x=rng.standard_normal((24, 32, 16)).astype(np.float32))

    def changed(*more: str) -> tuple[int, str]:
        assert run([name, model, "-o", out, "--calib", data, "--budget", "0.9", *more]) == 0
        made = onnx.load(out).graph
        zeros = sum(int((onnx.numpy_helper.to_array(t) == 0).sum()) for t in made.initializer)
        pairs = sum(node.op_type == "QuantizeLinear" for node in made.node)
        return zeros if name == "prune24" else pairs, capsys.readouterr().err

    lost, err = changed()
    assert "O24-037" in err and "outputs=NAME" in err
    kept, err = changed("--outputs", "s")
    assert kept > lost and "O24-037" not in err
    assert run([name, model, "-o", out, "--calib", data, "--outputs", "absent"]) == 2
    assert "O24-039" in capsys.readouterr().err
