"""lint: Q/DQ of other tools, judged and repaired. What is called exact is compared bit by bit in
ONNX Runtime, with no graph optimization."""

from __future__ import annotations

import importlib.util

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.weight_uses import WeightUses
from onnx24.backends import Profile, get
from onnx24.backends.onnx_file import OnnxFile
from onnx24.errors import BackendError, NotMetError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr.manager import RunResult, run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session

TARGET = targets.load("sm86")
INT8_OUT = next(
    target
    for target in map(targets.load, targets.names())
    if target.output_qdq_for_sparse and target.int8
)
F32, I8, U8, I32 = np.float32, np.int8, np.uint8, np.int32


def array(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def build(text: str, *, opset: int = 17, ir: int = 8, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return Model.from_proto(proto)


def outputs(model: Model, seed: int = 5) -> list[np.ndarray]:
    session = Session(model, optimize=False)
    shown = [value.name for value in model.proto.graph.output]
    batches = load_data("random:4", model, seed=seed).batches(model)
    return [found[name] for found in map(session.run, batches) for name in shown]


def lint(model: Model, options: str = "", target=TARGET, **more) -> RunResult:
    return run(model, parse(f"lint{options}"), target=target, reproducer_dir=None, **more)


def fix(model: Model, **more) -> RunResult:
    """Repair; no bit of the outputs changes, and a second run finds nothing to do."""
    want = outputs(model)
    result = lint(model, "{fix}", **more)
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    once = model.to_bytes()
    if not more:
        assert "O24-226" not in codes(lint(model, "{fix}"))
        assert model.to_bytes() == once
    return result


def codes(result: RunResult) -> list[str]:
    return [record.code for record in result.records]


def found(model: Model, target=TARGET) -> list[str]:
    """The codes of the findings; nothing changes."""
    before = model.to_bytes()
    try:
        return sorted(codes(lint(model, target=target)))
    except NotMetError as err:
        return sorted(problem.code for problem in err.diagnostics)
    finally:
        assert model.to_bytes() == before


def dtypes(model: Model) -> dict[str, str]:
    return {key.name: model.weights[key].dtype.name for key in model.weights}


PRODUCT = """g (float[N, 32] x) => (float[N, 24] y) {
  q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
  wd = DequantizeLinear<axis = 1>(w, ws, wz)
  bd = DequantizeLinear(b, bs, bz)
  [fc] y = Gemm(d, wd, bd)
}"""
FLOAT_BIAS = PRODUCT.replace("bd = DequantizeLinear(b, bs, bz)", "bd = Identity(b)")


def product(text: str = PRODUCT, *, opset: int = 17, ir: int = 8, **given: np.ndarray) -> Model:
    """A quantized Gemm in the form that TensorRT wants, but for what `given` replaces."""
    rng = np.random.default_rng(1)
    values = {
        "s": F32(0.03),
        "z": I8(0),
        "w": rng.integers(-127, 128, (32, 24)).astype(I8),
        "ws": rng.uniform(0.001, 0.01, 24).astype(F32),
        "wz": np.zeros(24, I8),
        "b": array(24, 3),
        **given,
    }
    if "bs" in text:
        values.setdefault("bs", rng.uniform(1e-4, 1e-3, 24).astype(F32))
        values.setdefault("bz", np.zeros(24, I32))
        values["b"] = given.get("b", rng.integers(-20000, 20000, 24).astype(I32))
        text = text.replace("DequantizeLinear(b,", "DequantizeLinear<axis = 0>(b,")
    return build(text, opset=opset, ir=ir, **values)


# --- findings ------------------------------------------------------------------------------
def test_what_tensorrt_takes_has_no_finding():
    model = product(FLOAT_BIAS)
    result = lint(model)
    assert not result.records
    assert result.passes[0].statistics == {"findings": 0, "quantized": 1, "products": 1}


def test_a_float_model_is_left_alone():
    model = build("g (float[N, 32] x) => (float[N, 24] y) { y = MatMul(x, w) }", w=array((32, 24)))
    before = model.to_bytes()
    assert not lint(model).records and not lint(model, "{fix symmetric}").records
    assert model.to_bytes() == before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"z": I8(3)}, ["O24-630", "O24-630"]),
        ({"z": U8(0)}, ["O24-631", "O24-631"]),
        ({"s": np.array([0.03], F32), "z": np.zeros(1, I8)}, ["O24-632"]),
        ({"ws": F32(0.01), "wz": I8(0)}, ["O24-634"]),
    ],
)
def test_each_rule_by_a_near_miss(given, expected):
    assert found(product(FLOAT_BIAS, **given)) == expected


