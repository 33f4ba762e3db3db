"""qdq: calibrators, caches, rounding of weights, bias correction, attention and min-sqnr."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_qdq import (
    MATMUL,
    array,
    build,
    cnn,
    codes,
    ops,
    pairs,
    quantized,
    record,
    samples,
    scale_of,
    sparse,
)

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.compare import compare
from onnx24.sparsity.masks import is_24


def matmul(**options) -> Model:
    return build(MATMUL.format(k=32, n=24), w=array((32, 24)), **options)


def sqnr(model: Model, tmp_path, options: str, *, seed: int = 8, **arrays) -> float:
    """On other samples than the ranges come from."""
    before = Model.from_bytes(model.to_bytes())
    quantized(model, tmp_path, options, data=samples(model, tmp_path, 512), min_sqnr=None)
    rng = np.random.default_rng(seed)
    for value in model.proto.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        arrays.setdefault(value.name, rng.standard_normal((512, *dims)).astype(np.float32))
    test = samples(model, tmp_path, 512, **arrays)
    return compare(before, model, test, optimize=False).worst.sqnr_db


# --- calibrators ---------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["auto", "max", "percentile", "entropy", "mse"])
def test_every_calibrator(method, tmp_path):
    model = matmul()
    result = quantized(model, tmp_path, f"calibrator={method}", min_sqnr=20)
    facts = record(result, "fc").facts
    assert facts["amax"] == pytest.approx(float(scale_of(model, "x")) * 127)
    assert facts["calibrator"] == method or method == "auto"
    assert facts["sqnr_db"] > 20 and "dB" in record(result, "fc").reason
    assert facts["rules"] == ["inputs"]


def test_auto_takes_the_range_that_the_layer_wants(tmp_path):
    """One channel in 32 is 60 times as wide. The first layer does not read it, the second does."""
    x = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    x[:, 5] *= 60
    found = {}
    for reads in (False, True):
        w = array((32, 24))
        w[5] = 30.0 if reads else 0.0
        model = build(MATMUL.format(k=32, n=24), w=w)
        data = samples(model, tmp_path, x=x)
        result = quantized(model, tmp_path, data=data, min_sqnr=None)
        found[reads] = record(result, "fc").facts["amax"]
    assert found[True] > 1.5 * found[False]


def test_sqnr_of_the_records_is_that_of_the_layer(tmp_path):
    model = matmul()
    before = Model.from_bytes(model.to_bytes())
    data = samples(model, tmp_path, 400)
    result = quantized(model, tmp_path, data=data)
    measured = compare(before, model, data, optimize=False).worst.sqnr_db
    assert record(result, "fc").facts["sqnr_db"] == pytest.approx(measured, abs=0.2)


# --- the cache -----------------------------------------------------------------------------
def test_a_cache_spares_the_runs_and_gives_the_same_model(tmp_path):
    path = tmp_path / "ranges.json"
    one, two, three = cnn(), cnn(), cnn()
    data = samples(one, tmp_path)
    quantized(one, tmp_path, f'cache="{path}"', data=data, min_sqnr=25)
    written = path.read_bytes()
    quantized(two, tmp_path, f'cache="{path}"', data=data, min_sqnr=25)
    text = f'qdq{{cache="{path}" min-agreement=0}}'
    run(three, parse(text), target=targets.load("sm86"), reproducer_dir=None)
    assert one.to_bytes() == two.to_bytes() == three.to_bytes()
    assert path.read_bytes() == written
    assert json.loads(written)["ranges"]["x"]["method"] in ("max", "percentile", "mse", "entropy")


def test_a_cache_of_another_model_other_samples_or_options_is_refused(tmp_path):
    path = tmp_path / "ranges.json"
    model = matmul()
    data = samples(model, tmp_path)
    quantized(model, tmp_path, f'cache="{path}"', data=data)
    other = build(MATMUL.format(k=32, n=24), w=array((32, 24), 1))
    before = other.to_bytes()
    with pytest.raises(InputError, match="the model"):
        quantized(other, tmp_path, f'cache="{path}"', min_sqnr=None)
    assert other.to_bytes() == before
    with pytest.raises(InputError, match="calibrator"):
        quantized(matmul(), tmp_path, f'calibrator=max cache="{path}"', data=data, min_sqnr=None)
    more = samples(model, tmp_path, 65)
    with pytest.raises(InputError, match="the samples"):
        quantized(matmul(), tmp_path, f'cache="{path}"', data=more, min_sqnr=None)


def test_tensorrts_cache(tmp_path):
    path = tmp_path / "model.cache"
    text = (
        "g (float[N, 32] x) => (float[N, 24] y, float[N, 24] z) "
        "{ h = Relu(x) [a] y = MatMul(x, w) [b] z = MatMul(h, w) }"
    )
    model = build(text, w=array((32, 24)))
    path.write_text("TRT-8601-EntropyCalibration2\nx: 3d000000\n")
    result = quantized(model, tmp_path, f'cache="{path}"', min_sqnr=None)
    assert scale_of(model, "x") == np.float32(0.03125)
    assert codes(result) == {"a": "O24-200", "b": "O24-219"}
    written = tmp_path / "other.cache"
    model = build(text, w=array((32, 24)))
    quantized(model, tmp_path, f'cache="{written}"')
    again = build(text, w=array((32, 24)))
    quantized(again, tmp_path, f'cache="{written}"')
    for value in "xh":
        assert scale_of(again, value) == scale_of(model, value)


# --- weights -------------------------------------------------------------------------------
def correlated(count: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([9, width])
    mixing = rng.standard_normal((width, width)) + 2 * np.eye(width)
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows @ mixing).astype(np.float32)


@pytest.mark.parametrize("form", ["matmul", "gemm", "conv", "behind a transpose"])
def test_adaptive_rounding_gains_and_keeps_24(form, tmp_path):
    text = {
        "matmul": "g (float[N, 32] x) => (float[N, 24] y) { [fc] y = MatMul(x, w) }",
        "gemm": "g (float[N, 32] x) => (float[N, 24] y) { [fc] y = Gemm<transB = 1>(x, w) }",
        "conv": "g (float[N, 32] x) => (float[N, 24, 1, 1] y) "
        "{ r = Reshape(x, s) [fc] y = Conv(r, w) }",
        "behind a transpose": "g (float[N, 32] x) => (float[N, 24] y) "
        "{ t = Transpose<perm = [1, 0]>(w) [fc] y = MatMul(x, t) }",
    }[form]
    shape = {"matmul": (32, 24), "conv": (24, 32, 1, 1)}.get(form, (24, 32))
    weights = {"w": array(shape)}
    if form == "conv":
        weights["s"] = np.array([-1, 32, 1, 1], np.int64)
    noise = {}
    for rounding in ("nearest", "adaptive"):
        model = build(text, **weights)
        axis = 0 if form == "matmul" else 1
        sparse(model, "w", axis)
        before = Model.from_bytes(model.to_bytes())
        data = samples(model, tmp_path, x=correlated(1000, 32))
        # Layers as in W8A32: the activation's own error would hide the weight's.
        quantized(model, tmp_path, f"rounding={rounding}", data=data, min_sqnr=None)
        stored = model.weights["w"]
        assert is_24(stored, axis)
        noise[rounding] = _weight_noise(before.weights["w"], model, axis)
    assert noise["adaptive"] < noise["nearest"] * 0.9
    once = model.to_bytes()
    quantized(model, tmp_path, "rounding=adaptive", data=data)
    assert model.to_bytes() == once


def _weight_noise(before: np.ndarray, model: Model, k_axis: int) -> float:
    """‖X (W - Ŵ)‖² over samples that the rounding has not seen."""
    from onnx24.quant.scales import dequantize, quantize

    channel_axis = 1 - k_axis
    scale = scale_of(model, "w")
    after = dequantize(quantize(model.weights["w"], scale, channel_axis), scale, channel_axis)
    change = np.moveaxis((before - after).reshape(before.shape[:2]), k_axis, 0)
    return float(np.square(correlated(2000, 32, seed=5) @ change).sum())


def test_a_weight_that_something_else_reads_is_not_replaced(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y, float[32, 24] t) "
        "{ [fc] y = MatMul(x, w) t = Neg(w) }",
        w=array((32, 24)),
    )
    stored = model.weights["w"].copy()
    quantized(model, tmp_path, "rounding=adaptive")
    assert np.array_equal(model.weights["w"], stored) and pairs(model) == ["w", "x"]


def test_mse_ranges_of_weights(tmp_path):
    w = array((32, 24))
    w[3] = 60  # wide, and the input there is always near 0
    x = np.random.default_rng(0).standard_normal((512, 32)).astype(np.float32)
    x[:, 3] *= 1e-4
    found = {}
    for weights in ("max", "mse"):
        model = build(MATMUL.format(k=32, n=24), w=w)
        data = samples(model, tmp_path, x=x)
        quantized(model, tmp_path, f"weights={weights}", data=data, min_sqnr=None)
        found[weights] = scale_of(model, "w")
    assert (found["mse"] <= found["max"]).all() and found["mse"][0] < found["max"][0] * 0.9


@pytest.mark.parametrize("form", ["matmul-add", "gemm", "conv"])
def test_bias_correction_takes_the_mean_error_out(form, tmp_path):
    text = {
        "matmul-add": "g (float[N, 32] x) => (float[N, 24] y) { h = MatMul(x, w) y = Add(h, b) }",
        "gemm": "g (float[N, 32] x) => (float[N, 24] y) "
        "{ y = Gemm<alpha = 0.5, beta = 0.25>(x, w, b) }",
        "conv": "g (float[N, 32, 3, 3] x) => (float[N, 24, 3, 3] y) { y = Conv(x, w, b) }",
    }[form]
    weights = {"w": array((24, 32, 1, 1) if form == "conv" else (32, 24)), "b": array((24,))}
    shape = (400, 32, 3, 3) if form == "conv" else (4000, 32)
    x = np.abs(np.random.default_rng(0).standard_normal(shape)).astype(np.float32) + 1
    bias = {}
    for correct in ("false", "true"):
        model = build(text, **weights)
        before = Model.from_bytes(model.to_bytes())
        data = samples(model, tmp_path, x=x)
        quantized(model, tmp_path, f"correct-bias={correct}", data=data, min_sqnr=None)
        bias[correct] = np.abs(_mean_error(before, model, data)).mean()
    assert bias["true"] < bias["false"] * 0.5
    assert len(pairs(model)) == 2


ENCODER = """g (float[N, 16, 32] x) => (float[N, 16, 24] y) {
  m = MatMul(x, w)
  h = Add(m, b)
  y = LayerNormalization<axis = -1>(h, one, zero)
}"""


def _encoder_with_an_odd_token(tmp_path):
    """The first token of each sample is 20 times as large as the others, in a few channels."""
    model = build(
        ENCODER, w=array((32, 24)), b=array((24,)),
        one=np.ones(24, np.float32), zero=np.zeros(24, np.float32),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((64, 16, 32)).astype(np.float32)
    x[:, 0, :4] = 20 + np.abs(x[:, 0, :4])
    return model, samples(model, tmp_path, x=x)


@pytest.mark.parametrize("correct", ["true", "auto"])
def test_a_few_tokens_that_the_range_cuts_move_no_bias(correct, tmp_path):
    noise = {}
    for option in ("false", correct):
        model, data = _encoder_with_an_odd_token(tmp_path)
        before = Model.from_bytes(model.to_bytes())
        options = f"calibrator=percentile percentile=98 correct-bias={option}"
        quantized(model, tmp_path, options, data=data, min_sqnr=None)
        noise[option] = _noise_of_other_tokens(before, model, data)
    assert noise[correct] <= noise["false"] * 1.02


def _noise_of_other_tokens(before: Model, after: Model, data) -> float:
    from onnx24.runtime.session import Session

    sessions = Session(before, optimize=False), Session(after, optimize=False)
    total = 0.0
    for feeds in data.batches(before):
        a, b = (session.run(feeds)["y"][:, 1:].astype(np.float64) for session in sessions)
        total += float(np.square(a - b).sum())
    return total


def _mean_error(before: Model, after: Model, data) -> np.ndarray:
    from onnx24.runtime.session import Session

    sessions = Session(before, optimize=False), Session(after, optimize=False)
    total = 0.0
    for feeds in data.batches(before):
        a, b = (session.run(feeds)["y"] for session in sessions)
        others = tuple(i for i in range(a.ndim) if i != 1)
        total = total + (b.astype(np.float64) - a).mean(axis=others)
    return np.asarray(total)


def test_a_bias_that_something_else_reads_stays(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y, float[N, 24] z) "
        "{ y = Gemm(x, w, b) r = Relu(x) z = Gemm(r, w, b) }",
        w=array((32, 24)),
        b=array((24,)),
    )
    stored = model.weights["b"].copy()
    quantized(model, tmp_path, "correct-bias=true")
    assert np.array_equal(model.weights["b"], stored)


# --- which layers --------------------------------------------------------------------------
ATTENTION = """g (float[N, 16, 32] q, float[N, 32, 16] k, float[N, 16, 32] v)
=> (float[N, 16, 32] y) {
  [scores] s = MatMul(q, k)
  c = Mul(s, scale)
  p = Softmax(c)
  [mix] y = MatMul(p, v)
}"""


def test_attention_on_request(tmp_path):
    scale = {"scale": np.array(0.2, np.float32)}
    model = build(ATTENTION, **scale)
    before = model.to_bytes()
    result = quantized(model, tmp_path)
    assert codes(result) == {"scores": "O24-213", "mix": "O24-213"} and model.to_bytes() == before
    result = quantized(model, tmp_path, "attention=true", min_sqnr=25)
    assert codes(result) == {"scores": "O24-225", "mix": "O24-225"}
    assert pairs(model) == ["k", "p", "q", "v"]
    assert result.passes[0].statistics["quantized"] == 2
    assert all(scale_of(model, value).shape == () for value in "kpqv")
    once = model.to_bytes()
    result = quantized(model, tmp_path, "attention=true")
    assert set(codes(result).values()) == {"O24-214"} and model.to_bytes() == once


@pytest.mark.parametrize(
    ("shapes", "code"),
    [
        (("N, 16, 8", "N, 8, 16", "N, 16, 16"), "O24-211"),
        (("N, 1, 32", "N, 32, 16", "N, 1, 16"), "O24-210"),
        (("N, 16, 32", "N, 32, 1", "N, 16, 1"), "O24-210"),
    ],
)
def test_small_products_of_activations_are_refused(shapes, code, tmp_path):
    a, b, c = shapes
    model = build(f"g (float[{a}] x, float[{b}] z) => (float[{c}] y) {{ [p] y = MatMul(x, z) }}")
    before = model.to_bytes()
    assert codes(quantized(model, tmp_path, "attention=true")) == {"p": code}
    assert model.to_bytes() == before


def test_layers_that_are_too_sensitive_stay_in_float(tmp_path):
    """The second layer's outputs are small differences of large values."""
    w = array((32, 24))
    pairwise = np.repeat(array((16, 24)), 2, axis=0) * 100
    pairwise[1::2] *= -1
    text = (
        "g (float[N, 32] x, float[N, 32] t) => (float[N, 24] y, float[N, 24] z) "
        "{ [good] y = MatMul(x, w) [bad] z = MatMul(t, v) }"
    )
    model = build(text, w=w, v=pairwise)
    t = np.repeat(np.random.default_rng(0).standard_normal((64, 16)), 2, axis=1)
    t[:, 1::2] *= 1.001
    data = samples(model, tmp_path, t=t.astype(np.float32))
    result = quantized(model, tmp_path, "min-sqnr=20", data=data)
    assert codes(result) == {"good": "O24-200", "bad": "O24-224"}
    assert "min-sqnr=20" in record(result, "bad").reason and pairs(model) == ["w", "x"]
    model = build(text, w=w, v=pairwise)
    assert codes(quantized(model, tmp_path, data=data, min_sqnr=None))["bad"] == "O24-200"


