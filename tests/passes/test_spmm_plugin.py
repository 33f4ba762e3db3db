"""spmm-plugin: equal outputs in ONNX Runtime, claims that move, refusals with codes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx24.passes.canonicalize import Canonicalize
from onnx24.passes.check24 import Check24
from onnx24.passes.prune24 import Prune24
from onnx24.passes.spmm_plugin import SpmmPlugin

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.errors import InputError, NotMetError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.base import Context
from onnx24.report.inspection import inspect
from onnx24.rewrite.spmm24 import spmm24
from onnx24.sparsity.masks import prune_24
from onnx24.sparsity.pack import pack24
from onnx24.testing.passes import apply, assert_same, ops, outputs, text_model

RNG = np.random.default_rng(7)
K, N = 64, 32
W = prune_24(RNG.standard_normal((K, N)).astype(np.float32), 0)
B = RNG.standard_normal(N).astype(np.float32)
INT8 = prune_24(RNG.integers(-127, 128, (K, N)).astype(np.int8), 0)
SCALES = (RNG.random(N) * 0.01 + 0.001).astype(np.float16)


def packed(
    model: Model, *, claims: tuple[str, ...] = ("w",), rtol: float = 0.0, storage: bool = True
) -> Context:
    """Run the pass on weights recorded as 2:4; the outputs stay, and a second run does nothing."""
    model.claims.update([ValueKey("", name) for name in claims])
    before = outputs(model, dynamic=5)
    ctx = apply(model, SpmmPlugin(storage=storage))
    assert_same(before, outputs(model, dynamic=5), rtol=rtol)
    assert broken_claims(model, AnalysisCache()) == []
    once = model.to_bytes()
    apply(model, SpmmPlugin(storage=storage))
    assert model.to_bytes() == once
    return ctx


def codes(ctx: Context) -> list[str]:
    return [record.code for record in ctx.records]


def claims(model: Model) -> list[str]:
    return [str(key) for key in model.claims]


# --- equal outputs ---------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17, 18, 19, 20, 21])
@pytest.mark.parametrize("dims", ["64", "3,64", "M,64", "2,M,64", "M,2,L,64"])
def test_matmul_is_bit_identical(dims: str, opset: int) -> None:
    out = dims.removesuffix("64") + "32"
    model = text_model(
        f"g (float[{dims}] x) => (float[{out}] y) {{ y = MatMul(x, w) }}",
        weights={"w": W},
        opset=opset,
    )
    ctx = packed(model)
    assert ops(model) == ["SpMM24"] and codes(ctx) == ["O24-332"]
    assert claims(model) == ["w.values24"] and "w" not in model.weights
    assert [f.name for f in model.proto.functions] == ["SpMM24"]
    assert model.weights["w.metadata24"].dtype == np.int32
    np.testing.assert_array_equal(model.weights["w.values24"], pack24(W.T.copy()).values)


@pytest.mark.parametrize(("k", "n"), [(4, 1), (12, 3), (28, 5), (36, 2), (68, 7), (128, 16)])
def test_rows_that_end_within_a_word(k: int, n: int) -> None:
    w = prune_24(RNG.standard_normal((k, n)).astype(np.float32), 0)
    model = text_model(
        f"g (float[M,{k}] x) => (float[M,{n}] y) {{ y = MatMul(x, w) }}", weights={"w": w}
    )
    # storage packs any K: only what cuSPARSELt multiplies has to fit its sizes, and float32 of
    # multiples of 4 in both.
    ctx = packed(model) if n % 4 == 0 else None
    if ctx is None:
        model.claims.add("w")
        ctx = apply(model, SpmmPlugin(storage=True))
        assert codes(ctx) == ["O24-335"]
    else:
        assert codes(ctx) == ["O24-332"]


def test_every_place_of_a_group_and_the_sign_bit_of_a_word() -> None:
    """All six patterns, at every place in a word, bit 31 of it too."""
    patterns = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (3,), ()]
    w = np.zeros((64, 16), np.float32)
    for row in range(16):
        for group in range(16):
            for i, place in enumerate(patterns[(row + group) % 8]):
                w[4 * group + place, row] = 1 + row + group / 16 + i / 32
    model = text_model(
        "g (float[M,64] x) => (float[M,16] y) { y = MatMul(x, w) }", weights={"w": w}
    )
    packed(model)
    assert (model.weights["w.metadata24"] < 0).any()
    identity = outputs(model, {"x": np.eye(64, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(identity, w)


GEMMS = {
    "plain": "Gemm(x, w, b)",
    "no-bias": "Gemm(x, w)",
    "transB": "Gemm<transB=1>(x, v, b)",
    "alpha-beta": "Gemm<alpha=0.25,beta=2.5>(x, w, b)",
    "beta-0": "Gemm<beta=0.0>(x, w, b)",
}


@pytest.mark.parametrize("name", GEMMS)
def test_gemm(name: str) -> None:
    weight = {"v": W.T.copy()} if name == "transB" else {"w": W}
    model = text_model(
        f"g (float[M,64] x) => (float[M,32] y) {{ y = {GEMMS[name]} }}", weights={**weight, "b": B}
    )
    packed(model, claims=tuple(weight), rtol=1e-6)
    assert "Gemm" not in ops(model) and ops(model)[-1] == (
        "SpMM24" if name in ("no-bias", "beta-0") else "Add"
    )


def test_gemm_with_a_transposed_activation() -> None:
    model = text_model(
        "g (float[64,M] x) => (float[M,32] y) { y = Gemm<transA=1>(x, w) }", weights={"w": W}
    )
    packed(model, rtol=1e-6)
    assert ops(model) == ["Transpose", "SpMM24"]


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_float16(opset: int) -> None:
    model = text_model(
        "g (float16[M,3,64] x) => (float16[M,3,32] y) { y = MatMul(x, w) }",
        weights={"w": W.astype(np.float16)},
        opset=opset,
    )
    ctx = packed(model, storage=False)  # to the bit: both sum in float32 and round once
    assert codes(ctx) == ["O24-332"] and ctx.records[0].facts["dtype"] == "float16"


def test_bfloat16_against_numpy() -> None:
    """ONNX Runtime's CPU provider has no MatMul of bfloat16, so that there is no before."""
    w = W.astype(ml_dtypes.bfloat16)
    model = text_model(
        "g (float[M,64] a) => (float[M,32] z) "
        "{ x = Cast<to=16>(a) y = MatMul(x, w) z = Cast<to=1>(y) }",
        weights={"w": w},
        opset=19,
    )
    model.claims.add("w")
    assert codes(apply(model, SpmmPlugin())) == ["O24-332"]
    a = RNG.standard_normal((5, K)).astype(np.float32)
    x = a.astype(ml_dtypes.bfloat16).astype(np.float32)
    expected = (x @ w.astype(np.float32)).astype(ml_dtypes.bfloat16).astype(np.float32)
    # Sums in another order may round to the next bfloat16, 2**-8 away.
    np.testing.assert_allclose(outputs(model, {"a": a})["z"], expected, rtol=2**-7, atol=1e-3)


