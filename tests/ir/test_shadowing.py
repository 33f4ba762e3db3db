"""Initializers of branches that have the name of an outer value."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx24.errors import InputError
from onnx24.ir.keys import ValueKey
from onnx24.ir.model import Model

W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def _info(name: str, shape: list[int], kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def branches(name: str, values: np.ndarray) -> ModelProto:
    """Both branches of an If multiply by `w`; the first has an initializer `name`."""
    own = [numpy_helper.from_array(values, name)]
    then = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["t"])], "then", [], [_info("t", [1, 8])], own
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["e"])], "else", [], [_info("e", [1, 8])]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    inputs = [_info("x", [1, 8]), _info("c", [], TensorProto.BOOL)]
    weights = [numpy_helper.from_array(W, "w")]
    graph = helper.make_graph(nodes, "g", inputs, [_info("y", [1, 8])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_copy_of_an_outer_weight_is_that_weight() -> None:
    model = Model.from_proto(branches("w", W))
    assert list(model.weights) == [ValueKey("", "w")]


@pytest.mark.parametrize(
    ("name", "values"),
    [("w", W + 1), ("w", W[:4]), ("w", W.astype(np.float64)), ("h", W[:1]), ("x", W[:1])],
    ids=["other-values", "other-shape", "other-type", "a-node's", "an-input's"],
)
def test_another_value_of_an_outer_name_is_refused(name: str, values: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        Model.from_proto(branches(name, values))
    assert caught.value.code == "O24-050" and repr(name) in str(caught.value)


def test_a_name_of_its_own_stays() -> None:
    model = Model.from_proto(branches("v", W))
    assert set(model.weights) == {ValueKey("", "w"), ValueKey("if.then_branch", "v")}
