"""The rules that run the model, read a ledger or build an engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from gate_support import codes, dense_mlp, judged, sparse_mlp

from onnx24.gate.running import place


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.npz"
    x = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    onnx.save(dense_mlp(), tmp_path / "dense.onnx")
    import onnxruntime as ort

    session = ort.InferenceSession(str(tmp_path / "dense.onnx"))
    name = session.get_inputs()[0].name
    logits = session.run(None, {name: x})[0]
    np.savez(path, **{name: x, "label": logits.argmax(-1)})
    np.savez(tmp_path / "inputs.npz", **{name: x})
    return path


def test_a_model_against_its_reference(tmp_path: Path, data: Path) -> None:
    head = "[numeric]\nreference = 'dense.onnx'\ndata = 'inputs.npz'\n"
    assert codes(judged(tmp_path, dense_mlp(), f"{head}sqnr = 100\ncosine = 1\ntop1 = 0\n")) == []
    result = judged(tmp_path, sparse_mlp(), f"{head}sqnr = 100\ncosine = 0.1\ntop1 = 0.0\n")
    assert codes(result) == ["O24-600", "O24-600"]
    assert result.findings[0].facts["rule"] == "numeric.sqnr"
    random = "[numeric]\nreference = 'dense.onnx'\ndata = 'random:4'\nrel-l2 = 1e-6\n"
    assert codes(judged(tmp_path, dense_mlp(), random)) == []


def test_limits_are_for_the_values_that_are_named(tmp_path: Path, data: Path) -> None:
    """Of two outputs one differs: it alone can miss a limit, and an inner value can be judged."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] same,
    float[N, 64] other) <float c = {%s}> { same = Relu(x) inner = Abs(x) other = Mul(inner, c) }"""
    onnx.save(onnx.parser.parse_model(text % 1), tmp_path / "dense.onnx")
    model = onnx.parser.parse_model(text % 2)
    head = "[numeric]\nreference = 'dense.onnx'\ndata = 'random:2'\nsqnr = 100\n"
    assert codes(judged(tmp_path, model, head)) == ["O24-600"]
    assert codes(judged(tmp_path, model, f"{head}outputs = ['same', 'inner']\n")) == []
    result = judged(tmp_path, model, f"{head}outputs = ['same', 'other']\n")
    assert [(d.code, d.where.tensor) for d in result.findings] == [("O24-600", "other")]
    assert set(result.facts["measured"]) == {"sqnr@same", "sqnr@other"}
    result = judged(tmp_path, model, f"{head}outputs = ['innr']\n")
    assert (codes(result), result.exit_code) == (["O24-039"], 2)


def test_a_task_and_its_drop(tmp_path: Path, data: Path) -> None:
    head = "[task]\ndata = 'd.npz'\n"
    assert codes(judged(tmp_path, dense_mlp(), f"{head}accuracy = 1.0\n")) == []
    result = judged(tmp_path, sparse_mlp(), f"{head}accuracy = 0.999\n")
    assert codes(result) == ["O24-650"]
    measured = result.findings[0].facts["value"]
    reference = f"{head}accuracy = 0\nreference = 'dense.onnx'\nmax_drop ="
    assert codes(judged(tmp_path, sparse_mlp(), f"{reference} 1.0\n")) == []
    assert codes(judged(tmp_path, sparse_mlp(), f"{reference} {1 - measured - 0.01}\n")) == [
        "O24-650"
    ]


def test_a_ranking_task(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1] x) => (float[N,1] y) {y = Neg(x)}'
    )
    proto = onnx.parser.parse_model(text)
    x = -np.array([[3.0], [1.0], [2.0]], np.float32)
    np.savez(tmp_path / "r.npz", x=x, rel=np.array([2, 1, 0]), q=np.zeros(3))
    head = "[task]\ndata = 'r.npz'\nlabels = 'rel'\nqueries = 'q'\n"
    assert codes(judged(tmp_path, proto, f"{head}pnr = 2.0\nndcg = 0.9\nk = 3\n")) == []
    result = judged(tmp_path, proto, f"{head}pnr = 2.01\nndcg = 0.99\n")
    assert codes(result) == ["O24-650", "O24-650"]
    assert "pnr is 2, " in result.findings[0].message
    missing = judged(tmp_path, proto, "[task]\ndata = 'r.npz'\naccuracy = 0.5\n")
    assert (codes(missing), missing.exit_code) == (["O24-031"], 2)


def test_a_ledger(tmp_path: Path) -> None:
    ledger = {"engine": {"median_ms": 4.0}, "speedup": 1.3, "sha256": "0" * 64}
    (tmp_path / "l.json").write_text(json.dumps(ledger))
    head = "[latency]\nledger = 'l.json'\n"
    met = f"{head}max = {{'engine.median_ms' = 4.0}}\nmin = {{speedup = 1.3}}\n"
    assert codes(judged(tmp_path, dense_mlp(), met)) == []
    missed = f"{head}max = {{'engine.median_ms' = 3.9}}\nmin = {{speedup = 1.4, none = 1}}\n"
    assert codes(judged(tmp_path, dense_mlp(), missed)) == ["O24-651", "O24-651", "O24-652"]
    assert codes(judged(tmp_path, dense_mlp(), f"{head}same_model = true\n")) == ["O24-652"]
    (tmp_path / "l.json").write_text("[1, 2")
    assert codes(judged(tmp_path, dense_mlp(), met)) == ["O24-652"]


def test_places_of_a_document() -> None:
    document = {"a": [{"b": 1.5}], "c": float("nan")}
    assert place(document, "a.0.b") == 1.5
    for path in ("a.1.b", "a.x", "c", "d", "a.0.b.e"):
        assert place(document, path) is None


def test_a_missing_backend_is_exit_code_3_and_a_refusal_a_finding(tmp_path: Path) -> None:
    result = judged(tmp_path, dense_mlp(), "[backend]\nbuild = 'trtexec'\n")
    assert (codes(result), result.exit_code) == (["O24-500"], 3)
    pytest.importorskip("tensorrt_rtx")
    policy = "[backend]\nbuild = 'tensorrt-rtx'\nshapes = ['x:4x64']\n"
    name = dense_mlp().graph.input[0].name
    policy = policy.replace("x:4", f"{name}:4")
    assert codes(judged(tmp_path, dense_mlp(), policy)) == []
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[4,4] x) => (float y) {y = Det(x)}'
    refused = judged(tmp_path, onnx.parser.parse_model(text), "[backend]\nbuild='tensorrt-rtx'\n")
    assert set(codes(refused)) == {"O24-653"} and refused.exit_code == 1


def test_what_is_refused_by_reading_is_not_run(tmp_path: Path, data: Path) -> None:
    policy = (
        "[sparsity]\nmin_coverage = 1\n[numeric]\nreference = 'dense.onnx'\n"
        "data = 'inputs.npz'\nsqnr = 300\n"
    )
    assert codes(judged(tmp_path, dense_mlp(), policy)) == ["O24-611"]
    for severity, expected in (("warning", ["O24-611", "O24-600"]), ("off", ["O24-600"])):
        told = f"{policy}[severity]\nO24-611 = '{severity}'\n"
        assert codes(judged(tmp_path, sparse_mlp(broken=True), told)) == expected