SX = np.array(0.03, np.float16)
QUANTIZED = """g (float16[M,3,64] x) => (float16[M,3,32] y)
<int8 z = {0}> {
    q = QuantizeLinear(x, sx, z) d = DequantizeLinear(q, sx, z)
    WEIGHT
    y = MatMul(d, f)
}"""
INT8_WEIGHTS = {
    "per-channel": ("f = DequantizeLinear<axis=1>(w, s, zz)", INT8, SCALES),
    "per-tensor": ("f = DequantizeLinear(w, s, z)", INT8, np.array(0.01, np.float16)),
    "transposed": (
        "t = DequantizeLinear<axis=0>(w, s, zz) f = Transpose<perm=[1,0]>(t)",
        INT8.T.copy(),
        SCALES,
    ),
    "transposed-before": (
        "t = Transpose<perm=[1,0]>(w) f = DequantizeLinear<axis=1>(t, s, zz)",
        INT8.T.copy(),
        SCALES,
    ),
}


@pytest.mark.parametrize("name", INT8_WEIGHTS)
def test_int8(name: str) -> None:
    chain, weight, scales = INT8_WEIGHTS[name]
    model = text_model(
        QUANTIZED.replace("WEIGHT", chain),
        weights={"w": weight, "s": scales, "zz": np.zeros(N, np.int8), "sx": SX},
        opset=19,
    )
    # The original rounds every dequantized value to float16, this one only the result.
    ctx = packed(model, rtol=2e-3, storage=False)
    assert codes(ctx) == ["O24-332"] and ops(model) == ["QuantizeLinear", "SpMM24"]
    assert model.weights["w.values24"].dtype == np.int8
    assert model.weights["w.scale24"].dtype == np.float32
    node = model.proto.graph.node[-1]
    facts = {a.name: a.i for a in node.attribute}
    assert facts == {"K": K, "N": N, "dtype": 3, "out": 10}


def test_int8_with_float32_results_is_stored_on_request() -> None:
    text = QUANTIZED.replace("float16", "float").replace("WEIGHT", INT8_WEIGHTS["per-channel"][0])
    weights = {"w": INT8, "s": SCALES.astype(np.float32), "zz": np.zeros(N, np.int8)}
    weights["sx"] = SX.astype(np.float32)
    assert codes(packed(text_model(text, weights=weights), storage=False)) == ["O24-334"]
    assert codes(packed(text_model(text, weights=weights), rtol=1e-6)) == ["O24-332"]