def test_other_near_misses():
    assert found(product()) == ["O24-633"]
    assert found(product(FLOAT_BIAS.replace("q, s, z)", "q, s)"))) == ["O24-228"]
    assert found(product(FLOAT_BIAS.replace("(d, wd", "(x, wd"))) == ["O24-637"]
    square = FLOAT_BIAS.replace("axis = 1", "axis = 0").replace("N, 24", "N, 32")
    sizes = {"w": np.ones((32, 32), I8), "ws": np.ones(32, F32), "wz": np.zeros(32, I8)}
    assert found(product(square, b=array(32), **sizes)) == ["O24-634"]
    used = FLOAT_BIAS.replace("(float[N, 24] y)", "(float[N, 24] y, float[N, 32] k)")
    used = used.replace("[fc]", "k = Cast<to = 1>(q) [fc]")
    assert found(product(used)) == ["O24-636"]


def test_a_weight_on_the_left_has_its_channels_in_the_rows():
    text = """g (float[N, 32, 8] x) => (float[N, 24, 8] y) {
      q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
      wd = DequantizeLinear<axis = AXIS>(w, ws, wz) y = MatMul(wd, d) }"""
    values = {"s": F32(0.03), "z": I8(0), "w": np.ones((24, 32), I8)}
    rows = {"ws": np.ones(24, F32), "wz": np.zeros(24, I8)}
    columns = {"ws": np.ones(32, F32), "wz": np.zeros(32, I8)}
    assert not found(build(text.replace("AXIS", "0"), **values, **rows))
    assert found(build(text.replace("AXIS", "1"), **values, **columns)) == ["O24-634"]


RESIDUAL = """g (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {
  xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)
  vd = DequantizeLinear<axis = 0>(w, ws, wz) [left] c = Conv<pads = [1, 1, 1, 1]>(xd, vd)
  ud = DequantizeLinear<axis = 0>(w, ws, wz) [right] e = Conv<pads = [1, 1, 1, 1]>(xd, ud)
  cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z)
  SUM
}"""


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        ("y = Add(cd, x)", ["O24-638"]),
        ("t = Mul(e, e) y = Add(t, cd)", ["O24-638"]),
        ("y = Add(cd, e)", []),  # of two convolutions one is the skip branch
        ("y = Add(c, xd)", []),
    ],
)
def test_the_branch_of_a_residual_add(total, expected):
    model = build(
        RESIDUAL.replace("SUM", total),
        s=F32(0.05),
        z=I8(0),
        w=np.ones((16, 16, 3, 3), I8),
        ws=np.full(16, 0.01, F32),
        wz=np.zeros(16, I8),
    )
    assert found(model) == expected


def test_a_sparse_product_with_a_float_result_where_the_target_wants_int8():
    w = np.ones((32, 24), I8)
    w[0::4] = w[1::4] = 0
    text = FLOAT_BIAS.replace("[fc] y =", "[fc] p =").replace("bd)", "bd) y = Sin(p)")
    model = product(text, w=w)
    assert found(model, INT8_OUT) == ["O24-639"]
    assert not found(model, targets.load("sm86-trt8")) or not targets.load("sm86-trt8").int8
    assert not found(product(text), INT8_OUT)


# --- what qdq writes -------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("passes", ["qdq", "prune24,qdq,fold-qdq"])
def test_what_qdq_writes_has_no_finding(name, passes, fixture_models, digits_calib):
    model = Model.load(fixture_models[name].path)
    data = load_data(str(digits_calib), model)
    run(model, parse(passes), target=TARGET, calibration=data, reproducer_dir=None)
    before = model.to_bytes()
    result = lint(model, "{fix symmetric}")
    assert codes(result) == [] and model.to_bytes() == before


