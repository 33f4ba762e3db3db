"""Giving a node a bias, or another one."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from onnx24.effects import Effects
from onnx24.ir.model import Model

__all__ = ["put_bias"]


def put_bias(model: Model, node: NodeProto, position: int, name: str, values: np.ndarray) -> None:
    """Make `values` the input `position` of a node of the main graph, as the initializer `name`.

    An initializer of that name gets the new values; otherwise it is made, and the node is
    connected to it.
    """
    if name in model.weights:
        model.weights.replace(name, values)
        return
    tensor = TensorProto(name=name)
    model.weights.set_values(tensor, values)
    model.proto.graph.initializer.append(tensor)
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name
    model.touch(Effects.STRUCTURE | Effects.WEIGHTS)