def test_in_a_body_and_captured() -> None:
    text = """g (float[M,64] x, bool c) => (float[M,32] y) {
        y = If(c) <then_branch = t () => (float[M,32] a) { a = MatMul(x, w) },
                   else_branch = e () => (float[M,32] b) { s = Relu(x) b = MatMul(s, w) }>
    }"""
    model = text_model(text, weights={"w": W})
    ctx = packed(model)
    assert codes(ctx) == ["O24-332", "O24-332"] and claims(model) == ["w.values24"]


def test_two_readers_share_the_packed_weight() -> None:
    model = text_model(
        "g (float[M,64] x) => (float[M,32] y) "
        "{ a = MatMul(x, w) r = Relu(x) b = MatMul(r, w) y = Add(a, b) }",
        weights={"w": W},
    )
    packed(model)
    assert sorted(t.name for t in model.proto.graph.initializer) == [
        "w.metadata24",
        "w.scale24",
        "w.values24",
    ]


def test_a_dense_reader_keeps_the_weight_and_its_record() -> None:
    model = text_model(
        "g (float[M,64] x) => (float[M,32] y) "
        "{ a = MatMul(x, w) r = Relu(x) b = MatMul(r, w) y = Add(a, b) }",
        weights={"w": W},
    )
    model.proto.graph.node[2].name = "dense"
    model.claims.add("w")
    before = outputs(model)
    apply(model, SpmmPlugin(storage=True, exclude=("dense",)))
    assert_same(before, outputs(model))
    assert ops(model) == ["SpMM24", "Relu", "MatMul", "Add"]
    assert claims(model) == ["w", "w.values24"]
    assert broken_claims(model, AnalysisCache()) == []


def test_a_reader_along_the_other_axis_stays() -> None:
    model = text_model(
        "g (float[M,64] x, float[M,32] u) => (float[M,32] y, float[M,64] z) "
        "{ y = MatMul(x, w) t = Transpose<perm=[1,0]>(w) z = MatMul(u, t) }",
        weights={"w": W},
    )
    model.claims.add("w")
    before = outputs(model)
    ctx = apply(model, SpmmPlugin(storage=True))
    assert_same(before, outputs(model))
    assert codes(ctx) == ["O24-336", "O24-332"] and "groups" in ctx.records[0].reason


def test_a_constant_node_and_a_transpose() -> None:
    model = text_model(
        "g (float[M,64] x) => (float[M,32] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }",
        weights={"w": W.T.copy()},
    )
    packed(model)
    assert ops(model) == ["SpMM24"]


# --- what follows ----------------------------------------------------------------------------
def small() -> Model:
    model = text_model(
        "g (float16[M,64] x) => (float16[M,32] y) { h = MatMul(x, w) y = Relu(h) }",
        weights={"w": W.astype(np.float16)},
    )
    model.proto.graph.node[0].name = "layer"
    model.claims.add("w")
    return model


def test_check24_sees_the_metadata() -> None:
    model = small()
    apply(model, SpmmPlugin())
    checked = apply(model, Check24()).records
    assert [(r.weight, r.op, r.reason) for r in checked] == [("w.values24", "SpMM24", "packed 2:4")]
    broken = model.weights["w.metadata24"].copy()
    broken[3, 1] = 0  # both values of a group at place 0
    model.weights.replace(ValueKey("", "w.metadata24"), broken)
    with pytest.raises(NotMetError, match="not in ascending order"):
        apply(model, Check24())


def test_inspect_says_what_is_packed() -> None:
    model = small()
    apply(model, SpmmPlugin())
    found = inspect(model, targets.load(targets.DEFAULT), "m")
    row = next(row for row in found.rows if row.name == "w.values24")
    assert row.claimed and row.is_24 and "packed weight" in row.reason
    assert not found.dynamic  # the product within the function is none of two activations


def test_canonicalize_leaves_the_operator() -> None:
    model = small()
    before = outputs(model)
    apply(model, SpmmPlugin())
    apply(model, Canonicalize(inline_functions=True))
    assert ops(model) == ["SpMM24", "Relu"] and len(model.proto.functions) == 1
    assert_same(before, outputs(model))
    assert broken_claims(model, AnalysisCache()) == []


def test_prune24_leaves_the_packed_weight() -> None:
    model = small()
    apply(model, SpmmPlugin())
    values = model.weights["w.values24"].copy()
    apply(model, Prune24())
    np.testing.assert_array_equal(model.weights["w.values24"], values)
    assert claims(model) == ["w.values24"]


def test_the_full_checker_infers_the_shapes() -> None:
    model = small()
    apply(model, SpmmPlugin())
    proto = onnx.load_from_string(model.to_bytes())
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    h = next(v for v in inferred.graph.value_info if v.name == "h")
    assert [d.dim_param or d.dim_value for d in h.type.tensor_type.shape.dim] == ["M", 32]


