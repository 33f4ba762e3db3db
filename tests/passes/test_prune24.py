"""prune24: what it prunes, along which axis, what it refuses, and what it leaves alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from onnx24 import targets
from onnx24.diagnostics import Severity
from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.sparsity.masks import is_24, mask_24
from onnx24.testing.generate import mlp

TARGET = targets.load("sm86")
DENSE = "g (float[N, 8] x) => (float[N, 6] y) { [fc] y = MatMul(x, w) }"


def array(shape: tuple[int, ...], dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return (values * 40 if np.dtype(dtype) == np.int8 else values).astype(dtype)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def prune(model: Model, options: str = "", target: targets.Target = TARGET) -> RunResult:
    text = f"prune24{{{options}}}" if options else "prune24"
    return run(model, parse(text), target=target, reproducer_dir=None)


def codes(result: RunResult) -> dict[str, tuple[str, str]]:
    return {r.weight: (r.action, r.code) for r in result.records if r.weight}


def claimed(model: Model) -> list[str]:
    keys = model.claims.keys()
    return [key.name for key in keys]


def execute(model: Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    # Unoptimized: ORT would also quantize the activations of a MatMul behind DequantizeLinear.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.to_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


# --- what it does --------------------------------------------------------------------------
def test_the_two_largest_of_four_along_k_survive():
    weight = array((8, 6))
    model = build(DENSE, w=weight)
    result = prune(model)
    expected = np.where(mask_24(weight, 0), weight, 0)
    np.testing.assert_array_equal(model.weights["w"], expected)
    assert list(model.claims.keys()) == [ValueKey("", "w")]
    (record,) = result.records
    assert (record.action, record.code, record.node, record.op) == (
        "pruned",
        "O24-100",
        "fc",
        "MatMul",
    )
    kept = float((expected.astype(np.float64) ** 2).sum() / (weight.astype(np.float64) ** 2).sum())
    assert record.facts["energy_kept"] == pytest.approx(kept, rel=1e-6)
    lost = np.linalg.norm(weight - expected) / np.linalg.norm(weight)
    assert record.facts["relative_error"] == pytest.approx(lost, rel=1e-5)
    facts = {k: record.facts[k] for k in ("shape", "k_axis", "K", "N", "zeros")}
    assert facts == {"shape": [8, 6], "k_axis": 0, "K": 8, "N": 6, "zeros": 0}
    # The function that the pruned weight says, over a batch; float32 sums of 8 terms.
    x = array((3, 8), seed=1)
    np.testing.assert_allclose(execute(model, {"x": x})[0], x @ expected, rtol=1e-5, atol=1e-6)


def test_the_warning_comes_once():
    text = """g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = MatMul(a, v) }"""
    model = build(text, w=array((8, 8)), v=array((8, 8), seed=1))
    result = prune(model, "permute=off")
    (warning,) = [d for d in result.diagnostics if d.code == "O24-125"]
    assert warning.severity is Severity.WARNING and warning.facts == {"weights": 2}
    assert result.passes[0].statistics == {"pruned": 2, "already": 0, "refused": 0}


def test_channels_are_reordered_where_nothing_else_is_known():
    """A hidden layer's channels are free; the dense function stays, and less is lost."""
    rng = np.random.default_rng(0)
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, v) }"
    v = array((64, 8), seed=1) * np.exp(rng.standard_normal((64, 1))).astype(np.float32)
    lost = {}
    for options in ("permute=off", "", "permute=on quality=magnitude", "quality=magnitude"):
        model = build(text, w=array((8, 64)), v=v)
        result = prune(model, options)
        (record,) = [r for r in result.records if r.weight == "v" and r.action == "pruned"]
        lost[options] = record.facts["relative_error"]
        wanted = 1 if options in ("", "permute=on quality=magnitude") else 0
        assert result.passes[0].statistics.get("permuted", 0) == wanted
    assert lost[""] < 0.95 * lost["permute=off"]
    assert lost["permute=on quality=magnitude"] == lost[""]
    assert lost["quality=magnitude"] == lost["permute=off"]


