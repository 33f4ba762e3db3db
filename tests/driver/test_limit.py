"""compile leaves dense, or in float, what would take the model beyond a limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnx24
from onnx24.report.text import protection_text
from onnx24.testing.generate import mlp

RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((192, 32)).astype(np.float32)


def easy_and_hard() -> onnx.ModelProto:
    """`easy` is 2:4 but for tiny values, `hard` is as random as can be."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 32] x) => (float[N, 32] y)
        { a = MatMul(x, easy)  r = Relu(a)  y = MatMul(r, hard) }"""
    )
    for name in ("easy", "hard"):
        values = np.random.default_rng(len(name)).standard_normal((32, 32)).astype(np.float32) / 6
        if name == "easy":
            values.reshape(8, 4, 32)[:, :2] *= 1e-3
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def compiled(limit: Any = None, **more: Any) -> onnx24.Result:
    given = {"calib": {"x": ROWS[:96]}, "guard": "off", "preset": "sparse-int8", **more}
    return onnx24.compile(easy_and_hard(), limit=limit, **given)


def sparse(result: onnx24.Result) -> list[str]:
    return [row["name"] for row in result.weights if row["sparse"]]


def test_by_default_a_layer_that_hurts_stays_dense_and_that_is_said() -> None:
    result = compiled()
    found = result.report.protection
    assert found is not None and found["limits"] == ["sqnr=20"] and found["default"]
    assert sparse(result) == ["easy"] and found["dense"] == ["hard"]
    assert result.comparison[0]["sqnr_db"] >= 20
    said = protection_text(found)
    assert "1 weights stay dense, 0 layers stay in float" in said and "--limit none" in said
    assert found["without"]["prune24"]["output_error"] > 0.1
    assert "budget=0.0707" in result.report.pipeline


def test_none_compresses_all() -> None:
    result = compiled("none")
    assert sparse(result) == ["easy", "hard"]
    assert result.comparison[0]["sqnr_db"] < 20
    assert protection_text(result.report.protection or {}) == "none: as asked for"
    assert "budget" not in result.report.pipeline


def test_a_strict_limit_leaves_layers_in_float() -> None:
    result = compiled({"sqnr": 48}, preset="int8")
    found = result.report.protection
    assert found is not None and found["float"] and float(result.comparison[0]["sqnr_db"]) >= 46


def test_labels_are_a_limit_of_pruning_too() -> None:
    """Of 8 samples held back, one would be 12 %: what counts is how clearly the model decides."""
    strict, lax = compiled({"top1": 0.01}), compiled({"top1": 0.9})
    assert sparse(strict) == ["easy"]
    assert sparse(lax) == ["easy", "hard"]
    assert "min-agreement=99.5" in strict.report.pipeline
    assert "agreement" in (strict.report.protection or {})["without"]["prune24"]
    default = compiled(calib={"x": ROWS}).report.protection  # so many labels are judged by
    assert default is not None and default["limits"] == ["top1=0.01"] and default["default"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"calib": "random:64"}, "random"),
        ({"calib": None, "preset": None}, "no calibration samples"),
        ({"calib": {"x": ROWS[:1]}}, "too few"),
        ({"preset": "fp16"}, "neither prunes nor quantizes"),
        ({"preset": None, "pipeline": "prune24,check24"}, "the pipeline was given"),
    ],
    ids=["random", "none", "few", "nothing", "pipeline"],
)
def test_where_there_is_no_protection_that_is_said(more: dict[str, Any], reason: str) -> None:
    found = compiled(**more).report.protection
    assert found is not None and not found["limits"] and reason in found["reason"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"calib": "random:64", "limit": "sqnr=20"},
        {"limit": "max-abs=1"},
        {"limit": "loud"},
        {"limit": "sqnr=-7000"},
        {"limit": "cosine=1e-200"},
    ],
    ids=["random", "metric", "name", "overflow", "underflow"],
)
def test_what_is_no_limit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(onnx24.InputError) as caught:
        compiled(**wrong)
    assert caught.value.code == "O24-043"


def test_a_limit_that_the_samples_held_out_do_not_confirm_is_a_warning() -> None:
    """Samples that judge are ten times as large as those that calibrate, and saturate INT8."""
    result = onnx24.compile(
        mlp([32, 32]), calib={"x": ROWS}, data={"x": ROWS * 10}, limit={"sqnr": 12}
    )
    assert "O24-601" in [item.code for item in result.diagnostics]
    assert result.status == "done"
