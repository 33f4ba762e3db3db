"""A node of a foreign domain is no ONNX operator, whatever its name: every pass and every preset
leaves it alone, or computes the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx24.passes import MANIFEST
from scaling_support import samples

from onnx24 import targets
from onnx24.ir.model import Model
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.session import Session

NAMES = {
    1: "Relu Clip Sigmoid Softmax Identity Transpose Reshape Flatten Squeeze Cast MaxPool",
    2: "MatMul Gemm Conv ConvTranspose Einsum Add Mul Concat QuantizeLinear DequantizeLinear",
    3: "Attention BatchNormalization LayerNormalization InstanceNormalization QLinearMatMul",
}
"""Count of inputs → operators that passes know"""

ARGUMENTS = {
    "matmul-to-conv1x1": "{when=always}",
    "upgrade-opset": "{to=17}",
}


def function(name: str, count: int):
    """Takes floats and integers of one shape and means none of ONNX's operators: the first input
    minus the others, and summed up along axis 0."""
    nodes = [
        helper.make_node("Cast", [f"i{i}"], [f"f{i}"], to=TensorProto.FLOAT) for i in range(count)
    ]
    axis = numpy_helper.from_array(np.int64(0), "")
    nodes.append(helper.make_node("Constant", [], ["axis"], value=axis))
    nodes.append(helper.make_node("CumSum", ["f0", "axis"], ["s0"]))
    for i in range(1, count):
        nodes.append(helper.make_node("Sub", [f"s{i - 1}", f"f{i}"], [f"s{i}"]))
    nodes.append(helper.make_node("Tanh", [f"s{count - 1}"], ["y"]))
    inputs = [f"i{i}" for i in range(count)]
    return helper.make_function("far", name, inputs, ["y"], nodes, [helper.make_opsetid("", 17)])


def foreign(shape: tuple[int, ...], product: str = "") -> Model:
    """Every name once on the activation and once on a weight, one behind the other; at the end an
    ONNX product, where wanted, of a weight that a foreign DequantizeLinear makes."""
    rng = np.random.default_rng(0)
    nodes, weights, functions, x = [], [], [], "x"
    for count, names in NAMES.items():
        for name in names.split():
            functions.append(function(name, count))
            others = [f"{name}.w{i}" for i in range(1, count)]
            for other in others:
                kind = np.int8 if name == "DequantizeLinear" else np.float32
                values = rng.integers(-9, 9, shape).astype(kind)
                weights.append(numpy_helper.from_array(values, other))
            weights.append(numpy_helper.from_array(rng.random(shape, np.float32), f"{name}.w"))
            call = {"domain": "far"}
            nodes.append(helper.make_node(name, [x, *others], [f"{name}.y"], **call))
            nodes.append(helper.make_node(name, [f"{name}.w", *others], [f"{name}.v"], **call))
            x = f"{name}.z"
            nodes.append(helper.make_node("Sub", [f"{name}.y", f"{name}.v"], [x]))
    if product:
        nodes.append(helper.make_node(product, [x, "DequantizeLinear.v"], ["product"]))
        x = "product"
    nodes.append(helper.make_node("Sub", [x, "x"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("far", 1)]
    return Model.from_proto(
        helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    )


def _output(model: Model) -> np.ndarray:
    shape = [d.dim_value for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return Session(model, None, optimize=False).run({"x": x})["y"]


def changed(model: Model, text: str, tmp_path) -> float:
    """The largest difference that a pipeline makes."""
    data = samples(model, tmp_path)
    before = _output(model)
    run(
        model,
        parse(text),
        target=targets.load("sm86-trt8"),
        calibration=data,
        reproducer_dir=None,
    )
    return float(np.abs(_output(model) - before).max())


PRESETS = [f"@{name}" for name in targets.presets()]
FP16 = 2e-2
"""Presets inline the functions, and some compute in FP16 then; values are up to 9."""


@pytest.mark.parametrize("name", [*MANIFEST, *PRESETS])
def test_foreign_nodes_are_left_alone(name: str, tmp_path) -> None:
    difference = changed(foreign((8, 8)), name + ARGUMENTS.get(name, ""), tmp_path)
    assert difference <= (FP16 if name in PRESETS else 0)


@pytest.mark.parametrize(("product", "shape"), [("MatMul", (8, 8)), ("Conv", (8, 8, 1, 1))])
@pytest.mark.parametrize("name", MANIFEST)
def test_a_weight_that_a_foreign_node_makes(
    name: str, product: str, shape: tuple[int, ...], tmp_path
) -> None:
    difference = changed(foreign(shape, product), name + ARGUMENTS.get(name, ""), tmp_path)
    assert difference <= (FP16 if name == "cast16" else 1e-6)