# --- exact repairs -----------------------------------------------------------------------------
def test_an_int32_bias_becomes_a_float():
    model = product()
    result = fix(model)
    assert codes(result) == ["O24-226"] and not found(model)
    assert dtypes(model)["bd_float"] == "float32"
    assert "b" not in dtypes(model)


def test_a_bias_behind_a_pair_becomes_a_float():
    text = PRODUCT.replace("DequantizeLinear(b, bs, bz)", "DequantizeLinear(bq, t, z)")
    text = text.replace("bd =", "bq = QuantizeLinear(b, t, z) bd =")
    model = product(text, t=F32(0.02), b=array(24))
    fix(model)
    assert not found(model)


def test_an_int32_bias_of_an_add():
    text = FLOAT_BIAS.replace("Gemm(d, wd, bd)", "MatMul(d, wd)").replace("y =", "m =")
    text = text.replace("bd = Identity(b)", "").replace(
        "wd)\n", "wd) bd = DequantizeLinear(b, bs) y = Add(m, bd)\n"
    )
    model = product(text, b=np.arange(24).astype(I32), bs=F32(0.01))
    assert set(found(model)) == {"O24-633", "O24-228"}
    fix(model)
    assert not found(model)


@pytest.mark.parametrize("zero", [128, 0, 255, 131])
def test_unsigned_pairs_become_signed(zero):
    model = product(FLOAT_BIAS, z=U8(zero))
    result = fix(model)
    assert codes(result).count("O24-226") == 1
    assert found(model) == ([] if zero == 128 else ["O24-630", "O24-630"])


def with_inputs(model: Model) -> Model:
    """Every initializer is an input as well, as Brevitas exports them."""
    proto = model.full_proto()
    for tensor in proto.graph.initializer:
        shape = list(tensor.dims)
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
        proto.graph.input.append(value)
    return Model.from_proto(proto)


def test_quantizers_whose_parameters_are_inputs_are_repaired(tmp_path):
    """TensorRT takes an initializer for a constant, whether it is an input or not."""
    model = with_inputs(product(FLOAT_BIAS, z=U8(0)))
    assert "O24-631" in found(model)
    model.save(tmp_path / "m.onnx")
    assert [d.code for d in OnnxFile.read(tmp_path / "m.onnx").warnings()] == ["O24-259"]
    before = {value.name for value in model.proto.graph.input}
    result = lint(model, "{fix symmetric}")
    assert {"O24-347", "O24-227"} <= set(codes(result)) and not found(model)
    left = {value.name for value in model.proto.graph.input}
    assert before - left == {"s", "z", "w", "ws", "wz"}, "the bias is none of Q/DQ's"


def test_unsigned_weights_keep_their_record():
    w = np.full((32, 24), 128, U8)
    w[2::4], w[3::4] = 7, 250
    model = product(FLOAT_BIAS, w=w, wz=np.full(24, 128, U8))
    model.claims.add(ValueKey("", "w"))
    fix(model)
    assert not found(model) and model.claims.keys() == [ValueKey("", "w")]
    assert model.weights["w"].dtype == I8 and not model.weights["w"][0::4].any()


def test_an_unsigned_weight_that_two_read():
    text = FLOAT_BIAS.replace("(float[N, 24] y)", "(float[N, 24] y, float[N, 24] u)").replace(
        "[fc]", "wd2 = DequantizeLinear<axis = 1>(w, ws2, wz) u = MatMul(d, wd2) [fc]"
    )
    model = product(
        text,
        w=np.arange(32 * 24).reshape(32, 24).astype(U8),
        wz=np.full(24, 128, U8),
        ws2=np.full(24, 0.5, F32),
    )
    fix(model)
    assert not found(model)


def test_a_quantizer_without_zero_point_makes_unsigned_integers():
    model = product(FLOAT_BIAS.replace("x, s, z)", "x, s)").replace("q, s, z)", "q, s)"))
    assert found(model) == ["O24-228", "O24-228", "O24-631", "O24-631"]
    fix(model)
    assert found(model) == ["O24-630", "O24-630"]  # TensorRT wants 0; see `symmetric`


def test_the_output_type_of_opset_21_is_written_out():
    text = FLOAT_BIAS.replace("QuantizeLinear(x, s, z)", "QuantizeLinear<output_dtype = 3>(x, s)")
    model = product(text.replace("q, s, z)", "q, s)"), opset=21, ir=10)
    fix(model)
    assert not found(model)


