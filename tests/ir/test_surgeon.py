import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from onnx24.effects import Effects
from onnx24.errors import InternalError
from onnx24.ir.fingerprint import Fingerprint
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model
from onnx24.ir.surgeon import fresh, insert_after, walk
from onnx24.ir.verify import verify
from onnx24.testing.generate import mlp


@pytest.fixture
def model() -> Model:
    return Model.from_proto(mlp([64, 32, 16]))


def test_large_weights_are_stubs_and_small_ones_are_values(model):
    with model.surgeon() as g:
        weight = g.nodes[0].inputs[1]
        assert tuple(weight.shape) == (64, 32) and weight.dtype == np.float32
        with pytest.raises(InternalError, match=r"model\.weights"):
            _ = weight.values
        bias = g.nodes[1].inputs[1]
        np.testing.assert_array_equal(bias.values, model.weights["fc0.bias"])


def test_weight_edits_through_the_view_are_refused(model):
    before = model.to_bytes()
    with pytest.raises(InternalError) as caught, model.surgeon() as g:
        g.nodes[1].inputs[1].values = np.zeros(32, np.float32)
    assert caught.value.code == "O24-903"
    assert model.to_bytes() == before


def test_an_exception_commits_nothing(model):
    before = model.to_bytes()
    with pytest.raises(RuntimeError), model.surgeon() as g:
        g.nodes[0].name = "other"
        raise RuntimeError
    assert not model.changed and model.to_bytes() == before


@pytest.mark.parametrize("which", ["inputs", "outputs"])
def test_changed_interface_is_refused(model, which):
    with pytest.raises(InternalError, match=which), model.surgeon() as g:
        getattr(g, which)[0].name = "renamed"
    assert not model.changed


def test_touched_node_keeps_what_the_view_does_not_show(model):
    proto = model.proto
    proto.graph.node[0].doc_string = "kept"
    proto.graph.node[0].metadata_props.add(key="k", value="v")
    proto.graph.node[2].doc_string = "also kept"
    with model.surgeon() as g:
        g.nodes[0].name = "first"
    node = model.proto.graph.node[0]
    assert (node.name, node.doc_string, node.metadata_props[0].value) == ("first", "kept", "v")
    assert model.proto.graph.node[2].doc_string == "also kept"
    assert not verify(model)


def test_new_node_and_constant(model):
    with model.surgeon() as g:
        relu = next(n for n in g.nodes if n.op == "Relu")
        scale = gs.Constant(fresh(g, "scale"), np.full(32, 2, np.float32))
        scaled = gs.Variable(fresh(g, "scaled"))
        consumer = relu.outputs[0].outputs[0]
        new = gs.Node("Mul", fresh(g, "scale_up"), {}, [relu.outputs[0], scale], [scaled])
        insert_after(g, relu, [new])
        consumer.inputs[0] = scaled
    assert not verify(model)
    assert [n.op_type for n in model.proto.graph.node] == [
        "MatMul", "Add", "Relu", "Mul", "MatMul", "Add",
    ]  # fmt: skip
    np.testing.assert_array_equal(model.weights["scale"], np.full(32, 2, np.float32))


def test_weight_whose_last_reader_goes_is_dropped_and_its_name_is_free(model):
    unused = onnx.numpy_helper.from_array(np.ones(3, np.float32), "never_read")
    model.proto.graph.initializer.append(unused)
    transposed = model.weights["fc0.weight"].T.copy()
    with model.surgeon() as g:
        matmul = g.nodes[0]
        new = gs.Constant("fc0.weight", transposed)
        matmul.op, matmul.attrs["transB"] = "Gemm", 1
        matmul.inputs[1] = new
    assert [t.name for t in model.proto.graph.initializer] == [
        "fc0.weight", "fc0.bias", "fc1.weight", "fc1.bias", "never_read",
    ]  # fmt: skip
    np.testing.assert_array_equal(model.weights["fc0.weight"], transposed)
    assert not verify(model)


def test_taken_name_is_refused(model):
    with pytest.raises(InternalError, match="taken"), model.surgeon() as g:
        g.nodes[0].inputs[1] = gs.Constant("fc1.weight", np.ones((64, 32), np.float32))


def test_unknown_domain_is_refused(model):
    with pytest.raises(InternalError, match="opset import"), model.surgeon() as g:
        g.nodes[0].domain = "com.example"