def test_options_round_trip_and_bad_values():
    text = (
        "qdq{calibrator=entropy weights=mse rounding=adaptive correct-bias=true attention=true "
        "min-sqnr=12.5 cache=ranges.json}"
    )
    assert str(parse(text)) == text
    for bad in ("min-sqnr=-1", "weights=min", "rounding=up"):
        with pytest.raises(InputError, match="O24-023"):
            parse(f"qdq{{{bad}}}")


def test_batches_do_not_matter(tmp_path, monkeypatch):
    from onnx24.runtime import ranges

    whole, single = cnn(), cnn()
    data = samples(whole, tmp_path)
    options = "calibrator=percentile rounding=nearest correct-bias=false"  # no sample of rows
    quantized(whole, tmp_path, options, data=data, min_sqnr=25)
    monkeypatch.setattr(ranges, "RUN_BYTES", 1)
    quantized(single, tmp_path, options, data=data, min_sqnr=25)
    assert single.to_bytes() == whole.to_bytes()
    assert ops(whole).count("QuantizeLinear") == 6


def test_auto_is_held_against_the_models_own_outputs(tmp_path):
    """Behind the layer a maximum over 64 rows: only the few largest values come through, and the
    layer's mean error says that these may be clipped."""
    rng = np.random.default_rng(0)
    text = "g (float[N, 64, 32] x) => (float[N, 24] y) { [fc] h = MatMul(x, w) y = MAX(h) }"
    text = text.replace("MAX", "ReduceMax<axes = [1], keepdims = 0>")
    model = build(text, w=np.abs(array((32, 24))))
    x = rng.standard_normal((400, 64, 32)).astype(np.float32)
    x[:, 0] = 12 + np.abs(x[:, 0])
    data = samples(model, tmp_path, x=x)
    worst = {}
    for calibrator in ("auto", "max", "percentile", "mse", "entropy"):
        found = Model.from_bytes(model.to_bytes())
        result = quantized(found, tmp_path, f"calibrator={calibrator}", data=data, min_sqnr=None)
        worst[calibrator] = compare(model, found, data, optimize=False).worst.sqnr_db
        assert ("ranges_by" in result.passes[0].statistics) == (calibrator == "auto")
    best = max(value for name, value in worst.items() if name != "auto")
    assert worst["auto"] >= best - 0.5
