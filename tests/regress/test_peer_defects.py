"""Defects of other tools that prune, quantize or rewrite ONNX models, each as a model on which
onnx24 must do right. The tools themselves are not run.

Polygraphy 0.53.6, onnxsim 0.8.1, ModelOpt 0.47.0, ONNX Runtime 1.32.0, Olive 0.13.0,
onnx-graphsurgeon 0.6.1, onnx-ir 1.1.0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from onnx24 import targets
from onnx24.cli.app import app
from onnx24.effects import Effects
from onnx24.errors import InputError, NotMetError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.passmgr import manager, pipeline
from onnx24.passmgr.manager import RunResult
from onnx24.runtime.data import Calibration, load_data

F32 = TensorProto.FLOAT
RNG = np.random.default_rng(24)
node = helper.make_node


def info(name: str, shape: Any = None, dtype: int = F32) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def document(
    nodes: list[NodeProto],
    inputs: dict[str, Any],
    outputs: list[str],
    weights: dict[str, np.ndarray],
    *,
    opset: int = 17,
    ir: int = 8,
    dtype: int = F32,
    **more: Any,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, shape, dtype) for name, shape in inputs.items()],
        [info(name, None, dtype) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, **more)


def compiled(
    proto: ModelProto, text: str = "prune24", calibration: Calibration | None = None
) -> tuple[Model, RunResult]:
    model = Model.from_proto(proto)
    result = manager.run(
        model,
        pipeline.parse(text),
        target=targets.load(targets.DEFAULT),
        calibration=calibration,
        reproducer_dir=None,
    )
    return model, result


def codes(result: RunResult, of: str = "prune24") -> dict[str, str]:
    return {r.weight: r.code for r in result.records if r.weight and r.pass_name == of}


def values(model: Model) -> dict[str, np.ndarray]:
    """Initializers and Constants of the written file, read by onnx itself."""
    proto = ModelProto.FromString(model.to_bytes())
    out = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for made in proto.graph.node:
        if made.op_type == "Constant":
            out[made.output[0]] = numpy_helper.to_array(made.attribute[0].t)
    return out


def two_of_four(array: np.ndarray, axis: int) -> bool:
    groups = np.moveaxis(np.asarray(array, np.float64), axis, -1).reshape(-1, 4)
    return bool(((groups != 0).sum(axis=1) == 2).all())


def keeps_largest(before: np.ndarray, after: np.ndarray, axis: int) -> bool:
    old = np.moveaxis(np.asarray(before, np.float64), axis, -1).reshape(-1, 4)
    new = np.moveaxis(np.asarray(after, np.float64), axis, -1).reshape(-1, 4)
    best = np.sort(np.abs(old), axis=1)[:, 2:]
    return np.array_equal(np.sort(np.abs(new), axis=1)[:, 2:], best) and two_of_four(after, axis)


def run(model: Model | ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    data = model.to_bytes() if isinstance(model, Model) else model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


# --- Polygraphy surgeon prune --------------------------------------------------------------------
def test_polygraphy_1_python_loops() -> None:
    """0.6 to 0.7 M weights a second; ours: benchmarks/prune24_speed.py. Here, that it is right."""
    weight = normal(512, 512)
    proto = document([node("MatMul", ["x", "w"], ["y"])], {"x": [1, 512]}, ["y"], {"w": weight})
    model, _ = compiled(proto)
    assert two_of_four(values(model)["w"], 0)


def bf16_model(weight: np.ndarray) -> ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["y"])]
    return document(nodes, {"x": [2, 8]}, ["y"], {"w": weight}, dtype=TensorProto.BFLOAT16)


def test_polygraphy_2_bf16_is_pruned_by_value() -> None:
    """It zeroed positions 1 and 2 of each four, whatever their values."""
    weight = np.tile(np.float32([1, 8, 9, 2]), 4).reshape(2, 8).T.astype(ml_dtypes.bfloat16)
    model, _ = compiled(bf16_model(weight))
    kept = values(model)["w"].astype(np.float32).T.reshape(-1, 4)
    np.testing.assert_array_equal(kept, [[0, 8, 9, 0]] * 4)
    dense = normal(8, 4, dtype=ml_dtypes.bfloat16)
    model, _ = compiled(bf16_model(dense))
    assert keeps_largest(dense, values(model)["w"], 0)


def test_polygraphy_2_bf16_is_checked_by_value() -> None:
    """Its check was wrong both ways."""
    sparse = normal(8, 4, dtype=ml_dtypes.bfloat16)
    sparse[[0, 3, 4, 5]] = 0
    compiled(bf16_model(sparse), "check24{require=eligible}")
    dense = normal(8, 4, dtype=ml_dtypes.bfloat16)
    dense[[1, 2]] = 0  # one group of two is 2:4, the other is not
    with pytest.raises(NotMetError, match="O24-610"):
        compiled(bf16_model(dense), "check24{require=eligible}")


@pytest.mark.parametrize(
    ("x", "w", "axis", "left"),
    [
        ([8, 3, 4], (8, 4, 6), 1, False),
        ([2, 8, 3, 4], (8, 4, 6), 1, False),
        ([8, 4, 6], (8, 12, 4), 2, True),
        ([3, 8], (8,), 0, False),
        ([8, 3], (8,), 0, True),
    ],
)
def test_polygraphy_3_axis_of_matmul(x: list[int], w: tuple[int, ...], axis: int, left: bool):
    """A 3-D weight was pruned along its batch axis; a 1-D operand raised an assertion."""
    weight = normal(*w)
    inputs = ["w", "x"] if left else ["x", "w"]
    model, result = compiled(
        document([node("MatMul", inputs, ["y"])], {"x": x}, ["y"], {"w": weight})
    )
    assert codes(result) == {"w": "O24-100"}
    assert keeps_largest(weight, values(model)["w"], axis)


def test_polygraphy_4_transpose_of_three_axes() -> None:
    """It followed the inverse permutation, which for a cycle of three is another one."""
    weight = normal(8, 4, 12)  # seen as [4, 12, 8]: K is the axis of 12
    nodes = [
        node("Transpose", ["w"], ["t"], perm=[1, 2, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    model, _ = compiled(document(nodes, {"x": [4, 3, 12]}, ["y"], {"w": weight}))
    assert keeps_largest(weight, values(model)["w"], 2)


def test_polygraphy_4_transpose_without_perm() -> None:
    weight = normal(6, 8)
    nodes = [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])]
    model, _ = compiled(document(nodes, {"x": [3, 8]}, ["y"], {"w": weight}))
    assert keeps_largest(weight, values(model)["w"], 1)


def decorated() -> ModelProto:
    """Everything about a model that is not its graph's nodes."""
    square = helper.make_function(
        "local",
        "Square",
        ["a"],
        ["b"],
        [node("Mul", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="product", doc_string="the product"),
        node("Square", ["h"], ["y"], domain="local"),
    ]
    proto = document(nodes, {"x": [3, 8]}, ["y"], {"w": normal(8, 8), "unread": normal(3)})
    proto.functions.append(square)
    for domain, version in (("local", 1), ("ai.onnx.ml", 3)):
        proto.opset_import.append(helper.make_opsetid(domain, version))
    proto.doc_string, proto.domain, proto.model_version = "about", "org.example", 7
    proto.producer_name, proto.producer_version = "exporter", "1.2"
    helper.set_model_props(proto, {"author": "somebody", "stage": "final"})
    proto.graph.doc_string = "the graph"
    entry = proto.graph.node[0].metadata_props.add()
    entry.key, entry.value = "origin", "layer 3"
    note = proto.graph.quantization_annotation.add()
    note.tensor_name = "h"
    return proto


def test_polygraphy_5_imports_functions_and_metadata_stay() -> None:
    before = decorated()
    after = ModelProto.FromString(compiled(before)[0].to_bytes())
    assert [*after.opset_import] == [*before.opset_import]
    assert [*after.functions] == [*before.functions]
    props = {entry.key: entry.value for entry in after.metadata_props}
    assert {key for key in props if not key.startswith("onnx24.")} == {"author", "stage"}
    assert (props["author"], props["stage"]) == ("somebody", "final")
    for name in ("doc_string", "domain", "model_version", "producer_name", "producer_version"):
        assert getattr(after, name) == getattr(before, name)
    assert after.graph.doc_string == "the graph"
    assert [*after.graph.node] == [*before.graph.node]


AXES = [
    node("MatMul", ["x", "w"], ["a"], name="first"),
    node("Gemm", ["a", "w"], ["y"], name="second", transB=1),
]


def test_polygraphy_6_a_shared_weight_on_two_axes() -> None:
    """It ended 2:4 on the last reader's axis only."""
    weight = normal(8, 8)
    proto = document(AXES, {"x": [3, 8]}, ["y"], {"w": weight})
    model, result = compiled(proto)
    assert codes(result) == {"w": "O24-115"}
    np.testing.assert_array_equal(values(model)["w"], weight)
    model, _ = compiled(proto, "prune24{conflicting=split}")
    assert keeps_largest(weight, values(model)["w"], 0)
    assert keeps_largest(weight, values(model)["w.24.1"], 1)


def tied(weight: np.ndarray) -> ModelProto:
    nodes = [
        node("Gather", ["w", "ids"], ["e"]),
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["e", "t"], ["y"]),
    ]
    proto = document(nodes, {}, ["y", "e"], {"w": weight})
    proto.graph.input.append(info("ids", [3], TensorProto.INT64))
    return proto