PRODUCTS = [
    ("float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }", (8, 6), 0),
    ("float[N, 8] x) => (float[N] y) { y = MatMul(x, w) }", (8,), 0),
    ("float[2, N, 8] x) => (float[2, N, 6] y) { y = MatMul(x, w) }", (2, 8, 6), 1),
    ("float[8, N] x) => (float[6, N] y) { y = MatMul(w, x) }", (6, 8), 1),
    ("float[N, 8] x) => (float[N, 6] y) { y = Gemm<transB=1>(x, w) }", (6, 8), 1),
    ("float[8, N] x) => (float[6, N] y) { y = Gemm<transA=1>(w, x) }", (8, 6), 0),
    ("float[N, 8, 9] x) => (float[N, 6, 7] y) { y = Conv(x, w) }", (6, 8, 3), 1),
    ("float[N, 8, 5, 5] x) => (float[N, 6, 3, 3] y) { y = Conv(x, w) }", (6, 8, 3, 3), 1),
    ("float[N, 8, 3, 3, 3] x) => (float[N, 6, 2, 2, 2] y) { y = Conv(x, w) }", (6, 8, 2, 2, 2), 1),
    ('float[N, 8] x) => (float[N, 6] y) { y = Einsum<equation="nk,ok->no">(x, w) }', (6, 8), 1),
]


