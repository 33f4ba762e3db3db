"""Files as other tools leave them: sparse tensors, new dtypes, links, names given twice."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx24.passes.canonicalize import Canonicalize

from onnx24 import targets
from onnx24.errors import InputError
from onnx24.ir.model import Model
from onnx24.ir.shapes import infer
from onnx24.ir.verify import verify
from onnx24.passmgr.manager import run
from onnx24.passmgr.pipeline import parse
from onnx24.runtime.session import Session

TARGET = targets.load(targets.DEFAULT)


def _graph(nodes, initializers, opset=21, ir=10, sparse=(), k=32):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, k])],
        initializers,
        sparse_initializer=list(sparse),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_tensors_with_large_indices_are_read(linear: bool, as_node: bool):
    w = np.arange(32 * 32, dtype=np.float32).reshape(32, 32)
    w[::2] = 0
    at = np.argwhere(w != 0)
    indices = np.ravel_multi_index(at.T, w.shape) if linear else at
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(w[w != 0], "w"),
        numpy_helper.from_array(indices.astype(np.int64), "w.indices"),
        [32, 32],
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    proto = _graph(nodes, [], sparse=() if as_node else [sparse])
    data = proto.SerializeToString(deterministic=True)
    model = Model.from_bytes(data)
    assert infer(model).shape("y") == (2, 32)
    assert verify(model) == []
    model.metadata["changed"] = "yes"
    x = np.ones((2, 32), np.float32)
    assert np.array_equal(Session(Model.from_bytes(model.to_bytes())).run({"x": x})["y"], x @ w)


@pytest.mark.parametrize(
    "dtype",
    [
        *("FLOAT6E2M3", "FLOAT6E3M2", "FLOAT4E2M1", "FLOAT8E8M0", "FLOAT8E4M3FNUZ"),
        *("FLOAT8E5M2FNUZ", "INT2", "UINT2", "INT4"),
    ],
)
@pytest.mark.parametrize("rows", [32, 131])
def test_narrow_types_are_read_and_kept(dtype: str, rows: int):
    """Odd sizes too: 131 x 31 values don't fill whole bytes. Bit patterns, since some have no 0."""
    data_type = getattr(TensorProto, dtype, None)
    if data_type is None:
        pytest.skip(f"onnx {onnx.__version__} has no {dtype}")
    bits = {"6E": 6, "4E": 4, "T2": 2, "T4": 4}.get(dtype.replace("FLOAT", "")[:2], 8)
    bits = 2 if dtype.endswith("INT2") else 4 if dtype == "INT4" else bits
    count = rows * 31
    raw = np.random.default_rng(rows).integers(0, 256, (count * bits + 7) // 8, dtype=np.uint8)
    if spare := len(raw) * 8 - count * bits:
        raw[-1] &= 0xFF >> spare
    tensor = TensorProto(name="w", data_type=data_type, dims=[rows, 31], raw_data=raw.tobytes())
    nodes = [
        helper.make_node("Identity", ["w"], ["kept"]),
        helper.make_node("MatMul", ["x", "eye"], ["y"]),
    ]
    eye = numpy_helper.from_array(np.eye(32, dtype=np.float32), "eye")
    proto = _graph(nodes, [tensor, eye], opset=28, ir=14)
    proto.graph.output.append(helper.make_tensor_value_info("kept", data_type, [rows, 31]))
    model = Model.from_proto(proto)
    assert bytes(model.weights.payload(model.weights.tensor("w"))) == raw.tobytes()
    values = model.weights["w"]
    assert values.shape == (rows, 31)
    same = TensorProto(data_type=data_type)
    model.weights.set_values(same, values)
    assert bytes(model.weights.payload(same)) == raw.tobytes()
    text = "canonicalize,prune24,matmul-to-conv1x1{when=always},cast16"
    run(model, parse(text), target=TARGET)
    again = Model.from_bytes(model.to_bytes())
    assert bytes(again.weights.payload(again.weights.tensor("w"))) == raw.tobytes()


def _external(folder, name="model.onnx"):
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = _graph(nodes, [numpy_helper.from_array(w, "w")])
    folder.mkdir(parents=True)
    onnx.save(
        proto,
        folder / name,
        save_as_external_data=True,
        location=f"{name}_data",
        size_threshold=0,
    )
    return w


def test_a_hugging_face_cache_is_read(tmp_path):
    w = _external(tmp_path / "made")
    snapshot = tmp_path / "models--org--net" / "snapshots" / "abc" / "onnx"
    blobs = tmp_path / "models--org--net" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(("model.onnx", "model.onnx_data")):
        (tmp_path / "made" / name).rename(blobs / f"{i:064x}")
        (snapshot / name).symlink_to(os.path.relpath(blobs / f"{i:064x}", snapshot))
    model = Model.load(snapshot / "model.onnx")
    assert np.array_equal(model.weights["w"], w)
    with pytest.raises(InputError) as refused:
        model.save(blobs / f"{1:064x}")
    assert refused.value.code == "O24-041"


def test_a_link_to_a_model_finds_the_data_beside_the_model(tmp_path):
    w = _external(tmp_path / "made")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "made" / "model.onnx")
    assert np.array_equal(Model.load(tmp_path / "link.onnx").weights["w"], w)