def test_polygraphy_7_a_tied_embedding_keeps_its_rows() -> None:
    weight, ids = normal(16, 8), np.array([0, 7, 15])
    model, result = compiled(tied(weight))
    assert codes(result) == {"w": "O24-116"}
    np.testing.assert_array_equal(values(model)["w"], weight)
    model, _ = compiled(tied(weight), "prune24{tied=split}")
    np.testing.assert_array_equal(run(model, {"ids": ids})[1], weight[ids])
    assert keeps_largest(weight, values(model)["w.24.1"], 1)


def test_polygraphy_8_constant_nodes_and_identity() -> None:
    weight = normal(8, 4)
    nodes = [
        node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        node("Identity", ["w"], ["i"]),
        node("MatMul", ["x", "i"], ["y"]),
    ]
    model, _ = compiled(document(nodes, {"x": [3, 8]}, ["y"], {}))
    assert keeps_largest(weight, values(model)["w"], 0)


def test_polygraphy_8_bodies() -> None:
    own, outer = normal(8, 8), normal(8, 8)
    then = helper.make_graph(
        [node("MatMul", ["x", "own"], ["a"])],
        "then",
        [],
        [info("a")],
        [numpy_helper.from_array(own, "own")],
    )
    other = helper.make_graph([node("MatMul", ["x", "w"], ["b"])], "else", [], [info("b")])
    nodes = [node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)]
    proto = document(nodes, {"x": [3, 8]}, ["y"], {"w": outer})
    proto.graph.input.append(info("c", [], TensorProto.BOOL))
    model, _ = compiled(proto)
    assert keeps_largest(outer, model.weights["w"], 0)
    assert keeps_largest(own, model.weights[ValueKey("if.then_branch", "own")], 0)