@pytest.mark.parametrize(("body", "shape", "axis"), PRODUCTS)
def test_every_product_runs_with_its_pruned_weight(body: str, shape: tuple[int, ...], axis: int):
    """Masking before or after the graph is built is the same: the pass prunes the axis that the
    operator sums over, and nothing else changes."""
    weight = array(shape)
    model = build(f"g ({body}", w=weight)
    reference = build(f"g ({body}", w=np.where(mask_24(weight, axis), weight, 0).astype("f4"))
    assert codes(prune(model)) == {"w": ("pruned", "O24-100")}
    dims = [d.dim_value or 3 for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": array(tuple(dims), seed=1)}
    for actual, expected in zip(execute(model, feeds), execute(reference, feeds), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("text", "shape", "view"),
    [
        # A 3-cycle, which is not its own inverse.
        (
            "v = Transpose<perm=[1, 2, 0]>(w) y = MatMul(x, v)",
            (6, 2, 8),
            lambda w: w.transpose(1, 2, 0),
        ),
        ("v = Transpose(w) y = MatMul(x, v)", (6, 8), lambda w: w.T),
        ("v = Identity(w) y = MatMul(x, v)", (8, 6), lambda w: w),
        ("v = Reshape(w, s) y = MatMul(x, v)", (2, 4, 6), lambda w: w.reshape(8, 6)),
        (
            "a = Transpose<perm=[2, 0, 1]>(w) v = Reshape(a, s) y = MatMul(x, v)",
            (4, 6, 2),
            lambda w: w.transpose(2, 0, 1).reshape(8, 6),
        ),
    ],
)
def test_chains_are_pruned_as_the_consumer_sees_them(text: str, shape: tuple[int, ...], view):
    weight = array(shape)
    if len(view(weight).shape) == 3:
        body = f"g (float[2, N, 8] x) => (float[2, N, 6] y) {{ {text} }}"
        body = body.replace("[2, N, 8]", "[2, N, 8]")
    else:
        body = f"g (float[N, 8] x) => (float[N, 6] y) {{ {text} }}"
    model = (
        build(body, w=weight, s=np.array([8, 6]))
        if "(w, s)" in text or "(a, s)" in text
        else (build(body, w=weight))
    )
    assert codes(prune(model))["w"] == ("pruned", "O24-100")
    seen, dense = view(model.weights["w"]), view(weight)
    axis = seen.ndim - 2
    np.testing.assert_array_equal(seen, np.where(mask_24(dense, axis), dense, 0))
    x = array((2, 3, 8) if seen.ndim == 3 else (3, 8), seed=1)
    np.testing.assert_allclose(
        execute(model, {"x": x})[0], np.matmul(x, seen), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=lambda d: np.dtype(d).name
)
def test_other_floats(dtype: type):
    """bf16 is compared by value, not by position."""
    weight = array((64, 12), dtype)
    onnx_name = {"float16": "float16", "bfloat16": "bfloat16", "float64": "double"}
    kind = onnx_name[np.dtype(dtype).name]
    model = build(f"g ({kind}[N, 64] x) => ({kind}[N, 12] y) {{ y = MatMul(x, w) }}", w=weight)
    assert codes(prune(model)) == {"w": ("pruned", "O24-100")}
    pruned = model.weights["w"]
    assert pruned.dtype == weight.dtype
    np.testing.assert_array_equal(
        pruned.astype(np.float64), np.where(mask_24(weight, 0), weight.astype(np.float64), 0)
    )


def test_int8_behind_dequantize():
    text = """g (float[N, 8] x) => (float[N, 6] y) {
      v = DequantizeLinear<axis=1>(w, s, z)
      y = MatMul(x, v)
    }"""
    weight = array((8, 6), np.int8)
    scale = np.linspace(0.1, 0.6, 6).astype(np.float32)
    model = build(text, w=weight, s=scale, z=np.zeros(6, np.int8))
    result = prune(model)
    pruned = model.weights["w"]
    np.testing.assert_array_equal(pruned, np.where(mask_24(weight, 0), weight, 0))
    assert pruned.dtype == np.int8
    # Energy is that of the real values: columns have different scales.
    real, left = weight * scale, pruned * scale
    (record,) = [r for r in result.records if r.weight == "w"]
    assert record.facts["energy_kept"] == pytest.approx(
        (left.astype(float) ** 2).sum() / (real.astype(float) ** 2).sum(), rel=1e-6
    )
    x = array((3, 8), seed=1)
    np.testing.assert_allclose(execute(model, {"x": x})[0], x @ left, rtol=1e-5, atol=1e-4)


def test_weights_in_bodies_constants_and_captures():
    text = """g (float[N, 8] x, bool c) => (float[N, 6] y) {
      y = If(c)<
        then_branch = t () => (float[N, 6] a) { a = MatMul(x, w) },
        else_branch = e () => (float[N, 6] b) { b = MatMul(x, k) }
      >
    }"""
    proto = build(text, w=array((8, 6)), k=array((8, 6))).full_proto()
    del proto.graph.initializer[1]
    body = proto.graph.node[0].attribute[1].g
    constant = onnx.numpy_helper.from_array(array((8, 6), seed=2), "value of k")
    body.node.insert(0, onnx.helper.make_node("Constant", [], ["k"], value=constant))
    model = Model.from_proto(proto)
    result = prune(model)
    assert codes(result) == {"w": ("pruned", "O24-100"), "k": ("pruned", "O24-100")}
    tensor = model.proto.graph.node[0].attribute[1].g.node[0].attribute[0].t
    assert tensor.name == "value of k" and is_24(model.weights.read(tensor), 0)
    assert is_24(model.weights["w"], 0)
    scope = body_scope = model.claims.keys()[1].scope
    assert model.claims.keys() == [ValueKey("", "w"), ValueKey(body_scope, "k")], scope
    x = array((2, 8), seed=1)
    for flag, weight in ((True, model.weights["w"]), (False, model.weights.read(tensor))):
        (y,) = execute(model, {"x": x, "c": np.array(flag)})
        np.testing.assert_allclose(y, x @ weight, rtol=1e-5, atol=1e-6)


def test_large_constant_nodes_are_pruned_in_place():
    weight = array((64, 32))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "g (float[N, 64] x) => (float[N, 32] y) { y = MatMul(x, w) }"
    )
    node = onnx.helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(weight, "w")
    )
    proto.graph.node.insert(0, node)
    model = Model.from_proto(proto)
    prune(model)
    read = onnx.numpy_helper.to_array(model.full_proto().graph.node[0].attribute[0].t)
    np.testing.assert_array_equal(read, np.where(mask_24(weight, 0), weight, 0))


