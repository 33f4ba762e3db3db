"""Which operator a node is, what its attributes say, which constant stands behind a value."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, NodeProto, helper

from onnx24.ir import ops
from onnx24.ir.index import Index, NodeSite
from onnx24.ir.model import Model


def forms(node: NodeProto) -> list[ops.AnyNode]:
    """The node as the document, the index and a view have it."""
    attrs = {}
    for attr in node.attribute:
        value = attr if attr.ref_attr_name else helper.get_attribute_value(attr)
        attrs[attr.name] = value.decode() if isinstance(value, bytes) else value
    view = gs.Node(node.op_type, node.name, attrs, domain=node.domain or None)
    return [node, NodeSite("", 0, node), view]


@pytest.mark.parametrize(
    ("domain", "own", "found"),
    [("", "", "Relu"), ("ai.onnx", "", "Relu"), ("com.example", "com.example", "")],
)
def test_only_onnx_s_own_domain_has_onnx_s_operators(domain: str, own: str, found: str) -> None:
    for node in forms(helper.make_node("Relu", ["x"], ["y"], domain=domain)):
        assert ops.domain(node) == own
        assert ops.op(node) == found
        assert ops.type_of(node) == (own, "Relu")
        assert ops.is_onnx(node) is bool(found)
        assert ops.is_onnx(node, "Conv", "Relu") is bool(found)
        assert not ops.is_onnx(node, "Conv")


def test_attributes_say_the_same_in_every_form() -> None:
    proto = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ab,bc->ac", axis=3, pads=[1, 2])
    proto.attribute.append(AttributeProto(name="group", ref_attr_name="g", type=AttributeProto.INT))
    for node in forms(proto):
        assert ops.attribute(node, "equation") == "ab,bc->ac"
        assert ops.attribute(node, "axis", 1) == 3
        assert ops.attribute(node, "pads") == [1, 2]
        assert ops.attribute(node, "missing", 7) == 7
        assert ops.attribute(node, "group", 1) == 1
        assert ops.open_attribute(node) == "group"


CONSTANTS = """
<ir_version: 10, opset_import: ["" : 20, "far" : 1]>
g (float[2] x, float[2] weak) => (float[2] y)
<float[2] weak = {9, 9}, float[2] w = {1, 2}>
{
    c = Constant <value = float[2] {3, 4}> ()
    i = Constant <value_ints = [5, 6]> ()
    foreign = far.Constant <value_ints = [5, 6]> ()
    same = Identity (w)
    again = Identity (same)
    other = far.Identity (w)
    made = Add (w, c)
    y = Add (x, made)
}
"""


def test_the_constant_behind_a_value() -> None:
    model = Model.from_proto(onnx.parser.parse_model(CONSTANTS))
    index = Index.of(model.proto)

    def behind(value: str) -> list[float] | None:
        found = ops.constant_behind(model, index, value)
        return None if found is None else np.asarray(found).tolist()

    assert behind("w") == behind("same") == behind("again") == [1, 2]
    assert behind("c") == [3, 4]
    assert behind("i") == [5, 6]
    for value in ("x", "weak", "foreign", "other", "made", "unheard-of"):
        assert behind(value) is None, value


OVERLOADS = """
<ir_version: 10, opset_import: ["" : 20, "fn" : 1]>
g (float[4] x) => (float[4] y) { h = fn.F (x) y = fn.F:v2 (h) }
<domain: "fn", opset_import: ["" : 20]> F (a) => (b) { b = Relu (a) }
<domain: "fn", overload: "v2", opset_import: ["" : 20]> F (a) => (b) { b = Tanh (a) }
<domain: "com.microsoft", opset_import: ["" : 20]> Gelu (a) => (b) { b = Tanh (a) }
"""


def test_a_call_names_one_of_two_functions_that_differ_by_their_overload() -> None:
    model = Model.from_proto(onnx.parser.parse_model(OVERLOADS), check=False)
    functions = ops.functions(model.proto)
    called = [functions[ops.called(node)].node[0].op_type for node in model.proto.graph.node]
    assert called == ["Relu", "Tanh"] and len(functions) == 2
    paths = [scope.path for scope in model.scopes()]
    assert paths == ["", "function:fn:F", "function:fn:F:v2", "function:com.microsoft:Gelu"]