def test_polygraphy_8_transposed_convolutions_have_a_reason() -> None:
    nodes = [node("ConvTranspose", ["x", "w"], ["y"])]
    model, result = compiled(document(nodes, {"x": [1, 8, 5, 5]}, ["y"], {"w": normal(8, 4, 3, 3)}))
    assert codes(result) == {"w": "O24-122"} and not model.changed


def int8_layer(**more: Any) -> tuple[ModelProto, np.ndarray]:
    weight = RNG.integers(-127, 128, (8, 4)).astype(np.int8)
    nodes = [
        node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=1),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    scale = np.linspace(0.01, 0.1, 4, dtype=np.float32)
    weights = {"w": weight, "scale": scale, "zero": np.zeros(4, np.int8)}
    return document(nodes, {"x": [3, 8]}, ["y"], weights, **more), weight


def test_polygraphy_8_int8_behind_dequantize() -> None:
    proto, weight = int8_layer()
    model, result = compiled(proto)
    assert codes(result) == {"w": "O24-100"}
    after = values(model)["w"]
    assert after.dtype == np.int8 and np.array_equal(after[after != 0], weight[after != 0])
    assert ((after.T.reshape(-1, 4) != 0).sum(axis=1) <= 2).all()


@pytest.mark.parametrize(("groups", "code"), [(2, "O24-111"), (8, "O24-112")])
def test_polygraphy_9_group_convolutions_stay_dense(groups: int, code: str) -> None:
    weight = normal(16, 8 // groups if groups == 2 else 1, 3, 3)
    nodes = [node("Conv", ["x", "w"], ["y"], group=groups)]
    model, result = compiled(document(nodes, {"x": [1, 8, 5, 5]}, ["y"], {"w": weight}))
    assert codes(result) == {"w": code} and not model.changed


def test_polygraphy_inspect_sparsity_has_an_exit_code(tmp_path: Path) -> None:
    """`inspect sparsity` exits 0 on a dense model."""
    proto = document(
        [node("MatMul", ["x", "w"], ["y"])], {"x": [3, 64]}, ["y"], {"w": normal(64, 64)}
    )
    onnx.save(proto, tmp_path / "dense.onnx")
    compiled(proto)[0].save(tmp_path / "sparse.onnx")
    assert CliRunner().invoke(app, ["check", str(tmp_path / "dense.onnx")]).exit_code == 1
    assert CliRunner().invoke(app, ["check", str(tmp_path / "sparse.onnx")]).exit_code == 0


# --- onnxsim -------------------------------------------------------------------------------------
def test_onnxsim_convolutions_are_grouped_along_input_channels() -> None:
    """It grouped the flattened C·R·S, which TensorRT does not recognize."""
    weight = normal(8, 8, 3, 3)
    nodes = [node("Conv", ["x", "w"], ["y"])]
    model, _ = compiled(document(nodes, {"x": [1, 8, 5, 5]}, ["y"], {"w": weight}))
    assert keeps_largest(weight, values(model)["w"], 1)


def test_onnxsim_no_renamed_weights_and_no_dead_originals() -> None:
    weights = {"stem.weight": normal(8, 8), "head.weight": normal(8, 4)}
    nodes = [
        node("MatMul", ["x", "stem.weight"], ["h"]),
        node("MatMul", ["h", "head.weight"], ["y"]),
    ]
    before = document(nodes, {"x": [3, 8]}, ["y"], weights)
    model, _ = compiled(before)
    after = ModelProto.FromString(model.to_bytes())
    assert [t.name for t in after.graph.initializer] == list(weights)
    assert [*after.graph.node] == [*before.graph.node]
    growth = after.ByteSize() - before.ByteSize()
    assert growth < 150  # the record of 2:4


def test_onnxsim_what_cannot_be_sparse_stays_dense() -> None:
    """K = 6, depthwise kernels and stems of three channels were pruned."""
    weights = {"stem": normal(8, 3, 3, 3), "deep": normal(8, 1, 3, 3), "six": normal(6, 4)}
    nodes = [
        node("Conv", ["x", "stem"], ["a"]),
        node("Conv", ["a", "deep"], ["y"], group=8),
        node("MatMul", ["v", "six"], ["z"]),
    ]
    inputs = {"x": [1, 3, 9, 9], "v": [2, 6]}
    model, result = compiled(document(nodes, inputs, ["y", "z"], weights))
    assert codes(result) == {"stem": "O24-113", "deep": "O24-112", "six": "O24-113"}
    assert not model.changed


def test_onnxsim_weights_behind_quantizers_and_transposes() -> None:
    weight = normal(6, 8)
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Transpose", ["d"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    weights = {"w": weight, "s": np.float32(0.02), "z": np.int8(0)}
    model, _ = compiled(document(nodes, {"x": [3, 8]}, ["y"], weights))
    assert keeps_largest(weight, values(model)["w"], 1)


# --- ModelOpt ------------------------------------------------------------------------------------
def mlp(k: int = 64) -> ModelProto:
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="up"),
        node("MatMul", ["h", "v"], ["y"], name="down"),
    ]
    return document(nodes, {"x": ["N", k]}, ["y"], {"w": normal(k, 64), "v": normal(64, 32)})