def test_external_data_stays_external(tmp_path):
    build(DENSE.replace("8", "64"), w=array((64, 6))).save(tmp_path / "a.onnx", external="external")
    before = (tmp_path / "a.onnx.data").read_bytes()
    model = Model.load(tmp_path / "a.onnx")
    prune(model)
    model.save(tmp_path / "b.onnx", external="external")
    assert (tmp_path / "a.onnx.data").read_bytes() == before
    again = Model.load(tmp_path / "b.onnx")
    assert again.weights.info("w").external and is_24(again.weights["w"], 0)
    assert again.claims.keys() == [ValueKey("", "w")]


# --- no-ops --------------------------------------------------------------------------------
def test_a_second_run_changes_nothing():
    model = build(DENSE, w=array((8, 6)))
    prune(model)
    first = Model.from_bytes(model.to_bytes())
    result = prune(first)
    assert result.changed == Effects.NONE
    assert codes(result) == {"w": ("kept", "O24-102")}
    assert first.to_bytes() == model.to_bytes()
    assert not [d for d in result.diagnostics if d.code == "O24-125"]


def test_nothing_to_prune_leaves_the_bytes():
    model = build(DENSE.replace("8", "6"), w=array((6, 6)))
    before = model.to_bytes()
    assert prune(model).changed == Effects.NONE
    assert model.to_bytes() == before


def test_sparse_weights_are_recorded_and_keep_their_values():
    weight = np.where(mask_24(array((8, 6)), 0), array((8, 6)), -0.0).astype(np.float32)
    model = build(DENSE, w=weight)
    result = prune(model)
    assert model.weights["w"].tobytes() == weight.tobytes()
    assert codes(result) == {"w": ("kept", "O24-102")} and "w" in model.claims


# --- refusals: one near miss a code --------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "shape", "code"),
    [
        ("float[N, 6] x) => (float[N, 8] y) { y = MatMul(x, w) }", (6, 8), "O24-113"),
        (
            "float[1, 3, 5, 5] x) => (float[1, 8, 5, 5] y) { y = Conv(x, w) }",
            (8, 3, 1, 1),
            "O24-113",
        ),
        (
            "float[1, 8, 5, 5] x) => (float[1, 8, 5, 5] y) { y = Conv<group=2>(x, w) }",
            (8, 4, 1, 1),
            "O24-111",
        ),
        (
            "float[1, 8, 5, 5] x) => (float[1, 8, 5, 5] y) { y = Conv<group=8>(x, w) }",
            (8, 1, 1, 1),
            "O24-112",
        ),
        (
            "float[1, 8, 5, 5] x) => (float[1, 4, 5, 5] y) { y = ConvTranspose(x, w) }",
            (8, 4, 1, 1),
            "O24-122",
        ),
        (
            "float[N, 8] x) => (float[N, 8] y) { v = Transpose(w) a = MatMul(x, w) "
            "y = MatMul(a, v) }",
            (8, 8),
            "O24-115",
        ),
        (
            "float[N, 8] x) => (float[N, 8] y, float[8, 8] z) { z = Neg(w) y = MatMul(x, w) }",
            (8, 8),
            "O24-116",
        ),
        (
            "float[N, 8] x) => (float[N, 4] y) { v = Split<axis=1>(w) y = MatMul(x, v) }",
            (8, 4),
            "O24-121",
        ),
        (
            "float[N, 8] x, float[8, 6] w) => (float[N, 6] y) { y = MatMul(x, w) }",
            (8, 6),
            "O24-126",
        ),
        ("float[N, 8] x) => (float[N, 8] y) { y = Add(x, w) }", (8, 8), "O24-110"),
        (
            "float[1, 3, 8] x) => (float[1, 1, 3, 4] y) { y = RNN<hidden_size=4>(x, w, r) }",
            (1, 4, 8),
            "O24-119",
        ),
    ],
)
def test_refusals(body: str, shape: tuple[int, ...], code: str):
    extra = {"r": array((1, 4, 4))} if "RNN" in body else {}
    opset = 11 if "Split" in body else 17
    model = build(f"g ({body}", opset=opset, w=array(shape), **extra)
    before = model.to_bytes()
    result = prune(model)
    assert codes(result)["w"] == ("refused", code)
    (record, *_) = [r for r in result.records if r.weight == "w"]
    assert record.reason and record.facts["shape"] == list(shape)
    assert model.to_bytes() == before and len(model.claims) == 0


