"""What qdq says where it quantizes nothing, where INT8 hurts, and of models that come quantized."""

from __future__ import annotations

import numpy as np
import pytest
from test_qdq import TARGET, array, build, ops, quantized, samples

import onnx24
from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.qdq_rules import Quantized, findings
from onnx24.analysis.quantized_otherwise import quantized_otherwise
from onnx24.diagnostics import Diagnostic
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.compare import compare
from onnx24.targets import default_preset

PAIR = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
INT8 = """g (float[N, 32] x) => (float[N, 32] y) {
  q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
  [dq] e = DequantizeLinear(w, s, z) [fc] y = MatMul(d, e)
}"""
LOOP = """g (float[16, 32] x) => (float[16, 32] y) {
  y = Loop(n, t, x) <body = b (int64 i, bool c, float[16, 32] h) => (bool d, float[16, 32] z) {
    d = Identity(c) m = MatMul(h, w) z = Tanh(m) }>
}"""
VECTOR = array((32, 24))
STORED = np.arange(-512, 512).astype(np.int8).reshape(32, 32)


def linear(dtype: str, opset: int) -> Model:
    w = array((32, 24), dtype=np.float32 if dtype == "float" else np.float16)
    text = f"g ({dtype}[N, 32] x) => ({dtype}[N, 24] y) {{ [fc] y = MatMul(x, w) }}"
    return build(text, opset=opset, ir=9, w=w)


NOTHING = {
    "no layers": (
        lambda: build("g (float[N, 32] x) => (float[N, 32] y) { y = Relu(x) }"),
        "O24-222",
        "has no Conv, ConvTranspose, Gemm or MatMul with a constant weight",
        "inspect",
    ),
    "float16 before opset 19": (
        lambda: linear("float16", 17),
        "O24-222",
        "refused by O24-216",
        "upgrade-opset{to=19}",
    ),
    "vectors": (
        lambda: build("g (float[1, 32] x) => (float[1, 24] y) { y = MatMul(x, w) }", w=VECTOR),
        "O24-222",
        "refused by O24-210",
        "export with a dynamic one",
    ),
    "bodies": (
        lambda: build(LOOP, w=STORED[:, :32].astype(np.float32), n=np.array(2), t=np.array(True)),
        "O24-222",
        "refused by O24-219",
        "loop unrolled",
    ),
    "one operand": (
        lambda: build(INT8.replace("MatMul(d, e)", "MatMul(x, e)"), w=STORED, **PAIR),
        "O24-222",
        "Q/DQ on one operand",
        "lint",
    ),
    "int8 already": (
        lambda: build(INT8, w=STORED, **PAIR),
        "O24-246",
        "1 of 1 products are quantized",
        "",
    ),
}


def spoken(result: RunResult) -> Diagnostic | None:
    """What is said of the whole model, if anything."""
    whole = ("O24-222", "O24-246", "O24-247")
    return next((each for each in result.diagnostics if each.code in whole), None)


@pytest.mark.parametrize("case", NOTHING)
def test_nothing_quantized_is_said_with_its_remedy(case, tmp_path):
    make, code, message, hint = NOTHING[case]
    said = spoken(quantized(make(), tmp_path, min_sqnr=None))
    assert said.code == code and message in said.message and hint in said.hint


def test_models_in_16_bit_go_to_the_opset_that_quantizes_them(tmp_path):
    text = targets.presets()["int8"].split(",smooth")[0]
    for model, target, opset in (
        (linear("float16", 13), "sm86", 19),
        (linear("float", 13), "sm86", 13),
        (linear("float16", 13), "sm86-trt8", 13),
    ):
        run(model, parse(text), target=targets.load(target), reproducer_dir=None)
        assert model.opset == opset


def test_the_preset_that_nobody_named():
    assert default_preset(targets.load("sm86-trt10"), calibrated=True) == "sparse-int8-fp16"
    assert default_preset(targets.load("sm86-trt8"), calibrated=True) == "sparse-int8"
    assert default_preset(targets.load("sm86"), calibrated=False) == "sparse-fp16"


def test_int8_with_16_bit_around_it(tmp_path):
    """Attention of opset 23 in FP16, with INT8 results of 2:4 products in front of it."""
    text = """g (float[N, 8, 32] x) => (float[N, 8, 32] y) {
      q = MatMul(x, w) k = MatMul(x, v)
      [att] a = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, k) y = MatMul(a, w)
    }"""
    small = np.float32(0.2)
    model = build(text, opset=23, ir=10, w=array((32, 32)) * small, v=array((32, 32), 1) * small)
    data = samples(model, tmp_path)
    preset = parse("@sparse-int8-fp16")
    run(model, preset, target=TARGET, calibration=data, reproducer_dir=None)
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    (attention,) = (node for node in model.proto.graph.node if node.op_type == "Attention")
    for name in attention.input:
        scale = makers[name].input[1]
        assert makers[name].op_type == "DequantizeLinear"
        assert model.weights[scale].dtype == np.float16
    assert ops(model).count("Cast") == 2
    pytest.importorskip("tensorrt_rtx", reason="pip install 'onnx24[rtx]'")
    from onnx24.backends import Profile, get

    model.save(tmp_path / "m.onnx")
    shapes = {"x": Profile((1, 8, 32), (4, 8, 32), (8, 8, 32))}
    get("tensorrt-rtx").build(tmp_path / "m.onnx", TARGET, engine=tmp_path / "e", shapes=shapes)


