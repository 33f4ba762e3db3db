"""The metrics of a comparison, against numpy on the whole."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime.compare import compare
from onnx24.runtime.data import load_data

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model(body: str, inputs: str = "float[N, 5] x", outputs: str = "float[N, 5] y") -> Model:
    return Model.from_text(f"{HEAD}g ({inputs}) => ({outputs}) {{ {body} }}")


def constant(value: str) -> str:
    return f"c = Constant<value = float {{{value}}}>()"


@pytest.fixture
def data(tmp_path):
    x = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    return x, str(tmp_path / "d.npz")


def test_metrics_over_several_runs(data):
    x, spec = data
    a = model("y = Identity(x)")
    b = model(f"{constant('1.0')} s = Sin(x) y = Mul(s, c)")
    found = compare(a, b, load_data(spec, a))
    (out,) = found.outputs
    y = np.sin(x)
    error, wide = (y - x).astype(np.float64), x.astype(np.float64)
    rel = np.linalg.norm(error) / np.linalg.norm(wide)
    assert out.max_abs == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert out.rel_l2 == pytest.approx(rel, rel=1e-6)
    assert out.sqnr_db == pytest.approx(-20 * math.log10(rel), rel=1e-6)
    cosine = np.vdot(wide, y) / np.linalg.norm(wide) / np.linalg.norm(y)
    assert out.cosine == pytest.approx(cosine, rel=1e-6)
    assert out.top1_agreement == np.mean(x.argmax(1) == y.argmax(1)) < 1
    assert found.samples == 100 and out.shape == (4, 5) and not found.is_random


def test_identical(data):
    a = model("y = Identity(x)")
    (out,) = compare(a, model("n = Neg(x) y = Neg(n)"), load_data(data[1], a)).outputs
    assert (out.max_abs, out.rel_l2, out.cosine) == (0, 0, 1) and out.identical
    assert out.sqnr_db == math.inf and out.top1_agreement == 1
    assert out.to_json()["sqnr_db"] == "inf"


@pytest.mark.parametrize(("factor", "said"), [("0.1", []), ("1.9", []), ("-1.1", ["O24-058"])])
def test_an_error_larger_than_the_output_is_said(data, factor, said):
    a = model("y = Identity(x)")
    found = compare(a, model(f"{constant(factor)} y = Mul(x, c)"), load_data(data[1], a))
    assert [d.code for d in found.findings()] == said


def test_an_error_in_small_channels_is_said(data):
    """Two of five columns are a thousandth of the others, and lost."""
    scales = "s = Constant<value_floats = [1.0, 1.0, 1.0, 0.001, 0.001]>() y = Mul(r, s)"
    rows = (
        "u = Constant<value_ints = [2]>() t = Unsqueeze(x, u) c = Concat<axis = 2>"
        "(t, t, t, t, t, t) r = Transpose<perm = [0, 2, 1]>(c) "
    )
    outputs = "float[N, 6, 5] y"
    a = model(rows + scales, outputs=outputs)
    b = model(
        rows + scales.replace("0.001]", "-0.001]").replace("0.001,", "-0.001,"), outputs=outputs
    )
    found = compare(a, b, load_data(data[1], a))
    (out,) = found.outputs
    assert (out.faint.channels, out.faint.of) == (2, 5) and out.faint.rel_l2 == pytest.approx(2)
    assert out.rel_l2 < 0.01 and [d.code for d in found.findings()] == ["O24-058"]


def test_nan_and_infinity_are_seen(data):
    a = model("y = Identity(x)")
    b = model("y = Log(x)")  # NaN for what is negative
    found = compare(a, b, load_data(data[1], a))
    (out,) = found.outputs
    assert out.mismatches == np.count_nonzero(data[0] < 0)
    assert out.max_abs == out.rel_l2 == math.inf and out.sqnr_db == -math.inf
    assert math.isnan(out.cosine) and not out.identical
    (same,) = compare(b, b, load_data(data[1], a)).outputs
    assert same.mismatches == 0 and same.identical
    json.dumps(found.to_json(), allow_nan=False)


def test_a_reference_of_zeros(data):
    zeros = model("y = Sub(x, x)")
    a = model("y = Identity(x)")
    (out,) = compare(zeros, a, load_data(data[1], a)).outputs
    assert out.rel_l2 == math.inf and out.sqnr_db == -math.inf and out.cosine == 0
    (out,) = compare(zeros, zeros, load_data(data[1], a)).outputs
    assert out.rel_l2 == 0 and out.cosine == 1


def test_outputs_without_a_top_1(data):
    outputs = "float[N, 1] y, int64[N, 5] i, bool[N, 5] b, float s"
    body = (
        "y = ReduceMean<axes = [1]>(x) i = Cast<to = 7>(x) z = Sub(x, x) b = Greater(x, z) "
        "s = ReduceSum<keepdims = 0>(x)"
    )
    a = model(body, outputs=outputs)
    b = model(body.replace("Greater(x, z)", "Less(x, z)"), outputs=outputs)
    found = compare(a, b, load_data(data[1], a))
    assert [out.name for out in found.outputs] == ["y", "i", "b", "s"]
    assert all(out.top1_agreement is None for out in found.outputs)
    assert found.worst.name == "b" and found.worst.max_abs == 1


def test_strings_and_sequences(tmp_path):
    inputs, outputs = "float[6] x", "seq(float[K]) s, string[6] t"
    body = "s = SplitToSequence(x, {n}) t = Cast<to = 8>({x})"
    consts = "n2 = Constant<value_int = 2>() n3 = Constant<value_int = 3>() m = Neg(x)"
    a = model(f"{consts} {body.format(n='n2', x='x')}", inputs, outputs)
    b = model(f"{consts} {body.format(n='n2', x='m')}", inputs, outputs)
    c = model(f"{consts} {body.format(n='n3', x='x')}", inputs, outputs)
    data = load_data("random:2", a)
    by_name = {out.name: out for out in compare(a, b, data).outputs}
    assert set(by_name) == {"s[0]", "s[1]", "s[2]", "t"}
    assert by_name["s[0]"].identical and by_name["t"].mismatches == 12
    by_name = {out.name: out for out in compare(a, c, data).outputs}
    assert by_name["s[2]"].mismatches and by_name["s[0]"].rel_l2 == math.inf
    assert compare(a, a, data).is_random


def test_models_that_cannot_be_compared(data):
    a = model("y = Identity(x)")
    loaded = load_data(data[1], a)
    with pytest.raises(InputError, match="O24-801"):
        compare(a, model("z = Identity(x)", outputs="float[N, 5] z"), loaded)
    with pytest.raises(InputError, match="O24-031"):
        compare(a, model("y = Identity(w)", inputs="float[N, 5] w"), loaded)
    with pytest.raises(InputError, match="O24-032"):
        compare(a, model("y = Identity(x)", "float[N, 6] x", "float[N, 6] y"), loaded)


def test_a_real_model_against_itself(fixture_models, digits_calib):
    model = Model.load(fixture_models["cnn"].path)
    found = compare(
        model, Model.load(fixture_models["cnn"].path), load_data(str(digits_calib), model)
    )
    assert found.samples == 256 and found.worst.identical
