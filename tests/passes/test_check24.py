"""check24 and the invariant behind it: 2:4 in what the consumer sees, whatever was stored."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.effects import Effects
from onnx24.errors import NotMetError
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.sparsity.masks import prune_24
from onnx24.testing.generate import mlp

TARGET = targets.load("sm86")
DENSE = "g (float[N, 8] x) => (float[N, 6] y) { [fc] y = MatMul(x, w) }"


def array(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def build(text: str, claims: str = "w", **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = Model.from_proto(proto)
    for name in claims:
        model.claims.add(name)
    return model


def check(model: Model, options: str = "") -> RunResult:
    text = f"check24{{{options}}}" if options else "check24"
    return run(model, parse(text), target=TARGET, reproducer_dir=None)


def test_a_sparse_weight_passes_and_nothing_changes():
    model = build(DENSE, w=prune_24(array((8, 6)), 0))
    before = model.to_bytes()
    result = check(model)
    assert result.changed == Effects.NONE and model.to_bytes() == before
    assert [(r.action, r.code, r.weight) for r in result.records] == [("checked", "O24-102", "w")]
    assert result.passes[0].statistics == {"checked": 1}


def test_a_dense_weight_fails_with_numbers():
    weight = prune_24(array((8, 6)), 0)
    weight[4:8, 2] = 1
    with pytest.raises(NotMetError) as caught:
        check(build(DENSE, w=weight))
    assert caught.value.exit_code == 1
    (found,) = caught.value.diagnostics
    assert (found.code, found.where.tensor) == ("O24-807", "w")
    assert found.facts == {"groups": 12, "violating": 1, "first": [4, 2], "consumer": "fc"}
    assert "1 of 12 groups" in found.message and "[4, 2]" in found.message


def test_the_wrong_axis_fails():
    with pytest.raises(NotMetError, match="O24-807"):
        check(build(DENSE.replace("6", "8"), w=prune_24(array((8, 8)), 1)))
    transposed = DENSE.replace("6", "8").replace(
        "[fc] y = MatMul(x, w)", "v = Transpose(w) y = MatMul(x, v)"
    )
    check(build(transposed, w=prune_24(array((8, 8)), 1)))


def test_claims_and_eligible_are_different_demands():
    model = build(DENSE, claims="", w=array((8, 6)))
    assert check(model).passes[0].statistics == {"checked": 0}
    with pytest.raises(NotMetError) as caught:
        check(model, "require=eligible")
    assert [d.code for d in caught.value.diagnostics] == ["O24-610"]
    sparse = build(DENSE, claims="", w=prune_24(array((8, 6)), 0))
    assert check(sparse, "require=eligible").passes[0].statistics == {"checked": 1}
    # What can't be 2:4 is not asked to be.
    check(build(DENSE.replace("8", "6"), claims="", w=array((6, 6))), "require=eligible")


def test_every_broken_weight_is_listed():
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    with pytest.raises(NotMetError) as caught:
        check(build(text, claims="wv", w=array((8, 8)), v=array((8, 8))))
    assert [d.where.tensor for d in caught.value.diagnostics] == ["v", "w"]


# --- through chains ------------------------------------------------------------------------
QDQ = """g (float[N, 8] x) => (float[N, 6] y) {
  a = QuantizeLinear(w, s, z)
  b = DequantizeLinear(a, s, z)
  [fc] y = MatMul(x, b)
}"""


def test_rounding_to_zero_counts():
    """Stored dense, and 2:4 once quantized: small values round to 0."""
    weight = np.where(prune_24(array((8, 6)), 0) != 0, 1.0, 0.001).astype(np.float32)
    check(build(QDQ, w=weight, s=np.float32(0.1), z=np.int8(0)))
    with pytest.raises(NotMetError, match="O24-807"):
        check(build(QDQ, w=weight, s=np.float32(0.001), z=np.int8(0)))


@pytest.mark.parametrize("zero", [0, 5])
def test_a_zero_is_what_the_zero_point_says(zero: int):
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      b = DequantizeLinear(w, s, z)
      y = MatMul(x, b)
    }"""
    real = prune_24((array((8, 6)) * 40).astype(np.int8), 0)
    stored = (real + zero).astype(np.int8)
    check(build(text, w=stored, s=np.float32(0.1), z=np.int8(zero)))
    if zero:
        with pytest.raises(NotMetError):
            check(build(text, w=real, s=np.float32(0.1), z=np.int8(zero)))


def test_all_consumers_are_asked():
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      a = MatMul(x, w)
      v = Transpose(w)
      [other] y = MatMul(a, v)
    }"""
    with pytest.raises(NotMetError) as caught:
        check(build(text, w=prune_24(array((8, 8)), 0)))
    assert caught.value.diagnostics[0].facts["consumer"] == "other"


# --- the invariant -------------------------------------------------------------------------
def broken(model: Model) -> list[str]:
    return [d.message for d in broken_claims(model, AnalysisCache())]


def test_a_claim_on_nothing_is_broken():
    model = build(DENSE, w=prune_24(array((8, 6)), 0))
    assert broken(model) == []
    model.claims.add("gone")
    assert broken(model) == ["is recorded as 2:4, and is no weight of the model any more"]


def test_a_claim_that_cannot_be_followed_is_broken():
    text = "g (float[N, 8] x) => (float[N, 8] y) { y = Add(x, w) }"
    assert "no product reads it" in broken(build(text, w=array((8,))))[0]
    text = """g (float[N, 8] x) => (float[N, 8] y) {
      v = Concat<axis=1>(w, w)
      y = MatMul(x, v)
    }"""
    assert "can't be" in broken(build(text, w=prune_24(array((8, 4)), 0)))[0]


def test_the_invariant_follows_the_model():
    model = build(DENSE, w=prune_24(array((8, 6)), 0))
    cache = AnalysisCache()
    assert broken_claims(model, cache) == []
    model.weights.replace("w", array((8, 6)))
    (found,) = broken_claims(model, cache)
    assert found.code == "O24-807" and found.facts["violating"] == 12


def test_a_model_without_records_is_said_to_be_unchecked():
    result = run(Model.from_proto(mlp([64, 32])), parse("check24"), target=targets.load("sm86"))
    assert [d.code for d in result.diagnostics] == ["O24-612"]
