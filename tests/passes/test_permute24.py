"""permute24: outputs that stay, errors that fall, refusals with codes. What is free and what not is
tested in tests/analysis/test_coupling.py."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx24.passes.permute24 import Permute24
from onnx24.passes.prune24 import Prune24

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.coupling import Coupling
from onnx24.analysis.invariants import broken_claims
from onnx24.analysis.weight_uses import WeightUses
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.layerwise.effort import Switch
from onnx24.passmgr import manager, pipeline
from onnx24.passmgr.base import Context
from onnx24.rewrite.permutation import permute_channels
from onnx24.runtime.channels import channel_norms
from onnx24.runtime.compare import compare
from onnx24.runtime.data import load_data
from onnx24.sparsity.masks import prune_24
from onnx24.testing.passes import apply, assert_same, outputs, text_model

RTOL = 1e-5


def weight(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Channels of different importance, so that an order matters."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.standard_normal(shape[0] if len(shape) == 2 else shape[1]))
    values = rng.standard_normal(shape)
    values = values * scale[:, None] if len(shape) == 2 else values * scale[None, :, None, None]
    return values.astype(dtype)


def feed_forward(
    *,
    k: int = 32,
    text: str = "",
    opset: int = 17,
    w2: np.ndarray | None = None,
    **more: np.ndarray,
) -> Model:
    body = text or "m = MatMul(x, w1) a = Add(m, b1) h = Relu(a) [down] y = MatMul(h, w2)"
    return text_model(
        f"g (float[N, 12] x) => (float[N, 8] y) {{ {body} }}",
        opset=opset,
        weights={
            "w1": weight(12, k, seed=1),
            "b1": weight(k, 1, seed=2)[:, 0],
            "w2": weight(k, 8, seed=3) if w2 is None else w2,
            **more,
        },
    )


def permuted(model: Model, instance: Permute24 | None = None, **more) -> Context:
    """Run the pass: equal outputs, and a second run that changes nothing."""
    instance = instance or Permute24()
    before = outputs(model)
    ctx = apply(model, instance, **more)
    assert_same(before, outputs(model), rtol=RTOL)
    if "limit" not in more:
        once = model.to_bytes()
        apply(model, instance)
        assert model.to_bytes() == once
    return ctx


def codes(ctx: Context) -> list[str]:
    return [record.code for record in ctx.records]


def error(w: np.ndarray, axis: int = 0) -> float:
    return float(np.linalg.norm(w - prune_24(w, axis)) / np.linalg.norm(w))


# --- what it does ------------------------------------------------------------------------------
def test_a_feed_forward() -> None:
    model = feed_forward()
    before = error(model.weights["w2"])
    ctx = permuted(model)
    refused, done = sorted(ctx.records, key=lambda r: r.code, reverse=True)
    assert (refused.code, done.code) == ("O24-141", "O24-140")
    assert (done.weight, done.node, done.op) == ("w2", "down", "MatMul")
    after = error(model.weights["w2"])
    assert after < before
    # The record's numbers are those of the stored weight: one weight, no norms.
    assert 1 - after / before == pytest.approx(done.facts["gain"], abs=1e-6)
    assert done.facts["kept_after"] == pytest.approx(1 - after**2, abs=1e-6)
    assert done.facts["members"] == 3 and done.facts["channels"] == 32
    assert len(done.facts["permutation"]) == 16
    assert np.array_equal(np.sort(model.weights["b1"]), np.sort(weight(32, 1, seed=2)[:, 0]))


def test_it_is_deterministic() -> None:
    first, second = feed_forward(), feed_forward()
    permuted(first)
    permuted(second)
    assert first.to_bytes() == second.to_bytes()


def test_several_consumers_and_producers() -> None:
    model = feed_forward(
        text="m = MatMul(x, w1) n = MatMul(x, w3) h = Mul(m, n) p = MatMul(h, w2) q = MatMul(h, w4)"
        " y = Add(p, q)",
        w3=weight(12, 32, seed=8),
        w4=weight(32, 8, seed=9),
    )
    total = error(model.weights["w2"]) ** 2 + error(model.weights["w4"]) ** 2
    ctx = permuted(model)
    done = next(r for r in ctx.records if r.code == "O24-140")
    assert done.facts["consumers"] == ["w2", "w4"]
    assert error(model.weights["w2"]) ** 2 + error(model.weights["w4"]) ** 2 < total


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 21])
def test_convolutions_in_every_opset(opset: int) -> None:
    model = text_model(
        "g (float[N, 4, 6, 6] x) => (float[N, 8, 4, 4] y) { c = Conv(x, w1, b1)"
        " n = BatchNormalization(c, s, t, m, v) r = Relu(n) y = Conv(r, w2) }",
        opset=opset,
        weights={
            "w1": weight(32, 4, 1, 1, seed=1),
            "b1": weight(32, 1, seed=2)[:, 0],
            "s": weight(32, 1, seed=3)[:, 0],
            "t": weight(32, 1, seed=4)[:, 0],
            "m": weight(32, 1, seed=5)[:, 0],
            "v": np.abs(weight(32, 1, seed=6)[:, 0]) + np.float32(0.1),
            "w2": weight(8, 32, 3, 3, seed=7),
        },
    )
    before = error(model.weights["w2"], 1)
    ctx = permuted(model)
    assert "O24-140" in codes(ctx)
    assert error(model.weights["w2"], 1) < before


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_products_of_every_rank(rank: int) -> None:
    dims = ", ".join(["3"] * (rank - 2) + ["5", "12"])
    model = text_model(
        f"g (float[{dims}] x) => (float y) {{ m = MatMul(x, w1) h = Tanh(m) o = MatMul(h, w2)"
        " y = ReduceSum<keepdims=0>(o) }",
        weights={"w1": weight(12, 32, seed=1), "w2": weight(32, 8, seed=2)},
    )
    assert "O24-140" in codes(permuted(model))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types(dtype: type) -> None:
    element = {"float16": "float16", "float64": "double", "bfloat16": "bfloat16"}
    kind = element[np.dtype(dtype).name]
    model = text_model(
        f"g ({kind}[N, 12] x) => ({kind}[N, 8] y) {{ m = MatMul(x, w1) h = Relu(m)"
        " y = MatMul(h, w2) }",
        weights={
            "w1": weight(12, 32, seed=1, dtype=dtype),
            "w2": weight(32, 8, seed=2, dtype=dtype),
        },
    )
    w1, w2 = (np.asarray(model.weights[n]).astype(np.float64) for n in ("w1", "w2"))
    ctx = apply(model, Permute24())
    assert "O24-140" in codes(ctx)
    x = np.random.default_rng(0).standard_normal((5, 12))
    new1, new2 = (np.asarray(model.weights[n]).astype(np.float64) for n in ("w1", "w2"))
    np.testing.assert_allclose(
        np.maximum(x @ new1, 0) @ new2, np.maximum(x @ w1, 0) @ w2, rtol=1e-9, atol=1e-9
    )
    assert not np.array_equal(new2, w2)


@pytest.mark.parametrize("stored", [np.int8, ml_dtypes.int4, ml_dtypes.float8_e4m3fn])
def test_quantized_weights_and_their_scales(stored: type) -> None:
    rng = np.random.default_rng(0)
    low = -7 if stored is ml_dtypes.int4 else -100
    scale2 = (np.exp(rng.standard_normal(32)) / 100).astype(np.float32)
    model = text_model(
        "g (float[N, 12] x) => (float[N, 8] y) { d1 = DequantizeLinear<axis=1>(q1, s1)"
        " m = MatMul(x, d1) h = Relu(m) d2 = DequantizeLinear<axis=0>(q2, s2)"
        " [down] y = MatMul(h, d2) }",
        opset=21,
        ir=10,
        weights={
            "q1": rng.integers(low, -low, (12, 32)).astype(stored),
            "s1": np.abs(rng.standard_normal(32)).astype(np.float32),
            "q2": rng.integers(low, -low, (32, 8)).astype(stored),
            "s2": scale2,
        },
    )
    coupling = AnalysisCache().get(model, Coupling)
    (group,) = [g for g in coupling.groups.values() if not g.refusals]
    assert {m.key.name for m in group.members} == {"q1", "s1", "q2", "s2"}
    before = outputs(model)
    # Scales that change within groups of four make the weight ineligible (O24-124) for the pass;
    # as a library function it takes what it is given.
    found = AnalysisCache().get(model, WeightUses)
    (result,) = permute_channels(model, found, coupling, [ValueKey("", "q2")])
    assert result.done, result.reason
    assert_same(before, outputs(model), rtol=RTOL)
    assert not np.array_equal(model.weights["s2"], scale2)


def test_constant_nodes() -> None:
    model = feed_forward(
        text="m = MatMul(x, w1) a = Add(m, b1) h = Relu(a) [down] y = MatMul(h, w2)"
    )
    graph = model.full_proto()
    tensors = {t.name: t for t in graph.graph.initializer}
    for name in ("w1", "w2"):
        node = onnx.helper.make_node("Constant", [], [name], value=tensors[name])
        graph.graph.initializer.remove(tensors[name])
        graph.graph.node.insert(0, node)
    constant = Model.from_proto(graph)
    assert "O24-140" in codes(permuted(constant))


def test_external_data(tmp_path: Path) -> None:
    model = feed_forward(k=64)
    onnx.save_model(
        model.full_proto(),
        str(tmp_path / "in.onnx"),
        save_as_external_data=True,
        location="in.bin",
        size_threshold=0,
    )
    embedded, external = feed_forward(k=64), Model.load(tmp_path / "in.onnx")
    permuted(embedded)
    apply(external, Permute24())
    external.save(tmp_path / "out.onnx")
    again = Model.load(tmp_path / "out.onnx")
    for name in ("w1", "b1", "w2"):
        np.testing.assert_array_equal(again.weights[name], embedded.weights[name])


def test_attention_gets_an_order_for_each_head() -> None:
    model = text_model(
        "g (float[N, 5, 32] x) => (float[N, 5, 6] y) {"
        " v = MatMul(x, wv) v4 = Reshape(v, to) vh = Transpose<perm=[0, 2, 1, 3]>(v4)"
        " k = MatMul(x, wk) k4 = Reshape(k, to) kh = Transpose<perm=[0, 2, 1, 3]>(k4)"
        " kt = Transpose<perm=[0, 1, 3, 2]>(kh) s = MatMul(vh, kt) p = Softmax(s)"
        " o = MatMul(p, vh) ot = Transpose<perm=[0, 2, 1, 3]>(o) m = Reshape(ot, back)"
        " [out] y = MatMul(m, wo) }",
        weights={
            "wv": weight(32, 32, seed=1) / np.float32(8),
            "wk": weight(32, 32, seed=2) / np.float32(8),
            "wo": weight(32, 6, seed=3),
            "to": np.array([0, 0, 2, 16]),
            "back": np.array([0, 0, 32]),
        },
    )
    done = next(r for r in permuted(model).records if r.code == "O24-140")
    assert done.facts["copies"] == 2
    assert done.facts["channels"] == 16


# --- what it leaves ----------------------------------------------------------------------------
def test_a_no_op_leaves_the_bytes() -> None:
    model = text_model(
        "g (float[N, 12] x) => (float[N, 8] y) { y = MatMul(x, w) }", weights={"w": weight(12, 8)}
    )
    before = model.to_bytes()
    assert codes(permuted(model)) == ["O24-141"]
    assert model.to_bytes() == before
    assert not model.changed


def test_unknown_operators_are_named() -> None:
    model = feed_forward(
        text="m = MatMul(x, w1) h = CumSum(m, one) y = MatMul(h, w2)", one=np.int64(1)
    )
    refusals = [r for r in permuted(model).records if r.code == "O24-142"]
    assert len(refusals) == 1
    assert "CumSum" in refusals[0].reason


def test_pruned_weights_stay() -> None:
    model = feed_forward()
    apply(model, Prune24())
    before = model.to_bytes()
    ctx = permuted(model)
    assert sorted(codes(ctx)) == ["O24-141", "O24-143"]
    assert model.to_bytes() == before
    # Also where nobody recorded it.
    bare = feed_forward(w2=prune_24(weight(32, 8, seed=3), 0))
    assert "O24-143" in codes(permuted(bare))


def test_zeros_are_no_pattern() -> None:
    """A sibling of zeros, large enough not to be looked at for axes that it does not vary along."""
    model = feed_forward(
        text="m = MatMul(x, w1) h = Relu(m) p = MatMul(h, w2) q = MatMul(h, w4) s = ReduceSum(q)"
        " y = Add(p, s)",
        w4=np.zeros((32, 4096), np.float32),
    )
    assert "O24-140" in codes(permuted(model))


def test_a_recorded_weight_may_be_permuted_along_its_outputs() -> None:
    model = feed_forward()
    apply(model, Prune24(include=("w1",)))
    assert model.claims.keys() == [ValueKey("", "w1")]
    assert "O24-140" in codes(permuted(model))
    assert not broken_claims(model, AnalysisCache())


def test_nothing_to_gain() -> None:
    even = np.ones((32, 8), np.float32)
    even[1::2] = 2
    even += np.arange(8, dtype=np.float32) / 100
    even[0] += 1e-3  # not the same for every channel
    ctx = permuted(feed_forward(w2=even))
    refused = next(r for r in ctx.records if r.code == "O24-144")
    assert refused.facts["gain"] == pytest.approx(0, abs=1e-3)


def test_min_gain() -> None:
    model = feed_forward()
    before = model.to_bytes()
    refused = next(r for r in permuted(model, Permute24(min_gain=0.9)).records if r.weight == "w2")
    assert refused.code == "O24-144" and 0 < refused.facts["gain"] < 0.9
    assert model.to_bytes() == before
    with pytest.raises(ValueError, match="min-gain"):
        Permute24(min_gain=1.0)


def test_include_and_exclude() -> None:
    for options in ({"exclude": ("down",)}, {"include": ("w1",)}):
        model = feed_forward()
        before = model.to_bytes()
        found = {r.weight: r.code for r in permuted(model, Permute24(**options)).records}
        assert found["w2"] == "O24-145"
        assert model.to_bytes() == before
    with pytest.raises(InputError, match="O24-023"):
        apply(feed_forward(), Permute24(exclude=("nothing",)))


def test_the_limit_of_sites() -> None:
    model = feed_forward()
    before = model.to_bytes()
    ctx = permuted(model, limit=0)
    assert "O24-145" in codes(ctx)
    assert model.to_bytes() == before


def test_weights_that_are_not_finite() -> None:
    w2 = weight(32, 8, seed=3)
    w2[3, 3] = np.inf
    model = feed_forward(w2=w2)
    before = model.to_bytes()
    ctx = apply(model, Permute24())
    assert next(r for r in ctx.records if r.weight == "w2").code == "O24-144"
    assert model.to_bytes() == before


def test_very_large_and_small_weights() -> None:
    for scale in (2.0**100, 2.0**-100):
        w2 = weight(32, 8, seed=3) * np.float32(scale)
        model = feed_forward(w2=w2)
        plain = feed_forward()
        apply(model, Permute24())
        apply(plain, Permute24())
        np.testing.assert_allclose(
            model.weights["w2"], plain.weights["w2"] * np.float32(scale), rtol=1e-6
        )


# --- norms -------------------------------------------------------------------------------------
def _calibrated(model: Model, tmp_path: Path, scale: np.ndarray | None = None) -> Context:
    x = np.random.default_rng(0).standard_normal((64, 12)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=x if scale is None else x * scale)
    ctx = Context(target=targets.load(targets.DEFAULT))
    ctx.calibration = load_data(str(tmp_path / "calib.npz"), model)
    return ctx


def test_norms_are_those_of_the_channels(tmp_path: Path) -> None:
    model = feed_forward()
    ctx = _calibrated(model, tmp_path)
    found = ctx.analysis(model, WeightUses)
    uses = [use for key in found.uses for use in found.products(key)]
    norms = channel_norms(model, uses, ctx.calibration, ctx.progress)
    x = np.load(tmp_path / "calib.npz")["x"].astype(np.float64)
    h = np.maximum(x @ model.weights["w1"] + model.weights["b1"], 0)
    np.testing.assert_allclose(norms["x"], np.linalg.norm(x, axis=0), rtol=1e-5)
    np.testing.assert_allclose(norms["h"], np.linalg.norm(h, axis=0), rtol=1e-5)


def test_norms_decide_what_is_kept(tmp_path: Path) -> None:
    results = {}
    for norms in Switch:
        model = feed_forward()
        ctx = _calibrated(model, tmp_path)
        before = outputs(model)
        Permute24(norms=norms).run(model, ctx)
        assert_same(before, outputs(model), rtol=RTOL)
        x = np.load(tmp_path / "calib.npz")["x"]
        h = np.maximum(x @ model.weights["w1"] + model.weights["b1"], 0)
        results[norms] = error(model.weights["w2"] * np.linalg.norm(h, axis=0)[:, None])
    assert results[Switch.ON] == results[Switch.AUTO] < results[Switch.OFF]


def test_random_data_are_no_reason(tmp_path: Path) -> None:
    model, plain = feed_forward(), feed_forward()
    ctx = Context(target=targets.load(targets.DEFAULT))
    ctx.calibration = load_data("random:4", model)
    Permute24().run(model, ctx)
    apply(plain, Permute24())
    assert model.to_bytes() == plain.to_bytes()
    Permute24(norms=Switch.ON).run(feed_forward(), ctx)
    assert "O24-034" in {d.code for d in ctx.diagnostics}


def test_norms_on_needs_data() -> None:
    with pytest.raises(InputError, match="O24-035"):
        apply(feed_forward(), Permute24(norms=Switch.ON))


# --- real models -------------------------------------------------------------------------------
def test_trained_models_of_the_project(fixture_models) -> None:
    for name, least in (("vit", 5), ("cnn", 4)):
        fixture = fixture_models[name]
        original, model = Model.load(fixture.path), Model.load(fixture.path)
        result = manager.run(
            model,
            pipeline.parse("permute24"),
            target=targets.load(targets.DEFAULT),
            reproducer_dir=None,
        )
        assert sum(r.code == "O24-140" for r in result.records) >= least
        found = compare(original, model, load_data("random:4", original))
        assert found.worst.rel_l2 < RTOL


def test_feed_forward_layers_lose_five_percent_less(fixture_models) -> None:
    """The bar: the second matrix of each feed-forward."""
    original = Model.load(fixture_models["vit"].path)
    model = Model.load(fixture_models["vit"].path)
    apply(model, Permute24())
    names = [n.name for n in original.proto.graph.initializer if n.name.endswith("down.weight")]
    assert names
    for name in names:
        assert error(model.weights[name]) < 0.95 * error(original.weights[name]), name


def test_pruning_keeps_more_after_it(fixture_models) -> None:
    kept = {}
    for text in ("prune24{permute=off}", "permute24,prune24,check24"):
        model = Model.load(fixture_models["vit"].path)
        result = manager.run(
            model,
            pipeline.parse(text),
            target=targets.load(targets.DEFAULT),
            reproducer_dir=None,
        )
        kept[text] = np.mean(
            [r.facts["energy_kept"] for r in result.records if r.code == "O24-100"]
        )
    assert kept["permute24,prune24,check24"] > kept["prune24{permute=off}"] + 0.01


@pytest.mark.slow
def test_real_models(shared_models) -> None:
    """Every model at hand, outputs compared on random data. yolox_nano is 1.2e-14 apart in float64
    and 1.1e-5 in float32: rounding grows through its 80 layers."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
    from onnx24_real import data_for

    done = 0
    for path in sorted(shared_models.rglob("*.onnx")):
        try:
            original, model = Model.load(path), Model.load(path)
        except InputError:
            continue
        ctx = apply(model, Permute24())
        if not any(r.code == "O24-140" for r in ctx.records):
            assert not model.changed, path
            continue
        done += 1
        found = compare(original, model, data_for(original))
        assert found.worst.rel_l2 < (3e-5 if "yolox" in path.name else RTOL), path
        once = model.to_bytes()
        apply(model, Permute24())
        assert model.to_bytes() == once, path
    assert done >= 20


def test_no_weight_loses_for_the_sake_of_others() -> None:
    """A head whose two large channels of each four would meet others of the kind, if only the
    many rows of its sibling counted."""
    rng = np.random.default_rng(4)
    head = rng.standard_normal((32, 8)).astype(np.float32)
    head[2::4] /= 20
    head[3::4] /= 20
    model = feed_forward(
        text="m = MatMul(x, w1) h = Relu(m) p = MatMul(h, w2) q = MatMul(h, w4) r = MatMul(h, w5)"
        " s = Add(p, q) y = Add(s, r)",
        w2=head,
        w4=weight(32, 8, seed=5),
        w5=weight(32, 8, seed=6),
    )
    before = {name: error(model.weights[name]) for name in ("w2", "w4", "w5")}
    permuted(model, Permute24(min_gain=0.0))
    for name, value in before.items():
        assert error(model.weights[name]) <= value * 1.003, name
