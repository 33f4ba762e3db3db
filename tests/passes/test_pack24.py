"""pack24 and unpack24: every bit comes back, runtimes run the file, readers see through."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx24.passes.canonicalize import Canonicalize
from onnx24.passes.pack24 import Pack24
from onnx24.passes.prune24 import Prune24
from onnx24.passes.unpack24 import Unpack24

from onnx24 import targets
from onnx24.analysis.cache import AnalysisCache
from onnx24.analysis.invariants import broken_claims
from onnx24.backends.onnx_file import OnnxFile
from onnx24.errors import InputError
from onnx24.gate.judge import judge
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.packed import unpack, unpacked
from onnx24.report.diff import diff
from onnx24.report.inspection import inspect
from onnx24.report.policy import parse_policy
from onnx24.sparsity.masks import prune_24
from onnx24.testing.passes import apply, assert_same, outputs, text_model

POLICY = "[sparsity]\nmin_coverage = 1.0\nclaims = true\n"
TYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8]
PRODUCTS = {
    "matmul": ("float[N, 64] x, float[64, 32] w", "MatMul(x, w)", (64, 32), 0),
    "gemm": ("float[N, 64] x, float[32, 64] w", "Gemm<transB=1>(x, w)", (32, 64), 1),
    "conv": ("float[N, 16, 9, 9] x, float[8, 16, 3, 3] w", "Conv(x, w)", (8, 16, 3, 3), 1),
    "batched": ("float[N, 3, 5, 16] x, float[3, 16, 8] w", "MatMul(x, w)", (3, 16, 8), 1),
}


def product(kind: str) -> tuple[Model, np.ndarray]:
    """A model of one product, and its 2:4 weight."""
    inputs, call, shape, axis = PRODUCTS[kind]
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    weight = prune_24(values, axis)
    data = inputs.split(", float")[0]
    rank = {"matmul": "N, 32", "gemm": "N, 32", "conv": "N, 8, 7, 7", "batched": "N, 3, 5, 8"}[kind]
    text = f"g ({data}) => (float[{rank}] y) {{ [p] y = {call} }}"
    return text_model(text, weights={"w": weight}), weight


@pytest.mark.parametrize("kind", PRODUCTS)
def test_packed_models_run_as_before_and_come_back(kind: str) -> None:
    model, weight = product(kind)
    model.claims.add("w")
    before = outputs(model)
    apply(model, Pack24(min_bytes=0))
    assert "w" not in model.weights
    assert_same(before, outputs(model))
    assert broken_claims(model, AnalysisCache()) == []
    once = model.to_bytes()
    apply(model, Pack24(min_bytes=0))
    assert model.to_bytes() == once
    apply(model, Unpack24())
    assert model.weights["w"].tobytes() == weight.tobytes()
    assert list(model.claims) == [ValueKey("", "w")]
    assert not model.proto.functions and "onnx24" not in model.opsets


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_every_bit_comes_back_in_the_runtime_and_in_ours(dtype: type) -> None:
    rng = np.random.default_rng(11)
    bits = rng.integers(0, 256, (64, 32 * np.dtype(dtype).itemsize), np.uint8)
    weight = bits.view(dtype).reshape(64, 32)  # NaN, infinities, subnormal values, -0
    finite = np.where(np.isnan(weight.astype(np.float32)), 1, weight).astype(dtype)
    is_byte = dtype is np.uint8  # which no mask is made for
    weight = prune_24(finite.view(np.int8) if is_byte else finite, 0).view(dtype)
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    # A Cast reads the weight besides the product that makes it one.
    model = text_model(
        "g (float[N, 64] x) => (float[N, 32] y) { f = Cast<to=1>(w)\n y = MatMul(x, f) }",
        weights={"w": weight},
    )
    apply(model, Pack24(min_bytes=0))
    assert model.weights["w.values24"].nbytes == weight.nbytes // 2
    assert model.weights["w.places24"].nbytes == weight.size // 8
    assert unpacked(model).weights["w"].tobytes() == weight.tobytes()
    if dtype is not ml_dtypes.bfloat16:  # which the runtime's Python API does not hand out
        shown = model.full_proto()
        shown.graph.output.append(onnx.helper.make_tensor_value_info("w", code, [64, 32]))
        session = ort.InferenceSession(
            shown.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        x = np.zeros((1, 64), np.float32)
        assert session.run(["w"], {"x": x})[0].tobytes() == weight.tobytes()


def test_weights_stay_for_a_stated_reason() -> None:
    rng = np.random.default_rng(5)
    sparse = prune_24(rng.standard_normal((64, 8)).astype(np.float32), 0)
    negative = np.where(sparse == 0, np.float32(-0.0), sparse)
    text = """g (float[N, 64] x) => (float[N, 8] a, float[N, 8] b, float[N, 8] c) {
        a = MatMul(x, dense)
        b = MatMul(x, minus)
        wide = Cast<to=1>(eight)
        c = MatMul(x, wide)
    }"""
    eight = sparse.astype(ml_dtypes.float8_e4m3fn)
    dense = rng.standard_normal((64, 8)).astype(np.float32)
    model = text_model(text, opset=19, weights={"dense": dense, "minus": negative, "eight": eight})
    before = model.to_bytes()
    ctx = apply(model, Pack24(min_bytes=0))
    reasons = {record.weight: (record.code, record.reason) for record in ctx.records}
    assert {code for code, _ in reasons.values()} == {"O24-354"}
    assert "not 2:4" in reasons["dense"][1]
    assert "-0" in reasons["minus"][1]
    assert "float8_e4m3fn" in reasons["eight"][1]
    assert model.to_bytes() == before


def test_tied_weights_and_bodies() -> None:
    w = prune_24(np.random.default_rng(2).standard_normal((16, 16)).astype(np.float32), 0)
    text = """g (float[N, 16] x, bool c) => (float[N, 16] y) {
        a = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[N, 16] p) { p = MatMul(a, w) },
                    else_branch = e () => (float[N, 16] q) { q = MatMul(a, u) }>
    }"""
    model = text_model(text, weights={"w": w, "u": w * np.float32(0.5)})
    before = outputs(model)
    ctx = apply(model, Pack24(min_bytes=0))
    assert [record.weight for record in ctx.records] == ["w", "u"]
    assert_same(before, outputs(model))
    apply(model, Canonicalize())
    assert model.weights["w"].tobytes() == w.tobytes()
    assert_same(before, outputs(model))


def test_readers_see_through(tmp_path) -> None:
    model, _ = product("conv")
    apply(model, Prune24())
    model.save(tmp_path / "plain.onnx")
    apply(model, Pack24(min_bytes=0))
    model.save(tmp_path / "packed.onnx")
    packed = Model.load(tmp_path / "packed.onnx")
    (row,) = inspect(packed, targets.load(targets.DEFAULT), "packed.onnx").rows
    assert (row.name, row.is_24, row.claimed, row.packed) == ("w", True, True, True)
    change = diff(Model.load(tmp_path / "plain.onnx"), packed)
    assert not change.nodes and not change.initializers and not change.values
    checked = judge(
        str(tmp_path / "packed.onnx"), parse_policy(POLICY, "p"), target=targets.DEFAULT
    )
    assert checked.exit_code == 0, checked.findings
    assert checked.facts["coverage"] == 1.0
    read = OnnxFile.read(tmp_path / "packed.onnx")
    handed = read.handed_over(tmp_path / "packed.onnx", tmp_path)
    assert read.packed and "w" in Model.load(handed).weights
    assert packed.proto == Model.load(tmp_path / "packed.onnx").proto  # nobody changed it


@pytest.mark.parametrize("damage", ["places", "shape", "function"])
def test_damaged_arrays_are_refused(damage: str) -> None:
    model, _ = product("matmul")
    model.claims.add("w")
    apply(model, Pack24(min_bytes=0))
    if damage == "places":
        places = np.array(model.weights["w.places24"])
        places[0, 0] = 0
        model.weights.replace("w.places24", places)
    elif damage == "shape":
        (node,) = (n for n in model.proto.graph.node if n.op_type == "Unpack24")
        next(a for a in node.attribute if a.name == "shape").ints[0] = 60
    else:
        del model.proto.functions[0].node[0]
    before = model.to_bytes()
    with pytest.raises(InputError, match="O24-357"):
        unpack(model)
    assert model.to_bytes() == before
    (problem,) = broken_claims(model, AnalysisCache())
    assert problem.code == "O24-807"