def test_a_data_link_out_of_both_folders_is_refused(tmp_path):
    _external(tmp_path / "made")
    (tmp_path / "made" / "model.onnx_data").rename(tmp_path / "elsewhere")
    (tmp_path / "made" / "model.onnx_data").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "model.onnx"
    link.symlink_to(tmp_path / "made" / "model.onnx")
    for path in (link, link.resolve()):
        with pytest.raises(InputError) as refused:
            Model.load(path)
        assert refused.value.code == "O24-006"


def test_nodes_of_one_name_are_told_apart_and_run_meanwhile():
    """ONNX Runtime 1.32: "two nodes with same node name" (its issues 8811 and 14142)."""
    w = numpy_helper.from_array(np.eye(32, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="n"),
        helper.make_node("Relu", ["a"], ["b"], name="n_2"),
        helper.make_node("MatMul", ["b", "w"], ["c"], name="n"),
        helper.make_node("MatMul", ["c", "w"], ["y"], name="n"),
    ]
    model = Model.from_proto(_graph(nodes, [w]))
    x = np.ones((2, 32), np.float32)
    before = Session(model).run({"x": x})["y"]
    result = run(model, [Canonicalize()], target=TARGET)
    assert [node.name for node in model.proto.graph.node] == ["n", "n_2", "n_3", "n_4"]
    assert "O24-346" in [d.code for d in result.diagnostics]
    assert np.array_equal(Session(Model.from_bytes(model.to_bytes())).run({"x": x})["y"], before)


def test_a_location_that_leads_back_into_the_folder_is_written_beside_the_output(tmp_path):
    """`../in/x` is inside for a model in `in`, and outside for one in any other folder."""
    w = _external(tmp_path / "in")
    proto = onnx.load(tmp_path / "in" / "model.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../in/model.onnx_data"
    (tmp_path / "in" / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "model.onnx_data").rename(tmp_path / "data")
    (tmp_path / "in" / "model.onnx_data").hardlink_to(tmp_path / "data")
    Model.load(tmp_path / "in" / "model.onnx").save(tmp_path / "out" / "o.onnx")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["o.onnx", "o.onnx.data"]
    (tmp_path / "in").rename(tmp_path / "gone")
    assert np.array_equal(Model.load(tmp_path / "out" / "o.onnx").weights["w"], w)


def test_a_model_saved_under_the_name_of_its_data_keeps_both(tmp_path):
    w = _external(tmp_path / "in")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.onnx_data"
    Model.load(tmp_path / "in" / "model.onnx").save(target)
    assert np.array_equal(Model.load(target).weights["w"], w)


def test_nothing_stays_of_a_model_that_cannot_be_written(tmp_path):
    _external(tmp_path / "in", "model.onnx")
    proto = onnx.load(tmp_path / "in" / "model.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "a/b/data"
    (tmp_path / "in" / "a" / "b").mkdir(parents=True)
    (tmp_path / "in" / "model.onnx_data").rename(tmp_path / "in" / "a" / "b" / "data")
    (tmp_path / "in" / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "out" / "o.onnx").mkdir(parents=True)
    with pytest.raises(InputError) as refused:
        Model.load(tmp_path / "in" / "model.onnx").save(tmp_path / "out" / "o.onnx")
    assert refused.value.code == "O24-040"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["o.onnx"]
