"""The harness itself: what it accepts, and that it refuses what does not match."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest

from onnx24.effects import Effects
from onnx24.errors import InputError, InternalError, NotMetError
from onnx24.passmgr.base import Pass
from onnx24.passmgr.registry import Entry, Registry
from onnx24.testing import filecheck

pytest.importorskip("onnx24.runtime.session")

BODY = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 8] y) {
  [layer0] y = MatMul(x, w)
}
"""


@dataclass(frozen=True, kw_only=True)
class Scale(Pass):
    name: ClassVar = "scale"
    effects: ClassVar = Effects.WEIGHTS
    codes: ClassVar = ("O24-100",)
    factor: Annotated[float, "the factor"] = 1.0

    def run(self, model, ctx) -> None:
        model.weights.replace("w", model.weights["w"] * np.float32(self.factor))
        ctx.record("pruned", "O24-100", weight="w", node="layer0")


@dataclass(frozen=True, kw_only=True)
class Gate(Pass):
    name: ClassVar = "gate"
    effects: ClassVar = Effects.NONE

    def run(self, model, ctx) -> None:
        raise NotMetError.of("O24-610", "the weight is dense", tensor="w")


REGISTRY = Registry(
    [Entry(n, f"{__name__}:{c}") for n, c in (("scale", "Scale"), ("gate", "Gate"))]
)


def complaints(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "f.onnxtxt"
    path.write_text(text)
    fixture = filecheck.read(path)
    return [
        filecheck.check(fixture, item, filecheck.output(fixture, item, REGISTRY))
        for item in fixture.runs
    ]


HEADER = """// RUN: scale
// INIT: float[4, 8] w
"""


def test_lines_that_match(tmp_path: Path):
    checks = """
// CHECK: graph "g" (x: f32[N,4]) -> (y: f32[N,8])
// CHECK-NEXT: init w: f32[4,8] sha=
// CHECK-NEXT: layer0: y = MatMul(x, w)
// CHECK-NEXT: note O24-100 scale: w
// CHECK-NOT: Conv
"""
    assert complaints(tmp_path, HEADER + BODY + checks) == [""]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("// CHECK: Conv", "Can't find match|Couldn't match"),
        ("// CHECK-NOT: MatMul", "excluded string found"),
        ("// CHECK: init w\n// CHECK-NEXT: note", "Couldn't match"),
        ("", "No check strings found"),
    ],
)
def test_lines_that_do_not_match(line, reason, tmp_path: Path):
    (complaint,) = complaints(tmp_path, HEADER + BODY + line)
    assert any(part in complaint for part in reason.split("|")), complaint
    assert "\x1b" not in complaint


def test_several_runs(tmp_path: Path):
    text = HEADER + "// RUN(TWICE): scale,scale\n" + BODY
    text += "// CHECK: note O24-100\n// CHECK-NOT: note\n// TWICE-COUNT-2: note O24-100\n"
    assert complaints(tmp_path, text) == ["", ""]


def test_values_of_an_initializer_do_not_depend_on_the_machine(tmp_path: Path):
    path = tmp_path / "f.onnxtxt"
    path.write_text(HEADER + BODY)
    weights = filecheck.read(path).model().weights
    assert weights.digest("w")[:8] == "5d14c9f7"
    assert abs(float(weights["w"].mean())) < 0.5


def test_kinds_of_initializers(tmp_path: Path):
    path = tmp_path / "f.onnxtxt"
    path.write_text(
        "// RUN: scale\n// INIT: float[4, 8] w = zeros\n// INIT: int8[3] q\n"
        "// INIT: float16[] s = ones\n// INIT: bfloat16[2,2] b\n" + BODY
    )
    weights = filecheck.read(path).model().weights
    assert not weights["w"].any()
    assert (weights["q"].dtype, weights["q"].shape) == (np.int8, (3,))
    assert (weights["s"].dtype, float(weights["s"])) == (np.float16, 1.0)
    assert weights["b"].dtype.name == "bfloat16"


def test_an_expected_failure(tmp_path: Path):
    text = "// RUN: gate\n// FAILS: O24-610\n// INIT: float[4,8] w\n" + BODY
    assert complaints(tmp_path, text + "// CHECK: tensor 'w': the weight is dense") == [""]
    with pytest.raises(NotMetError):
        complaints(tmp_path, text.replace("// FAILS: O24-610", "") + "// CHECK: x")
    with pytest.raises(AssertionError, match="the run succeeded"):
        complaints(tmp_path, text.replace("RUN: gate", "RUN: scale") + "// CHECK: x")


def test_the_result_is_run(tmp_path: Path):
    text = HEADER.replace("scale", "scale{factor=1.01}") + BODY + "// CHECK: MatMul\n"
    with pytest.raises(InternalError) as caught:
        complaints(tmp_path, text)
    assert caught.value.code == "O24-902"
    assert complaints(tmp_path, text + "// NUMERIC: off\n") == [""]


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        (BODY, ValueError, "has no line `// RUN"),
        (HEADER + "// TARGET: sm86\n// TARGET: sm80\n" + BODY, ValueError, "TARGET is given twice"),
        (HEADER + "// INIT: float w2\n" + BODY, ValueError, "INIT: expected"),
        ("// RUN: scal\n// INIT: float[4,8] w\n" + BODY, InputError, "did you mean 'scale'"),
        (HEADER + "// TARGET: sm999\n" + BODY, InputError, "sm999"),
    ],
)
def test_mistakes_in_a_fixture(text, kind, reason, tmp_path: Path):
    with pytest.raises(kind, match=reason):
        complaints(tmp_path, text)