def test_modelopt_no_random_calibration() -> None:
    """It calibrates on one random sample when given none."""
    with pytest.raises(InputError, match="O24-035"):
        compiled(mlp(), "qdq")


def test_modelopt_a_checker_failure_is_an_error() -> None:
    proto = mlp()
    proto.graph.node[0].input.append("v")  # MatMul has two
    with pytest.raises(InputError, match="O24-015"):
        Model.from_proto(proto)


def test_modelopt_nothing_is_cast_unasked(tmp_path: Path) -> None:
    """It converts to FP16 by default."""
    np.savez(tmp_path / "x.npz", x=normal(32, 64))
    proto = mlp()
    calibration = load_data(str(tmp_path), Model.from_proto(proto))
    model, _ = compiled(proto, "prune24,qdq", calibration)
    after = ModelProto.FromString(model.to_bytes())
    types = {t.data_type for t in after.graph.initializer}
    assert TensorProto.FLOAT16 not in types
    assert not any(n.op_type == "Cast" for n in after.graph.node)


def test_modelopt_a_model_with_quantizers_is_still_worked_on(tmp_path: Path) -> None:
    """A model that has Q/DQ already came back untouched: here the layer without is quantized."""
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("MatMul", ["xd", "d"], ["h"], name="done"),
        node("MatMul", ["h", "v"], ["y"], name="open"),
    ]
    weights = {
        "w": RNG.integers(-99, 99, (64, 64)).astype(np.int8),
        "s": np.float32(0.02),
        "z": np.int8(0),
        "v": normal(64, 32),
    }
    proto = document(nodes, {"x": ["N", 64]}, ["y"], weights)
    np.savez(tmp_path / "x.npz", x=normal(32, 64))
    calibration = load_data(str(tmp_path), Model.from_proto(proto))
    model, result = compiled(proto, "prune24,qdq", calibration)
    assert codes(result)["w"] == "O24-100"
    (product,) = (n for n in model.proto.graph.node if n.name == "open")
    producers = {n.output[0]: n.op_type for n in model.proto.graph.node}
    assert [producers[name] for name in product.input] == ["DequantizeLinear"] * 2


