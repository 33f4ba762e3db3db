"""`--max-drop` is met only by values that were compared (a detector's rows, NaN, named values)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx.parser
import pytest

from onnx24.cli.app import run
from onnx24.ir.model import Model

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
DETECTOR = """g (float[32, 8] x) => (float[D, 8] rows)
<float t = {%s}, float z = {0}>
{
  s = Sigmoid(x)
  b = Sub(s, t)
  top = ReduceMax<axes = [1], keepdims = 0>(b)
  keep = Greater(top, z)
  rows = Compress<axis = 0>(b, keep)
}"""
CLASSIFIER = """g (float[32, 8] x) => (float[32, 8] y)
<float[8] square = {%s, 0, 0, 0, 0, 0, 0, 0}>
{
  first = Sqrt(square)
  y = Add(x, first)
}"""


@pytest.fixture
def data(tmp_path: Path) -> str:
    x = np.random.default_rng(0).standard_normal((40, 32, 8)).astype(np.float32)
    x[0] += 5  # one run in which both detectors keep every row
    (tmp_path / "runs").mkdir()
    for i in range(40):
        np.savez(tmp_path / "runs" / f"{i}.npz", x=x[i])
    return str(tmp_path / "runs")


def saved(tmp_path: Path, name: str, text: str) -> str:
    Model.from_text(HEAD + text).save(tmp_path / name)
    return str(tmp_path / name)


def compared(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict, str]:
    code = run(["compare", *args, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_runs_whose_shapes_differ_count_against_top1(tmp_path, data, capsys) -> None:
    a, b = (saved(tmp_path, f"{t}.onnx", DETECTOR % t) for t in (0.8, 0.85))
    code, document, err = compared(capsys, a, b, "--data", data, "--max-drop", "top1=0.01")
    (out,) = document["comparison"]["outputs"]
    assert code == 1 and out["runs"] == 40 and 1 <= out["compared"] < 10
    assert f"shapes differ in {out['unlike']} of 40 runs" in err and "O24-037" in err
    # the value in front of the selection can be judged instead, and is not met by chance
    near = [a, b, "--data", data, "--max-drop"]
    assert compared(capsys, *near, "rel-l2=0.5@s,max-abs=0.051@b")[0] == 0
    assert compared(capsys, *near, "max-abs=0.049@b")[0] == 1
    assert run(["compare", *near, "sqnr=1@bb"]) == 2
    assert "O24-039" in capsys.readouterr().err


def test_nan_is_no_class_and_meets_nothing(tmp_path, data, capsys) -> None:
    a, b = (saved(tmp_path, f"{v}.onnx", CLASSIFIER % v) for v in (99, -1))
    assert compared(capsys, a, b, "--data", data, "--max-drop", "top1=0.01")[0] == 1
    for limit in ("top1=0", "sqnr=60", "max-abs=0", "cosine=0.9"):
        code, document, err = compared(capsys, b, b, "--data", data, "--max-drop", limit)
        assert code == 1 and document["limits"][0]["compared"] == 0
        assert "NaN in 40 of 40 runs" in err


def overflowing(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    text = (
        "g (float[N, 64] x) => (float[N, 16] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }"
    )
    proto = onnx.parser.parse_model(HEAD + text)
    for name, shape, scale in (("w", (64, 64), 5e3), ("v", (64, 16), 1e-5)):
        array = (rng.standard_normal(shape) * scale).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((64, 64)).astype(np.float32))
    return str(tmp_path / "m.onnx"), str(tmp_path / "x.npz")


@pytest.mark.parametrize("limits", [[], ["--max-drop", "sqnr=5,top1=0.6"]], ids=["none", "some"])
def test_an_overflow_between_float16_nodes_is_a_breach(tmp_path, capsys, limits) -> None:
    model, data = overflowing(tmp_path)
    out = tmp_path / "half.onnx"
    command = ["compile", model, "-o", str(out), "--preset", "fp16", "--data", data, *limits]
    assert run(command) == 1 and not out.exists()
    err = capsys.readouterr().err
    assert "O24-056" in err and "O24-244" in err and ("O24-600" in err) == bool(limits)


def test_a_bfloat16_model_is_compiled_and_compared(tmp_path, capsys) -> None:
    model, data = overflowing(tmp_path)
    out = str(tmp_path / "half.onnx")
    passes = "canonicalize,prune24,cast16{dtype=bf16},check24"
    command = ["compile", model, "-o", out, "--pipeline", passes, "--data", data]
    assert run([*command, "--max-drop", "sqnr=3"]) == 0
    capsys.readouterr()
    code, document, _ = compared(capsys, out, out, "--data", data, "--max-drop", "max-abs=0")
    assert code == 0 and document["limits"][0]["compared"] == document["limits"][0]["runs"] > 0