# --- INT8 that hurts -----------------------------------------------------------------------
def outliers() -> tuple[Model, np.ndarray]:
    """Eight products side by side into one sum; the input of the last has an outlier in a column
    that its weight hardly reads, which takes the bits of all the others."""
    lines = [f"[fc{i}] h{i} = MatMul(x{i}, w{i})" for i in range(8)]
    lines += ["a1 = Add(h0, h1)"] + [f"a{i} = Add(a{i - 1}, h{i})" for i in range(2, 8)]
    given = ", ".join(f"float[N, 32] x{i}" for i in range(8))
    values = {f"w{i}": array((32, 24), i) for i in range(8)}
    values["w7"][0] = 0
    values["w7"] *= 4
    model = build(f"g ({given}) => (float[N, 24] y) {{ {' '.join(lines)} y = Tanh(a7) }}", **values)
    x = array((64, 32), 9)
    x[:, 0] = 400
    return model, x


def test_layers_that_hurt_an_output_stay_in_float(tmp_path):
    model, x = outliers()
    result = quantized(model, tmp_path, "calibrator=max", data=samples(model, tmp_path, x7=x),
                       min_sqnr=15)  # fmt: skip
    protected = [r.node for r in result.records if r.code == "O24-237"]
    assert protected == ["fc7"] and spoken(result) is None


def test_output_that_is_hurt_is_said_with_the_layers_to_blame(tmp_path):
    model, x = outliers()
    result = quantized(model, tmp_path, "calibrator=max min-output=0",
                       data=samples(model, tmp_path, x7=x), min_sqnr=None)  # fmt: skip
    said = spoken(result)
    assert said.code == "O24-247" and "output 'y' has" in said.message
    assert said.facts["layers"][0] == "fc7" and "min-output" in said.hint


def test_scores_beside_boxes_in_pixels_are_judged_by_themselves(tmp_path):
    """YOLOv8's one output: boxes of hundreds of pixels hide scores that INT8 destroys."""
    lines = [f"[fc{i}] h{i} = MatMul(x{i}, w{i})" for i in range(4)]
    given = ", ".join(f"float[N, 36, 32] x{i}" for i in range(4))
    values = {f"w{i}": array((32, 16), i) for i in range(4)}
    values["w3"][0] = 0
    model = build(
        f"g ({given}) => (float[N, 36, 32] y) <float size = {{320.0}}> {{ {' '.join(lines)} "
        "a = Add(h0, h1) b = Add(a, h2) boxes = Mul(b, size) y = Concat<axis=2>(boxes, h3) }",
        **values,
    )
    x = np.random.default_rng(9).standard_normal((64, 36, 32)).astype(np.float32)
    x[..., 0] = 400  # takes the bits of the columns that fc3 reads
    before, data = Model.from_bytes(model.to_bytes()), samples(model, tmp_path, x3=x)
    result = quantized(model, tmp_path, "calibrator=max", data=data, min_sqnr=30)
    assert [r.node for r in result.records if r.code == "O24-237"] == ["fc3"]
    (out,) = compare(before, model, data).outputs
    assert (out.faint.channels, out.faint.of) == (16, 32) and out.faint.sqnr_db > 20
    result = quantized(before, tmp_path, "calibrator=max min-output=0", data=data, min_sqnr=30)
    assert "in the channels that are small beside its others" in spoken(result).message


# --- models that come quantized ------------------------------------------------------------
def test_foreign_pairs_are_judged_with_the_cure():
    assert quantized_otherwise(build(INT8, w=STORED, **PAIR)) is None
    assert quantized_otherwise(linear("float", 17)) is None
    shifted = quantized_otherwise(build(INT8, w=STORED, s=PAIR["s"], z=np.array(3, np.int8)))
    assert shifted.code == "O24-245" and "lint MODEL --fix --symmetric" in shifted.hint
    integers = build(
        "g (int8[N, 32] x) => (int32[N, 32] y) { [fc] y = MatMulInteger(x, w) }", w=STORED
    )
    found = quantized_otherwise(integers)
    assert found.facts == {"O24-635": 1} and "quantize the float model" in found.hint


@pytest.mark.parametrize(("weight", "zero", "said"), [("c", 0, 0), ("w", 3, 1), ("c", 3, 1)])
def test_compile_judges_pairs_as_canonicalize_leaves_them(weight, zero, said):
    """tensorrt-rtx 1.7.1 refuses an INT8 weight behind Clip, which canonicalize computes."""
    text = INT8.replace("e = DequantizeLinear(w", f"c = Clip(w, z) e = DequantizeLinear({weight}")
    model = build(text, w=np.abs(STORED) // 2, s=PAIR["s"], z=np.array(zero, np.int8))
    x = np.ones((16, 32), np.float32)
    result = onnx24.compile(model.proto, pipeline="canonicalize,qdq", calib=[{"x": x}])
    assert [d.code for d in result.diagnostics].count("O24-245") == said


@pytest.mark.parametrize(("name", "axis"), [("sm86-trt8", 0), ("sm86-trt10", 1)])
def test_the_axis_of_a_transposed_convolution_is_the_targets(name, axis, tmp_path):
    """Sources contradict each other (NVIDIA/TensorRT 2380), so that it is said."""
    model = build(
        "g (float[N, 32, 4, 4] x) => (float[N, 24, 6, 6] y) { [fc] y = ConvTranspose(x, w) }",
        w=array((32, 24, 3, 3)),
    )
    result = quantized(model, tmp_path, target=targets.load(name))
    (pair,) = (n for n in model.proto.graph.node if n.input[0] == "w")
    assert pair.attribute[0].i == axis and model.weights["w_scale"].shape == ([32, 24][axis],)
    said = [each for each in result.diagnostics if each.code == "O24-400"]
    assert any("ConvTranspose" in each.message for each in said)
    assert not list(findings(Quantized.of(model, AnalysisCache()), sparse_outputs=True))
