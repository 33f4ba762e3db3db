"""How much of a model is 2:4 is one answer, whoever made it so and whatever holds the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser
from typer.testing import CliRunner

from onnx24 import targets
from onnx24.analysis.coverage import covered
from onnx24.cli.app import app
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

TARGET = targets.load(targets.DEFAULT)


def _model(body: str, **weights: np.ndarray) -> Model:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,64] x) => (float[N,64] y)'
    proto = parser.parse_model(f"{head} {{ {body} }}")
    for name, values in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def _w(seed: int, sparse: bool) -> np.ndarray:
    w = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
    if sparse:
        w[::2] = 0
    return w


@pytest.mark.parametrize("command", [["lint"], ["cast16"], ["canonicalize"]])
def test_reports_agree_with_inspect_whatever_ran(command: list[str], tmp_path: Path) -> None:
    model = _model("a = MatMul(x, w) b = Relu(a) y = MatMul(b, v)", w=_w(0, True), v=_w(1, False))
    model.save(tmp_path / "m.onnx")

    def say(*args: str) -> dict:
        result = CliRunner().invoke(app, [*args, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    report = say(*command, str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"))
    seen = say("inspect", str(tmp_path / "o.onnx"))
    assert report["coverage"] == seen["coverage"]
    assert (report["coverage"]["sparse_weights"], report["coverage"]["eligible_weights"]) == (1, 2)
    assert {line["name"]: line["sparse"] for line in report["weights"]} == {"w": True, "v": False}


def test_weights_of_constant_nodes_count(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,64] x) => (float[N,64] y) {'
    proto = parser.parse_model(text + " w = Constant<value = float[1] {1.0}>() y = MatMul(x, w) }")
    proto.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(_w(0, False), "w"))
    Model.from_proto(proto).save(tmp_path / "m.onnx")
    args = ["prune24", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx"), "--json"]
    report = json.loads(CliRunner().invoke(app, args).stdout)
    assert report["coverage"]["share"] == 1.0
    (line,) = report["weights"]
    assert (line["name"], line["sparse"], line["verdict"]["eligible"]) == ("w", True, True)


def test_what_nodes_compute_from_constants_is_not_covered() -> None:
    model = _model(
        "u = Mul(v, gain) a = MatMul(x, w) y = MatMul(a, u)",
        w=_w(0, True),
        v=_w(1, True),
        gain=np.float32(2).reshape(1),
    )
    found = covered(model, TARGET)
    assert (found.coverage.sparse, found.coverage.eligible) == (1, 2)
    assert found.coverage.eligible_elements == 2 * 64 * 64
    assert found.patterns[ValueKey("", "u")] is None
