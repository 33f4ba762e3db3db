"""`diff`: what came, what went, what moved, and by how much values differ."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx24.ir.model import Model
from onnx24.report.diff import diff, render_diff

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4] x) => (float[N,2] y)
<float[4,2] w = {1,2,3,4,5,6,7,8}>
{
  h = MatMul(x, w)
  y = Relu(h)
}
"""


def edited(**changes: np.ndarray) -> Model:
    """The model of TEXT with other values."""
    proto = Model.from_text(TEXT).full_proto()
    for tensor in proto.graph.initializer:
        if tensor.name in changes:
            tensor.CopyFrom(numpy_helper.from_array(changes[tensor.name], tensor.name))
    return Model.from_proto(proto)


def test_a_model_equals_itself() -> None:
    found = diff(Model.from_text(TEXT), Model.from_text(TEXT))
    assert found.is_empty and found.to_json()["equal"] is True
    assert render_diff(found) == "the models are equal"


def test_values_are_measured() -> None:
    values = np.array([[1, 0], [3, 4], [5, 6], [0, 8]], np.float32)
    found = diff(Model.from_text(TEXT), edited(w=values))
    assert not found.nodes and not found.initializers
    (change,) = found.values
    assert (change.name, change.changed, change.elements) == ("w", 2, 8)
    assert change.max_abs == 7.0 and change.zeros == (0, 2)
    assert change.rel_l2 == pytest.approx(math.sqrt((2**2 + 7**2) / sum(i * i for i in range(9))))


def test_nan_counts_as_a_change() -> None:
    values = np.array([[1, 2], [3, 4], [5, 6], [7, np.nan]], np.float32)
    proto = edited(w=values).full_proto()
    (change,) = diff(Model.from_text(TEXT), Model.from_proto(proto, check=False)).values
    assert change.changed == 1 and math.isnan(change.max_abs or 0)
    assert diff(Model.from_text(TEXT), Model.from_proto(proto, check=False)).to_json()


def test_a_new_shape_is_structure_and_not_a_value() -> None:
    proto = Model.from_text(TEXT.replace("float[4,2] w", "float[2,4] w")).proto
    found = diff(Model.from_text(TEXT), Model.from_proto(proto, check=False))
    assert [str(c) for c in found.initializers] == ["~ w: f32[4,2] → f32[2,4]"]
    assert not found.values


def test_nodes_metadata_interface_and_header() -> None:
    other = Model.from_text(
        TEXT.replace("y = Relu(h)", "y = LeakyRelu<alpha=0.5>(h)\n  z = Neg(y)")
        .replace("=> (float[N,2] y)", "=> (float[N,2] y, float[N,2] z)")
        .replace('"" : 17', '"" : 18')
    )
    other.metadata["made-by"] = "a test"
    found = diff(Model.from_text(TEXT), other)
    assert [str(c) for c in found.nodes] == [
        "~ y: y = Relu(h) → y = LeakyRelu(h) {alpha=0.5}",
        "+ z: z = Neg(y)",
    ]
    assert [str(c) for c in found.interface] == ["+ output z: f32[N,2] at 1"]
    assert [str(c) for c in found.metadata] == ["+ made-by: a test"]
    assert [str(c) for c in found.header] == ["~ opset ai.onnx: 17 → 18"]
    text = render_diff(found)
    assert "nodes (2)" in text and "+ z: z = Neg(y)" in text
    assert [str(c) for c in diff(other, Model.from_text(TEXT)).interface] == [
        "- output z: f32[N,2] at 1"
    ]


def test_bodies_are_compared_by_their_nodes() -> None:
    def model(op: str) -> Model:
        body = helper.make_graph(
            [helper.make_node(op, ["x"], ["t"])],
            "then",
            [],
            [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2])],
        )
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], ["e"])],
            "else",
            [],
            [helper.make_tensor_value_info("e", TensorProto.FLOAT, [2])],
        )
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], "cond", then_branch=body, else_branch=other)],
            "g",
            [
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )
        return Model.from_proto(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        )

    (change,) = diff(model("Abs"), model("Sqrt")).nodes
    assert str(change) == "~ cond.then_branch::t: t = Abs(x) → t = Sqrt(x)"


def test_long_differences_are_cut_in_text_only() -> None:
    nodes = "\n".join(f"  v{i} = Neg(v{i - 1})" for i in range(1, 40)).replace("v0", "x", 1)
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] v39)
    {{
    {nodes}
    }}
    """
    found = diff(Model.from_text(text), Model.from_text(text.replace("Neg", "Abs")))
    assert "… and 19 more" in render_diff(found)
    assert len(found.to_json()["nodes"]) == 39


def test_strings_are_compared_by_count() -> None:
    def model(word: str) -> Model:
        tensor = helper.make_tensor("s", TensorProto.STRING, [2], [b"a", word.encode()])
        graph = helper.make_graph(
            [helper.make_node("Identity", ["s"], ["y"])],
            "g",
            [],
            [helper.make_tensor_value_info("y", TensorProto.STRING, [2])],
            [tensor],
        )
        opset = [onnx.helper.make_opsetid("", 17)]
        return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))

    (change,) = diff(model("b"), model("c")).values
    assert change.changed == 1 and change.max_abs is None


def test_a_renamed_node_is_not_one_that_came_and_one_that_went() -> None:
    other = Model.from_text(TEXT.replace("h = ", "hidden = ").replace("Relu(h)", "Relu(hidden)"))
    found = diff(Model.from_text(TEXT), other)
    assert [(c.name, c.kind) for c in found.nodes] == [
        ("h → hidden", "renamed"),
        ("y", "renamed"),
    ]
    assert str(found.nodes[1]) == "~ y (renamed): y = Relu(h) → y = Relu(hidden)"


def test_a_node_that_reads_something_else_is_rewired() -> None:
    text = TEXT.replace("float[4,2] w", "float[2,2] w2 = {1,0,0,1}, float[4,2] w")
    other = text.replace("y = Relu(h)", "k = MatMul(h, w2)\n  y = Relu(k)")
    found = diff(Model.from_text(text), Model.from_text(other))
    assert [(c.name, c.kind) for c in found.nodes] == [("y", "rewired"), ("k", "added")]
    assert found.to_json()["nodes"][0] == {
        "name": "y",
        "kind": "rewired",
        "before": "y = Relu(h)",
        "after": "y = Relu(k)",
    }


def test_the_mask_and_the_pattern() -> None:
    values = np.array([[0, 0], [0, 0], [5, 6], [7, 8]], np.float32)
    (change,) = diff(Model.from_text(TEXT), edited(w=values)).values
    assert (change.mask, change.is_24) == ((4, 0), (False, True))
    (back,) = diff(edited(w=values), Model.from_text(TEXT)).values
    assert (back.mask, back.is_24) == ((0, 4), (True, False))
    text = render_diff(diff(Model.from_text(TEXT), edited(w=values)))
    assert "+4 −0" in text and "no → yes" in text


def test_a_body_that_reads_an_outer_value_knows_it() -> None:
    """The fingerprint of a node in a body goes on into the graph around it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y)
    {
      a = Abs(x)
      y = If (c) <then_branch = t () => (float[2] u) { u = Neg(a) },
                  else_branch = e () => (float[2] v) { v = Exp(a) }>
    }
    """
    other = text.replace("a = Abs(x)", "b = Abs(x)").replace("(a)", "(b)")
    found = diff(Model.from_text(text), Model.from_text(other))
    assert {c.kind for c in found.nodes} == {"renamed"} and len(found.nodes) == 3