def test_without_the_function_for_tensorrt() -> None:
    model = small()
    with_function = small()
    apply(with_function, SpmmPlugin())
    apply(model, SpmmPlugin(fallback=False))
    assert ops(model) == ops(with_function) and not model.proto.functions
    assert model.opsets["onnx24"] == 1
    assert broken_claims(model, AnalysisCache()) == []
    before = with_function.to_bytes()
    apply(with_function, SpmmPlugin())
    assert with_function.to_bytes() == before
    apply(with_function, SpmmPlugin(fallback=False))
    assert not with_function.proto.functions
    assert with_function.proto.graph.SerializeToString() == model.proto.graph.SerializeToString()


def test_node_names_stay() -> None:
    model = small()
    apply(model, SpmmPlugin())
    assert model.proto.graph.node[0].name == "layer"


# --- refusals --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "out", "code", "reason"),
    [
        ("y = MatMul(x, w)", "float[5,32]", "O24-334", "1:2"),
        ("t = Transpose<perm=[1,0]>(x) y = MatMul(w, t)", "float[32,5]", "O24-333", "left operand"),
        ("y = MatMul(x, stack)", "float[2,5,32]", "O24-333", "not a matrix"),
    ],
)
def test_refused(body: str, out: str, code: str, reason: str) -> None:
    weights = {"w": W}
    if "(w, t)" in body:
        weights = {"w": W.T.copy()}
    if "stack" in body:
        weights = {"stack": np.stack([W, W])}
    model = text_model(f"g (float[5,64] x) => ({out} y) {{ {body} }}", weights=weights)
    for name in weights:
        model.claims.add(name)
    before = model.to_bytes()
    ctx = apply(model, SpmmPlugin())
    assert codes(ctx) == [code] and reason in ctx.records[0].reason
    assert model.to_bytes() == before


def test_not_recorded_as_24() -> None:
    model = small()
    model.claims.discard("w")
    before = model.to_bytes()
    assert codes(apply(model, SpmmPlugin())) == ["O24-336"]
    assert model.to_bytes() == before


def test_sizes() -> None:
    w = prune_24(RNG.standard_normal((24, 32)).astype(np.float16), 0)
    model = text_model(
        "g (float16[M,24] x) => (float16[M,32] y) { y = MatMul(x, w) }", weights={"w": w}
    )
    ctx = packed(model, storage=False)
    assert codes(ctx) == ["O24-335"] and "K = 24" in ctx.records[0].reason


def test_opset_12() -> None:
    model = text_model(
        "g (float16[M,64] x) => (float16[M,32] y) { y = MatMul(x, w) }",
        weights={"w": W.astype(np.float16)},
        opset=12,
    )
    ctx = packed(model)
    assert codes(ctx) == ["O24-333"] and "opset 12" in ctx.records[0].reason


def test_int8_weights_of_float_activations() -> None:
    model = text_model(
        "g (float16[M,64] x) => (float16[M,32] y) <int8 z = {0}> "
        "{ f = DequantizeLinear(w, s, z) y = MatMul(x, f) }",
        weights={"w": INT8, "s": np.array(0.01, np.float16)},
        opset=19,
    )
    ctx = packed(model, storage=False)
    assert codes(ctx) == ["O24-334"] and "activation is not" in ctx.records[0].reason


def test_an_asymmetric_activation() -> None:
    text = QUANTIZED.replace("WEIGHT", INT8_WEIGHTS["per-tensor"][0]).replace(
        "QuantizeLinear(x, sx, z) d = DequantizeLinear(q, sx, z)",
        "QuantizeLinear(x, sx, o) d = DequantizeLinear(q, sx, o)",
    )
    weights = {"w": INT8, "s": np.array(0.01, np.float16), "o": np.array(3, np.int8), "sx": SX}
    assert codes(packed(text_model(text, weights=weights, opset=19), storage=False)) == ["O24-334"]


def test_include_and_exclude() -> None:
    model = small()
    ctx = apply(model, SpmmPlugin(exclude=("lay*",)))
    assert codes(ctx) == ["O24-120"] and ops(model)[0] == "MatMul"
    with pytest.raises(InputError, match="O24-023"):
        apply(model, SpmmPlugin(include=("nothing",)))


def test_site_limit() -> None:
    model = small()
    before = model.to_bytes()
    ctx = Context(target=apply(small(), Check24()).target, site_limit=0)
    ctx.enter(SpmmPlugin())
    SpmmPlugin().run(model, ctx)
    assert model.to_bytes() == before


def test_another_function_of_that_name() -> None:
    model = small()
    other = spmm24(17)
    other.node[-2].op_type = "Div"
    model.proto.functions.append(other)
    with pytest.raises(InputError, match="O24-337"):
        apply(model, SpmmPlugin())