def test_a_scale_of_rank_1_becomes_a_scalar():
    model = product(FLOAT_BIAS, s=np.array([0.03], F32), z=np.zeros(1, I8))
    result = fix(model)
    assert codes(result) == ["O24-226"] * 2 and not found(model)


def test_what_other_nodes_read_stays_unsigned():
    text = FLOAT_BIAS.replace("(float[N, 24] y)", "(float[N, 24] y, uint8[N, 32] q)")
    model = product(text, z=U8(128))
    before = model.to_bytes()
    lint(model, "{fix}")
    assert model.to_bytes() == before


def test_bodies():
    model = build(
        """g (float[N, 8] x, bool c) => (float[N, 8] y) {
          y = If(c) <
            then_branch = t () => (float[N, 8] a) {
              q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)
            },
            else_branch = e () => (float[N, 8] b) { b = Relu(x) }
          >
        }""",
        s=F32(0.02),
        z=U8(128),
    )
    fix(model)
    assert not found(model)


def test_a_limit_of_sites():
    model = product(PRODUCT, z=U8(128))
    assert codes(fix(model, site_limit=1)).count("O24-226") == 1


# --- symmetric ---------------------------------------------------------------------------------
@pytest.mark.parametrize("zero", [0, 131, 255])
def test_symmetric_moves_a_value_by_half_of_each_step(zero):
    text = """g (float[N, 32] x) => (float[N, 32] y) {
      q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    model = build(text, s=F32(0.02), z=U8(zero))
    x = np.linspace(-zero * 0.02, (255 - zero) * 0.02, 640).astype(F32).reshape(-1, 32)
    want = Session(model, optimize=False).run({"x": x})["y"]
    result = lint(model, "{symmetric}")
    (record,) = [r for r in result.records if r.code == "O24-227"]
    got = Session(model, optimize=False).run({"x": x})["y"]
    assert np.abs(got - want).max() <= record.facts["moves_by"] * (1 + 1e-5)
    assert record.facts["step_after"] == pytest.approx(max(zero, 255 - zero) * 0.02 / 127)
    assert not found(model)
    once = model.to_bytes()
    lint(model, "{symmetric}")
    assert model.to_bytes() == once


@pytest.mark.parametrize(("source", "relus"), [("x", 1), ("r", 1), ("p", 1)])
def test_what_a_range_from_0_clipped_is_still_clipped(source, relus):
    """The Relu that ONNX Runtime drops before such a Q is put back, once."""
    extra = {"x": "", "r": "r = Relu(x)", "p": "r = Relu(x) p = Reshape(r, n)"}[source]
    text = f"""g (float[N, 32] x) => (float[N, 32] y) {{ {extra}
      q = QuantizeLinear({source}, s, z) y = DequantizeLinear(q, s, z) }}"""
    model = build(text, s=F32(0.02), z=U8(0), n=np.array([-1, 32]))
    lint(model, "{symmetric}")
    got = outputs(model)
    assert all(values.min() >= 0 for values in got)
    assert sum(node.op_type == "Relu" for node in model.proto.graph.node) == relus


def test_symmetric_weights_take_their_own_range():
    rng = np.random.default_rng(0)
    model = product(
        FLOAT_BIAS,
        w=rng.integers(0, 256, (32, 24)).astype(U8),
        wz=rng.integers(90, 160, 24).astype(U8),
    )
    want = outputs(model)
    lint(model, "{symmetric}")
    assert not found(model) and np.abs(model.weights["w"]).max(0).tolist() == [127] * 24
    for got, expected in zip(outputs(model), want, strict=True):
        noise = ((got - expected) ** 2).sum() / (expected**2).sum()
        assert noise < 1e-3  # 30 dB; measured: 44


# --- ONNX Runtime's own tool ---------------------------------------------------------------------
def rtx_builds(model: Model, tmp_path) -> bool | None:
    """Whether TensorRT-RTX builds the model, in a process of its own; None where it is not
    installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    path = tmp_path / "rtx.onnx"
    model.save(path)
    shapes = {"image": Profile((4, 1, 8, 8), (4, 1, 8, 8), (4, 1, 8, 8))}
    try:
        get("tensorrt-rtx").build(
            path, targets.load("sm86-rtx1"), engine=tmp_path / "e", shapes=shapes, timeout_s=120
        )
    except BackendError:
        return False
    return True


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_a_model_of_onnxruntimes_quantizer(name, fixture_models, digits_calib, tmp_path):
    """quantize_static's default, UINT8 activations and INT32 biases: repaired exactly but for the
    zero points, and then as accurate."""
    tool = pytest.importorskip("onnxruntime.quantization")
    source = Model.load(fixture_models[name].path)
    feeds = list(load_data(str(digits_calib), source).batches(source))[:4]

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = list(feeds)

        def get_next(self):
            return self.left.pop() if self.left else None

    path = tmp_path / "q.onnx"
    tool.quantize_static(
        str(fixture_models[name].path),
        str(path),
        Reader(),
        quant_format=tool.QuantFormat.QDQ,
        activation_type=tool.QuantType.QUInt8,
        weight_type=tool.QuantType.QInt8,
        per_channel=True,
    )
    model = Model.load(path)
    assert rtx_builds(model, tmp_path) in (False, None)
    assert {"O24-631", "O24-633"} <= set(found(model))
    want = [Session(model, optimize=False).run(batch)["logits"] for batch in feeds]
    lint(model, "{fix}")
    for batch, expected in zip(feeds, want, strict=True):
        got = Session(model, optimize=False).run(batch)["logits"]
        np.testing.assert_array_equal(got, expected)
    assert not {"O24-631", "O24-633", "O24-228"} & set(found(model))
    lint(model, "{symmetric}")
    assert "O24-630" not in found(model)
    assert rtx_builds(model, tmp_path) in (True, None)
    same = [
        (Session(model, optimize=False).run(batch)["logits"].argmax(-1) == expected.argmax(-1))
        for batch, expected in zip(feeds, want, strict=True)
    ]
    assert np.concatenate(same).mean() >= 0.97


