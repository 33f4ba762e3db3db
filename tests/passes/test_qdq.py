"""qdq: where the pairs go, their ranks, axes and scales, and what is left in float.

Every graph runs in ONNX Runtime before and after. The tolerance is a signal-to-noise ratio: one
8-bit product of normal values measures 38 to 44 dB, two in a row about 3 dB less, so 30 dB leaves
room and still fails on a wrong axis or scale (below 20 dB).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.qdq_rules import Quantized, findings, quantized_products
from onnx24.errors import InputError
from onnx24.ir.index import Index
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.quant.scales import channel_amax, dequantize, quantize, symmetric_scale
from onnx24.runtime.compare import compare
from onnx24.runtime.data import Calibration, load_data
from onnx24.sparsity.masks import prune_24

TARGET = targets.load("sm86")
MIN_SQNR_DB = 30.0


def array(shape: Sequence[int], seed: int = 0, dtype=np.float32) -> np.ndarray:
    # Scales differ by channel along every axis, so that a wrong axis shows.
    values = np.random.default_rng(seed).standard_normal(shape)
    for axis, size in enumerate(shape):
        ramp = np.geomspace(1, 8, size).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        values = values * ramp
    return values.astype(dtype)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return Model.from_proto(proto)


def sparse(model: Model, name: str, axis: int) -> Model:
    """Make a weight 2:4 along `axis` and record it, as prune24 does."""
    model.weights.replace(name, prune_24(model.weights[name], axis))
    model.claims.add(name)
    return model


def samples(model: Model, tmp_path, count: int = 64, **arrays: np.ndarray) -> Calibration:
    """Real numbers for the inputs: given, or normal ones in the declared shapes."""
    rng = np.random.default_rng(7)
    for value in model.proto.graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        values = rng.standard_normal((count, *dims)).astype(dtype)
        arrays.setdefault(value.name, values)
    np.savez(tmp_path / "calib.npz", **arrays)
    return load_data(str(tmp_path / "calib.npz"), model)


def quantized(
    model: Model,
    tmp_path,
    options: str = "",
    *,
    target=TARGET,
    data: Calibration | None = None,
    min_sqnr: float | None = MIN_SQNR_DB,
    accepted: tuple[str, ...] = (),
    **run_options,
) -> RunResult:
    """Run the pass; the outputs before and after are compared on the calibration data. accepted:
    findings of lint that the graph leaves no way around."""
    before = Model.from_bytes(model.to_bytes())
    data = data or samples(model, tmp_path)
    if "agreement" not in options:  # random numbers have no class that should stay the same
        options = f"{options} min-agreement=0".strip()
    text = f"qdq{{{options}}}"
    result = run(
        model, parse(text), target=target, calibration=data, reproducer_dir=None, **run_options
    )
    if min_sqnr is not None:
        outputs = [out for out in compare(before, model, data).outputs if out.elements]
        worst = max(outputs, key=lambda out: out.badness)
        assert worst.sqnr_db >= min_sqnr, worst
        changed = any(p.changed for p in result.passes)
        assert worst.identical != changed
    _lint_agrees(before, model, result, target, accepted)
    return result


def _lint_agrees(
    before: Model, after: Model, result: RunResult, target, accepted: tuple[str, ...]
) -> None:
    """What qdq places, lint accepts and check counts, whatever graph a test is about."""
    was, found = (Quantized.of(m, AnalysisCache()) for m in (before, after))
    sparse_outputs = target.output_qdq_for_sparse
    problems = [f.message for f in findings(found, sparse_outputs=sparse_outputs)]
    known = [f.message for f in findings(was, sparse_outputs=sparse_outputs)]
    assert sorted(problems) == sorted([*known, *accepted])
    placed = [r for r in result.records if r.code in ("O24-200", "O24-233")]
    both = quantized_products(found)[0] - quantized_products(was)[0]
    assert both == len({(r.scope, r.node) for r in placed})


def codes(result: RunResult) -> dict[str, str]:
    return {record.node: record.code for record in result.records}


def record(result: RunResult, node: str):
    return next(r for r in result.records if r.node == node)


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def node(model: Model, name: str) -> onnx.NodeProto:
    return next(n for n in model.proto.graph.node if name in (n.name, *n.output))


def source(model: Model, name: str, position: int) -> str:
    """What the pair in front of an input quantizes; "" where there is no pair."""
    index = Index.of(model.proto)
    dq = index.producer(node(model, name).input[position])
    if dq is None or dq.proto.op_type != "DequantizeLinear":
        return ""
    q = index.producer(dq.proto.input[0])
    assert q is not None and q.proto.op_type == "QuantizeLinear"
    assert list(q.proto.input[1:]) == list(dq.proto.input[1:]) and len(q.proto.input) == 3
    return q.proto.input[0]


def scale_of(model: Model, value: str) -> np.ndarray:
    q = next(
        n for n in model.proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value
    )
    zero_point = model.weights[q.input[2]]
    scale = model.weights[q.input[1]]
    assert zero_point.dtype == np.int8 and not zero_point.any()
    assert zero_point.shape == scale.shape
    return scale


def pairs(model: Model) -> list[str]:
    return sorted(n.input[0] for n in model.proto.graph.node if n.op_type == "QuantizeLinear")


# --- what is quantized, along which axis ---------------------------------------------------
FORMS = {
    "matmul": ("[fc] y = MatMul(x, w)", (32, 24), 1, [32], [24]),
    "matmul-batched": ("[fc] y = MatMul(x, w)", (3, 32, 24), 2, [3, 16, 32], [3, 16, 24]),
    "matmul-left": ("[fc] y = MatMul(w, x)", (24, 32), 0, [32, 16], [24, 16]),
    "gemm": ("[fc] y = Gemm(x, w, b)", (32, 24), 1, [32], [24]),
    "gemm-transB": ("[fc] y = Gemm<transB = 1, alpha = 0.5>(x, w, b)", (24, 32), 0, [32], [24]),
    "conv": ("[fc] y = Conv(x, w, b)", (24, 32, 3, 3), 0, [32, 8, 8], [24, 6, 6]),
    "conv1d": ("[fc] y = Conv(x, w)", (24, 32, 3), 0, [32, 8], [24, 6]),
    "grouped": ("[fc] y = Conv<group = 2>(x, w)", (24, 16, 3, 3), 0, [32, 8, 8], [24, 6, 6]),
    "deconv": ("[fc] y = ConvTranspose(x, w)", (32, 24, 3, 3), 1, [32, 4, 4], [24, 6, 6]),
    "behind-transpose": (
        "t = Transpose<perm = [1, 0]>(w) [fc] y = MatMul(x, t)",
        (24, 32),
        0,
        [32],
        [24],
    ),
    "behind-reshape": ("t = Reshape(w, s) [fc] y = MatMul(x, t)", (4, 8, 24), 1, [32], [24]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("calibrator", ["max", "percentile"])
def test_forms(form, calibrator, tmp_path):
    text, shape, axis, x, y = FORMS[form]
    dims = ["N" if i == 0 else str(d) for i, d in enumerate([0, *x])]
    outs = ["N" if i == 0 else str(d) for i, d in enumerate([0, *y])]
    signature = f"(float[{','.join(dims)}] x) => (float[{','.join(outs)}] y)"
    weights = {"w": array(shape)}
    if "b)" in text:
        weights["b"] = array((24,), 1)
    if "(w, s)" in text:
        weights["s"] = np.array([32, 24], np.int64)
    model = build(f"g {signature} {{ {text} }}", **weights)
    result = quantized(model, tmp_path, f"calibrator={calibrator}")
    assert codes(result)["fc"] == "O24-200"
    assert ops(model).count("QuantizeLinear") == ops(model).count("DequantizeLinear") == 2
    left = form == "matmul-left"
    assert source(model, "fc", int(left)) == "x"
    activation = scale_of(model, "x")
    assert activation.shape == () and activation.dtype == np.float32
    stored = "t" if form == "behind-reshape" else "w"
    if form != "behind-transpose":
        assert source(model, "fc", int(not left)) == stored
    weight_node = next(
        n for n in model.proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == stored
    )
    (attribute,) = weight_node.attribute
    assert (attribute.name, attribute.i) == ("axis", axis)
    view = weights["w"].reshape(32, 24) if form == "behind-reshape" else weights["w"]
    want = symmetric_scale(channel_amax(view, axis))
    np.testing.assert_array_equal(scale_of(model, stored), want)
    if "b" in weights:
        assert node(model, "fc").input[2] == "b"  # the bias stays float


def test_the_numbers_are_those_of_the_formula(tmp_path):
    w = array((32, 24))
    model = build("g (float[N, 32] x) => (float[N, 24] y) { [fc] y = MatMul(x, w) }", w=w)
    data = samples(model, tmp_path)
    quantized(model, tmp_path, "calibrator=max rounding=nearest", data=data)
    (feeds, *_) = data.batches(model)
    x = np.concatenate([f["x"] for f in data.batches(model)])
    scale = symmetric_scale(np.abs(x).max())
    assert scale_of(model, "x") == scale
    xq = dequantize(quantize(feeds["x"], scale), scale)
    by_channel = symmetric_scale(channel_amax(w, 1))
    wq = dequantize(quantize(w, by_channel, 1), by_channel, 1)
    from onnx24.runtime.session import Session

    np.testing.assert_allclose(
        Session(model, optimize=False).run(feeds)["y"], xq @ wq, rtol=1e-5, atol=1e-4
    )


def test_percentile_clips_what_max_keeps(tmp_path):
    model = build("g (float[N, 32] x) => (float[N, 24] y) { y = MatMul(x, w) }", w=array((32, 24)))
    x = np.random.default_rng(0).standard_normal((2000, 32)).astype(np.float32)
    x[0, 0] = 100
    data = samples(model, tmp_path, x=x)
    largest = Model.from_bytes(model.to_bytes())
    quantized(largest, tmp_path, "calibrator=max", data=data, min_sqnr=None)
    quantized(model, tmp_path, "calibrator=percentile percentile=99.9", data=data, min_sqnr=None)
    assert scale_of(largest, "x") == np.float32(100 / 127)
    assert 3 / 127 < scale_of(model, "x") < 4 / 127


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scales_have_the_type_of_the_layer(dtype, tmp_path):
    name = {np.float16: "float16", np.float32: "float"}[dtype]
    model = build(
        f"g ({name}[N, 32] x) => ({name}[N, 24] y) {{ [fc] y = MatMul(x, w) }}",
        opset=19,
        ir=9,
        w=array((32, 24), dtype=dtype),
    )
    result = quantized(model, tmp_path)
    assert codes(result) == {"fc": "O24-200"}
    assert scale_of(model, "x").dtype == scale_of(model, "w").dtype == dtype


# --- placement -----------------------------------------------------------------------------
def test_one_pair_for_all_that_read_an_activation_and_floats_for_the_rest(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y, float[N, 24] z, float[N, 32] r) "
        "{ [a] y = MatMul(x, w) [b] z = MatMul(x, v) [other] r = Sigmoid(x) }",
        w=array((32, 24)),
        v=array((32, 24), 1),
    )
    quantized(model, tmp_path)
    assert pairs(model) == ["v", "w", "x"]
    assert node(model, "a").input[0] == node(model, "b").input[0]
    assert node(model, "other").input[0] == "x"


def test_a_tied_weight_has_one_pair_and_its_gather_reads_the_float(tmp_path):
    model = build(
        "g (float[N, 32] x, int64[N, 1] i) => (float[N, 32] y, float[N, 1, 32] e) "
        "{ [a] h = MatMul(x, w) [b] y = MatMul(h, w) [look] e = Gather(w, i) }",
        w=array((32, 32)),
    )
    data = samples(model, tmp_path, i=np.arange(64, dtype=np.int64).reshape(64, 1) % 32)
    quantized(model, tmp_path, data=data, min_sqnr=25)
    assert pairs(model) == ["h", "w", "x"]
    assert node(model, "a").input[1] == node(model, "b").input[1]
    assert node(model, "look").input[0] == "w"


def test_a_weight_shared_along_two_axes_has_a_pair_for_each(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) "
        "{ [a] h = MatMul(x, w) [b] y = Gemm<transB = 1>(h, w) }",
        w=array((32, 32)),
    )
    quantized(model, tmp_path, min_sqnr=25)
    axes = {
        n.attribute[0].i
        for n in model.proto.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] == "w"
    }
    assert axes == {0, 1}


CNN = """g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {
  [c1] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
  [bn1] b = BatchNormalization(a, g, g, z, g)
  [r1] c = Relu(b)
  [c2] d = Conv<pads = [1, 1, 1, 1]>(c, w2)
  [bn2] e = BatchNormalization(d, g, g, z, g)
  [add] f = Add(e, c)
  [r2] h = Relu(f)
  [c3] y = Conv<pads = [1, 1, 1, 1]>(h, w3)
}"""


def cnn(text: str = CNN) -> Model:
    weights = {f"w{i}": array((16, 16, 3, 3), i) / 40 for i in (1, 2, 3)}
    ones, zeros = np.ones(16, np.float32), np.zeros(16, np.float32)
    return build(text, g=ones, z=zeros, **weights)


def test_nothing_inside_conv_bn_relu_and_the_skip_branch_is_quantized(tmp_path):
    model = cnn()
    result = quantized(model, tmp_path, min_sqnr=25)
    assert set(codes(result).values()) == {"O24-200"}
    assert pairs(model) == ["c", "h", "w1", "w2", "w3", "x"]
    assert node(model, "bn1").input[0] == "a" and node(model, "r1").input[0] == "b"
    assert node(model, "bn2").input[0] == "d" and node(model, "r2").input[0] == "f"
    assert node(model, "add").input[0] == "e"  # never the edge from the convolution
    assert source(model, "add", 1) == "c"
    assert node(model, "add").input[1] == node(model, "c2").input[0]


def test_of_two_convolutions_the_deeper_keeps_the_fused_edge(tmp_path):
    text = CNN.replace("Add(e, c)", "Add(s, e)").replace(
        "[c2]", "[down] s = Conv<pads = [1, 1, 1, 1]>(x, w3) [c2]"
    )
    model = cnn(text)
    quantized(model, tmp_path, min_sqnr=25)
    assert source(model, "add", 0) == "s" and node(model, "add").input[1] == "e"


def test_a_broadcast_add_is_no_residual(tmp_path):
    text = CNN.replace("Add(e, c)", "Add(e, q)").replace("[c2]", "q = GlobalAveragePool(c) [c2]")
    model = cnn(text)
    quantized(model, tmp_path, min_sqnr=25)
    assert list(node(model, "add").input) == ["e", "q"]


def test_a_matmuls_residual_add_stays_float(tmp_path):
    model = build(
        "g (float[N, 4, 32] x) => (float[N, 4, 32] y) "
        "{ [fc] h = MatMul(x, w) a = Add(h, b) [res] y = Add(a, x) }",
        w=array((32, 32)),
        b=array((32,)),
    )
    quantized(model, tmp_path)
    assert list(node(model, "res").input) == ["a", "x"]


def test_a_pair_moves_up_where_every_reader_is_quantized(tmp_path):
    text = """g (float[N, 16, 4, 4] x) => (float[N, 24] y, float[N, 16, 1, 1] z) {
      r = Relu(x)
      [pool] p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
      [flat] f = Flatten(p)
      [fc] y = MatMul(f, w)
      [c] z = Conv(p, v)
    }"""
    weights = {"w": array((64, 24)), "v": array((16, 16, 2, 2))}
    model = build(text, **weights)
    quantized(model, tmp_path)
    assert pairs(model) == ["r", "v", "w"]
    assert source(model, "pool", 0) == "r"
    assert node(model, "flat").input[0] == "p" == node(model, "c").input[0]
    # A reader in float keeps the pair below: it must not see quantized values.
    model = build(text.replace("[c] z = Conv(p, v)", "[s] z = GlobalAveragePool(p)"), **weights)
    quantized(model, tmp_path)
    assert pairs(model) == ["p", "w"]
    assert node(model, "pool").input[0] == "r" and node(model, "s").input[0] == "p"


def test_concat_shares_one_scale(tmp_path):
    text = """g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {
      a = Relu(x)
      b = Mul(a, five)
      [cat] c = Concat<axis = 1>(a, b)
      [c1] y = Conv(c, w)
      [c2] z = Conv(a, v)
    }"""
    weights = {
        "w": array((16, 32, 1, 1)),
        "v": array((16, 16, 1, 1)),
        "five": np.array(5, np.float32),
    }
    model = build(text, **weights)
    quantized(model, tmp_path, min_sqnr=20)  # a shared scale costs the narrow branch bits
    assert pairs(model) == ["a", "b", "c", "v", "w"]
    assert source(model, "cat", 0) == "a" and source(model, "cat", 1) == "b"
    assert scale_of(model, "a") == scale_of(model, "b") == scale_of(model, "c")
    assert node(model, "c2").input[0] == node(model, "cat").input[0]
    # With a reader in float the inputs are left alone, and the scales are still one.
    text = text.replace("float[N, 16, 4, 4] z)", "float[N, 16, 4, 4] z, float[N, 32, 4, 4] s)")
    model = build(text.replace("[c2]", "[sig] s = Sigmoid(c) [c2]"), **weights)
    quantized(model, tmp_path, min_sqnr=20)
    assert pairs(model) == ["a", "c", "v", "w"] and node(model, "cat").input[1] == "b"
    assert node(model, "sig").input[0] == "c"
    assert scale_of(model, "a") == scale_of(model, "c")


def test_nested_concats_end_with_one_scale(tmp_path):
    model = build(
        """g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {
          a = Relu(x) b = Mul(a, k) c = Concat<axis = 1>(a, b) d = Mul(c, k)
          e = Concat<axis = 1>(c, d)
          [c1] y = Conv(e, w) [c2] z = Conv(a, v)
        }""",
        w=array((16, 64, 1, 1)),
        v=array((16, 16, 1, 1)),
        k=np.array(2, np.float32),
    )
    quantized(model, tmp_path, min_sqnr=20)
    assert {float(scale_of(model, v)) for v in pairs(model) if v in "acde"} == {
        float(scale_of(model, "e"))
    }


# --- the sparse rule -----------------------------------------------------------------------
def test_the_result_of_a_sparse_layer_is_quantized_behind_its_epilogue(tmp_path):
    for target, expected in (
        ("sm86-trt10", ["c", "h", "w1", "w2", "w3", "x"]),
        ("sm86-trt8", ["c", "h", "w1", "w2", "w3", "x"]),
    ):
        model = cnn()
        sparse(model, "w2", 1)
        result = quantized(model, tmp_path, target=targets.load(target), min_sqnr=25)
        assert pairs(model) == expected
        out = record(result, "c2").facts.get("output")
        assert out == ("h" if target == "sm86-trt10" else None)


def test_every_reader_of_a_sparse_result_reads_int8(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 32] y) "
        "{ [fc] h = MatMul(x, w) a = Add(b, h) r = Relu(a) [s] p = Softmax(r) [t] y = Mul(p, r) }",
        w=array((32, 32)),
        b=array((32,)),
    )
    dense = Model.from_bytes(model.to_bytes())
    sparse(model, "w", 0).claims.discard("w")  # as others pruned it: lint sees values, no record
    result = quantized(model, tmp_path, min_sqnr=20)  # a Softmax of wide values sharpens errors
    assert pairs(model) == ["r", "w", "x"]
    assert source(model, "s", 0) == source(model, "t", 1) == "r"
    assert record(result, "fc").facts["output"] == "r"
    assert result.passes[0].statistics["sparse_outputs"] == 1
    quantized(dense, tmp_path, min_sqnr=20)
    assert pairs(dense) == ["w", "x"]


def test_swish_belongs_to_the_epilogue(tmp_path):
    model = build(
        "g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y) "
        "{ [c] h = Conv(x, w) [sig] s = Sigmoid(h) [mul] m = Mul(h, s) y = Neg(m) }",
        w=array((16, 16, 1, 1)),
    )
    sparse(model, "w", 1)
    result = quantized(model, tmp_path)
    assert record(result, "c").facts["output"] == "m"
    assert list(node(model, "mul").input) == ["h", "s"]


def test_a_sparse_layer_that_makes_a_graph_output_keeps_it(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) { [fc] y = MatMul(x, w) }", w=array((32, 24))
    )
    sparse(model, "w", 0)
    result = quantized(model, tmp_path)
    assert pairs(model) == ["w", "x"] and "output" not in record(result, "fc").facts
    assert [key.name for key in model.claims.keys()] == ["w"]  # noqa: SIM118 - no mapping


# --- refusals ------------------------------------------------------------------------------
MATMUL = "g (float[N, {k}] x) => (float[N, {n}] y) {{ [fc] y = MatMul(x, w) }}"


@pytest.mark.parametrize(
    ("code", "text", "shape"),
    [
        ("O24-210", "g (float[1, 32] x) => (float[1, 24] y) { [fc] y = MatMul(x, w) }", (32, 24)),
        ("O24-210", "g (float[N, 32] x) => (float[N] y) { [fc] y = MatMul(x, w) }", (32,)),
        ("O24-210", "g (float[N, 32] x) => (float[N, 1] y) { [fc] y = MatMul(x, w) }", (32, 1)),
        ("O24-210", "g (float[32, 1] x) => (float[24, 1] y) { [fc] y = MatMul(w, x) }", (24, 32)),
        ("O24-210", "g (float[1, 32] x) => (float[1, 24] y) { [fc] y = Gemm(x, w) }", (32, 24)),
        ("O24-211", MATMUL.format(k=12, n=24), (12, 24)),
        ("O24-211", MATMUL.format(k=32, n=10), (32, 10)),
        (
            "O24-212",
            "g (float[N, 8, 4, 4] x) => (float[N, 32, 3, 4] y) { [fc] y = Conv(x, w) }",
            (32, 8, 2, 1),
        ),
        ("O24-214", "", ()),
        ("O24-216", "g (double[N, 32] x) => (double[N, 24] y) { [fc] y = MatMul(x, w) }", (32, 24)),
        (
            "O24-216",
            "g (float16[N, 32] x) => (float16[N, 24] y) { [fc] y = MatMul(x, w) }",
            (32, 24),
        ),
        (
            "O24-213",
            "g (float[N, 32] x, float[32, 24] w) => (float[N, 24] y) { [fc] y = MatMul(x, w) }",
            (),
        ),
        ("O24-218", MATMUL.format(k=32, n=24), (32, 24)),
    ],
)
def test_refused_and_untouched(code, text, shape, tmp_path):
    weights = {}
    if code == "O24-214":
        text = (
            "g (float[N, 32] x) => (float[N, 24] y) { q = QuantizeLinear(x, s, z) "
            "d = DequantizeLinear(q, s, z) f = Flatten(d) [fc] y = MatMul(f, w) }"
        )
        weights = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
        shape = (32, 24)
    if shape:
        dtype = {"double": np.float64, "float16": np.float16}.get(text[3:].split("[")[0])
        weights["w"] = array(shape, dtype=dtype or np.float32)
    model = build(text, **weights)
    before = model.to_bytes()
    options = "exclude=fc" if code == "O24-218" else ""
    result = quantized(model, tmp_path, options, data=load_data("random:2", model))
    found = record(result, "fc")
    assert (found.action, found.code) == ("refused", code) and found.reason
    assert model.to_bytes() == before


FEW = {
    # name: weight, groups, quantized as the first convolution, quantized as a later one
    "8-to-32": ((32, 8, 3, 3), 1, True, True),
    "3-to-32": ((32, 3, 3, 3), 1, True, True),
    "3-to-30": ((30, 3, 3, 3), 1, False, False),
    "8-to-8": ((8, 8, 3, 3), 1, True, False),
    "oblong": ((32, 8, 3, 1), 1, False, False),
    "depthwise": ((24, 1, 3, 3), 24, True, True),
    "depthwise-1x1": ((24, 1, 1, 1), 24, False, False),
    "depthwise-12": ((12, 1, 3, 3), 12, False, False),
    "wide-groups": ((32, 16, 1, 1), 2, True, True),
}


@pytest.mark.parametrize("form", FEW)
def test_convolutions_of_few_channels(form, tmp_path):
    shape, group, first, later = FEW[form]
    channels = shape[1] * group
    model = build(
        f"g (float[N, {channels}, 8, 8] x) => (float[N, C, H, W] y) "
        f"{{ [fc] y = Conv<group = {group}>(x, w) }}",
        w=array(shape),
    )
    assert codes(quantized(model, tmp_path))["fc"] == ("O24-200" if first else "O24-212")
    model = build(
        "g (float[N, 16, 8, 8] x) => (float[N, C, H, W] y) "
        f"{{ [c0] h = Conv(x, v) r = Relu(h) [fc] y = Conv<group = {group}>(r, w) }}",
        v=array((channels, 16, 1, 1)),
        w=array(shape),
    )
    result = quantized(model, tmp_path, min_sqnr=None)
    assert codes(result)["fc"] == ("O24-200" if later else "O24-212")


def test_products_of_two_activations_and_of_two_constants(tmp_path):
    model = build(
        "g (float[N, 16, 32] x, float[N, 32, 16] z) => (float[N, 16, 16] y, float[16, 16] c) "
        "{ [dynamic] y = MatMul(x, z) [static] c = MatMul(w, v) }",
        w=array((16, 32)),
        v=array((32, 16)),
    )
    result = quantized(model, tmp_path)
    assert codes(result) == {"dynamic": "O24-213", "static": "O24-213"}


def test_an_initializer_that_may_be_overridden_is_no_constant(tmp_path):
    text = "g (float[N, 32] x, float[32, 24] w) => (float[N, 24] y) { [fc] y = MatMul(x, w) }"
    model = build(text, w=array((32, 24)))
    result = quantized(model, tmp_path, data=load_data("random:2", model))
    assert codes(result)["fc"] == "O24-213"


@pytest.mark.parametrize(("body", "code"), [("Sub(x, x)", "O24-215"), ("Log(x)", "O24-220")])
def test_activations_without_a_range(body, code, tmp_path):
    model = build(
        f"g (float[N, 32] x) => (float[N, 24] y, float[N, 24] z) {{ h = {body} "
        "[bad] y = MatMul(h, w) [good] z = MatMul(x, w) }",
        w=array((32, 24)),
    )
    data = samples(model, tmp_path)
    result = quantized(model, tmp_path, data=data, min_sqnr=None)
    assert codes(result) == {"bad": code, "good": "O24-200"}
    assert pairs(model) == ["w", "x"] and node(model, "bad").input[1] == "w"


def test_layers_in_bodies_stay_in_float(tmp_path):
    model = build(
        """g (float[N, 32] x, bool[1] c) => (float[N, 24] y) {
          [outer] h = MatMul(x, w)
          [choice] y = If(c) <
            then_branch = t () => (float[N, 24] a) { [inner] m = MatMul(h, v) a = MatMul(m, v) },
            else_branch = e () => (float[N, 24] b) { b = Identity(h) }
          >
        }""",
        w=array((32, 24)),
        v=array((24, 24), 1),
    )
    sparse(model, "w", 0)
    data = samples(model, tmp_path, c=np.ones((64, 1), bool))
    result = quantized(model, tmp_path, data=data)
    found = codes(result)
    assert found["outer"] == "O24-200" and found["inner"] == "O24-219"
    assert record(result, "inner").scope == "choice.then_branch"
    assert pairs(model) == ["w", "x"]  # what bodies capture is still the float


def test_nan_in_a_weight_is_an_error(tmp_path):
    w = array((32, 24))
    w[3, 3] = np.nan
    model = build(MATMUL.format(k=32, n=24), w=w)
    before = model.to_bytes()
    with pytest.raises(InputError, match="O24-008"):
        quantized(model, tmp_path, min_sqnr=None)
    assert model.to_bytes() == before
    quantized(model, tmp_path, "exclude=w", min_sqnr=None)


def test_what_is_needed(tmp_path):
    model = build(MATMUL.format(k=32, n=24), w=array((32, 24)))
    with pytest.raises(InputError, match="O24-035"):
        run(model, parse("qdq"), target=TARGET, reproducer_dir=None)
    nothing = build("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    run(nothing, parse("qdq"), target=TARGET, reproducer_dir=None)
    old = build(MATMUL.format(k=32, n=24), opset=12, ir=7, w=array((32, 24)))
    with pytest.raises(InputError, match="O24-009") as caught:
        quantized(old, tmp_path)
    assert "upgrade-opset{to=13}" in str(caught.value)
    run(
        old,
        parse("upgrade-opset{to=13},qdq"),
        target=TARGET,
        calibration=samples(old, tmp_path),
        reproducer_dir=None,
    )
    assert pairs(old) == ["w", "x"]


def test_options(tmp_path):
    text = (
        "g (float[N, 32] x) => (float[N, 24] y, float[N, 24] z) "
        "{ [a] y = MatMul(x, w) [b] z = MatMul(x, v) }"
    )
    weights = {"w": array((32, 24)), "v": array((32, 24), 1)}
    for options, expected in (
        ("include=a", {"a": "O24-200", "b": "O24-218"}),
        ("include=v", {"a": "O24-218", "b": "O24-200"}),
        ("exclude=b*", {"a": "O24-200", "b": "O24-218"}),
    ):
        assert codes(quantized(build(text, **weights), tmp_path, options)) == expected
    with pytest.raises(InputError, match="O24-023"):
        quantized(build(text, **weights), tmp_path, "exclude=nothing")
    for bad in ("percentile=0", "percentile=101", "calibrator=median"):
        with pytest.raises(InputError, match="O24-023"):
            parse(f"qdq{{{bad}}}")


def test_random_data_and_unconfirmed_targets_are_said(tmp_path):
    model = build(MATMUL.format(k=32, n=24), w=array((32, 24)))
    result = quantized(
        model, tmp_path, target=targets.load("sm86-rtx1"), data=load_data("random:8", model)
    )
    said = {d.code for d in result.diagnostics}
    assert {"O24-034", "O24-400"} <= said
    none = dataclasses.replace(TARGET, int8=False)
    model = build(MATMUL.format(k=32, n=24), w=array((32, 24)))
    result = quantized(model, tmp_path, target=none)
    assert codes(result) == {"fc": "O24-221"}


# --- invariants ----------------------------------------------------------------------------
def test_a_second_run_changes_nothing(tmp_path):
    for model in (cnn(), build(MATMUL.format(k=32, n=24), w=array((32, 24)))):
        for key in model.weights:
            if len(model.weights.info(key).shape) == 4:
                sparse(model, key.name, 1)
        data = samples(model, tmp_path)
        quantized(model, tmp_path, data=data, min_sqnr=20)
        once = model.to_bytes()
        result = quantized(model, tmp_path, data=data)
        assert model.to_bytes() == once
        assert set(codes(result).values()) == {"O24-214"}


def test_a_limit_of_sites_leaves_the_rest_as_it_was(tmp_path):
    model = cnn()
    result = quantized(model, tmp_path, min_sqnr=25, site_limit=1)
    assert codes(result) == {"c1": "O24-200", "c2": "O24-218", "c3": "O24-218"}
    assert pairs(model) == ["w1", "x"] and result.sites == ["qdq: c1"]
    untouched = cnn()
    before = untouched.to_bytes()
    quantized(untouched, tmp_path, site_limit=0)
    assert untouched.to_bytes() == before


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one, two = cnn(), cnn()
    data = samples(one, tmp_path)
    quantized(one, tmp_path, data=data, min_sqnr=None)
    quantized(two, tmp_path, data=data, min_sqnr=None)
    assert one.to_bytes() == two.to_bytes()


def test_zeros_of_a_pruned_weight_stay_zeros(tmp_path):
    w = array((32, 24))
    model = build(MATMUL.format(k=32, n=24), w=w)
    run(model, parse("prune24"), target=TARGET, reproducer_dir=None)
    pruned = np.array(model.weights["w"])
    quantized(model, tmp_path)
    scale = scale_of(model, "w")
    assert not quantize(pruned, scale, 1)[pruned == 0].any()
    assert (pruned == 0).sum() == pruned.size // 2


def test_constant_nodes_and_external_weights(tmp_path):
    model = build(
        "g (float[N, 32] x) => (float[N, 24] y) { c = Constant<value = float[1] {1.0}>() "
        "h = Mul(x, c) [fc] y = MatMul(h, w) }",
        w=array((32, 24)),
    )
    full = model.full_proto()
    constant = onnx.helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(array((32, 24)))
    )
    del full.graph.initializer[:]
    full.graph.node.insert(0, constant)
    model = Model.from_proto(full)
    assert codes(quantized(model, tmp_path))["fc"] == "O24-200"
    assert pairs(model) == ["h", "w"]
    build(MATMUL.format(k=32, n=24), w=array((32, 24))).save(
        tmp_path / "m.onnx", external="external"
    )
    external = Model.load(tmp_path / "m.onnx")
    result = quantized(external, tmp_path, min_sqnr=None)
    assert codes(result) == {"fc": "O24-200"}


def test_bfloat16(tmp_path):
    """ONNX Runtime has no bfloat16 MatMul on the CPU: the reference runs it in float32."""
    text = "g (bfloat16[N, 32] x) => (bfloat16[N, 24] y) { [fc] y = MatMul(x, w) }"
    weights = {
        "w": array((32, 24), dtype=ml_dtypes.bfloat16),
        "v": array((32, 32), dtype=ml_dtypes.bfloat16),
    }
    model = build(text, opset=19, ir=9, w=weights["w"])
    quantized(model, tmp_path, data=load_data("random:1", model), min_sqnr=None)
    assert scale_of(model, "x").dtype == scale_of(model, "w").dtype == ml_dtypes.bfloat16
    text = text.replace("[fc] y = MatMul(x, w)", "[a] h = MatMul(x, v) [fc] y = MatMul(h, w)")
    model = build(text, opset=19, ir=9, **weights)
    quantized(model, tmp_path, data=load_data("random:1", model), min_sqnr=None)
    assert scale_of(model, "h").dtype == ml_dtypes.bfloat16


# --- real models ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_trained_models_keep_their_accuracy(
    name, fixture_models, digits, digits_calib, digits_data, tmp_path
):
    from onnx24.runtime.session import Session

    fixture = fixture_models[name]
    model = Model.load(fixture.path)
    before = digits_data.accuracy(
        Session(model).run({fixture.input: digits.test_x})["logits"], digits.test_y
    )
    data = load_data(str(digits_calib), model)
    result = run(model, parse("qdq"), target=TARGET, calibration=data, reproducer_dir=None)
    after = digits_data.accuracy(
        Session(model).run({fixture.input: digits.test_x})["logits"], digits.test_y
    )
    assert after >= before - 0.003  # one image of 360
    assert compare(Model.load(fixture.path), model, data).worst.sqnr_db > 35
    assert result.passes[0].statistics["quantized"] == {"cnn": 5, "vit": 13}[name]


@pytest.mark.parametrize("form", ["matmul", "matmul-left", "gemm-transB", "conv", "grouped"])
def test_tensorrt_rtx_computes_the_layer_in_int8(form, tmp_path):
    from onnx24 import backends

    rtx = backends.get("tensorrt-rtx")
    if not rtx.available().ok:
        pytest.skip("tensorrt-rtx is not installed: pip install 'onnx24[rtx]'")
    text, shape, _, x, y = FORMS[form]
    dims, outs = (",".join(map(str, [8, *d])) for d in (x, y))
    weights = {"w": array(shape)} | ({"b": array((24,), 1)} if "b)" in text else {})
    model = build(f"g (float[{dims}] x) => (float[{outs}] y) {{ {text} }}", **weights)
    result = quantized(model, tmp_path)
    assert codes(result)["fc"] == "O24-200"
    model.save(tmp_path / "m.onnx")
    built = rtx.build(
        tmp_path / "m.onnx", targets.load("sm86-rtx1"), engine=tmp_path / "e", timeout_s=120
    )
    layers = [layer for layer in built.layers if "fc" in layer.onnx_nodes]
    assert any("int8" in layer.dtypes_in for layer in layers), built.layers