# --- ONNX Runtime quantize_static ----------------------------------------------------------------
def test_onnxruntime_quantizers_that_tensorrt_rejects(tmp_path: Path) -> None:
    """Zero points are 0, weights have a scale a channel, biases stay float."""
    proto = mlp()
    proto.graph.node.append(node("Add", ["y", "bias"], ["z"]))
    proto.graph.initializer.append(numpy_helper.from_array(normal(32), "bias"))
    proto.graph.output[0].name = "z"
    np.savez(tmp_path / "x.npz", x=np.abs(normal(32, 64)))  # a one-sided range tempts to shift
    calibration = load_data(str(tmp_path), Model.from_proto(proto))
    model, _ = compiled(proto, "qdq,fold-qdq", calibration)
    tensors = values(model)
    weights = {"w": 64, "v": 32}
    seen = set()
    for made in model.proto.graph.node:
        if made.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        assert made.input[2] and not tensors[made.input[2]].any()
        source = tensors.get(made.input[0])
        assert source is None or source.dtype == np.int8
        for name, channels in weights.items():
            if source is not None and source.shape == (64, channels):
                assert tensors[made.input[1]].shape == (channels,)
                seen.add(name)
    assert seen == set(weights) and tensors["bias"].dtype == np.float32


# --- Olive MatMul → Conv -------------------------------------------------------------------------
def test_olive_two_dimensional_input() -> None:
    proto = document(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 8]}, ["y"], {"w": normal(8, 6)}
    )
    feeds = {"x": normal(5, 8)}
    model, _ = compiled(proto, "matmul-to-conv1x1{when=always}")
    assert any(n.op_type == "Conv" for n in model.proto.graph.node)
    np.testing.assert_allclose(run(model, feeds)[0], run(proto, feeds)[0], rtol=1e-5, atol=1e-6)