# --- said in other words -------------------------------------------------------------------
def test_stored_integers_behind_cast_and_mul_are_a_quantized_weight():
    """A weight-only INT8 model grew fourfold, and was not quantized any more."""
    w = np.random.default_rng(3).integers(-127, 128, (24, 32)).astype(I8)
    text = """g (float[N, 32] x, int64[M] i) => (float[N, 24] y, float[M, 32] e) {
      c = Cast<to = 1>(w) d = Mul(c, s) t = Transpose(d) y = MatMul(x, t)
      b = Cast<to = 1>(v) f = Sub(b, z) g = Mul(k, f) e = Gather(g, i)
    }"""
    given = {"w": w, "s": np.geomspace(1e-3, 1e-2, 24).astype(F32).reshape(24, 1)}
    given |= {"v": w.view(U8), "z": F32(128), "k": F32(0.01)}
    model = build(text, **given)
    want = outputs(model)
    result = run(model, parse("canonicalize"), target=TARGET, reproducer_dir=None)
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_array_equal(got, expected)
    ops = sorted(node.op_type for node in model.proto.graph.node)
    assert ops == ["DequantizeLinear", "DequantizeLinear", "Gather", "MatMul", "Transpose"]
    assert codes(result).count("O24-257") == 2
    assert dtypes(model)["w"] == "int8" and dtypes(model)["v"] == "uint8"


@pytest.mark.parametrize("scale", [np.full((24, 32), 0.01, F32), F32(-0.01), F32(0)])
def test_what_is_no_scale_of_a_quantized_weight(scale):
    text = """g (float[N, 32] x) => (float[N, 24] y) {
      c = Cast<to = 1>(w) d = Mul(c, s) t = Transpose(d) y = MatMul(x, t)
    }"""
    model = build(text, w=np.ones((24, 32), I8), s=scale)
    result = run(model, parse("canonicalize"), target=TARGET, reproducer_dir=None)
    assert "O24-257" not in codes(result)


