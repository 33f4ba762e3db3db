"""fold-qdq: int8 weights, redundant Q/DQ; always bit-identical in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.quant.scales import dequantize, quantize
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session
from onnx24.sparsity.masks import is_24

TARGET = targets.load("sm86")


def array(shape: Sequence[int], seed: int = 0, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def outputs(model: Model, seed: int = 5) -> list[np.ndarray]:
    """Of two runs on random numbers, every node as it is written.

    In float16 the dequantized values are made outputs too: where a CPU kernel is missing, ONNX
    Runtime computes in float32 and leaves out casts between neighbours, so that what an unseen
    value is rounded to depends on who its neighbours are.
    """
    data = load_data("random:2", model, seed=seed)
    shown = [value.name for value in model.proto.graph.output]
    hidden = [
        n.output[0]
        for n in model.proto.graph.node
        if n.op_type == "DequantizeLinear" and n.output[0] not in shown
    ]
    half = model.proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    session = Session(model, [*shown, *hidden] if half else None, optimize=False)
    return [
        found[name]
        for feeds in data.batches(model)
        for found in [session.run(feeds)]
        for name in shown
    ]


def fold(model: Model, *, target=TARGET, before: str = "", **options) -> RunResult:
    """Run the pass (behind others, where asked) and check that no bit of the outputs changes."""
    if before:
        data = load_data("random:8", model)
        run(model, parse(before), target=TARGET, calibration=data, reproducer_dir=None)
    want = outputs(model)
    result = run(model, parse("fold-qdq"), target=target, reproducer_dir=None, **options)
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    return result


def ops(model: Model) -> list[str]:
    return sorted(node.op_type for scope in model.scopes() for node in scope.graph.node)


def names(model: Model) -> set[str]:
    return {key.name for key in model.weights}


def codes(result: RunResult) -> list[str]:
    return [record.code for record in result.records]


MATMUL = "g (float[N, 32] x) => (float[N, 24] y) { [fc] y = MatMul(x, w) }"
PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
SCALE = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}


# --- weights -------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    ("body", "shape", "x", "y"),
    [
        ("y = MatMul(x, w)", (32, 24), "N, 32", "N, 24"),
        ("y = Gemm<transB = 1>(x, w)", (24, 32), "N, 32", "N, 24"),
        ("y = Conv(x, w)", (24, 32, 3, 3), "N, 32, 6, 6", "N, 24, 4, 4"),
        ("y = ConvTranspose(x, w)", (32, 24, 3, 3), "N, 32, 4, 4", "N, 24, 6, 6"),
        ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", (24, 32), "N, 32", "N, 24"),
    ],
)
def test_weights_of_every_form(dtype, body, shape, x, y):
    w = array(shape, dtype=np.float32 if dtype == "float" else np.float16)
    text = f"g ({dtype}[{x}] x) => ({dtype}[{y}] y) {{ {body} }}"
    model = build(text, opset=19, ir=9, w=w)
    result = fold(model, before="qdq")
    (found,) = (r for r in result.records if r.code == "O24-230")
    assert (found.action, found.weight) == ("folded", "w")
    assert "w" not in names(model) and "w_int8" in names(model)
    assert model.weights["w_int8"].dtype == np.int8 and ops(model).count("QuantizeLinear") == 1
    assert result.passes[0].statistics["weight_bytes_after"] == w.size
    step = float(np.max(np.asarray(model.weights["w_scale"], np.float32)))
    axis = next(
        n.attribute[0].i
        for n in model.proto.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] == "w_int8"
    )
    real = dequantize(model.weights["w_int8"], model.weights["w_scale"], axis)
    assert np.abs(real.astype(np.float32) - w.astype(np.float32)).max() <= step * 0.51


def test_the_file_shrinks_to_a_quarter(tmp_path):
    model = build(MATMUL, w=array((32, 24)))
    big = build(
        "g (float[N, 256] x) => (float[N, 256] y) { y = MatMul(x, w) }", w=array((256, 256))
    )
    for each in (model, big):
        fold(each, before="qdq")
    big.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 256 * 256 * 1.1


def test_the_record_of_sparsity_moves_to_the_integers():
    model = build(MATMUL, w=array((32, 24)))
    fold(model, before="prune24,qdq")
    assert model.claims.keys() == [ValueKey("", "w_int8")]
    assert is_24(model.weights["w_int8"], 0)
    run(model, parse("check24"), target=TARGET, reproducer_dir=None)


def test_a_float_weight_that_is_still_read_stays_without_the_record():
    """Nothing multiplies with it any more, so that there is no pattern to keep."""
    model = build(
        "g (float[N, 32] x, int64[N, 1] i) => (float[N, 24] y, float[N, 1, 24] e) "
        "{ y = MatMul(x, w) e = Gather(w, i) }",
        w=array((32, 24)),
    )
    fold(model, before="prune24{tied=prune},qdq")
    assert {"w", "w_int8"} <= names(model)
    assert model.claims.keys() == [ValueKey("", "w_int8")]


def test_a_float_weight_that_another_product_reads_keeps_its_record():
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y, float[N, 24] u) "
        "{ [a] y = MatMul(x, w) r = Relu(x) [b] u = MatMul(r, w) }",
        w=array((32, 24)),
    )
    fold(model, before="prune24,qdq{exclude=b}")
    assert {"w", "w_int8"} <= names(model)
    assert model.claims.keys() == [ValueKey("", "w"), ValueKey("", "w_int8")]


def test_tied_weights_are_folded_once():
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) y = MatMul(h, w) }",
        w=array((32, 32)),
    )
    result = fold(model, before="qdq")
    assert codes(result) == ["O24-230"] and "w" not in names(model)
    both = build(
        "g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) y = Gemm<transB = 1>(h, w) }",
        w=array((32, 32)),
    )
    result = fold(both, before="qdq")
    assert codes(result) == ["O24-230", "O24-230"]
    assert {"w_int8", "w_int8_2"} <= names(both) and "w" not in names(both)


def test_a_constant_node_goes_with_its_values():
    text = "g (float[N, 32] x) => (float[N, 24] y) { y = MatMul(x, w) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    value = onnx.numpy_helper.from_array(array((32, 24)))
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=value))
    model = Model.from_proto(proto)
    fold(model, before="prune24,qdq")
    assert "Constant" not in ops(model)
    assert model.claims.keys() == [ValueKey("", "w_int8")]


def test_a_target_without_int8_initializers_keeps_the_float():
    model = build(MATMUL, w=array((32, 24)))
    run(
        model,
        parse("qdq"),
        target=TARGET,
        calibration=load_data("random:8", model),
        reproducer_dir=None,
    )
    before = model.to_bytes()
    result = fold(model, target=targets.load("sm86-trt8"))
    (found,) = result.records
    assert (found.action, found.code, found.weight) == ("kept", "O24-231", "w")
    assert model.to_bytes() == before


BETWEEN = {
    "transpose": ("r = Transpose<perm = [1, 0]>(q)", "z", 0),
    "reshape of a channel axis": ("r = Reshape(q, to)", "n", 1),
    "clip": ("r = Clip(q, low, high)", "n", 1),
    "one bound": ("r = Clip(q, , high)", "n", 1),
    "a chain": ("p = Transpose(q) i = Identity(p) r = Clip(i, low)", "z", 0),
    "a dead branch": ("r = Identity(q) u = Transpose(q)", "n", 1),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_stands_between_quantizer_and_dequantizer_is_computed(case):
    """TensorRT-RTX 1.7.1: "Quantized constant is only allowed before DQ"."""
    step, zeros, axis = BETWEEN[case]
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) "
        f"{{ q = QuantizeLinear<axis = 1>(w, s, n) {step} "
        f"d = DequantizeLinear<axis = {axis}>(r, s, {zeros}) y = MatMul(x, d) }}",
        w=array((32, 32)),
        s=np.linspace(0.01, 0.03, 32, dtype=np.float32),
        n=np.zeros(32, np.int8),
        z=np.zeros(32, np.int8),
        to=np.array([32, 32], np.int64),
        low=np.array(-90, np.int8),
        high=np.array(90, np.int8),
    )
    result = fold(model)
    assert ops(model) == ["DequantizeLinear", "MatMul"] and "w" not in names(model)
    assert codes(result) == ["O24-230"]
    assert not fold(model).records


def test_a_weight_that_two_chains_read_is_stored_as_each_reads_it():
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) { q = QuantizeLinear(w, s, z) "
        "d = DequantizeLinear(q, s, z) h = MatMul(x, d) t = Transpose<perm = [1, 0]>(q) "
        "e = DequantizeLinear(t, s, z) y = MatMul(h, e) }",
        w=array((32, 32)),
        **SCALE,
    )
    result = fold(model, before="prune24{tied=prune}")
    assert codes(result) == ["O24-230", "O24-230"] and "QuantizeLinear" not in ops(model)
    assert result.passes[0].statistics["weight_bytes_before"] == 32 * 32 * 4


KEPT = {
    "a scalar": ("d = DequantizeLinear(q, s, z) y = Mul(x, d)", {"w": array(())}, "rank 0"),
    "a table": (
        "g = Gather(q, i) d = DequantizeLinear(g, s, z) y = MatMul(x, d)",
        {"w": array((40, 32)), "i": np.arange(32)},
        "Gather 'g' reads the integers",
    ),
    "arithmetic": (
        "c = Cast<to = 1>(q) d = Mul(c, s) y = MatMul(x, d)",
        {"w": array((32, 32))},
        "reads the integers",
    ),
    "unsigned": (
        "d = DequantizeLinear(q, s, z) y = MatMul(x, d)",
        {"w": array((32, 32)), "z": np.array(0, np.uint8)},
        "",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_tensorrt_builds_in_float_only_stays(case):
    body, values, why = KEPT[case]
    model = build(
        f"g (float[N, 32] x) => (float[N, 32] y) {{ q = QuantizeLinear(w, s, z) {body} }}",
        **{**SCALE, **values},
    )
    before = model.to_bytes()
    result = fold(model)
    assert model.to_bytes() == before
    assert codes(result) == ["O24-231"] * bool(why)
    assert all(why in record.reason for record in result.records)


def test_a_stored_constant_is_read_by_nothing_but_dequantizers_after_a_pair_went():
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) { d = DequantizeLinear(w, s, z) "
        "q = QuantizeLinear(d, s, z) t = Transpose<perm = [1, 0]>(q) "
        "e = DequantizeLinear(t, s, z) y = MatMul(x, e) }",
        w=np.arange(-512, 512).astype(np.int8).reshape(32, 32),
        **SCALE,
    )
    before = model.to_bytes()
    fold(model)
    assert model.to_bytes() == before


def test_what_tensorrt_rtx_builds_it_builds_folded(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'onnx24[rtx]'")
    from onnx24.backends import Profile, get

    model = build(
        """g (float[N, 32] x) => (float[N, 32] y1, float[N, 32] y2, float[N, 32] y3) {
          q1 = QuantizeLinear(w, s, z) t1 = Transpose<perm = [1, 0]>(q1) r1 = Reshape(t1, to)
          c1 = Clip(r1, low, high) d1 = DequantizeLinear(c1, s, z) h1 = MatMul(x, d1)
          q2 = QuantizeLinear(number, s, z) d2 = DequantizeLinear(q2, s, z) y1 = Mul(h1, d2)
          q3 = QuantizeLinear(table, s, z) g3 = Gather(q3, rows)
          d3 = DequantizeLinear(g3, s, z) y2 = MatMul(x, d3)
          q4 = QuantizeLinear(v, s, u) d4 = DequantizeLinear(q4, s, u) y3 = MatMul(x, d4)
        }""",
        w=array((32, 32)),
        v=array((32, 32), 1),
        table=array((40, 32), 2),
        number=array(()),
        rows=np.arange(32),
        to=np.array([32, 32]),
        low=np.array(-90, np.int8),
        high=np.array(90, np.int8),
        u=np.array(0, np.uint8),
        **SCALE,
    )
    assert codes(fold(model)).count("O24-230") == 1
    model.save(tmp_path / "m.onnx")
    shape = Profile((4, 32), (4, 32), (4, 32))
    get("tensorrt-rtx").build(
        tmp_path / "m.onnx", TARGET, engine=tmp_path / "e", shapes={"x": shape}
    )


def test_nan_in_a_weight_is_an_error_and_nothing_changes():
    w = array((32, 24))
    w[0, 0] = np.nan
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) "
        "{ q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d) }",
        w=w,
        **SCALE,
    )
    before = model.to_bytes()
    with pytest.raises(InputError, match="O24-008"):
        run(model, parse("fold-qdq"), target=TARGET, reproducer_dir=None)
    assert model.to_bytes() == before


def test_bodies():
    model = build(
        """g (float[N, 32] x, bool c) => (float[N, 24] y) {
          [choice] y = If(c) <
            then_branch = t () => (float[N, 24] a) {
              q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) a = MatMul(x, d)
            },
            else_branch = e () => (float[N, 24] b) {
              q2 = QuantizeLinear(w, s, z) d2 = DequantizeLinear(q2, s, z) b = MatMul(x, d2)
            }
          >
        }""",
        w=array((32, 24)),
        **SCALE,
    )
    run(model, parse("prune24"), target=TARGET, reproducer_dir=None)
    fold(model)
    assert "QuantizeLinear" not in ops(model) and ValueKey("", "w") not in model.weights
    claimed = model.claims.keys()
    assert [key.scope for key in claimed] == ["choice.else_branch", "choice.then_branch"]
    assert all(is_24(model.weights[key], 0) for key in claimed)


# --- redundant pairs -----------------------------------------------------------------------
def test_identical_pairs_become_one():
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y, float[N, 32] z) { q = QuantizeLinear(x, s, n) "
        "d = DequantizeLinear(q, s, n) y = Relu(d) p = QuantizeLinear(x, t, m) "
        "e = DequantizeLinear(p, t, m) z = Neg(e) }",
        s=np.array(0.05, np.float32),
        n=np.array(0, np.int8),
        t=np.array(0.05, np.float32),
        m=np.array(0, np.int8),
    )
    result = fold(model)
    assert ops(model) == ["DequantizeLinear", "Neg", "QuantizeLinear", "Relu"]
    assert codes(result) == ["O24-232", "O24-232"] and names(model) == {"s", "n"}


@pytest.mark.parametrize(
    "other",
    [
        {"t": np.array(0.06, np.float32)},
        {"m": np.array(1, np.int8)},
        {"m": np.array(0, np.uint8)},
        {"t": np.array([0.05], np.float32), "m": np.array([0], np.int8)},
    ],
)
def test_pairs_that_differ_stay(other):
    values = {"s": SCALE["s"], "n": SCALE["z"], "t": SCALE["s"], "m": SCALE["z"], **other}
    text = (
        "g (float[N, 1] x) => (float[N, 1] y, float[N, 1] z) { q = QuantizeLinear(x, s, n) "
        "d = DequantizeLinear(q, s, n) y = Relu(d) p = QuantizeLinear(x, t, m) "
        "e = DequantizeLinear(p, t, m) z = Neg(e) }"
    )
    model = build(text, **values)
    before = model.to_bytes()
    result = fold(model)
    assert model.to_bytes() == before and not result.records


def test_back_to_back_pairs_cancel():
    model = build(
        f"g (float[N, 32] x) => (float[N, 32] y) {{ {PAIR} p = QuantizeLinear(d, s, z) "
        "e = DequantizeLinear(p, s, z) r = QuantizeLinear(e, s, z) "
        "f = DequantizeLinear(r, s, z) y = Relu(f) }",
        **SCALE,
    )
    result = fold(model)
    assert ops(model) == ["DequantizeLinear", "QuantizeLinear", "Relu"]
    assert set(codes(result)) == {"O24-232"}


def test_back_to_back_pairs_of_two_scales_stay():
    model = build(
        f"g (float[N, 32] x) => (float[N, 32] y) {{ {PAIR} p = QuantizeLinear(d, t, z) "
        "e = DequantizeLinear(p, t, z) y = Relu(e) }",
        t=np.array(0.07, np.float32),
        **SCALE,
    )
    before = model.to_bytes()
    fold(model)
    assert model.to_bytes() == before


@pytest.mark.parametrize(("scale", "cancels"), [(6e-5, False), (0.1, True), (300.0, False)])
def test_only_exact_pairs_cancel_in_float16(scale, cancels):
    """300 · 255 overflows float16, and 6e-5 is no normal number there."""
    model = build(
        "g (int8[256] x) => (int8[256] y) "
        "{ d = DequantizeLinear(x, s, z) q = QuantizeLinear(d, s, z) y = Identity(q) }",
        opset=19,
        ir=9,
        s=np.array(scale, np.float16),
        z=np.array(0, np.int8),
    )
    every = np.arange(-128, 128).astype(np.int8)
    if cancels:
        there = dequantize(every, model.weights["s"])
        np.testing.assert_array_equal(quantize(there, model.weights["s"]), every)
    fold(model)
    assert ("QuantizeLinear" not in ops(model)) == cancels


@pytest.mark.parametrize(
    ("dtype", "scale", "cancels"),
    [
        (ml_dtypes.float8_e4m3fn, 0.013, True),
        (ml_dtypes.float8_e4m3fn, 3e-38, False),
        (ml_dtypes.int4, 0.7, True),
        (ml_dtypes.uint4, 0.7, True),
    ],
)
def test_pairs_of_fp8_and_4_bits_cancel(dtype, scale, cancels):
    """3e-38 is no normal number any more when FP8's least one multiplies it. `fold` compares the
    outputs of ONNX Runtime before and after."""
    model = build(
        f"g (float[N, 32] x) => (float[N, 32] y) {{ {PAIR} p = QuantizeLinear(d, s, z) "
        "e = DequantizeLinear(p, s, z) y = Relu(e) }",
        opset=21,
        ir=10,
        s=np.array(scale, np.float32),
        z=np.array(0, dtype),
    )
    fold(model)
    assert (ops(model).count("QuantizeLinear") == 1) == cancels


@pytest.mark.parametrize("real", [np.float32, np.float16])
def test_every_fp8_number_survives_its_pair(real):
    """NaN and -0 among them."""
    name = {np.float32: "float", np.float16: "float16"}[real]
    model = build(
        f"g (float8e4m3fn[256] x) => ({name}[256] y) {{ d = DequantizeLinear(x, s, z) "
        "q = QuantizeLinear(d, s, z) e = DequantizeLinear(q, s, z) y = Identity(e) }",
        opset=21,
        ir=10,
        s=np.array(0.13, real),
        z=np.array(0, ml_dtypes.float8_e4m3fn),
    )
    feeds = {"x": np.arange(256).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)}
    before = Session(model, optimize=False).run(feeds)["y"]
    fold(model)
    assert ops(model) == ["DequantizeLinear", "Identity"]
    np.testing.assert_array_equal(Session(model, optimize=False).run(feeds)["y"], before)


def test_pairs_by_blocks_cancel():
    blocks = "<axis = 1, block_size = 32>"
    model = build(
        f"g (float[4, 64] x) => (float[4, 64] y) {{ q = QuantizeLinear{blocks}(x, s, z) "
        f"d = DequantizeLinear{blocks}(q, s, z) p = QuantizeLinear{blocks}(d, s, z) "
        f"e = DequantizeLinear{blocks}(p, s, z) y = Relu(e) }}",
        opset=21,
        ir=10,
        s=np.linspace(0.1, 2, 8, dtype=np.float32).reshape(4, 2),
        z=np.zeros((4, 2), ml_dtypes.int4),
    )
    fold(model)
    assert ops(model).count("QuantizeLinear") == 1


def test_dead_pairs_go_and_graph_outputs_stay():
    model = build(
        f"g (float[N, 32] x) => (float[N, 32] y, float[N, 32] e) {{ {PAIR} "
        "y = Relu(x) p = QuantizeLinear(x, t, z) e = DequantizeLinear(p, t, z) }",
        t=np.array(0.07, np.float32),
        **SCALE,
    )
    result = fold(model)
    assert ops(model) == ["DequantizeLinear", "QuantizeLinear", "Relu"]
    assert codes(result) == ["O24-232", "O24-232"] and names(model) == {"t", "z"}


def test_values_that_are_outputs_are_not_merged_away():
    model = build(
        "g (float[N, 32] x) => (int8[N, 32] q, int8[N, 32] p, float[N, 32] y) { "
        "q = QuantizeLinear(x, s, z) p = QuantizeLinear(x, s, z) d = DequantizeLinear(p, s, z) "
        "y = Relu(d) }",
        **SCALE,
    )
    fold(model)
    assert [v.name for v in model.proto.graph.output] == ["q", "p", "y"]
    assert ops(model).count("QuantizeLinear") == 2


def test_readers_in_bodies_follow():
    model = build(
        f"""g (float[N, 32] x, bool c) => (float[N, 32] y, float[N, 32] u) {{ {PAIR}
          p = QuantizeLinear(x, s, z) e = DequantizeLinear(p, s, z) u = Relu(d)
          y = If(c) <
            then_branch = t () => (float[N, 32] a) {{ a = Neg(e) }},
            else_branch = f () => (float[N, 32] b) {{ b = Neg(d) }}
          >
        }}""",
        **SCALE,
    )
    fold(model)
    assert ops(model).count("QuantizeLinear") == ops(model).count("DequantizeLinear") == 1


@pytest.mark.parametrize("dtype", ["int8", "int4", "uint4"])
def test_weights_by_blocks(dtype):
    """K = 40 is no multiple of the block; the last one is shorter."""
    element = np.int8 if dtype == "int8" else getattr(ml_dtypes, dtype)
    zero = np.repeat([[1, 3, 0], [2, 0, 5], [0, 1, 7]], 8, axis=1).astype(element)
    model = build(
        "g (float[N, 40] x) => (float[N, 24] y) { "
        "q = QuantizeLinear<axis = 0, block_size = 16>(w, s, z) "
        "d = DequantizeLinear<axis = 0, block_size = 16>(q, s, z) y = MatMul(x, d) }",
        opset=21,
        ir=10,
        w=array((40, 24)),
        s=np.random.default_rng(2).uniform(0.05, 0.4, (3, 24)).astype(np.float32),
        z=zero,
    )
    result = fold(model)
    assert model.weights[f"w_{dtype}"].dtype.name == dtype and "w" not in names(model)
    bits = {"int8": 8}.get(dtype, 4)
    assert result.passes[0].statistics["weight_bytes_after"] == 40 * 24 * bits // 8


@pytest.mark.parametrize(("scale", "zero"), [((), ()), ((24,), (24,))])
def test_fp8_weights(scale, zero):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) { q = QuantizeLinear<axis = 1>(w, s, z) "
        "d = DequantizeLinear<axis = 1>(q, s, z) y = MatMul(x, d) }",
        opset=19,
        ir=9,
        w=array((32, 24)),
        s=np.full(scale, 0.004, np.float32),  # 448 · 0.004 = 1.8: larger values saturate
        z=np.zeros(zero, ml_dtypes.float8_e4m3fn),
    )
    fold(model)
    stored = model.weights["w_float8_e4m3fn"]
    assert stored.dtype == ml_dtypes.float8_e4m3fn
    assert np.abs(stored.astype(np.float32)).max() == 448


@pytest.mark.parametrize("saturate", [0, 1])
def test_fp8_that_does_not_saturate_is_left_to_the_runtime(saturate):
    model = build(
        f"g (float[N, 32] x) => (float[N, 24] y) {{ q = QuantizeLinear<saturate = {saturate}>"
        "(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d) }",
        opset=19,
        ir=9,
        w=array((32, 24)) / 8,
        s=np.array(0.004, np.float32),
        z=np.array(0, ml_dtypes.float8_e4m3fn),
    )
    fold(model)
    assert ("QuantizeLinear" in ops(model)) == (not saturate)


def test_missing_zero_points_are_left_alone():
    model = build(
        "g (float[N, 32] x) => (uint8[32, 24] u) { v = QuantizeLinear(w, s) u = Identity(v) }",
        w=array((32, 24)),
        s=SCALE["s"],
    )
    before = model.to_bytes()
    fold(model)
    assert model.to_bytes() == before


# --- invariants ----------------------------------------------------------------------------
def test_nothing_to_do_and_a_second_run():
    plain = build(MATMUL, w=array((32, 24)))
    before = plain.to_bytes()
    assert not fold(plain).records and plain.to_bytes() == before
    fold(plain, before="qdq")
    once = plain.to_bytes()
    assert not fold(plain).records and plain.to_bytes() == once


def test_a_limit_of_sites():
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) { h = MatMul(x, v) y = MatMul(h, w) }",
        v=array((32, 32)),
        w=array((32, 24), 1),
    )
    result = fold(model, before="qdq", site_limit=1)
    assert codes(result) == ["O24-230"] and {"v_int8", "w"} <= names(model)


def test_external_data(tmp_path):
    model = build(MATMUL, w=array((32, 24)))
    model.save(tmp_path / "m.onnx", external="external")
    external = Model.load(tmp_path / "m.onnx")
    fold(external, before="prune24,qdq")
    external.save(tmp_path / "out.onnx")
    again = Model.load(tmp_path / "out.onnx")
    for got, want in zip(outputs(again), outputs(external), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_trained_models(name, fixture_models, digits_calib):
    model = Model.load(fixture_models[name].path)
    data = load_data(str(digits_calib), model)
    run(model, parse("prune24,qdq"), target=TARGET, calibration=data, reproducer_dir=None)
    claimed = len(model.claims.keys())
    feeds = next(data.batches(model))
    want = Session(model, optimize=False).run(feeds)["logits"]
    result = run(model, parse("fold-qdq,check24"), target=TARGET, reproducer_dir=None)
    np.testing.assert_array_equal(Session(model, optimize=False).run(feeds)["logits"], want)
    assert len(model.claims.keys()) == claimed
    folded = {"cnn": 5, "vit": 13}[name]
    assert result.passes[0].statistics["folded"] == folded