def test_olive_two_activations_are_no_convolution() -> None:
    proto = document([node("MatMul", ["a", "b"], ["y"])], {"a": [3, 8], "b": [8, 6]}, ["y"], {})
    model, _ = compiled(proto, "matmul-to-conv1x1{when=always}")
    assert [n.op_type for n in model.proto.graph.node] == ["MatMul"]


@pytest.mark.parametrize("attributes", [{"alpha": 0.5, "beta": 2.0}, {"transA": 1}, {"transB": 1}])
def test_olive_attributes_of_gemm(attributes: dict[str, Any]) -> None:
    shape = [8, 8]
    nodes = [node("Gemm", ["x", "w", "b"], ["y"], **attributes)]
    proto = document(nodes, {"x": shape}, ["y"], {"w": normal(8, 8), "b": normal(8)})
    feeds = {"x": normal(8, 8)}
    model, _ = compiled(proto, "matmul-to-conv1x1{when=always}")
    np.testing.assert_allclose(run(model, feeds)[0], run(proto, feeds)[0], rtol=1e-5, atol=1e-5)


# --- onnx-graphsurgeon import → export -----------------------------------------------------------
SURGERY = "canonicalize,matmul-to-conv1x1{when=always}"
KEPT = f"prune24,{SURGERY}".replace("canonicalize", "canonicalize{constant-inputs=false}")


def test_graphsurgeon_metadata_and_unreferenced_initializers() -> None:
    before = decorated()
    before.training_info.add().algorithm.CopyFrom(helper.make_graph([], "algorithm", [], []))
    after = ModelProto.FromString(compiled(before, "matmul-to-conv1x1{when=always}")[0].to_bytes())
    assert any(n.op_type == "Conv" for n in after.graph.node)
    for name in ("doc_string", "domain", "model_version"):
        assert getattr(after, name) == getattr(before, name)
    assert {e.key for e in after.metadata_props} >= {"author", "stage"}
    assert [*after.training_info] == [*before.training_info]
    assert [*after.functions] == [*before.functions]
    assert [*after.graph.quantization_annotation] == [*before.graph.quantization_annotation]
    assert "unread" in {t.name for t in after.graph.initializer}


def test_graphsurgeon_empty_list_attributes_and_optional_types() -> None:
    """Both raised."""
    empty = node("ReduceSum", ["h", ""], ["r"], keepdims=1)
    listed = node("Constant", [], ["axes"], value_ints=[0])
    listed.attribute[0].ClearField("ints")
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        listed,
        empty,
        node("Optional", ["r"], ["o"]),
        node("OptionalGetElement", ["o"], ["y"]),
    ]
    proto = document(nodes, {"x": [3, 8]}, ["y"], {"w": normal(8, 8)})
    feeds = {"x": normal(3, 8)}
    model, _ = compiled(proto, f"prune24,{SURGERY}")
    assert any(n.op_type == "Conv" for n in model.proto.graph.node)
    assert np.isfinite(run(model, feeds)[0]).all()


def test_graphsurgeon_an_initializer_that_is_an_input_stays_both() -> None:
    proto = document(
        [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])],
        {"x": [3, 8], "w": [8, 8]},
        ["y"],
        {"w": normal(8, 8), "v": normal(8, 8)},
    )
    model, result = compiled(proto, KEPT)
    after = ModelProto.FromString(model.to_bytes())
    assert [value.name for value in after.graph.input] == ["x", "w"]
    assert "w" in {t.name for t in after.graph.initializer}
    assert codes(result)["w"] in ("O24-126", "O24-311", "O24-312")
    np.testing.assert_array_equal(
        model.weights["w"], numpy_helper.to_array(proto.graph.initializer[0])
    )