@pytest.mark.parametrize("text", ["canonicalize", "lint{fix}"])
def test_quantizers_of_onnx_runtime_become_those_of_onnx(text):
    model = product(FLOAT_BIAS)
    for node in model.proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    model.proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model = Model.from_proto(model.proto)
    assert found(model) == ["O24-251"] * 3
    want = outputs(model)
    result = run(model, parse(text), target=TARGET, reproducer_dir=None)
    assert codes(result).count("O24-258") == 3 and not found(model)
    assert all(not node.domain for node in model.proto.graph.node)
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_relu_is_put_back_once():
    """The value behind a pair whose range begins at 0 is not negative."""
    model = build(
        """g (float[n, 32] x) => (float[n, 8, 4] y) {
          q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = Reshape(d, shape)
          r = QuantizeLinear(v, s, z) e = DequantizeLinear(r, s, z)
          t = Transpose<perm = [0, 2, 1]>(e) k = QuantizeLinear(t, s, z)
          y = DequantizeLinear(k, s, z)
        }""",
        s=F32(0.02),
        z=I8(-128),
        shape=np.array([0, 4, 8]),
    )
    lint(model, "{fix symmetric}")
    assert [node.op_type for node in model.proto.graph.node].count("Relu") == 1


@pytest.mark.parametrize(
    "chain",
    [
        "r = Clip(w, lo, hi)",
        "r = Transpose(w)",
        "r = Reshape(w, shape)",
        "i = Identity(w) r = Clip(i, lo)",
    ],
)
def test_what_stands_between_a_stored_weight_and_its_quantizer_is_computed(chain):
    given = {"lo": I8(-100), "hi": I8(90), "shape": np.array([32, 24])}
    used = {name: value for name, value in given.items() if name in chain}
    shape = (24, 32) if "Transpose" in chain else (32, 24)
    w = np.random.default_rng(5).integers(-127, 128, shape).astype(I8)
    dq = "wd = DequantizeLinear<axis = 1>"
    text = FLOAT_BIAS.replace(f"{dq}(w,", f"{chain} {dq}(r,")
    model = product(text, w=w, **used)
    assert "O24-253" in found(model)
    fix(model)
    assert not found(model)


@pytest.mark.parametrize(
    ("given", "text", "said"),
    [
        ({"z": U8(0)}, FLOAT_BIAS, ["O24-259"]),
        ({}, FLOAT_BIAS.replace("(x, s, z)", "(x, s)").replace("(q, s, z)", "(q, s)"), ["O24-259"]),
        ({}, FLOAT_BIAS, []),
    ],
)
def test_what_a_builder_reads_otherwise_is_said(given, text, said, tmp_path):
    product(text, **given).save(tmp_path / "m.onnx")
    warnings = OnnxFile.read(tmp_path / "m.onnx").warnings()
    assert [warning.code for warning in warnings] == said


@pytest.mark.parametrize(
    ("zero", "low", "high", "source", "left"),
    [
        (I8(0), -128, 127, "Tanh(x)", []),
        (I8(0), -127, 127, "Tanh(x)", ["Clip"]),  # Brevitas, narrow range
        (U8(0), 0, 127, "Relu(x)", []),  # PyTorch, reduce_range
        (U8(0), 0, 127, "Tanh(x)", ["Relu"]),
        (U8(64), 0, 100, "Tanh(x)", ["Clip"]),
        (I8(-128), -128, -1, "Relu(x)", []),
    ],
)
def test_a_clip_between_quantizers_is_what_int8_saturates_to(zero, low, high, source, left):
    text = """g (float[N, 32] x) => (float[N, 24] y) {
      a = SOURCE q = QuantizeLinear(a, s, z) c = Clip(q, lo, hi) d = DequantizeLinear(c, s, z)
      wd = DequantizeLinear<axis = 1>(w, ws, wz) [fc] y = Gemm(d, wd, b)
    }""".replace("SOURCE", source)
    kind = type(zero)
    model = product(text, s=F32(0.0107), z=zero, lo=kind(low), hi=kind(high))
    assert "O24-636" in found(model)
    fix(model)
    assert not found(model)
    ops = [node.op_type for node in model.proto.graph.node]
    assert ops[1 : ops.index("QuantizeLinear")] == left


