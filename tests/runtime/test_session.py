"""ONNX Runtime as the reference: every dtype, activations, and what it refuses."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24.effects import Effects
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.runtime import session as session_module
from onnx24.runtime.data import load_data
from onnx24.runtime.session import Session, activations, require_qdq

MLP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 2] y)
<float[4, 3] w0 = {1,2,3, 4,5,6, 7,8,9, 1,0,1}, float[3, 2] w1 = {1,0, 0,1, 1,1}>
{
  h = MatMul(x, w0)
  r = Relu(h)
  y = MatMul(r, w1)
}"""


def identity(element: int) -> Model:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", element, [2, 3])],
        [helper.make_tensor_value_info("y", element, [2, 3])],
    )
    opset = [helper.make_opsetid("", 19)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=9))


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.float16, np.float32, np.float64, np.int8, np.uint8, np.int16, np.uint16, np.int32),
        *(np.uint32, np.int64, np.uint64, np.bool_, ml_dtypes.bfloat16),
        *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    ],
    ids=lambda d: np.dtype(d).name,
)
def test_every_dtype_goes_in_and_comes_out(dtype):
    x = np.array([[0, 1, 2], [3, 1, 0]]).astype(dtype)
    model = identity(helper.np_dtype_to_tensor_dtype(x.dtype))
    y = Session(model).run({"x": x})["y"]
    assert y.dtype == x.dtype and y.shape == x.shape
    np.testing.assert_array_equal(y.view(np.uint8), x.view(np.uint8))


def test_strings_and_empty_arrays():
    x = np.array([["a", "b", "ç"], ["", "d", "e"]], object)
    y = Session(identity(TensorProto.STRING)).run({"x": x})["y"]
    assert y.tolist() == x.tolist()
    model = Model.from_text(
        '<ir_version: 9, opset_import: ["" : 19]>\n'
        "g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity(x) }"
    )
    assert Session(model).run({"x": np.zeros(0, ml_dtypes.bfloat16)})["y"].shape == (0,)


def test_sequences_come_as_lists():
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[4] x) => (seq(float[2]) s) { s = SplitToSequence<keepdims = 1>(x) }"
    )
    s = Session(model).run({"x": np.arange(4, dtype=np.float32)})["s"]
    assert [float(v[0]) for v in s] == [0, 1, 2, 3]


def test_values_in_the_middle_and_the_model_untouched():
    model = Model.from_text(MLP)
    before = model.proto.SerializeToString(deterministic=True)
    generation = model.generation_key(Effects.STRUCTURE | Effects.WEIGHTS)
    x = np.array([[1, -1, 0, 2]], np.float32)
    found = Session(model, ["h", "r"]).run({"x": x})
    assert list(found) == ["h", "r"]
    np.testing.assert_array_equal(found["r"], np.maximum(found["h"], 0))
    assert model.proto.SerializeToString(deterministic=True) == before
    assert model.generation_key(Effects.STRUCTURE | Effects.WEIGHTS) == generation
    assert not model.changed


def test_activations_run_by_run_inputs_included(tmp_path):
    model = Model.from_text(MLP)
    np.savez(tmp_path / "d.npz", x=np.ones((37, 4), np.float32))
    data = load_data(str(tmp_path / "d.npz"), model)
    runs = list(activations(model, ["x", "h", "y"], data.batches(model)))
    assert [r["h"].shape for r in runs] == [(16, 3), (16, 3), (5, 3)]
    assert [list(r) for r in runs] == [["x", "h", "y"]] * 3
    only_fed = list(activations(model, ["x"], data.batches(model)))
    assert len(only_fed) == 3


@pytest.mark.parametrize("optimize", [True, False])
def test_a_large_model_goes_through_a_file(optimize, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [numpy_helper.from_array(w, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    want = Session(Model.from_proto(proto), optimize=optimize).run({"x": x})["y"]
    monkeypatch.setattr(session_module, "MAX_IN_MEMORY_BYTES", 100)
    model = Model.from_proto(proto)
    np.testing.assert_array_equal(Session(model, optimize=optimize).run({"x": x})["y"], want)
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    external = Model.load(tmp_path / "m.onnx")
    for outputs in (None, ["y"]):
        got = Session(external, outputs, optimize=optimize).run({"x": x})["y"]
        np.testing.assert_array_equal(got, want)


def test_replaced_weights_are_what_runs():
    model = Model.from_text(MLP)
    model.weights.replace("w0", np.zeros((4, 3), np.float32))
    assert not Session(model).run({"x": np.ones((1, 4), np.float32)})["y"].any()


def test_q_dq_is_computed_as_written():
    """ONNX Runtime's own integer kernels round differently; the reference must not use them."""
    rng = np.random.default_rng(3)
    w = rng.integers(-127, 128, (64, 16)).astype(np.int8)
    scalar = [np.float32(0.02), np.int8(0), np.float32(0.003)]
    inits = [numpy_helper.from_array(w, "w")]
    inits += [numpy_helper.from_array(np.asarray(v), n) for v, n in zip(scalar, "szt", strict=True)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "t", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 16])],
        inits,
    )
    opset = [helper.make_opsetid("", 17)]
    model = Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
    x = rng.standard_normal((8, 64)).astype(np.float32)
    xq = np.clip(np.rint(x / scalar[0]), -128, 127) * scalar[0]
    product = xq.astype(np.float32) @ (w.astype(np.float32) * scalar[2])
    want = np.clip(np.rint(product / scalar[0]), -128, 127) * scalar[0]
    for optimize in (True, False):
        got = Session(model, optimize=optimize).run({"x": x})["y"]
        assert np.mean(got != want) < 0.02  # ties of the float sum, and no more
        assert np.abs(got - want).max() <= scalar[0] * 1.001


def test_two_runs_are_bit_identical():
    model = Model.from_text(MLP)
    x = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
    one, two = (Session(model).run({"x": x})["y"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_a_local_function_runs():
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 17, "odd" : 1]>\n'
        "g (float[1] x) => (float[1] y) { y = odd.Thing(x) }\n"
        '<domain: "odd", opset_import: ["" : 17]> Thing (a) => (b) { b = Neg(a) }'
    )
    assert Session(model).run({"x": np.ones(1, np.float32)})["y"] == -1


def test_what_onnx_runtime_refuses_is_bad_input():
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]>\n'
        "g (double[N, 1, 4, 4] x) => (double[N, 1, 4, 4] y) { y = LRN<size = 3>(x) }"
    )
    with pytest.raises(InputError) as caught:
        Session(Model.from_proto(proto))
    assert caught.value.code == "O24-016"
    text = str(caught.value)
    assert "LRN" in text and "ONNXRuntimeError" not in text and len(text) < 600


def test_a_run_that_fails_is_bad_input():
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float[N] x, int64[M] s) => (float[A, B] y) { y = Reshape(x, s) }"
    )
    feeds = {"x": np.ones(3, np.float32), "s": np.array([2, 2])}
    with pytest.raises(InputError, match="O24-016"):
        Session(model).run(feeds)


def test_quantizers_of_an_opset_that_is_too_new_are_said_at_once():
    require_qdq(21)
    with pytest.raises(InputError, match="O24-055"):
        require_qdq(28)