def test_graphsurgeon_outer_weights_are_not_copied_into_bodies() -> None:
    branches = [
        helper.make_graph([node("MatMul", ["x", "w"], [name])], name, [], [info(name)])
        for name in "ab"
    ]
    nodes = [
        node("If", ["c"], ["h"], then_branch=branches[0], else_branch=branches[1]),
        node("Identity", ["h"], ["i"]),
        node("MatMul", ["i", "w"], ["y"]),
    ]
    proto = document(nodes, {"x": [3, 8]}, ["y"], {"w": normal(8, 8)})
    proto.graph.input.append(info("c", [], TensorProto.BOOL))
    model, _ = compiled(proto, "prune24,canonicalize")
    after = ModelProto.FromString(model.to_bytes())
    assert [t.name for t in after.graph.initializer] == ["w"]
    bodies = [attr.g for n in after.graph.node for attr in n.attribute if attr.HasField("g")]
    assert len(bodies) == 2 and not any(body.initializer for body in bodies)


def test_graphsurgeon_fp8_keeps_its_type() -> None:
    """float8_e4m3fnuz came back as another type."""
    weight = normal(8, 8).astype(ml_dtypes.float8_e4m3fnuz)
    nodes = [
        node("Cast", ["w"], ["f"], to=F32),
        node("MatMul", ["x", "f"], ["h"]),
        node("Identity", ["h"], ["i"]),
        node("MatMul", ["i", "v"], ["y"]),
    ]
    weights = {"w": weight, "v": normal(8, 8)}
    proto = document(nodes, {"x": [3, 8]}, ["y"], weights, opset=19, ir=9)
    model, _ = compiled(proto, f"prune24{{permute=off}},{SURGERY}")
    after = {t.name: t for t in ModelProto.FromString(model.to_bytes()).graph.initializer}
    assert after["w"].data_type == TensorProto.FLOAT8E4M3FNUZ
    assert numpy_helper.to_array(after["w"]).tobytes() == weight.tobytes()


# --- onnx-ir -------------------------------------------------------------------------------------
def test_onnx_ir_a_change_is_reported_as_one() -> None:
    """`RemoveUnusedNodesPass` said `modified=False` after it had removed an output."""
    nodes = [
        node("MatMul", ["x", "w"], ["y"]),
        node("Relu", ["x"], ["nobody"]),
        node("Split", ["y"], ["left", ""], axis=1),
    ]
    proto = document(nodes, {"x": [3, 8]}, ["y"], {"w": normal(8, 8)})
    model, result = compiled(proto, "canonicalize")
    assert Effects.STRUCTURE in result.changed and model.changed
    assert len(model.proto.graph.node) == 1
    again = compiled(ModelProto.FromString(model.to_bytes()), "canonicalize")
    assert again[1].changed == Effects.NONE and not again[0].changed


def test_the_list_of_defects_has_its_reports(tmp_path: Path) -> None:
    """`inspect --json` names each of the refusals above, for a model with all of them."""
    weights = {"shared": normal(8, 8), "stem": normal(8, 3, 3, 3), "deep": normal(8, 1, 3, 3)}
    nodes = [
        node("MatMul", ["x", "shared"], ["a"]),
        node("Gemm", ["a", "shared"], ["y"], transB=1),
        node("Conv", ["image", "stem"], ["b"]),
        node("Conv", ["b", "deep"], ["z"], group=8),
    ]
    inputs = {"x": [3, 8], "image": [1, 3, 9, 9]}
    onnx.save(document(nodes, inputs, ["y", "z"], weights), tmp_path / "m.onnx")
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "m.onnx"), "--json"])
    rows = {row["name"]: row["code"] for row in json.loads(found.stdout)["weights"]}
    assert rows == {"shared": "O24-115", "stem": "O24-113", "deep": "O24-112"}