@pytest.mark.parametrize(("low", "stays"), [(-127, False), (-50, True)])
def test_a_clip_of_a_weights_integers_goes_where_it_does_nothing(low, stays):
    text = FLOAT_BIAS.replace(
        "wd = DequantizeLinear<axis = 1>(w,",
        "wq = QuantizeLinear<axis = 1>(w, ws, wz) wc = Clip(wq, lo, hi)\n"
        "  wd = DequantizeLinear<axis = 1>(wc,",
    )
    weight = array((32, 24))
    scale = np.abs(weight).max(axis=0) / F32(127)
    model = product(text, w=weight, ws=scale, lo=I8(low), hi=I8(127))
    fix(model)
    assert ("Clip" in [node.op_type for node in model.proto.graph.node]) == stays


@pytest.mark.parametrize("text", ["canonicalize", "lint{fix}"])
def test_tensorrts_own_fp8_nodes_become_onnxs(text):
    values = {"s": F32(0.03), "z": np.zeros((), ml_dtypes.float8_e4m3fn)}
    model = build(
        """g (float[N, 16] x) => (float[N, 12] y) {
          q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
          wq = QuantizeLinear(w, s, z) wd = DequantizeLinear(wq, s, z) y = MatMul(d, wd)
        }""",
        opset=19,
        ir=9,
        w=array((16, 12)),
        **values,
    )
    want = outputs(model)
    for node in model.proto.graph.node:
        if "Linear" in node.op_type:
            node.op_type, node.domain = f"TRT_FP8{node.op_type}", "trt"
            del node.input[2:]
    model.proto.opset_import.append(onnx.helper.make_opsetid("trt", 1))
    model = Model.from_proto(model.proto)
    fp8 = targets.load("sm89-rtx1")
    assert set(found(model, fp8)) == {"O24-251", "O24-634"}
    assert "O24-255" in found(model)
    (line,) = WeightUses.compute(model, AnalysisCache()).products(ValueKey("", "w"))
    assert line.eligible
    result = run(model, parse(text), target=fp8, reproducer_dir=None)
    assert codes(result).count("O24-258") == 4 and set(found(model, fp8)) == {"O24-634"}
    for got, expected in zip(outputs(model), want, strict=True):
        np.testing.assert_array_equal(got, expected)


MOVED = """g (float[2, 4, 6] x) => (float[A, B, C] y) {{
  q = QuantizeLinear(x, s, z) {moves} d = DequantizeLinear({last}, {s}, z) {rest}
}}"""


@pytest.mark.parametrize("zero", [I8(9), U8(128), U8(3)])
@pytest.mark.parametrize(
    ("moves", "last", "rest"),
    [
        ("t = Transpose<perm = [1, 0, 2]>(q)", "t", "y = Identity(d)"),
        ("t = Transpose(q) r = Reshape(t, n)", "r", "e = DequantizeLinear(r, s, z) y = Add(d, e)"),
        ("p = MaxPool<kernel_shape = [3], pads = [1, 1]>(q)", "p", "y = Relu(d)"),
        ("k = Slice(q, i0, i1) t = Identity(k)", "t", "f = Identity(d) y = Concat<axis = 0>(d, f)"),
    ],
)
def test_what_moves_numbers_between_quantizers_stands_behind_them(zero, moves, last, rest):
    text = MOVED.format(moves=moves, last=last, s="s", rest=rest)
    given = {"s": F32(0.03), "z": zero, "n": np.array([4, 6, 2]), "i0": np.array([0])}
    used = {k: v for k, v in {**given, "i1": np.array([1])}.items() if k in text}
    model = build(text, **used)
    fix(model)
    assert [n.op_type for n in model.proto.graph.node][:2] == ["QuantizeLinear", "DequantizeLinear"]
    assert set(found(model)) <= {"O24-630"}
    lint(model, "{symmetric}")
    assert not found(model)


@pytest.mark.parametrize(
    ("moves", "s"), [("t = Relu(q)", "s"), ("t = Transpose(q)", "s2"), ("t = Neg(q)", "s")]
)
def test_what_does_more_than_move_numbers_stays_between(moves, s):
    text = MOVED.format(moves=moves, last="t", s=s, rest="y = Identity(d)")
    model = build(text, z=I8(9), **{name: F32(0.03 + len(name)) for name in {"s", s}})
    fix(model)
    assert [n.op_type for n in model.proto.graph.node][1] == moves.split()[2].split("(")[0]