def test_products_of_activations_are_named():
    text = """g (float[N, 8] x, float[8, 8] z) => (float[N, 8] y) { [dot] y = MatMul(x, z) }"""
    (record,) = prune(build(text)).records
    assert (record.code, record.node, record.weight) == ("O24-117", "dot", "")


def test_targets_without_sparse_kernels():
    model = build(DENSE, w=array((8, 6)))
    assert codes(prune(model, target=targets.load("sm75"))) == {"w": ("refused", "O24-127")}
    assert codes(prune(model)) == {"w": ("pruned", "O24-100")}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(bad: float):
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) [b] y = MatMul(a, v) }"
    broken = array((8, 8))
    broken[3, 5] = bad
    model = build(text, w=array((8, 8)), v=broken)
    before = model.to_bytes()
    with pytest.raises(InputError) as caught:
        prune(model)
    (found,) = caught.value.diagnostics
    assert (found.code, found.where.tensor, found.where.node) == ("O24-008", "v", "b")
    assert found.facts == {"nonfinite": 1, "elements": 64}
    assert model.to_bytes() == before  # w, which comes first, too
    # What is not pruned may hold anything.
    assert codes(prune(model, "exclude=v"))["v"] == ("refused", "O24-120")


# --- options -------------------------------------------------------------------------------
THREE = """g (float[N, 8] x) => (float[N, 8] y) {
  [enc_0] a = MatMul(x, w0)
  [enc_1] b = MatMul(a, w1)
  [head] y = MatMul(b, w2)
}"""


@pytest.mark.parametrize(
    ("options", "pruned"),
    [
        ("include=enc_*", ["w0", "w1"]),
        ("exclude=head", ["w0", "w1"]),
        ("include=w0|head", ["w0", "w2"]),
        ("include=enc_* exclude=w1", ["w0"]),
        ("min-elements=64", ["w0", "w1", "w2"]),
        ("min-elements=65", []),
        ("small=skip", []),
    ],
)
def test_selection(options: str, pruned: list[str]):
    model = build(THREE, **{f"w{i}": array((8, 8), seed=i) for i in range(3)})
    result = prune(model, options)
    found = codes(result)
    assert [name for name, (action, _) in found.items() if action == "pruned"] == pruned
    refused = {code for action, code in found.values() if action == "refused"}
    expected = "O24-114" if "min" in options or "small" in options else "O24-120"
    assert refused <= {expected}
    assert claimed(model) == pruned


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(option: str):
    model = build(THREE, **{f"w{i}": array((8, 8), seed=i) for i in range(3)})
    with pytest.raises(InputError, match="O24-023") as caught:
        prune(model, f"{option}=haed")
    assert "haed" in str(caught.value)


def test_a_tied_embedding_is_pruned_on_request_only():
    text = """g (int64[N] i) => (float[N, 16] y) {
      e = Gather(w, i)
      v = Transpose(w)
      [logits] y = MatMul(e, v)
    }"""
    weight = array((16, 8))
    model = build(text, w=weight)
    assert codes(prune(model)) == {"w": ("refused", "O24-116")}
    np.testing.assert_array_equal(model.weights["w"], weight)
    assert codes(prune(model, "tied=prune permute=off")) == {"w": ("pruned", "O24-100")}
    np.testing.assert_array_equal(model.weights["w"], np.where(mask_24(weight, 1), weight, 0))
    # tied=prune does not help where axes differ: no order of pruning gives both.
    text = THREE.replace("w1", "t").replace("[enc_1]", "t = Transpose(w0)\n  [enc_1]")
    model = build(text, w0=array((8, 8)), w2=array((8, 8)))
    assert codes(prune(model, "tied=prune"))["w0"] == ("refused", "O24-115")


def test_shared_on_one_axis_is_pruned_once():
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    model = build(text, w=array((8, 8)))
    result = prune(model)
    assert [r.code for r in result.records] == ["O24-100"]
    assert is_24(model.weights["w"], 0)
    x = array((2, 8), seed=1)
    weight = model.weights["w"]
    np.testing.assert_allclose(
        execute(model, {"x": x})[0], x @ weight @ weight, rtol=1e-4, atol=1e-5
    )


