"""qdq: layers that stay in float for the outputs' sake, and how many samples are looked at."""

from __future__ import annotations

import numpy as np
import pytest
from test_qdq import array, build, codes, pairs, quantized, record, samples

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.rewrite.protection import Limits
from onnx24.runtime.compare import compare
from onnx24.runtime.ranges import doublings

TWO = """g (float[N, 32] x, float[N, 32] t) => (float[N, 24] y) {
  [good] a = MatMul(x, w)
  [bad] b = MatMul(t, v)
  y = Add(a, b)
}"""


def two(tmp_path, count: int = 400) -> tuple[Model, object]:
    """`bad` makes small differences of large values, so that alone it moves the outputs by much
    more than `good` does."""
    pairwise = np.repeat(array((16, 24)), 2, axis=0) * 100
    pairwise[1::2] *= -1
    model = build(TWO, w=array((32, 24)), v=pairwise)
    t = np.repeat(np.random.default_rng(0).standard_normal((count, 16)), 2, axis=1)
    t[:, 1::2] *= 1.001
    return model, samples(model, tmp_path, count, t=t.astype(np.float32))


def statistics(result) -> dict:
    return result.passes[0].statistics


def test_budget_moves_the_layer_that_costs_most(tmp_path):
    model, data = two(tmp_path)
    before = Model.from_bytes(model.to_bytes())
    result = quantized(model, tmp_path, "budget=0.05", data=data, min_sqnr=None)
    assert codes(result) == {"good": "O24-200", "bad": "O24-237"}
    assert "%" in record(result, "bad").reason and pairs(model) == ["w", "x"]
    found = statistics(result)
    assert found["output_error_before"] > 0.05 >= found["output_error"] and found["protected"] == 1
    assert found["predicted_error"] == pytest.approx(found["output_error"], rel=0.5)
    measured = compare(before, model, data, optimize=False).worst.rel_l2
    assert measured == pytest.approx(found["output_error"], rel=0.3)


def test_a_budget_is_kept_by_each_output(tmp_path):
    """GTCRN: the mean of four outputs had 20 dB, and one of them 16."""
    model, data = two(tmp_path)
    weights = {name: model.weights[name] for name in ("w", "v")}
    text = TWO.replace("(float[N, 24] y)", "(float[N, 24] a, float[N, 24] b)")
    text = text.replace("  y = Add(a, b)\n", "")
    wide = quantized(build(text, **weights), tmp_path, "budget=100", data=data, min_sqnr=None)
    mean = statistics(wide)["output_error"]
    narrow = quantized(
        build(text, **weights), tmp_path, f"budget={1.2 * mean}", data=data, min_sqnr=None
    )
    assert codes(narrow) == {"good": "O24-200", "bad": "O24-237"}


def test_a_wide_budget_moves_nothing_and_a_narrow_one_everything(tmp_path):
    model, data = two(tmp_path)
    result = quantized(model, tmp_path, "budget=100", data=data, min_sqnr=None)
    assert set(codes(result).values()) == {"O24-200"} and "protected" not in statistics(result)
    model, data = two(tmp_path)
    before = model.to_bytes()
    result = quantized(model, tmp_path, "budget=1e-6", data=data, min_sqnr=None)
    assert set(codes(result).values()) == {"O24-237"}
    assert [n.op_type for n in model.proto.graph.node] == ["MatMul", "MatMul", "Add"]
    assert np.array_equal(model.weights["v"], Model.from_bytes(before).weights["v"])


def test_a_classifier_keeps_its_classes_by_default(tmp_path):
    model, data = two(tmp_path)
    before = Model.from_bytes(model.to_bytes())
    text = parse("qdq{min-agreement=97}")
    result = run(model, text, target=targets.load("sm86"), calibration=data, reproducer_dir=None)
    assert codes(result)["bad"] == "O24-237"
    assert statistics(result)["agreement"] >= 97 > statistics(result)["agreement_before"]
    assert compare(before, model, data, optimize=False).worst.top1_agreement >= 0.96


def test_an_agreement_is_not_asked_of_few_samples_nor_of_random_ones(tmp_path):
    model, data = two(tmp_path, 64)
    result = run(model, parse("qdq{min-output=0}"), target=targets.load("sm86"), calibration=data,
                 reproducer_dir=None)  # fmt: skip
    assert set(codes(result).values()) == {"O24-200"} and "protected" not in statistics(result)


def test_budget_and_formats_together(tmp_path):
    model, data = two(tmp_path)
    model = build(TWO, opset=19, ir=9, w=model.weights["w"], v=model.weights["v"])
    result = quantized(model, tmp_path, "fp8=good int8=bad budget=0.06", data=data,
                       target=targets.load("sm89"), min_sqnr=None)  # fmt: skip
    assert codes(result) == {"good": "O24-233", "bad": "O24-237"}


@pytest.mark.parametrize("bad", ["budget=-1", "min-agreement=101", "min-output=-1"])
def test_bad_limits(bad):
    with pytest.raises(InputError, match="O24-023"):
        parse(f"qdq{{{bad}}}")


def test_weights_too_small_for_a_scale_stay_in_float(tmp_path):
    """1e-41 is no normal number: every step would be larger than the largest weight."""
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) { [fc] y = MatMul(x, w) }",
        w=(array((32, 24)) * np.float32(1e-41)).astype(np.float32),
    )
    before = model.to_bytes()
    assert codes(quantized(model, tmp_path, min_sqnr=None)) == {"fc": "O24-224"}
    assert model.to_bytes() == before


# --- how many samples are looked at --------------------------------------------------------
def test_auto_stops_where_ranges_stand_still(tmp_path):
    model = build("g (float[N, 64, 32] x) => (float[N, 64, 24] y) { [fc] y = MatMul(x, w) }",
                  w=array((32, 24)))  # fmt: skip
    data = samples(model, tmp_path, 1000)
    seen = {}
    for options in ("", "all-samples=true", "calibrator=max"):
        found = Model.from_bytes(model.to_bytes())
        result = quantized(found, tmp_path, options, data=data, min_sqnr=None)
        seen[options] = statistics(result)["samples"], record(result, "fc").facts["amax"]
    assert seen[""][0] <= 128 and seen["all-samples=true"][0] == seen["calibrator=max"][0] == 1000
    assert seen[""][1] == pytest.approx(seen["all-samples=true"][1], rel=0.1)


def test_doublings_are_all_samples_once(tmp_path):
    model = build("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }")
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    data = samples(model, tmp_path, x=x)
    parts = list(doublings(data, 8))
    assert [len(part) for part in parts] == [8, 8, 16, 32, 36]
    rows = [np.concatenate([f["x"] for f in part.batches(model)]) for part in parts]
    assert sorted(np.concatenate(rows)[:, 0]) == list(x[:, 0])
    assert np.ptp(rows[0][:, 0]) > 150  # spread over all


@pytest.mark.parametrize(
    ("samples", "agreement", "asked"),
    [
        (200, 1.0, True),
        (512, 0.999, True),
        (199, 0.999, False),
        (40, 0.97, True),
        (16, 0.97, False),
    ],
)
def test_an_agreement_is_asked_for_where_samples_tell(samples, agreement, asked):
    assert bool(Limits(0.1, agreement).asked_with(samples).agreement) == asked