def test_list_attribute_edited_in_place_is_seen():
    model = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3,4] x) => (float[3,2,4] y) { y = Transpose <perm = [1,0,2]> (x) }"""
    )
    with model.surgeon() as g:
        g.nodes[0].attrs["perm"][:] = [1, 0, 2]
    assert not model.changed
    with model.surgeon() as g:
        g.nodes[0].attrs["perm"][0] = 0
        g.nodes[0].attrs["perm"][1] = 1
    assert list(model.proto.graph.node[0].attribute[0].ints) == [0, 1, 2]


def _if_model() -> Model:
    weight = onnx.numpy_helper.from_array(np.arange(64 * 8, dtype=np.float32).reshape(64, 8), "w")

    def branch(name: str, op: str) -> onnx.GraphProto:
        inner = onnx.numpy_helper.from_array(np.full(512, 3, np.float32), f"{name}_c")
        nodes = [
            helper.make_node("MatMul", ["x", "w"], [f"{name}_m"], f"{name}_mm"),
            helper.make_node(op, [f"{name}_m"], [f"{name}_y"], f"{name}_op"),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [out], [inner])

    node = helper.make_node(
        "If", ["c"], ["y"], "choice",
        then_branch=branch("then", "Relu"), else_branch=branch("else", "Neg"),
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 64]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 8])],
        [weight],
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def test_bodies_share_outer_tensors_and_are_edited_in_place():
    model = _if_model()
    with model.surgeon() as g:
        graphs = list(walk(g))
        assert [x.scope for x in graphs] == ["", "choice.else_branch", "choice.then_branch"]
        other, then = graphs[1:]
        assert then.nodes[0].inputs[1] is other.nodes[0].inputs[1]
        shared = gs.Constant(fresh(g, "shared"), np.ones((64, 8), np.float32))
        then.nodes[0].inputs[1] = shared
        other.nodes[0].inputs[1] = shared
        then.nodes[1].op = "Neg"
    assert not verify(model)
    assert model.weights.keys() == [
        ValueKey("", "shared"),
        ValueKey("choice.else_branch", "else_c"),
        ValueKey("choice.then_branch", "then_c"),
    ]
    ops = [n.op_type for a in model.proto.graph.node[0].attribute for n in a.g.node]
    assert sorted(ops) == ["MatMul", "MatMul", "Neg", "Neg"]


def test_constant_of_one_body_is_defined_there():
    model = _if_model()
    with model.surgeon() as g:
        then = list(walk(g))[2]
        then.nodes[0].inputs[1] = gs.Constant(fresh(g, "own"), np.ones((64, 8), np.float32))
    assert ValueKey("choice.then_branch", "own") in model.weights
    assert not verify(model)


def test_bodies_of_nodes_with_one_name_have_scopes_of_their_own():
    model = _if_model()
    copy = onnx.NodeProto()
    copy.CopyFrom(model.proto.graph.node[0])
    text = copy.SerializeToString().replace(b"then_", b"tjen_").replace(b"else_", b"emse_")
    copy = onnx.NodeProto.FromString(
        text.replace(b"tjen_branch", b"then_branch").replace(b"emse_branch", b"else_branch")
    )
    copy.output[0] = "z"
    model.proto.graph.node.append(copy)
    model.touch(Effects.STRUCTURE)
    paths = [scope.path for scope in model.scopes()]
    assert paths[1:] == [
        "choice.else_branch", "choice.then_branch",
        "choice.else_branch#2", "choice.then_branch#2",
    ]  # fmt: skip
    with model.surgeon() as g:
        assert [x.scope for x in walk(g)] == paths
    assert len(model.weights.keys()) == 5


def test_input_with_a_default_stays_an_input():
    proto = mlp([64, 16])
    proto.graph.input.append(helper.make_tensor_value_info("fc0.bias", TensorProto.FLOAT, [16]))
    model = Model.from_proto(proto)
    with model.surgeon() as g:
        assert isinstance(g.nodes[1].inputs[1], gs.Variable)
        g.nodes[0].name = "touched"
    assert not verify(model)
    assert [t.name for t in model.proto.graph.initializer] == ["fc0.weight", "fc0.bias"]


def test_value_info_follows_the_values(model):
    inferred = onnx.shape_inference.infer_shapes(model.full_proto())
    model = Model.from_proto(inferred)
    assert {v.name for v in model.proto.graph.value_info} == {"m0", "a0", "r0", "m1"}
    with model.surgeon() as g:
        relu = next(n for n in g.nodes if n.op == "Relu")
        consumer = relu.outputs[0].outputs[0]
        consumer.inputs[0] = relu.inputs[0]
        g.cleanup()
        g.nodes[0].outputs[0].dtype = np.dtype(np.float16)
    infos = {v.name: v.type.tensor_type.elem_type for v in model.proto.graph.value_info}
    assert infos == {"m0": TensorProto.FLOAT16, "a0": TensorProto.FLOAT, "m1": TensorProto.FLOAT}


def test_fingerprints_tell_structure_from_weights(model):
    first = Fingerprint.of(model)
    model.weights.replace("fc0.weight", model.weights["fc0.weight"].copy())
    assert first.changed(Fingerprint.of(model)) == Effects.NONE and not model.changed
    model.weights.replace("fc0.weight", np.zeros((64, 32), np.float32))
    assert first.changed(Fingerprint.of(model)) == Effects.WEIGHTS
    second = Fingerprint.of(model)
    with model.surgeon() as g:
        g.nodes[0].name = "other"
    assert second.changed(Fingerprint.of(model)) == Effects.STRUCTURE