def test_the_site_limit_stops_after_so_many_weights():
    model = build(THREE, **{f"w{i}": array((8, 8), seed=i) for i in range(3)})
    result = run(model, parse("prune24"), target=TARGET, site_limit=2, reproducer_dir=None)
    assert [is_24(model.weights[f"w{i}"], 0) for i in range(3)] == [True, True, False]
    assert result.sites == ["prune24: w0", "prune24: w1"]
    assert claimed(model) == ["w0", "w1"]


def test_the_same_input_gives_the_same_bytes():
    models = [build(THREE, **{f"w{i}": array((8, 8), seed=i) for i in range(3)}) for _ in "ab"]
    for model in models:
        prune(model)
    assert models[0].to_bytes() == models[1].to_bytes()


# --- other tools' defects (docs of `polygraphy surgeon prune`, onnxsim) ----------------------
def test_metadata_functions_opsets_and_names_are_kept():
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1], producer_name: "p",
    doc_string: "kept", metadata_props: ["a": "b"]>
    g (float[N, 8] x) => (float[N, 6] y) { z = f.twice(x) y = MatMul(z, w) }
    <domain: "f", opset_import: ["" : 17]>
    twice (a) => (c) { c = Add(a, a) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(array((8, 6)), "w"))
    model = Model.from_proto(proto)
    prune(model)
    after = model.full_proto()
    assert after.doc_string == "kept" and after.producer_name == "p"
    assert len(after.opset_import) == 2 and len(after.functions) == 1
    assert {p.key for p in after.metadata_props} >= {"a", "onnx24.sparse24"}
    assert [t.name for t in after.graph.initializer] == ["w"]
    assert after.graph.node == proto.graph.node


def test_convolutions_are_never_grouped_over_the_flattened_kernel():
    weight = array((8, 4, 3, 3))
    model = build("g (float[1, 4, 5, 5] x) => (float[1, 8, 3, 3] y) { y = Conv(x, w) }", w=weight)
    prune(model)
    pruned = model.weights["w"]
    for k, r, s in itertools.product(range(8), range(3), range(3)):
        assert np.count_nonzero(pruned[k, :, r, s]) == 2
    assert not is_24(pruned.reshape(8, 36), 1)


def test_random_graphs_of_products_stay_24_for_every_consumer():
    """Six weights, each through a random chain, in one model, checked after the fact by numpy."""
    rng = np.random.default_rng(0)
    nodes, weights, views, value = [], {}, {}, "x"
    for i in range(6):
        stored = rng.standard_normal((4, 2, 8)).astype(np.float32)
        perm = tuple(int(p) for p in rng.permutation(3))
        view = stored.transpose(perm).reshape(8, 8)
        weights[f"w{i}"], views[f"w{i}"] = stored, perm
        nodes += [
            f"t{i} = Transpose<perm=[{', '.join(map(str, perm))}]>(w{i})",
            f"r{i} = Reshape(t{i}, s)",
            f"h{i} = MatMul({value}, r{i})",
        ]
        value = f"h{i}"
        assert view.shape == (8, 8)
    text = f"g (float[N, 8] x) => (float[N, 8] h5) {{ {' '.join(nodes)} }}"
    model = build(text, s=np.array([8, 8]), **weights)
    for name, outcome in codes(prune(model)).items():
        seen = model.weights[name].transpose(views[name]).reshape(8, 8)
        if outcome == ("pruned", "O24-100"):
            assert is_24(seen, 0), name
        else:
            assert outcome == ("refused", "O24-121")
            np.testing.assert_array_equal(model.weights[name], weights[name])


def test_record_of_a_weight_that_is_gone_is_dropped():
    model = Model.from_proto(mlp([64, 32]))
    model.claims.add("long_gone")
    result = run(model, parse("prune24,check24"), target=targets.load("sm86"))
    assert [str(key) for key in model.claims] == ["fc0.weight"]
    assert [d.where.tensor for d in result.diagnostics if d.code == "O24-128"] == ["long_gone"]
