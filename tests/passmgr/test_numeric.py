"""The instrument that runs the model before and after each pass."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from passmgr_support import Log, Rename, RenameOutput, Scale, SilentScale, chain

from onnx24 import targets
from onnx24.errors import InternalError
from onnx24.ir.model import Model
from onnx24.passmgr.instrument import (
    TOLERANCES,
    Numeric,
    arithmetic,
    relative_l2,
    stays_finite,
)
from onnx24.passmgr.manager import run

pytest.importorskip("onnx24.runtime.session")

TARGET = targets.load(targets.DEFAULT)


def test_numeric_finds_the_pass_that_changes_the_outputs():
    model = chain()
    before = model.to_bytes()
    with pytest.raises(InternalError, match="'silent-scale' changed output 'y'") as caught:
        run(
            model,
            [Rename(), SilentScale(only="w2", factor=1.001)],
            target=TARGET,
            instruments=[Numeric()],
            reproducer_dir=None,
        )
    (found,) = caught.value.diagnostics
    assert found.code == "O24-902"
    assert found.facts["rel_l2"] == pytest.approx(0.001, rel=0.01)
    assert found.facts["tolerance"] == TOLERANCES["float32"]
    assert model.to_bytes() != before, "the first pass stands"
    assert model.proto.graph.node[0].name == "r_layer0"


def test_numeric_tolerance():
    hook = Numeric(tolerance=0.01)
    run(chain(), [SilentScale(only="w2", factor=1.001)], target=TARGET, instruments=[hook])
    (drift,) = hook.drifts
    assert drift.rel_l2 == pytest.approx(0.001, rel=0.01)
    assert (drift.output, drift.tolerance) == ("y", 0.01)


def test_numeric_notes_the_drift_of_passes_that_may():
    hook = Numeric()
    run(chain(), [Log(), Scale(factor=1.1), Rename()], target=TARGET, instruments=[hook])
    assert [d.text for d in hook.drifts] == ["scale{factor=1.1}", "rename"]
    assert hook.drifts[0].rel_l2 == pytest.approx(1.1**5 - 1, rel=1e-3)
    assert hook.drifts[0].tolerance is None
    assert hook.drifts[1].rel_l2 == 0


def test_numeric_finds_outputs_that_become_infinite():
    with pytest.raises(InternalError, match="'y' NaN or infinite") as caught:
        run(
            chain(),
            [Scale(factor=1e30)],
            target=TARGET,
            instruments=[Numeric()],
            reproducer_dir=None,
        )
    assert caught.value.code == "O24-902"


def test_the_verifier_comes_before_the_comparison():
    with pytest.raises(InternalError) as caught:
        run(
            chain(),
            [RenameOutput()],
            target=TARGET,
            instruments=[Numeric()],
            reproducer_dir=None,
        )
    assert caught.value.code == "O24-801"


def test_relative_l2():
    one = np.ones(4, np.float32)
    assert relative_l2(one, one) == 0
    assert relative_l2(one, one * 1.5) == pytest.approx(0.5)
    assert relative_l2(one, one.astype(np.float64)) == np.inf
    assert relative_l2(one, one[:2]) == np.inf
    assert relative_l2(np.zeros(2), np.zeros(2)) == 0
    assert relative_l2(np.zeros(2), np.ones(2)) == np.inf
    nan, inf = np.float32([np.nan, 1]), np.float32([np.inf, 1])
    assert relative_l2(nan, nan) == 0
    assert relative_l2(inf, inf) == 0
    assert relative_l2(inf, -inf) == np.inf
    assert relative_l2(nan, np.float32([1, 1])) == np.inf
    assert relative_l2(np.float32([1, 1]), nan) == np.inf
    assert relative_l2(np.array(["a"], object), np.array(["b"], object)) == np.inf
    assert relative_l2([one, one], [one, one * 2]) == pytest.approx(1)
    assert relative_l2([one], [one, one]) == np.inf
    assert relative_l2(np.bool_([True, False]), np.bool_([True, True])) == 1
    big = np.full(4, 60000, np.float16)
    assert relative_l2(big, big * np.float16(0.5)) == pytest.approx(0.5)


def test_stays_finite():
    one, nan = np.ones(2, np.float32), np.float32([np.nan, 1])
    assert stays_finite(one, one * 0)
    assert stays_finite(np.zeros(2), np.ones(2))
    assert stays_finite(nan, one)
    assert not stays_finite(one, nan)
    assert not stays_finite(one, one[:1])
    assert not stays_finite([one], [one, one])
    assert not stays_finite([one, one], [one, nan])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("(float[2] x) => (float[2] y) { y = Relu(x) }", "float32"),
        ("(float[2] x) => (float[2] y) <double[1] w = {1}> { v = CastLike(w, x) y = Mul(x, v) }",
         "float32"),
        ("(double[2] x) => (double[2] y) { y = Relu(x) }", "float64"),
        ("(float[2] x) => (float16[2] y) { y = Cast<to = 10>(x) }", "float16"),
        ("(float[2] x) => (float[2] y) <float s = {0.1}, int8 z = {0}> "
         "{ q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }", "quantized"),
    ],
)  # fmt: skip
def test_arithmetic(text, kind):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    assert arithmetic(Model.from_proto(proto)) == kind
